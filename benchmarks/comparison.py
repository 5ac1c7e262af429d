"""One case's tensors, the modules that are compared on them, and checks that their results agree."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.nn import functional as F

import fused_bn

SHAPES = (  # two layers of LeNet-5 at batch 64, four of ResNet-50 at batch 32
    (64, 6, 28, 28),
    (64, 16, 10, 10),
    (32, 64, 112, 112),
    (32, 256, 56, 56),
    (32, 512, 28, 28),
    (32, 2048, 7, 7),
)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HALF = (torch.bfloat16, torch.float16)
DIRECTIONS = ("forward", "forward+backward")
ALL_DIRECTIONS = ("forward", "backward", "forward+backward", "evaluation")

GRADIENTS = ("grad_input", "grad_weight", "grad_bias")
RESULTS = {direction: GRADIENTS if "backward" in direction else ("output",) for direction in ALL_DIRECTIONS}
"""The results that a slot returns, by direction."""

Maker = Callable[[int], nn.Module]
Slot = Callable[[], tuple[Tensor, ...]]

TORCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""PyTorch's norms by the input's rank."""


@dataclass(frozen=True)
class Case:
    """An (N, C, ...) input on which modules are compared. Their parameters are always float32.

    channels_last needs an input of rank 4.
    """

    shape: tuple[int, ...]
    layout: str
    dtype: str

    @property
    def id(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.layout} {self.dtype}"

    @property
    def tensor_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def grid(
    shapes: tuple[tuple[int, ...], ...] = SHAPES,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    only: str = "",
) -> list[Case]:
    """All combinations whose id contains `only`."""
    cases = [Case(shape, layout, dtype) for shape in shapes for layout in LAYOUTS for dtype in dtypes]
    return [case for case in cases if only in case.id]


WITHIN_ROUNDING = 1e-3


class WrongResultError(Exception):
    """A row's results differ from eager's by more than rounding, so its speed means nothing."""


class Comparison:
    """The tensors and modules of one case, all from one seed.

    Rows: "copy" copies the input and is the unit of time. "eager" is nn.BatchNorm and nn.ReLU. "compile" is
    the same under torch.compile, if `compile`. "ours". `peers` has more rows: functions that make a module
    for a number of channels. All modules train, and the input requires a gradient. Evaluation has modules of
    its own.
    """

    def __init__(
        self,
        case: Case,
        device: torch.device,
        seed: int = 0,
        compile: bool = False,
        peers: Mapping[str, Maker] = MappingProxyType({}),
    ) -> None:
        self.case, self.device, self.compiles, self.peers = case, device, compile, peers
        self.unmade: dict[str, Exception] = {}
        generator = torch.Generator().manual_seed(seed)
        self.batch_norm = TORCH_NORMS[len(case.shape)](case.shape[1])
        nn.init.uniform_(self.batch_norm.weight, 0.5, 1.5, generator)
        nn.init.normal_(self.batch_norm.bias, generator=generator)
        if compile:
            torch.compiler.reset()  # otherwise many cases would be compiled as one dynamic shape
        self.modules = self._modules()
        self.batch_norm.to(device)
        self._draw(generator)

    def _draw(self, generator: torch.Generator) -> None:
        """Draws input and gradient. The gradient is 0 where rounding decides whether ReLU passes a value."""

        def normal() -> Tensor:
            values = torch.randn(self.case.shape, generator=generator)
            values = values.to(self.device, DTYPES[self.case.dtype])
            return values.contiguous(memory_format=LAYOUTS[self.case.layout])

        self.input, self.grad_output = normal(), normal()
        norm = self.batch_norm
        with torch.no_grad():
            z = F.batch_norm(self.input, None, None, norm.weight, norm.bias, training=True)
            self.grad_output.masked_fill_(z.abs_() < WITHIN_ROUNDING, 0)
        self.input.requires_grad_()

    def another(self, seed: int) -> "Comparison":
        """The same modules on other tensors."""
        other = copy.copy(self)
        other._draw(torch.Generator().manual_seed(seed))
        return other

    def _modules(self) -> dict[str, nn.Module]:
        torch_norm = type(self.batch_norm)
        modules: dict[str, nn.Module] = {"eager": nn.Sequential(self._with_state(torch_norm), nn.ReLU())}
        if self.compiles:
            # Backward runs several times on the tensors that one forward saved.
            functorch_config.donated_buffer = False
            plain = nn.Sequential(self._with_state(torch_norm), nn.ReLU())
            compiled = torch.compile(plain, dynamic=False)
            assert isinstance(compiled, nn.Module)  # a module, though torch's types do not say so
            modules["compile"] = compiled
        ours = partial(getattr(fused_bn, torch_norm.__name__), activation="relu")
        modules["ours"] = self._with_state(ours)
        for row, make in self.peers.items():
            try:
                modules[row] = self._with_state(make)
            except Exception as error:  # an error of another library must not cost the other rows
                self.unmade[row] = error
        for module in modules.values():
            module.to(self.device)
        return modules

    def _with_state(self, make: Maker) -> nn.Module:
        """Makes a module and copies `batch_norm`'s parameters and buffers to it, at any depth."""
        module = make(self.batch_norm.num_features)
        state = self.batch_norm.state_dict()
        for name, tensor in module.state_dict().items():
            if (own := name.rpartition(".")[2]) in state:
                tensor.copy_(state.pop(own))
        if state.keys() - {"num_batches_tracked"}:
            raise ValueError(f"{type(module).__name__} has no {', '.join(state)}")
        return module

    @cached_property
    def evaluating(self) -> dict[str, nn.Module]:
        """The modules in evaluation mode, with running statistics as after training."""
        modules = self._modules()
        for module in modules.values():
            for name, buffer in module.named_buffers():
                if name.endswith("running_mean"):
                    buffer.copy_(torch.linspace(-0.5, 0.5, buffer.numel()))
                elif name.endswith("running_var"):
                    buffer.copy_(torch.linspace(0.5, 2, buffer.numel()))
            module.eval()
        return modules

    def slots(self, direction: str) -> dict[str, Slot]:
        """The functions to time, by row. `direction` is one of ALL_DIRECTIONS."""
        target = torch.empty_like(self.input, requires_grad=False)
        source = self.input.detach()
        slots: dict[str, Slot] = {"copy": lambda: (target.copy_(source),)}
        make = {
            "forward": self.forward,
            "backward": self.backward,
            "forward+backward": self.step,
            "evaluation": self.evaluation,
        }[direction]
        modules = self.evaluating if direction == "evaluation" else self.modules
        return slots | {row: make(module) for row, module in modules.items()}

    def forward(self, module: nn.Module) -> Slot:
        """One forward call."""
        input = self.input
        return lambda: (module(input),)

    def backward(self, module: nn.Module) -> Slot:
        """Repeated backward of one forward."""
        output, grad_output = module(self.input), self.grad_output
        wanted = [self.input, *module.parameters()]
        return lambda: torch.autograd.grad(output, wanted, grad_output, retain_graph=True)

    def step(self, module: nn.Module) -> Slot:
        """Forward and backward. Gradients of input and parameters are new, as in a training step."""
        input, grad_output, parameters = self.input, self.grad_output, list(module.parameters())

        def step() -> tuple[Tensor, ...]:
            input.grad = None
            for parameter in parameters:
                parameter.grad = None
            module(input).backward(grad_output)
            return tuple(leaf.grad for leaf in (input, *parameters) if leaf.grad is not None)

        return step

    def evaluation(self, module: nn.Module) -> Slot:
        """One call in evaluation mode, without autograd."""
        input = self.input

        def call() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (module(input),)

        return call

    def clear_gradients(self) -> None:
        """Frees the gradients of earlier steps. A measurement of memory would count them as freed."""
        self.input.grad = None
        for module in (self.batch_norm, *self.modules.values()):
            module.zero_grad(set_to_none=True)

    def check(self) -> None:
        """Runs every module once, with its initial buffers, and compares all results with eager's.

        Raises WrongResultError, or any error of a module. Call it before timing, because it also compiles.
        """
        for error in self.failures().values():
            raise error

    def failures(self) -> dict[str, Exception]:
        """Removes the rows that `check` would stop at, and returns their errors."""
        expected = self._results(self.modules["eager"])
        found = dict(self.unmade)
        for row, module in self.modules.items():
            if row == "eager":
                continue
            try:
                for name, actual in self._results(module).items():
                    # apex does not count batches, and other libraries have more buffers
                    if name in expected and not (row in self.peers and name == "num_batches_tracked"):
                        self._compare(row, name, actual, expected[name])
            except Exception as error:
                found[row] = error
        for row in found:
            self.modules.pop(row, None)
        return found

    def check_results(
        self, row: str, direction: str, results: tuple[Tensor, ...], expected: tuple[Tensor, ...]
    ) -> None:
        """Compares a slot's results with eager's. Raises WrongResultError."""
        for name, actual, right in zip(RESULTS[direction], results, expected, strict=True):
            self._compare(row, name, actual.detach(), right)

    def _results(self, module: nn.Module) -> dict[str, Tensor]:
        output = module(self.input)
        gradients = torch.autograd.grad(output, [self.input, *module.parameters()], self.grad_output)
        buffers = {name.rpartition(".")[2]: buffer for name, buffer in module.named_buffers()}
        return {"output": output.detach(), **dict(zip(GRADIENTS, gradients, strict=True)), **buffers}

    def _compare(self, row: str, name: str, actual: Tensor, expected: Tensor) -> None:
        """Allows 1e-4 of a result's usual size: the rounding error of a sum of 1e6 terms.

        Half precision may round two such values to neighbours, which differ by at most one part in 2^7.
        torch.compile rounds to the input's dtype at other places than eager, so its results may be two
        neighbours apart.
        """
        terms = actual.numel() and self.input.numel() // self.input.shape[1]
        usual_size = terms**0.5 if name in ("grad_weight", "grad_bias") else 1.0
        half = any(t in HALF for t in (expected.dtype, self.input.dtype if row == "compile" else None))
        relative = 2.0**-7 if half else 1e-4
        absolute = 2.0**-6 if half and row == "compile" else 1e-4
        try:
            torch.testing.assert_close(actual, expected, rtol=relative, atol=absolute * usual_size)
        except AssertionError as error:
            raise WrongResultError(f"{row}: {name} is not eager's: {error}") from None
