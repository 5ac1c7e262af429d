"""`keras.layers.BatchNormalization` computed by the fused operator: Keras 3 on the torch backend."""

import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

try:
    import keras
except ImportError as error:
    raise ImportError(
        f"fused_bn.keras cannot import Keras 3 ({error}): `pip install 'fused-bn[keras]'`, and set the "
        "environment variable KERAS_BACKEND=torch before keras is first imported",
        name="keras",
    ) from error

from fused_bn.functional import batch_norm

_ON_TORCH = keras.config.backend() == "torch"

_FUSED: dict[Callable[..., Any], tuple[str, float | None]] = {
    keras.activations.linear: ("none", None),
    keras.activations.relu: ("relu", None),
    keras.activations.leaky_relu: ("leaky_relu", 0.2),
    keras.activations.relu6: ("relu6", None),
    keras.activations.hard_silu: ("hardswish", None),
    keras.activations.hard_sigmoid: ("hardsigmoid", None),
    keras.activations.elu: ("elu", 1.0),
    keras.activations.silu: ("silu", None),
    keras.activations.gelu: ("gelu", None),
    keras.activations.tanh: ("tanh", None),
    keras.activations.sigmoid: ("sigmoid", None),
    keras.activations.selu: ("selu", None),
    keras.activations.softplus: ("softplus", 1.0),
    keras.activations.mish: ("mish", None),
}
"""The operator's activation for each function of Keras with its default arguments."""

_STATISTICS = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}
"""For each dtype of inputs, the dtype of parameters and moving variables."""


@keras.saving.register_keras_serializable(package="fused_bn")
class BatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """`keras.layers.BatchNormalization` with an activation, in one pass over memory on the torch backend.

    Arguments, variables and moving statistics (with the biased variance) are those of Keras' layer. Results
    are the same up to rounding, and nearer to the exact ones. Keras' own layer, followed by the activation,
    computes these cases: a mask, inputs of more than 5 dimensions, a batch of at most one value per channel,
    batch renormalisation, a float dtype other than the layer's compute dtype, and other backends.

    Inputs in row-major order are read in place for every `axis`. Images with `axis=-1` use the channels_last
    kernels, and images with `axis=1` use those for channels first.

    `model.load_weights` loads weights files and `.keras` files of a model with either class into a model with
    the other. `keras.saving.load_model` gives the class that was saved; for this class it needs this module
    to be imported. Where fused_bn is not installed, a layer without an activation loads as Keras' own with
    `custom_objects={"fused_bn>BatchNormalization": keras.layers.BatchNormalization}`.

    The arguments of `keras.layers.BatchNormalization` keep their names, order and defaults. The argument
    below is new, and is given by keyword.

    Args:
        activation: what `keras.layers.Dense` takes: a name, a function, a layer or None. Keras' relu,
            leaky_relu, relu6, hard_silu, hard_sigmoid, elu, silu, gelu, tanh, sigmoid, selu, softplus and
            mish are computed in the same pass. Others are computed after it.

    Raises:
        ValueError: what `keras.layers.BatchNormalization` raises; or an unknown activation.
    """

    def __init__(self, *args: Any, activation: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = keras.activations.get(activation)

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """Computes act(batch_norm(inputs)).

        Args:
            inputs: a tensor whose size in dimension `axis` is that of the layer.
            training: True normalises with the batch's statistics and updates the moving ones, if the layer is
                trainable.
            mask: a tensor with all dimensions of the inputs but the last. Masked elements do not count in the
                statistics.

        Returns:
            A tensor of the inputs' shape and the layer's compute dtype.
        """
        if mask is not None or not _ON_TORCH or not self._fits_operator(inputs, training):
            return self.activation(super().call(inputs, training=training, mask=mask))
        # Other callables may not be hashable.
        fused = _FUSED.get(self.activation) if isinstance(self.activation, FunctionType) else None
        view, restored = _channels_second(inputs, self.axis % inputs.dim())
        training = bool(training and self.trainable)
        output = restored(self._normalised(view, training, *(fused or ("none", None))))
        return output if fused else self.activation(output)

    def get_config(self) -> dict[str, Any]:
        """Returns the config of the original class, with the activation if there is one."""
        config = super().get_config()
        if self.activation is not keras.activations.linear:
            config["activation"] = keras.activations.serialize(self.activation)
        return config

    def _fits_operator(self, inputs: Any, training: Any) -> bool:
        """Whether the operator takes this call, and computes what Keras would."""
        if not (
            isinstance(inputs, Tensor)
            and 2 <= inputs.dim() <= 5
            and inputs.dtype in _STATISTICS
            and inputs.dtype == getattr(torch, self.compute_dtype)
            and inputs.device == self.moving_mean.value.device
            and self.epsilon > 0
        ):
            return False
        if not (training and self.trainable):
            return True
        # With momentum 1 or more, the conversion of the variance to the operator's and back would drift.
        several = inputs.numel() > inputs.shape[self.axis]
        return several and 0 <= self.momentum < 1 and not getattr(self, "renorm", False)

    def _normalised(
        self, input: Tensor, training: bool, activation: str, activation_param: float | None
    ) -> Tensor:
        """Applies the operator to (N, C, *) `input`. Training assigns to the moving variables."""
        dtype = _STATISTICS[input.dtype]
        mean, variance = self.moving_mean.value.detach(), self.moving_variance.value.detach()
        unbiased = 1.0
        if training:
            count = input.numel() // input.shape[1]
            # The operator averages the unbiased variance, as torch does, and Keras the biased one. So the old
            # variance is made unbiased before, and the new one biased afterwards.
            unbiased = count / (count - 1)
            mean, variance = mean.to(dtype, copy=True), variance.to(dtype) * unbiased
        output = batch_norm(
            input,
            mean.to(dtype),
            variance.to(dtype),
            self.gamma.value.to(dtype) if self.scale else None,
            self.beta.value.to(dtype) if self.center else None,
            training,
            1 - self.momentum,
            self.epsilon,
            activation=activation,
            activation_param=activation_param,
        )
        if training:
            self.moving_mean.assign(mean)
            self.moving_variance.assign(variance / unbiased)
        return output


def _channels_second(inputs: Tensor, axis: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Returns a view of `inputs` as (N, C, *), and a function that undoes it for the output."""
    if axis == 1:
        return inputs, lambda output: output
    if not inputs.is_contiguous():
        return inputs.movedim(axis, 1), lambda output: output.movedim(1, axis)
    shape = inputs.shape
    rows, channels, spatial = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    view = inputs.view(rows, channels, spatial) if axis + 1 < len(shape) else inputs.view(rows, channels)
    return view, lambda output: output.view(shape)
