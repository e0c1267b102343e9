"""Kernels that PyTorch can be told to use, and which of them is the fastest here."""
