"""Batch norm with the statistics of several processes.

convert           makes the norms of a model synchronised, and back; lies above fused_bn.modules
exchange          the collectives, and the autograd around them; lies below fused_bn.modules
pieces            what a process computes between the collectives, by the kernels
fallback_pieces   the same in plain PyTorch calls
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fused_bn.sync.convert import convert_sync_batchnorm, revert_sync_batchnorm

__all__ = ["convert_sync_batchnorm", "revert_sync_batchnorm"]


def __getattr__(name: str) -> Any:
    """Imports `convert` on first use: fused_bn.modules, which it needs, needs this package first."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fused_bn.sync import convert

    return getattr(convert, name)
