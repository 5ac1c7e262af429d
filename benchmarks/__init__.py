"""Workloads and measurements of fused_bn beside PyTorch's own batch normalisation."""
