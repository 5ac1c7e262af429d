"""Measures and tests the kernels on one GPU, in three calls of two minutes: see driver.py."""
