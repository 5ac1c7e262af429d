"""Measurements of fused_bn against PyTorch's own batch normalisation."""
