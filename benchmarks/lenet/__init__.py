"""Trains LeNet-5 on MNIST without batch norm, with nn.BatchNorm2d and with fused_bn, and compares them."""
