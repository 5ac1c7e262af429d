"""What every norm of this package is: an `nn.BatchNorm*` with an activation, a residual and more options."""

import inspect
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.fx import Proxy
from torch.fx.proxy import TraceError
from torch.types import Device

from fused_bn import _converters, _fallback, _tracing
from fused_bn._activations import ACTIVATIONS, DEFAULT_PARAMS, ActivationLike, Param, spelled
from fused_bn.functional import batch_norm
from fused_bn.fusion import recompute
from fused_bn.sync import exchange

Initialiser = float | Callable[[Tensor], Any]

_AS_OF_TORCH = "torch.nn.modules.batchnorm"
"""The `__module__` of an instance with hooks. torch.fx takes such an instance for a leaf module and records
one call. Otherwise the hooks would run during the trace, and again in the traced model."""

_TORCH_TAKES_BIAS = "bias" in inspect.signature(nn.BatchNorm1d).parameters  # later than 2.11


def apply(
    norm: Any, input: Tensor, residual: Tensor | None, activation: str, activation_param: Param | None
) -> Tensor:
    """Returns act(norm(input) + residual), for an nn.BatchNorm* or a norm of ours."""
    norm._check_input_dim(input)
    # Attribute look-up by nn.Module costs as much as the rest of this call. A tensor that is parametrised, or
    # that replaces a buffer, is not in the dictionaries.
    parameters, buffers = norm._parameters, norm._buffers
    weight = parameters["weight"] if "weight" in parameters else norm.weight
    bias = parameters["bias"] if "bias" in parameters else norm.bias
    running_mean = buffers["running_mean"] if "running_mean" in buffers else norm.running_mean
    running_var = buffers["running_var"] if "running_var" in buffers else norm.running_var
    training = norm.training and not getattr(norm, "frozen", False)
    num_batches_tracked = None
    if training:
        if norm.track_running_stats:
            own = "num_batches_tracked" in buffers
            num_batches_tracked = buffers["num_batches_tracked"] if own else norm.num_batches_tracked
        else:
            running_mean = running_var = None
        group = exchange.group_of(norm.process_group) if norm.synchronised else None
        if group is not None:
            return exchange.batch_norm(
                input,
                residual,
                weight,
                bias,
                running_mean,
                running_var,
                num_batches_tracked,
                norm.momentum,
                norm.__dict__["eps"],
                activation,
                activation_param,
                group,
                norm.layer_name or f"{type(norm).__name__}({norm.num_features})",
            )
    takes_batch = training or (running_mean is None and running_var is None)
    if takes_batch and not training and is_compiling() and _tracing.wants_plain_calls(input, training):
        # functional.batch_norm would record this as training
        param = DEFAULT_PARAMS[activation] if activation_param is None else activation_param
        return _fallback.batch_norm(
            input, residual, None, None, weight, bias, True, 0.0, vars(norm)["eps"], activation, param, None
        )
    output = batch_norm(
        input,
        running_mean,
        running_var,
        weight,
        bias,
        takes_batch,
        norm.momentum,
        norm.__dict__["eps"],  # not norm.eps, a property that checks who reads it
        activation=activation,
        activation_param=activation_param,
        residual=residual,
        num_batches_tracked=num_batches_tracked,
    )
    if norm._notes_outputs:
        recompute.remember(output, residual)
    return output


class FusedBatchNorm(_converters.KeepsActivation, nn.modules.batchnorm._BatchNorm):
    """It can also compute an activation, and add a residual before it, in the same pass over memory.

    The arguments of `nn.BatchNorm*` keep their names, order and defaults. The arguments below are new, and
    are given by keyword.

    Args:
        bias: False gives a weight but no bias, with every version of torch.
        activation: "none", "relu", "leaky_relu", "relu6", "prelu", "hardswish", "hardsigmoid", "elu",
            "silu", "gelu", "gelu_tanh", "tanh", "sigmoid", "selu", "softplus" or "mish"; or None, or the
            module, class or function of torch that computes one of them. "prelu" learns one slope for all
            channels, and nn.PReLU(num_features) learns one per channel. The parameter `prelu_weight` holds
            the slopes. For a given nn.PReLU it is that module's weight.
        activation_param: the negative slope of leaky_relu (None: 0.01), alpha of elu or beta of softplus
            (None: 1), the initial slope of prelu (None: 0.25), or a tensor of prelu's slopes.
        weight_init: a number, or a function of `torch.nn.init`. If it is not None, `reset_parameters` applies
            it to the weight. `weight_init=0` starts a residual block as the identity (Goyal et al. 2017,
            https://arxiv.org/abs/1706.02677, section 5.1).
        bias_init: the same for the bias.
        frozen: normalises with the running statistics, in `train()` too, and does not update them. May be
            changed at any time.

    Raises:
        ValueError: an activation, its number or an initialiser does not fit; or frozen is set without
            running statistics.
        TypeError: an initialiser is neither a number nor a function; or momentum is not a number.
    """

    # For modules that were pickled without these attributes.
    activation_param: float | None = None
    weight_init: Any = None
    bias_init: Any = None
    frozen = False
    prelu_weight: nn.Parameter  # only with prelu
    synchronised = False  # whether statistics are those of several processes; see SyncBatchNorm
    _notes_outputs = False  # see fusion/recompute.py

    def __init__(
        self,
        *args: Any,
        bias: bool = True,
        activation: Any = "none",
        activation_param: Param | None = None,
        weight_init: Initialiser | None = None,
        bias_init: Initialiser | None = None,
        frozen: bool = False,
        **kwargs: Any,
    ) -> None:
        activation, activation_param = spelled(activation, activation_param)
        for name, initialiser in (("weight_init", weight_init), ("bias_init", bias_init)):
            if not (initialiser is None or callable(initialiser) or isinstance(initialiser, Real)):
                raise TypeError(
                    f"{name} must be a number or a function of torch.nn.init, but got {initialiser!r}"
                )
        if not bias and bias_init is not None:
            raise ValueError("bias_init is given, but bias is False")
        self.weight_init, self.bias_init = weight_init, bias_init  # which nn.BatchNorm's constructor reads
        if _TORCH_TAKES_BIAS:
            kwargs["bias"] = bias
        super().__init__(*args, **kwargs)
        if not bias and not _TORCH_TAKES_BIAS:
            self.register_parameter("bias", None)
        if not self.affine and (weight_init is not None or bias_init is not None):
            raise ValueError("weight_init and bias_init need affine=True")
        if frozen and not self.track_running_stats:
            raise ValueError("frozen needs track_running_stats=True")
        if self.momentum is not None and not isinstance(self.momentum, Real):
            raise TypeError(f"momentum must be a number or None, but got {self.momentum!r}")
        self.frozen = frozen
        self._set_activation(activation, activation_param, kwargs.get("device"), kwargs.get("dtype"))

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "activation":
            return super().__setattr__(name, value)
        # Bypasses nn.Module.__setattr__, which would register an activation module as a child.
        named = (value, None) if type(value) is str and value in ACTIVATIONS else spelled(value)
        if named != (self.__dict__.get("activation"), None):
            self._set_activation(*named)
        return None

    def _set_activation(self, name: str, param: Param | None, device: Any = None, dtype: Any = None) -> None:
        self._parameters.pop("prelu_weight", None)
        if name == "prelu":
            if not isinstance(param, Tensor):
                param = DEFAULT_PARAMS["prelu"] if param is None else param
                like = next((each for each in (self.weight, self.running_mean) if each is not None), None)
                if like is not None:
                    device, dtype = like.device, like.dtype
                slopes = torch.full((1,), param, device=device, dtype=dtype or torch.get_default_dtype())
            else:
                slopes = param.reshape(1) if param.dim() == 0 else param
            own = slopes if isinstance(slopes, nn.Parameter) else nn.Parameter(slopes)
            self.register_parameter("prelu_weight", own)
        self.__dict__["activation"] = name
        self.__dict__["activation_param"] = None if isinstance(param, Tensor) else param

    def reset_parameters(self) -> None:
        """Does what `nn.BatchNorm*` does, and then applies `weight_init` and `bias_init`.

        The slopes of prelu are set to `activation_param`; slopes that were given as a module or tensor stay.
        """
        if "prelu_weight" in self._parameters and self.activation_param is not None:
            nn.init.constant_(self.prelu_weight, self.activation_param)
        if self.affine and self.bias is None and not _TORCH_TAKES_BIAS:  # super() needs a bias
            self.reset_running_stats()
            nn.init.ones_(self.weight)
        else:
            super().reset_parameters()
        for parameter, initialiser in ((self.weight, self.weight_init), (self.bias, self.bias_init)):
            if parameter is None or initialiser is None or nn.parameter.is_lazy(parameter):
                continue
            if callable(initialiser):
                initialiser(parameter)
            else:
                nn.init.constant_(parameter, initialiser)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Computes act(batch_norm(input) + residual).

        Args:
            input: shape (N, C, *), with the number of dimensions that the class takes.
            residual: a tensor of the input's shape, dtype and device, or None.

        Returns:
            A tensor of the input's shape, dtype and memory format.
        """
        if isinstance(input, Proxy):
            return self._record(input, residual)
        activation = self.activation
        param = self.activation_param if activation != "prelu" else self.prelu_weight
        return apply(self, input, residual, activation, param)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.activation != "none":
            text += f", activation={self.activation}"
        if self.activation_param is not None:
            text += f", activation_param={self.activation_param}"
        return f"{text}, frozen=True" if self.frozen else text

    def _record(self, input: Proxy, residual: Any) -> Any:
        """Records one call of the module, as torch.fx does for modules of torch.nn.

        torch.fx would otherwise trace into the module. The graph would then keep the module's present mode.
        """
        tracer: Any = input.tracer
        if tracer.root is self:
            raise TraceError("torch.fx traces this module within a model, not alone")
        arguments = (input,) if residual is None else (input, residual)
        return tracer.create_proxy("call_module", tracer.path_of_module(self), arguments, {})

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__["__module__"] = _AS_OF_TORCH
        return super().register_forward_pre_hook(*args, **kwargs)

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__["__module__"] = _AS_OF_TORCH
        return super().register_forward_hook(*args, **kwargs)


class FusedLazyBatchNorm(FusedBatchNorm):
    """A norm that infers num_features from the first input. It then becomes the class named without Lazy."""

    def __init__(self, *args: Any, bias: bool = True, **kwargs: Any) -> None:
        if not bias and not _TORCH_TAKES_BIAS:
            raise TypeError(f"torch {torch.__version__} has no lazy batch norm without a bias")
        super().__init__(*args, bias=bias, **kwargs)

    def initialize_parameters(self, input: Tensor, *_: Any, **__: Any) -> None:
        """Uses the input alone. The other arguments are those of `forward`."""
        super().initialize_parameters(input)  # type: ignore[misc]


class SizedBatchNorm(FusedBatchNorm):
    """A norm whose constructor lists its arguments. Lazy classes take no num_features."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
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
