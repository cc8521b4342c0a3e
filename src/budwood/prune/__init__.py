"""Smaller models of the same class out of larger ones: what counts, what stays, the cut, the refit."""
