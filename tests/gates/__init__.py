"""Checks the code that nvcc generates for the CUDA kernels, without a GPU."""
