"""A training step of ResNet-50 before and after `fused_bn.fuse`."""
