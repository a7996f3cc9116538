"""Triton kernels, one op per file: reference, kernel, launcher, registered op."""
