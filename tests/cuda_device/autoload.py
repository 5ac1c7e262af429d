"""Imported by torch when it is imported: the entry point that environment.py enters in torch.backends."""

import os


def load() -> None:
    """Registers the emulated device's ATen operators, in a process that runs on it."""
    import torch

    torch.ops.load_library(os.environ["CUDA_DEVICE_ATEN"])
    torch.backends.cudnn.enabled = False
