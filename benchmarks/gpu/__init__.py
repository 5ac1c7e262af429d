"""What is to be known of the kernels on one GPU, in three calls of two minutes: see driver.py."""
