"""Batch normalisation with its activation, computed in one pass, as drop-in PyTorch modules."""

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    # By this name `python -m fused_bn` knows that the package itself is at fault, and prints one sentence.
    raise ImportError(
        f"fused_bn needs PyTorch, which this Python cannot import ({_error}): `pip install torch`, or use "
        "the Python that has it",
        name="fused_bn",
    ) from _error

from fused_bn import _patches, _quantization, functional
from fused_bn._tracing import fused_in_export
from fused_bn._version import __version__
from fused_bn.fusion.model import fuse, unfuse
from fused_bn.fusion.report import FusionReport
from fused_bn.modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
    SyncBatchNorm,
)
from fused_bn.sync.convert import convert_sync_batchnorm, revert_sync_batchnorm

_patches.install()
_quantization.install()

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "FusionReport",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "SyncBatchNorm",
    "__version__",
    "convert_sync_batchnorm",
    "functional",
    "fuse",
    "fused_in_export",
    "revert_sync_batchnorm",
    "unfuse",
]
