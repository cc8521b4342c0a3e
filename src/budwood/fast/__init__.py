"""The same mathematics, less work: packed rows, kernels, caches; always with the plain path beside it."""
