"""The grid of test cases: which shapes, layouts, dtypes and options are tested, and why."""

import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fused_bn._activations import ACTIVATIONS
from fused_bn._extension import devices_with_kernels, extension
from fused_bn.functional import batch_norm

HAS_EXTENSION = extension is not None
EMULATED = "CUDA_DEVICE_ATEN" in os.environ
"""CUDA devices are emulated: tests/cuda_device."""

NEWER_TORCH = "bias" in inspect.signature(torch.nn.BatchNorm2d).parameters
"""torch later than 2.11: nn.BatchNorm* takes `bias`, and F.batch_norm's error for eps 0 in evaluation
differs."""

SHAPES: dict[tuple[int, ...], str] = {
    (2, 4, 2, 2): "tiny: the whole tensor is smaller than one wide vector per channel",
    (64, 6, 28, 28): "LeNet's first normalisation: few channels that must be split over N and S",
    (64, 16, 10, 10): "LeNet's second",
    (2, 2048, 7, 7): "7x7 = 49 is odd, so no row of a channel is aligned; C > 1024",
    (3, 1030, 2, 2): "C just above 1024 and not a multiple of a vector",
    (1, 65, 100, 100): "C one above a power of two, long rows (channels >= 64 came out zero elsewhere)",
    (3, 3, 5, 7): "C = 3, everything odd",
    (2, 5, 9, 3): "C = 5",
    (8, 1, 13, 17): "C = 1: channels_last and contiguous strides coincide",
    (7, 24, 1, 1): "S = 1 in rank 4: the layout is ambiguous",
    (2, 8, 1, 33): "H = 1",
    (1, 4, 33, 31): "N = 1",
    (2, 15, 3, 11): "ragged tail below a 16-wide vector in both directions",
    (2, 17, 4, 4): "C one above a 16-wide vector, S exactly one",
    (2, 33, 5, 13): "C one above two vectors, S = 65 one above four",
    (1000, 1): "rank 2, tall, one channel",
    (4099, 50): "rank 2, tall: many rows of few channels, a prime number of rows",
    (3, 1500): "rank 2, wide: few rows of many channels",
    (2, 1): "the smallest batch that can be normalised",
    (2, 6, 65537): "rank 3: few channels, long rows, odd length",
    (4, 10, 29): "rank 3",
    (2, 3, 4, 4, 4): "rank 5 (channels_last_3d lost its layout elsewhere)",
    (2, 16, 3, 5, 2): "rank 5 with a full vector of channels",
}

SMALL_SHAPES: tuple[tuple[int, ...], ...] = ((2, 4, 2, 2), (5, 17, 3, 5), (6, 9), (2, 3, 4, 4, 4))
"""One shape per relevant rank, for tests that vary options instead of sizes."""

MEMORY_FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}

HALF_DTYPES = (torch.bfloat16, torch.float16)

DTYPES: tuple[tuple[torch.dtype, torch.dtype], ...] = (
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.float16, torch.float16),
)
"""All accepted pairs of dtypes: the input's, and that of parameters and buffers."""


def layouts(shape: tuple[int, ...]) -> tuple[str, ...]:
    """The memory formats that a tensor of this rank can have."""
    extra = {4: ("channels_last",), 5: ("channels_last_3d",)}
    return ("contiguous", *extra.get(len(shape), ()))


def why_no_cuda() -> str:
    """The reason why the suite does not run on CUDA here. Empty if it does."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if "cuda" not in devices_with_kernels:
        return "the extension was built without CUDA kernels"
    return ""


DEVICES = ("cpu",) if why_no_cuda() else ("cpu", "cuda")


PARAMS = {"leaky_relu": 0.25, "prelu": 0.375, "elu": 0.75, "softplus": 1.5}
"""Parameters of activations. They are not the defaults, so that ignoring them fails."""


@dataclass(frozen=True)
class Case:
    """One call of batch normalisation. The defaults are the common call; tests vary single fields."""

    shape: tuple[int, ...]
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float32
    parameter_dtype: torch.dtype = torch.float32
    weight: bool = True
    bias: bool = True
    buffers: bool = True
    training: bool = True
    momentum: float | None = 0.1
    activation: str = "relu"
    eps: float = 1e-5
    residual: bool = False

    def __str__(self) -> str:
        """A test id: the shape, layout and dtypes, and the differences from the defaults."""
        dtypes = [str(self.dtype)[6:]]
        if self.parameter_dtype != self.dtype:
            dtypes.append(str(self.parameter_dtype)[6:])
        named = ("shape", "layout", "dtype", "parameter_dtype")
        changed = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if field.name not in named and getattr(self, field.name) != field.default
        ]
        return "-".join(["x".join(map(str, self.shape)), self.layout, "/".join(dtypes), *changed])

    @property
    def channels(self) -> int:
        return self.shape[1]

    @property
    def activation_param(self) -> float | None:
        return PARAMS.get(self.activation)


def shape_grid() -> Iterator[Case]:
    """Every shape in every layout and pair of dtypes. With fp32 parameters also in evaluation."""
    for shape in SHAPES:
        for layout, (dtype, parameter_dtype) in product(layouts(shape), DTYPES):
            case = Case(shape, layout, dtype, parameter_dtype)
            yield case
            if dtype is torch.float64 or parameter_dtype is torch.float32:
                yield replace(case, training=False)


def option_grid() -> Iterator[Case]:
    """Every combination of options, on small tensors in every layout."""
    modes = (
        {"momentum": 0.1},
        {"momentum": None},
        {"momentum": 1.0},
        {"buffers": False},
        {"training": False},
    )
    dtypes = (DTYPES[0], DTYPES[2], DTYPES[5])
    for shape in ((5, 17, 3, 5), (6, 9)):
        for layout, (dtype, parameter_dtype), mode in product(layouts(shape), dtypes, modes):
            for weight, bias, activation in product((True, False), (True, False), ("none", "relu")):
                case = Case(shape, layout, dtype, parameter_dtype, weight, bias, activation=activation)
                yield replace(case, **mode)  # type: ignore[arg-type]


def activation_grid() -> Iterator[Case]:
    """Every activation with and without a residual, in every layout and dtype, on odd and even sizes."""
    for shape in ((5, 17, 3, 5), (4, 16, 8, 10), (3, 2, 97), (9, 33), (2, 3, 4, 4, 4)):
        for layout, (dtype, parameter_dtype) in product(layouts(shape), DTYPES):
            for activation, residual, training in product(ACTIVATIONS, (False, True), (True, False)):
                case = Case(shape, layout, dtype, parameter_dtype, activation=activation, residual=residual)
                if residual or activation not in ("none", "relu"):
                    yield replace(case, training=training)


def core_grid() -> Iterator[Case]:
    """A small set that runs every code path once, for each instruction set and for the fallback."""
    for shape in ((64, 6, 28, 28), (2, 33, 5, 13), (3, 1030, 2, 2), (101, 7)):
        for layout, (dtype, parameter_dtype) in product(layouts(shape), DTYPES):
            for training in (True, False):
                yield Case(shape, layout, dtype, parameter_dtype, training=training)
    # Vectors have different lengths for different dtypes, and so have their parts of the mask.
    for odd, (dtype, parameter_dtype) in product(((5, 17, 3, 5), (3, 2, 9, 23), (9, 33)), DTYPES):
        for layout, activation in product(layouts(odd), ACTIVATIONS):
            yield Case(odd, layout, dtype, parameter_dtype, activation=activation, residual=True)


def present(tensor: Tensor | None) -> Tensor:
    """Returns `tensor`, which must not be None."""
    assert tensor is not None
    return tensor


def same_bits(left: Tensor | None, right: Tensor | None) -> bool:
    """Whether both are None, or equal in dtype, shape and every value (no NaN)."""
    if left is None or right is None:
        return left is right
    return left.dtype == right.dtype and torch.equal(left, right)


@dataclass
class Tensors:
    """The tensors of one call, with `grad_output`. None if the case has no such tensor."""

    input: Tensor
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    grad_output: Tensor
    residual: Tensor | None = None
    negative_slope: Tensor | None = None

    def clone(self) -> "Tensors":
        """Independent copies with the same strides, none of which requires a gradient."""
        values: dict[str, Any] = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            values[field.name] = None if tensor is None else tensor.detach().clone()
        return Tensors(**values)

    def require_grad(self) -> "Tensors":
        for tensor in (self.input, self.weight, self.bias, self.residual, self.negative_slope):
            if tensor is not None:
                tensor.requires_grad_()
        return self


def in_layout(tensor: Tensor, layout: str) -> Tensor:
    return tensor.contiguous(memory_format=MEMORY_FORMATS[layout])


def make_tensors(case: Case, device: str | torch.device = "cpu", seed: int = 0) -> Tensors:
    """Random tensors for `case`, the same on every device.

    Each channel has its own mean and a deviation around 3. A deviation of 1 would hide swapped channels and a
    variance used as a standard deviation.
    """
    generator = torch.Generator().manual_seed(seed)
    channels = case.channels

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(channels, generator=generator)

    def placed(values: Tensor, dtype: torch.dtype) -> Tensor:
        return values.to(device=device, dtype=dtype)

    view = (1, channels) + (1,) * (len(case.shape) - 2)
    spread, centre = uniform(2.0, 4.0).view(view), uniform(-2.0, 2.0).view(view)
    parameter = case.parameter_dtype
    return Tensors(
        input=in_layout(placed(normal(*case.shape) * spread + centre, case.dtype), case.layout),
        weight=placed(uniform(-1.5, 1.5), parameter) if case.weight else None,
        bias=placed(uniform(-1.0, 1.0), parameter) if case.bias else None,
        running_mean=placed(uniform(-2.0, 2.0), parameter) if case.buffers else None,
        running_var=placed(uniform(4.0, 16.0), parameter) if case.buffers else None,
        num_batches_tracked=torch.tensor(2, device=device) if case.buffers else None,
        grad_output=in_layout(placed(normal(*case.shape), case.dtype), case.layout),
        residual=in_layout(placed(normal(*case.shape), case.dtype), case.layout) if case.residual else None,
        negative_slope=placed(uniform(0.05, 0.75), parameter) if case.activation == "prelu" else None,
    )


@dataclass
class Result:
    """The results of one forward and backward."""

    output: Tensor
    grad_input: Tensor
    grad_weight: Tensor | None
    grad_bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    grad_residual: Tensor | None = None
    grad_negative_slope: Tensor | None = None


def _backward(tensors: Tensors, output: Tensor) -> Result:
    output.backward(tensors.grad_output)
    return Result(
        output.detach(),
        present(tensors.input.grad),
        None if tensors.weight is None else tensors.weight.grad,
        None if tensors.bias is None else tensors.bias.grad,
        tensors.running_mean,
        tensors.running_var,
        tensors.num_batches_tracked,
        None if tensors.residual is None else tensors.residual.grad,
        None if tensors.negative_slope is None else tensors.negative_slope.grad,
    )


def call_fused(case: Case, tensors: Tensors) -> Tensor:
    """fused_bn.functional.batch_norm forward on `tensors` themselves, without copies."""
    return batch_norm(
        tensors.input,
        tensors.running_mean,
        tensors.running_var,
        tensors.weight,
        tensors.bias,
        case.training,
        case.momentum,
        case.eps,
        activation=case.activation,
        activation_param=case.activation_param if tensors.negative_slope is None else tensors.negative_slope,
        residual=tensors.residual,
        num_batches_tracked=tensors.num_batches_tracked if case.training else None,
    )


def run_fused(case: Case, tensors: Tensors) -> Result:
    """Forward and backward, on copies of `tensors`."""
    own = tensors.clone().require_grad()
    return _backward(own, call_fused(case, own))


def run_torch(case: Case, tensors: Tensors) -> Result:
    """torch.batch_norm and the case's addition and activation, on copies of `tensors`.

    Not F.batch_norm, which calls it: in torch 2.11 that refuses eps 0 in evaluation, too.
    """
    own = tensors.clone().require_grad()
    if case.training and own.num_batches_tracked is not None:
        own.num_batches_tracked.add_(1)
    weight = own.weight
    if weight is None and own.bias is not None and own.bias.is_cuda:
        # On CUDA PyTorch's backward creates the bias' gradient like the weight, and fails without a weight.
        weight = torch.ones_like(own.bias)
    output = torch.batch_norm(
        own.input,
        weight,
        own.bias,
        own.running_mean,
        own.running_var,
        case.training,
        momentum_factor(case, tensors),
        case.eps,
        torch.backends.cudnn.enabled,
    )
    z = output if own.residual is None else output + own.residual
    return _backward(own, activate(case, z, own.negative_slope))


def activate(case: Case, z: Tensor, negative_slope: Tensor | None = None) -> Tensor:
    """PyTorch's own activation with its own derivative.

    negative_slope: prelu's, of shape (C,). Without it all slopes are the case's `activation_param`.
    """
    if case.activation == "prelu":
        slope = z.new_full((1,), PARAMS["prelu"]) if negative_slope is None else negative_slope
        return F.prelu(z, slope.to(z.dtype))
    functions: dict[str, Callable[..., Tensor]] = {
        "none": lambda z: z,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "hardsigmoid": hardsigmoid,
    }
    function: Callable[..., Tensor] = functions.get(case.activation) or getattr(F, case.activation)
    return function(z) if case.activation_param is None else function(z, case.activation_param)


def hardsigmoid(z: Tensor) -> Tensor:
    """F.hardsigmoid in three steps. F.hardsigmoid's slope is 1/6 rounded to float32, even in float64."""
    return F.relu6(z + 3) / 6 if z.dtype is torch.float64 else F.hardsigmoid(z)


def momentum_factor(case: Case, before: Tensors) -> float:
    """The weight of the new statistics: `momentum`, or 1 / the number of batches including this one."""
    if case.momentum is not None:
        return case.momentum
    return 0.0 if before.num_batches_tracked is None else 1.0 / (int(before.num_batches_tracked) + 1)
