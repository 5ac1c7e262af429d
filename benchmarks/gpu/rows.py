"""What competes in the table: each row's forward and backward on one case's tensors, and whether they agree.

Forward is the bare computation, without the counter of batches. Backward runs on what one forward saved.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.contest import WrongResultError
from benchmarks.gpu.calls import EPS, MOMENTUM, Tensors

Call = Callable[[], tuple[Tensor, ...]]
"""The results of one call, the output or the three gradients first; the rest only has to stay alive."""

DIRECTIONS = ("forward", "backward")
RESULTS = {"forward": ("output",), "backward": ("grad_input", "grad_weight", "grad_bias")}
WITHIN_ROUNDING = 1e-3
"""So near zero, ReLU may or may not let a value and its gradient through: no gradient flows there."""


class Row(ABC):
    """One competitor; `call` gives what is to be timed."""

    def call(self, direction: str, tensors: Tensors) -> Call:
        return self.forward(tensors) if direction == "forward" else self.backward(tensors)

    @abstractmethod
    def forward(self, tensors: Tensors) -> Call: ...

    @abstractmethod
    def backward(self, tensors: Tensors) -> Call: ...


class Ours(Row):
    """The operators of fused_bn."""

    def forward(self, tensors: Tensors) -> Call:
        return lambda: tensors.forward(counts=False)

    def backward(self, tensors: Tensors) -> Call:
        _, statistics = tensors.forward(counts=False)
        return lambda: tensors.backward(statistics)


def norm_and_relu(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What nn.BatchNorm2d and nn.ReLU compute in training."""
    return F.relu(F.batch_norm(x, mean, var, weight, bias, True, MOMENTUM, EPS))


class Torch(Row):
    """PyTorch's own function under autograd, eager or compiled, with cuDNN where it is taken, or never."""

    def __init__(self, function: Callable[..., Tensor] = norm_and_relu, cudnn: bool = True) -> None:
        self.function = function
        self.cudnn = cudnn

    def forward(self, tensors: Tensors) -> Call:
        inputs = _leaves(tensors)
        return lambda: (self._output(inputs),)

    def backward(self, tensors: Tensors) -> Call:
        inputs = _leaves(tensors)
        output = self._output(inputs)
        wanted = (inputs["x"], inputs["weight"], inputs["bias"])
        gradient = tensors.grad_output
        return lambda: torch.autograd.grad(output, wanted, gradient, retain_graph=True)

    def _output(self, inputs: dict[str, Tensor]) -> Tensor:
        with torch.backends.cudnn.flags(enabled=self.cudnn):
            return self.function(**inputs)


def _leaves(tensors: Tensors) -> dict[str, Tensor]:
    """Arguments of `norm_and_relu`; the buffers are copies, because autograd saves them, too."""
    return {
        "x": tensors.input.detach().requires_grad_(),
        "mean": tensors.running_mean.clone(),
        "var": tensors.running_var.clone(),
        "weight": tensors.weight.detach().requires_grad_(),
        "bias": tensors.bias.detach().requires_grad_(),
    }


class Copy(Row):
    """A copy of the input, whatever the direction: the yardstick."""

    def forward(self, tensors: Tensors) -> Call:
        target = torch.empty_like(tensors.input)
        return lambda: (target.copy_(tensors.input),)

    backward = forward


def compiled() -> Torch:
    """torch.compile's row, for one shape; backward may run again on what its forward saved."""
    torch.compiler.reset()  # or the shapes of many cases would be compiled as one dynamic shape
    from torch._functorch import config

    config.donated_buffer = False
    return Torch(torch.compile(norm_and_relu, dynamic=False))


def eager_backend(tensors: Tensors) -> str:
    """Whose kernels PyTorch takes for these tensors: Native, Cudnn, ..."""
    t = tensors
    chosen = torch._C._select_batch_norm_backend(
        t.input, t.weight, t.bias, t.running_mean, t.running_var, True, EPS
    )
    return str(chosen).rpartition(".")[2]


def without_doubtful_gradients(tensors: Tensors) -> None:
    """Zero where ReLU's input is within rounding of zero, so that all rows have the same gradients."""
    z = F.batch_norm(tensors.input, None, None, tensors.weight, tensors.bias, training=True, eps=EPS)
    tensors.grad_output.masked_fill_(z.abs_() < WITHIN_ROUNDING, 0)


def compare(
    row: str, direction: str, tensors: Tensors, actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]
) -> None:
    """Raises WrongResultError where a result differs by more than rounding.

    By 1e-4 of its usual size, which is what rounding leaves of a sum of 1e6 terms. A half type may round two
    such values to neighbours, one part in 2^7 or less apart; torch.compile rounds at other places than
    eager, so that its results may be two such apart.
    """
    half = tensors.input.dtype == torch.bfloat16
    relative = 2.0**-7 if half else 1e-4
    absolute = 2.0**-6 if half and row == "compile" else 1e-4
    terms = tensors.input.numel() // tensors.input.shape[1]
    for name, one, other in zip(RESULTS[direction], actual, expected, strict=False):
        usual_size = 1.0 if one.dim() > 1 else terms**0.5
        try:
            torch.testing.assert_close(
                one.detach(), other.detach(), rtol=relative, atol=absolute * usual_size
            )
        except AssertionError as error:
            raise WrongResultError(f"{row}, {direction}: {name} is not eager's: {error}") from None
