"""Errors against float64 of fused_bn, eager PyTorch and torch.compile, on data that costs digits."""
