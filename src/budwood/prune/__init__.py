"""Smaller models out of larger ones, of the same class: what counts, what stays, the cut, the refit."""
