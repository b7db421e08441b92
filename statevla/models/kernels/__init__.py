"""Selective-scan kernels behind `statevla.models.mamba`: plain reference, PyTorch loop, native CPU, Triton."""
