"""Smaller models out of larger ones, as transformers models of the same class: what counts, what stays, the cut, the refit."""
