"""Speed and memory of fused_bn, eager PyTorch and torch.compile, layer by layer."""
