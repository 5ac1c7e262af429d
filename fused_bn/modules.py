"""Modules that drop in for `nn.BatchNorm*`: same constructor, state_dict and errors, and an activation."""

from typing import Any

from torch import Tensor, nn

from fused_bn._fallback import check_activation
from fused_bn.functional import batch_norm


class _FusedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Adds `activation` to `nn.BatchNorm*`; the subclasses below only choose the input's rank.

    Functions of torch that put another module in the place of an `nn.BatchNorm*` drop the activation in
    silence: `nn.SyncBatchNorm.convert_sync_batchnorm` and `torch.nn.utils.fusion.fuse_conv_bn_eval`. Leave
    them alone where `activation` is not "none", or add the activation behind what they return.
    """

    activation: str

    def __init__(self, *args: Any, activation: str = "none", **kwargs: Any) -> None:
        check_activation(activation)
        super().__init__(*args, **kwargs)
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        """Shape (N, C, *) as the class says, to the same shape, dtype and memory format."""
        self._check_input_dim(input)
        # nn.Module's attribute look-up costs as much as the rest of this call; a parametrised weight or bias
        # is no longer in the dictionary.
        parameters, buffers = self._parameters, self._buffers
        weight = parameters["weight"] if "weight" in parameters else self.weight
        bias = parameters["bias"] if "bias" in parameters else self.bias
        running_mean, running_var = buffers["running_mean"], buffers["running_var"]
        training = self.training
        num_batches_tracked = None
        if training:
            if self.track_running_stats:
                num_batches_tracked = buffers["num_batches_tracked"]
            else:
                running_mean = running_var = None
        return batch_norm(
            input,
            running_mean,
            running_var,
            weight,
            bias,
            training or (running_mean is None and running_var is None),
            self.momentum,
            self.eps,
            activation=self.activation,
            num_batches_tracked=num_batches_tracked,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.activation == "none" else f"{text}, activation={self.activation}"


class BatchNorm1d(_FusedBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over (N, C) or (N, C, L) input, followed by `activation` ("none" or "relu").

    Not for `nn.SyncBatchNorm.convert_sync_batchnorm` and `fuse_conv_bn_eval`: both drop the activation.
    """


class BatchNorm2d(_FusedBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over (N, C, H, W) input, followed by `activation` ("none" or "relu").

    Not for `nn.SyncBatchNorm.convert_sync_batchnorm` and `fuse_conv_bn_eval`: both drop the activation.
    """


class BatchNorm3d(_FusedBatchNorm, nn.BatchNorm3d):
    """`nn.BatchNorm3d` over (N, C, D, H, W) input, followed by `activation` ("none" or "relu").

    Not for `nn.SyncBatchNorm.convert_sync_batchnorm` and `fuse_conv_bn_eval`: both drop the activation.
    """
