"""Runs the CUDA kernels' own source on the CPU."""
