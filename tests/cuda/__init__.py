"""What nvcc makes of the CUDA kernels, read without a GPU."""
