"""Speed and memory of fused_bn beside eager PyTorch and torch.compile, layer by layer."""
