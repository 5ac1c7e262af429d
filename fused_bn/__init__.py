"""Batch normalisation with its activation, computed in one pass, as drop-in PyTorch modules."""

from fused_bn import functional
from fused_bn._plan import LaunchPlan, plan
from fused_bn._version import __version__
from fused_bn.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LaunchPlan", "__version__", "functional", "plan"]
