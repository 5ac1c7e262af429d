"""Runs a case with the CUDA kernels' source on the CPU, by given launch plans, and checks the results."""

import copy
import functools
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fused_bn.sync.pieces import WITH_A_MASK, keeps_residual
from tests.cases import Case, Result, Tensors, present
from tests.planner import planner
from tests.reference import (
    DEMANDED_INVSTD,
    DEMANDED_MEAN,
    DEMANDS,
    error,
    errors,
    passed,
    precision,
    reference,
)
from tests.simt import build
from tests.simt.memory import Memory, in_memory_order, is_written

ELEMENTS = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}


def device(multiprocessors: int, shared: int, max_cluster: int) -> tuple[tuple[str, Any], ...]:
    """A device of sm_90 with these multiprocessors, bytes of shared memory per block, and clusters."""
    fields = {
        "architecture": 90,
        "multiprocessors": multiprocessors,
        "shared_per_block": shared,
        "shared_per_multiprocessor": max(131072, shared + 1024),
        "max_cluster": max_cluster,
        "active_clusters": tuple(max(1, multiprocessors // size) for size in (1, 2, 4, 8, 16)),
    }
    return tuple(fields.items())


SMALL_DEVICE = device(16, 98304, 16)
"""Has little shared memory and few multiprocessors, so that small tensors fill them."""

KINDS = {"none": "leaky_relu", "relu": "relu", "leaky_relu": "leaky_relu"}
"""By activation, what kernels are compiled for; "other" for all others."""

TILING = (
    *("N", "C", "S", "elements", "channels_last", "vector", "mixed", "fold", "rows", "row_vectors"),
    *("tile_vectors", "tile_channels", "tiles", "channel_length", "threads", "group", "groups"),
    "interleaved",
)


@functools.cache
def kernels_or_error() -> ModuleType | build.CompileError:
    try:
        return build.load_module(build.build_kernels())
    except build.CompileError as error:
        return error


def kernels() -> ModuleType:
    """The module of all element types. Compiled once; a failure is kept too."""
    found = kernels_or_error()
    if isinstance(found, build.CompileError):
        raise found
    return found


def view_of(case: Case) -> tuple[int, int, int, str]:
    """The view [N, C, S] of the case's input, as the operators see it."""
    n, c, *spatial = case.shape
    s = prod(spatial)
    first = case.layout == "contiguous" and s > 1
    return n, c, s, "channels_first" if first else "channels_last"


@dataclass(frozen=True)
class Launch:
    """The plan of a direction and the order in which its threads run."""

    device: str | tuple[tuple[str, Any], ...] = "h200"
    forced: str = ""
    alignment: int = 16
    seed: int = 0
    workers: int = 0

    def plan(self, case: Case, direction: str, part: str = "both") -> Any:
        device = self.device if isinstance(self.device, str) else dict(self.device)
        forced = self.forced
        if not case.training:
            part = "apply" if direction == "forward" else part
            forced = "streamed"  # the resident kernel knows training alone
        arguments = (ELEMENTS[case.dtype], direction, case.residual, self.alignment, device, part)
        return planner.plan(*view_of(case), *arguments, case.activation, forced)

    @property
    def overlaps(self) -> bool:
        """Whether the apply pass may start before the reduce pass ends."""
        fields = planner.device(self.device) if isinstance(self.device, str) else dict(self.device)
        return bool(fields["architecture"] >= 90)

    def __str__(self) -> str:
        """A part of a test's id."""
        words = [self.forced.replace(" ", "-") or "any plan"]
        if isinstance(self.device, str):
            words.append(self.device)
        if self.alignment != 16:
            words.append(f"aligned to {self.alignment}")
        return "-".join(words)


class Configuration:
    """The params and memory of one direction's kernels."""

    def __init__(
        self, module: ModuleType, case: Case, launch: Launch, direction: str, part: str = "both"
    ) -> None:
        self.module, self.case, self.launch, self.direction = module, case, launch, direction
        self.plan = plan = launch.plan(case, direction, part)
        self.dtype = getattr(module.DType, ELEMENTS[case.dtype])
        self.exchange = plan.exchange if plan.resident else "none"
        # The reduce pass, or the resident kernel; and the apply pass.
        self.kernels: dict[str, Any] = {}
        if plan.first is not None:
            self.kernels["resident" if plan.resident else "reduce"] = self._tiling(plan.first)
        if plan.apply is not None:
            self.kernels["apply"] = self._tiling(plan.apply)
        self.layouts = {
            kernel: module.shared_layout(
                tiling,
                getattr(module.Kernel, kernel),
                self.dtype,
                getattr(module.Exchange, self.exchange),
                plan.slots,
                2 if direction == "backward" or case.residual else 1,
                getattr(module.Activation, case.activation),
            )
            for kernel, tiling in self.kernels.items()
        }
        planned = [one for one in (plan.first, plan.apply) if one is not None]
        for one, layout in zip(planned, self.layouts.values(), strict=True):
            assert one.shared_bytes == layout.bytes, "the planner was built from other sources"

    def _tiling(self, planned: Any) -> Any:
        tiling = self.module.Tiling()
        for name in TILING:
            setattr(tiling, name, int(getattr(planned, name)))
        tiling.walk = getattr(self.module.Walk, planned.walk)
        tiling.derive()
        assert tiling.passes == planned.passes, "the planner was built from other sources"
        return tiling

    @property
    def words(self) -> int:
        if self.exchange != "words":
            return 0
        t = self.kernels["resident"]
        return int(2 * t.groups * (t.group + 1) * t.tile_channels)

    @property
    def arrivals(self) -> int:
        t = self.kernels.get("reduce")
        return 0 if t is None or t.group == 1 else int(t.tiles)

    @property
    def epochs(self) -> int:
        """The number of epochs that the launch uses."""
        if self.exchange != "words":
            return 0
        t = self.kernels["resident"]
        return int(-(-t.tiles // t.groups))

    @property
    def instances(self) -> list[str]:
        """The instances of the kernels that must run."""
        return [self._instance(kernel, tiling) for kernel, tiling in self.kernels.items()]

    def _instance(self, kernel: str, tiling: Any) -> str:
        vectors = "elements" if tiling.vector == 1 else "mixed vectors" if tiling.mixed else "vectors"
        words = [kernel, self.direction, ELEMENTS[self.case.dtype], vectors]
        if (kernel, self.direction) != ("reduce", "forward"):
            words.append("other" if tiling.vector == 1 else KINDS.get(self.case.activation, "other"))
        return " ".join(words)


class Scratch:
    """What launches share and leave as the next one needs it: for any of some configurations."""

    def __init__(self, module: ModuleType, configurations: Iterable[Configuration]) -> None:
        self.memory = Memory(module, 16)
        self.scratch = module.Scratch()
        found = list(configurations)
        sizes = {
            "epoch": 2,
            "arrivals": max(c.arrivals for c in found),
            "words": 4 * max(c.words for c in found),
        }
        self.tensors = {}
        for name, size in sizes.items():
            address, self.tensors[name] = self.memory.empty(max(1, size), torch.int32)
            self.tensors[name].zero_()
            setattr(self.scratch, name, address)

    @property
    def epoch(self) -> int:
        return int(self.tensors["epoch"][0])

    def check(self) -> None:
        self.memory.check()
        counters = (self.tensors["epoch"][1:], self.tensors["arrivals"])
        assert not any(map(torch.any, counters)), "the counters are not as the next launch needs them"


class Run:
    """A forward and a backward that reads what it saved, with all their memory."""

    def __init__(
        self,
        case: Case,
        tensors: Tensors,
        forward: Launch,
        backward: Launch | None = None,
        module: ModuleType | None = None,
        without: Collection[str] = (),
        parts: tuple[str, str] = ("both", "both"),
        scratch: Scratch | None = None,
    ) -> None:
        self.case, self.tensors, self.without = case, tensors, without
        self.module = module or kernels()
        self.memory = Memory(self.module, forward.alignment)
        self.configurations = [
            Configuration(self.module, case, forward, "forward", parts[0]),
            Configuration(self.module, case, backward or forward, "backward", parts[1]),
        ]
        if case.activation == "prelu":
            own = backward or forward  # the slope's pass has no resident kernel
            own = own if own.forced.startswith("streamed") else replace(own, forced="")
            self.configurations.append(Configuration(self.module, case, own, "backward", "reduce"))
        self.scratch = scratch or Scratch(self.module, self.configurations)
        self._forward_params()
        self._backward_params()

    def _common(self, params: Any, configuration: Configuration) -> None:
        """Sets the params that forward and backward share."""
        n, _, s, _ = view_of(self.case)
        params.inverse_count = 1.0 / (n * s)
        params.activation = getattr(self.module.Activation, self.case.activation)
        params.activation_param = self.case.activation_param or 0.0
        params.exchange = getattr(self.module.Exchange, configuration.exchange)
        params.slots = configuration.plan.slots
        params.partials, _ = self.memory.aligned(configuration.plan.partials_bytes)
        params.scratch = self.scratch.scratch

    def _vector(self, tensor: Tensor | None, *, filled: bool = True) -> tuple[Any, Tensor | None]:
        """A per-channel vector of the tensor; an absent one for None."""
        vector = self.module.ChannelVector()
        if tensor is None:
            return vector, None
        vector.data, copy = self.memory.copy(tensor) if filled else self.memory.like(tensor)
        vector.stride = tensor.stride(0)
        vector.dtype = getattr(self.module.DType, ELEMENTS[tensor.dtype])
        return vector, copy

    def _forward_params(self) -> None:
        case, tensors, memory = self.case, self.tensors, self.memory
        self.p = p = self.module.ForwardParams()
        p.input, self.input = memory.copy(tensors.input)
        p.residual, _ = memory.copy(tensors.residual)
        p.output, self.output = memory.like(tensors.input)
        self.mask: Tensor | None = None
        if case.residual and case.activation in WITH_A_MASK:
            p.mask, self.mask = memory.aligned((tensors.input.numel() + 7) // 8)
        p.weight, _ = self._vector(tensors.weight)
        p.bias, _ = self._vector(tensors.bias)
        p.bias_copy, self.bias_copy = self._vector(tensors.bias, filled=False)
        p.negative_slope, _ = self._vector(tensors.negative_slope)
        p.running_mean, self.running_mean = self._vector(tensors.running_mean)
        p.running_var, self.running_var = self._vector(tensors.running_var)
        if case.training:
            p.num_batches_tracked, self.tracked = memory.copy(tensors.num_batches_tracked)
        else:
            self.tracked = tensors.num_batches_tracked
        compute = torch.float64 if case.dtype is torch.float64 else torch.float32
        p.statistics, self.statistics = memory.empty(3 * case.channels, compute)
        p.source = self.module.Source.batch if case.training else self.module.Source.running
        p.cumulative, p.momentum = int(case.momentum is None), case.momentum or 0.0
        p.eps = case.eps
        count = tensors.input.numel() // case.channels
        p.unbiased = count / max(count - 1, 1)
        self._common(p, self.configurations[0])

    def _backward_params(self) -> None:
        case, memory, tensors, p = self.case, self.memory, self.tensors, self.p
        self.b = b = self.module.BackwardParams()
        b.grad_output, _ = memory.copy(tensors.grad_output)
        b.input, b.statistics, b.mask, b.weight, b.bias = p.input, p.statistics, p.mask, p.weight, p.bias
        b.negative_slope = p.negative_slope
        b.training = int(case.training)
        if keeps_residual(case.activation):
            b.residual = p.residual
        b.grad_input, self.grad_input = memory.like(tensors.input)
        b.grad_residual, self.grad_residual = 0, None
        if case.residual:
            b.grad_residual, self.grad_residual = memory.like(tensors.input)
        b.grad_weight, self.grad_weight = self._vector(tensors.weight, filled=False)
        b.grad_bias, self.grad_bias = self._vector(tensors.bias, filled=False)
        if not self.configurations[1].plan.resident:
            b.sums, self.sums = memory.empty(2 * case.channels, torch.float64)
        self._common(b, self.configurations[1])
        self._slope_params()
        for name in self.without:
            setattr(b, name, self.module.ChannelVector() if name in ("grad_weight", "grad_bias") else 0)

    def _slope_params(self) -> None:
        """Of prelu's third sum, by a launch of its own."""
        self.grad_negative_slope: Tensor | None = None
        if self.tensors.negative_slope is None:
            return
        self.s = s = copy.copy(self.b)
        self._common(s, self.configurations[2])
        s.activation = self.module.Activation.prelu_by_slope
        s.grad_input = s.grad_residual = 0
        s.grad_weight = self.module.ChannelVector()
        s.grad_bias, self.grad_negative_slope = self._vector(self.tensors.negative_slope, filled=False)
        s.sums, _ = self.memory.empty(2 * self.case.channels, torch.float64)

    def launch_forward(self) -> None:
        """Whatever of it the params ask for."""
        self._launch("run_forward", self.p, self.configurations[0])
        if self.case.training and self.case.momentum is None and self.tracked is not None:
            self.tracked += 1

    def launch_backward(self) -> None:
        self._launch("run_backward", self.b, self.configurations[1])
        if self.grad_negative_slope is not None:
            self._launch("run_backward", self.s, self.configurations[2])

    def _launch(self, name: str, params: Any, configuration: Configuration) -> None:
        passes = []
        for kernel, tiling in configuration.kernels.items():
            own = copy.copy(params)
            own.tiling, own.layout = tiling, configuration.layouts[kernel]
            passes.append((getattr(self.module.Kernel, kernel), own))
        launch, epoch = configuration.launch, self.scratch.epoch
        ran = []
        for together in [passes] if launch.overlaps else [[each] for each in passes]:
            run = getattr(self.module, name)
            ran += run(configuration.dtype, together, seed=launch.seed, workers=launch.workers)
        assert ran == configuration.instances
        self.memory.check()
        self.scratch.check()
        assert (self.scratch.epoch - epoch) % 2**32 == configuration.epochs, "the epochs of its words"

    def forward(self) -> None:
        self.launch_forward()
        assert is_written(self.output), "an element of the output was left out"
        assert is_written(self.statistics), "a channel's statistics were left out"
        if self.bias_copy is not None and self.p.source != self.module.Source.given:
            bias = present(self.tensors.bias)
            assert torch.equal(self.bias_copy.nan_to_num(), bias.nan_to_num()), "the copy of the bias"

    def backward(self) -> None:
        self.launch_backward()
        for name in ("grad_input", "grad_residual", "grad_weight", "grad_bias", "grad_negative_slope"):
            gradient = getattr(self, name)
            if gradient is not None:
                assert is_written(gradient) == (name not in self.without), name
        assert torch.equal(
            in_memory_order(present(self.input)).view(torch.uint8),
            in_memory_order(self.tensors.input).view(torch.uint8),
        ), "the input was written"

    def passed(self) -> Tensor | None:
        """The mask's bits, in memory order."""
        if self.mask is None:
            return None
        bits = (self.mask[:, None] >> torch.arange(8) & 1).bool().flatten()
        elements = self.tensors.input.numel()
        assert not bits[elements:].any(), "the mask's padding is not 0"
        return bits[:elements]

    def outcome(self) -> "Outcome":
        buffers = (self.running_mean, self.running_var, self.tracked)
        gradients = (self.grad_input, self.grad_weight, self.grad_bias)
        result = Result(self.output, *gradients, *buffers, self.grad_residual, self.grad_negative_slope)
        return Outcome(result, self.statistics.view(3, -1), self.passed())


@dataclass
class Outcome:
    """All outputs of the two launches."""

    result: Result
    statistics: Tensor
    passed: Tensor | None

    def tensors(self) -> dict[str, Tensor]:
        found = {"statistics": self.statistics, "passed": self.passed, **self.result.__dict__}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def run(
    case: Case,
    tensors: Tensors,
    forward: Launch = Launch(),
    backward: Launch | None = None,
    *,
    module: ModuleType | None = None,
    without: Collection[str] = (),
) -> Outcome:
    """Runs a forward and a backward, `without` some of the gradients."""
    both = Run(case, tensors, forward, backward, module, without)
    both.forward()
    both.backward()
    return both.outcome()


def assert_right(case: Case, tensors: Tensors, outcome: Outcome, demands: dict[str, float] = DEMANDS) -> None:
    """Asserts that all results are accurate, including statistics, mask and counter."""
    factor = precision(case.dtype)
    truth = reference(case, tensors)
    mean = outcome.statistics[0].double() + outcome.statistics[1].double()
    found = errors(case, tensors, outcome.result)
    found["mean"] = error(mean, truth.mean, truth.scales["mean"])
    found["invstd"] = error(outcome.statistics[2], truth.invstd, truth.scales["invstd"])
    allowed = {"mean": DEMANDED_MEAN, "invstd": DEMANDED_INVSTD, **demands}
    wrong = [
        f"{name}: error {value:.2e}, demanded {allowed[name] * factor:.2e}"
        for name, value in found.items()
        if not value <= allowed[name] * factor
    ]
    before, after = tensors.num_batches_tracked, outcome.result.num_batches_tracked
    if before is not None and int(present(after)) != int(before) + case.training:
        wrong.append(f"num_batches_tracked: {int(present(after))} after {int(before)}")
    if outcome.passed is not None:
        told = present(passed(case, tensors, outcome.result.output))
        differs = outcome.passed != in_memory_order(told)
        if differs.any():
            wrong.append(f"mask: {int(differs.sum())} bits are not what the output tells")
    assert not wrong, "\n".join(wrong)
