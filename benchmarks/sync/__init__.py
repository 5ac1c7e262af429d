"""A training step of ResNet-50 on several processes with synchronised norms: measured, and modelled."""
