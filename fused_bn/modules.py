"""Modules that drop in for `nn.BatchNorm*`: same constructor, state_dict and errors, and more options."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from fused_bn._activations import ActivationLike, Param
from fused_bn._norm import FusedBatchNorm, FusedLazyBatchNorm, Initialiser, SizedBatchNorm


class BatchNorm1d(SizedBatchNorm, nn.BatchNorm1d):
    __doc__ = f"""`nn.BatchNorm1d` over (N, C) or (N, C, L) input.

    {FusedBatchNorm.__doc__}"""


class BatchNorm2d(SizedBatchNorm, nn.BatchNorm2d):
    __doc__ = f"""`nn.BatchNorm2d` over (N, C, H, W) input.

    {FusedBatchNorm.__doc__}"""


class BatchNorm3d(SizedBatchNorm, nn.BatchNorm3d):
    __doc__ = f"""`nn.BatchNorm3d` over (N, C, D, H, W) input.

    {FusedBatchNorm.__doc__}"""


class SyncBatchNorm(FusedBatchNorm):
    """`nn.SyncBatchNorm` over (N, C, *) input, on any device and backend of torch.distributed.

    In training the statistics are computed over the batches of all processes of the group. The batches may
    differ in size and in spatial sizes, and may be empty. Forward makes one collective call, and backward
    makes one; neither waits for the device. All processes get the same statistics, with the same bits. In
    evaluation, in a group of one process, and where torch.distributed is not initialised, this is plain batch
    norm.

    The second derivative is not implemented and raises an error. `fused_bn.fuse` with recompute=True keeps
    the outputs of this class. The gradients of weight and bias are those of the process's own batch, which
    DistributedDataParallel averages. The class is not a subclass of `nn.SyncBatchNorm`, because
    DistributedDataParallel refuses that on the CPU. `convert_sync_batchnorm` turns an `nn.BatchNorm2d` into
    an instance of this class that is still an `nn.BatchNorm2d`.

    The arguments of `nn.SyncBatchNorm` keep their names, order and defaults. The arguments below are new, and
    are given by keyword.

    Args:
        bias: as in `fused_bn.BatchNorm2d`.
        activation: as in `fused_bn.BatchNorm2d`.
        activation_param: as in `fused_bn.BatchNorm2d`.
        weight_init: as in `fused_bn.BatchNorm2d`.
        bias_init: as in `fused_bn.BatchNorm2d`.
        frozen: as in `fused_bn.BatchNorm2d`.

    Raises:
        RuntimeError: in forward or backward, a process of the group fails or leaves. The error comes at the
            latest after the group's timeout. It names the layer if `convert_sync_batchnorm` made it. With
            NCCL, whose calls return before they are done, its watchdog ends the process instead.
    """

    synchronised = True
    process_group: Any = None
    layer_name = ""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: ActivationLike = "none",
        activation_param: Param | None = None,
        weight_init: Initialiser | None = None,
        bias_init: Initialiser | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device=device,
            dtype=dtype,
            bias=bias,
            activation=activation,
            activation_param=activation_param,
            weight_init=weight_init,
            bias_init=bias_init,
            frozen=frozen,
        )
        self.process_group = process_group

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """`fused_bn.convert_sync_batchnorm`, under the name that it has in `nn.SyncBatchNorm`."""
        from fused_bn.sync import convert_sync_batchnorm

        return convert_sync_batchnorm(module, process_group)

    def _get_name(self) -> str:
        return "SyncBatchNorm"

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")
        if input.shape[1] == 0:
            raise ValueError("SyncBatchNorm number of input channels should be non-zero")


class _SyncBatchNorm1d(SyncBatchNorm, BatchNorm1d):
    """A `BatchNorm1d` that was converted."""


class _SyncBatchNorm2d(SyncBatchNorm, BatchNorm2d):
    """A `BatchNorm2d` that was converted."""


class _SyncBatchNorm3d(SyncBatchNorm, BatchNorm3d):
    """A `BatchNorm3d` that was converted."""


class LazyBatchNorm1d(FusedLazyBatchNorm, nn.LazyBatchNorm1d):
    """`BatchNorm1d` that infers num_features from its first input, and then becomes one."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(FusedLazyBatchNorm, nn.LazyBatchNorm2d):
    """`BatchNorm2d` that infers num_features from its first input, and then becomes one."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(FusedLazyBatchNorm, nn.LazyBatchNorm3d):
    """`BatchNorm3d` that infers num_features from its first input, and then becomes one."""

    cls_to_become = BatchNorm3d


DROP_INS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
}
"""What takes the place of each norm of torch.nn."""

SYNCHRONISED: dict[type[nn.Module], type[nn.Module]] = {
    BatchNorm1d: _SyncBatchNorm1d,
    BatchNorm2d: _SyncBatchNorm2d,
    BatchNorm3d: _SyncBatchNorm3d,
    SyncBatchNorm: SyncBatchNorm,
}
"""What `convert_sync_batchnorm` makes of each norm of ours."""

OURS = frozenset({*DROP_INS.values(), *SYNCHRONISED.values()})
