"""The rows: each row's forward and backward on one case's tensors, and a check that they agree.

Forward is the computation without the counter of batches. Backward runs on the tensors that one forward
saved.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.comparison import HALF, WrongResultError
from tests.cases import MEMORY_FORMATS, Case, Tensors, call_fused

Function = Callable[[Case, Tensors], Tensor]
Call = Callable[[], tuple[Tensor, ...]]
"""The results of one call: the output, or the gradients of input, weight, bias and residual."""

WITHIN_ROUNDING = 1e-3
"""Rounding decides whether ReLU passes a value nearer to zero than this. Its gradient is set to zero."""
ROUNDED_BEFORE_ADDITION = 2.0**-5
"""The same bound for half precision with a residual. Eager rounds values up to 8 before the addition."""


def directions(case: Case) -> tuple[str, ...]:
    """The timed directions. Evaluation has only a forward."""
    return ("forward", "backward") if case.training else ("forward",)


def tensors_moved(case: Case, direction: str) -> int:
    """Tensors that must be read or written: x and y, or x, dy and dx. A residual adds one."""
    return (2 if direction == "forward" else 3) + case.residual


def tensors_on(device: torch.device, case: Case, seed: int) -> Tensors:
    """Random tensors, made on the device. Each channel has its own mean and deviation."""
    generator = torch.Generator(device).manual_seed(seed)

    def vector(low: float, high: float) -> Tensor:
        values = torch.rand(case.channels, generator=generator, device=device, dtype=case.parameter_dtype)
        return low + (high - low) * values

    def normal() -> Tensor:
        format = MEMORY_FORMATS[case.layout]
        return torch.empty(case.shape, dtype=case.dtype, device=device, memory_format=format).normal_(
            generator=generator
        )

    view = (-1, *[1] * (len(case.shape) - 2))
    tensors = Tensors(
        input=normal().mul_(vector(1, 2).view(view)).add_(vector(-1, 1).view(view)),
        weight=vector(0.5, 1.5),
        bias=vector(-1, 1),
        running_mean=vector(-1, 1),
        running_var=vector(1, 4),
        num_batches_tracked=None,
        grad_output=normal(),
        residual=normal() if case.residual else None,
    )
    if case.training:
        without_doubtful_gradients(case, tensors)
        tensors.require_grad()
    return tensors


def without_doubtful_gradients(case: Case, t: Tensors) -> None:
    """Zeroes the gradient where rounding decides about ReLU, so that all rows have the same gradients."""
    z = F.batch_norm(t.input, None, None, t.weight, t.bias, training=True, eps=case.eps)
    if t.residual is not None:
        z = z + t.residual
    t.grad_output.masked_fill_(
        z.abs_() < (ROUNDED_BEFORE_ADDITION if _twice_rounded(case) else WITHIN_ROUNDING), 0
    )


def _twice_rounded(case: Case) -> bool:
    return case.residual and case.dtype in HALF


def norm_and_relu(
    x: Tensor,
    residual: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
) -> Tensor:
    """nn.BatchNorm2d, an addition if there is a residual, and nn.ReLU."""
    y = F.batch_norm(x, mean, var, weight, bias, training)
    return F.relu(y if residual is None else y + residual)


def by(function: Callable[..., Tensor]) -> Function:
    """Makes a row from a function with the arguments of `norm_and_relu`."""
    return lambda case, t: function(
        t.input, t.residual, t.running_mean, t.running_var, t.weight, t.bias, case.training
    )


def native(case: Case, tensors: Tensors) -> Tensor:
    """PyTorch's own kernels, for cases where it would use cuDNN's."""
    with torch.backends.cudnn.flags(enabled=False):
        return eager(case, tensors)


eager = by(norm_and_relu)
ours: Function = call_fused


def compiled(backend: str) -> Function:
    """torch.compile's row, for one shape. Backward may run again on the tensors that its forward saved."""
    torch.compiler.reset()  # otherwise many cases would be compiled as one dynamic shape
    from torch._functorch import config

    config.donated_buffer = False
    return by(torch.compile(norm_and_relu, dynamic=False, backend=backend))


def call(function: Function, case: Case, tensors: Tensors, direction: str) -> Call:
    """A row's timed function. Buffers are copies: autograd saves them, and other rows change them."""
    own = replace(
        tensors, **{name: getattr(tensors, name).clone() for name in ("running_mean", "running_var")}
    )
    if not case.training:
        return torch.no_grad()(lambda: (function(case, own),))
    if direction == "forward":
        return lambda: (function(case, own),)
    output = function(case, own)
    wanted = [t for t in (own.input, own.weight, own.bias, own.residual) if t is not None]
    return lambda: torch.autograd.grad(output, wanted, own.grad_output, retain_graph=True)


def copy_of(tensors: Tensors) -> Call:
    """A copy of the input in both directions, as the unit of time."""
    source = tensors.input.detach()
    target = torch.empty_like(source)
    return lambda: (target.copy_(source),)


def eager_backend(case: Case, t: Tensors) -> str:
    """The backend that PyTorch chooses for these tensors: Native, Cudnn, ..."""
    chosen = torch._C._select_batch_norm_backend(
        t.input, t.weight, t.bias, t.running_mean, t.running_var, case.training, case.eps
    )
    return str(chosen).rpartition(".")[2]


def compare(
    row: str, direction: str, case: Case, actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]
) -> None:
    """Raises WrongResultError if a result differs by more than rounding.

    Half precision may round two such values to neighbours, which differ by at most one part in 2^7.
    torch.compile and eager round to the input's dtype at different places, so their results may be two
    neighbours apart.
    """
    half = case.dtype in HALF
    absolute = 1e-4
    if half and row == "compile":
        absolute = 2.0**-6
    if _twice_rounded(case):
        absolute = ROUNDED_BEFORE_ADDITION
    terms = expected[0].numel() // case.channels
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        usual_size = 1.0 if one.dim() > 1 else terms**0.5
        try:
            torch.testing.assert_close(
                one.detach(), other.detach(), rtol=2.0**-7 if half else 1e-4, atol=absolute * usual_size
            )
        except AssertionError as error:
            text = str(error).replace("\n", " ")
            raise WrongResultError(f"{row}, {direction}: result {number} is not eager's: {text}") from None
