"""Errors of fused_bn, eager PyTorch and torch.compile against float64, on numerically hard data."""
