"""Runs the CUDA kernels' own source on the CPU: a case, by launch plans, and how good the results are."""

import functools
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fused_bn._extension import extension
from tests.cases import Case, Result, Tensors, present
from tests.reference import (
    DEMANDED_INVSTD,
    DEMANDED_MEAN,
    DEMANDS,
    KINKS,
    error,
    errors,
    passed,
    precision,
    reference,
)
from tests.simt import build
from tests.simt.memory import Memory, in_memory_order, is_written

ELEMENTS = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}

SMALL_DEVICE = (
    *(("architecture", 90), ("multiprocessors", 6), ("max_cluster", 4)),
    ("shared_per_block", 65536),
)
"""So little shared memory and so few multiprocessors that small tensors fill them."""

CURVES = {"none": "leaky_relu", "relu": "relu", "leaky_relu": "leaky_relu"}
"""By activation, what kernels are compiled for; "other" for all others."""

GEOMETRY = (
    *("N", "C", "S", "elements", "channels_last", "whole", "slabs", "rows", "row_length", "slab_columns"),
    *("slab_channels", "slab_vectors", "lanes", "threads", "group", "groups", "register_steps"),
    "shared_steps",
)


@functools.cache
def kernels(elements: tuple[str, ...] = tuple(build.ELEMENTS)) -> ModuleType:
    return build.load_module(build.build_kernels(elements=elements))


def view_of(case: Case) -> tuple[int, int, int, str]:
    """N, C, S and layout, as the operators see the case's input."""
    n, c, *spatial = case.shape
    s = prod(spatial)
    first = case.layout == "contiguous" and s > 1
    return n, c, s, "channels_first" if first else "channels_last"


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched: by a plan, and what a test changes of it."""

    device: str | tuple[tuple[str, Any], ...] = "h200"
    exchange: str | None = None
    alignment: int = 16
    register_steps: int | None = None  # at most so many, of those that the plan keeps
    shared_steps: int | None = None
    group: int | None = None  # blocks, whatever the planner would say
    groups: int | None = None
    seed: int = 0
    workers: int = 0

    def plan(self, case: Case, direction: str) -> Any:
        assert extension is not None
        device = self.device if isinstance(self.device, str) else dict(self.device)
        exchange = self.exchange if self.group is None else "none"
        arguments = (ELEMENTS[case.dtype], direction, case.residual, self.alignment, device)
        exchange = None if direction == "evaluation" else exchange
        return extension.plan(*view_of(case), *arguments, exchange, case.activation)

    def __str__(self) -> str:
        """A part of a test's id."""
        named = {
            "group": self.group,
            "groups": self.groups,
            "V": self.register_steps,
            "PS": self.shared_steps,
        }
        words = [f"{name}={value}" for name, value in named.items() if value is not None]
        if self.alignment != 16:
            words.append(f"aligned to {self.alignment}")
        return "-".join([self.exchange or "any exchange", *words])


def at_most(value: int, limit: int | None) -> int:
    return value if limit is None else min(value, limit)


class Configuration:
    """What one kernel is launched with, for a case and a direction."""

    def __init__(self, module: ModuleType, case: Case, launch: Launch, direction: str) -> None:
        self.case, self.launch, self.direction = case, launch, direction
        self.plan = plan = launch.plan(case, direction)
        self.dtype = getattr(module.DType, ELEMENTS[case.dtype])
        self.geometry = g = module.Geometry()
        for name in GEOMETRY:
            setattr(g, name, getattr(plan, name))
        g.mapping = getattr(module.Mapping, plan.mapping)
        g.row_vectors = module.Division(plan.row_vectors)
        g.cut_steps()
        backward = direction == "backward"
        activation = getattr(module.Activation, case.activation)
        self.most_registers = most = module.register_steps(self.dtype, backward, g.mapping, activation)
        assert g.steps == plan.steps, "the extension was built from other sources"
        assert g.register_steps in (0, most), "the extension was built from other sources"
        self.exchange = plan.exchange
        alone = launch.exchange in (None, "none") and direction != "evaluation"
        if launch.group is not None and (launch.group == 1 or not alone):
            self.exchange = "none" if direction == "evaluation" else launch.exchange
            g.group, g.groups = launch.group, launch.groups or g.groups
        keeps = self.exchange != "two_kernels"
        g.register_steps = at_most(g.register_steps, launch.register_steps) if keeps else 0
        g.shared_steps = at_most(g.shared_steps, launch.shared_steps) if keeps else 0
        self.grid = g.group * g.groups
        self.module, self.tensors_read = module, 2 if backward else 1
        self.shared_bytes = module.shared_bytes(g, self.dtype, self.tensors_read)

    def gather_nothing(self) -> None:
        """As the launch layer does it for a kernel that is given what it would gather."""
        self.exchange = "none"
        self.geometry.register_steps = self.geometry.shared_steps = 0
        self.shared_bytes = self.module.shared_bytes(self.geometry, self.dtype, self.tensors_read)

    @property
    def workspace_bytes(self) -> int:
        g, compute = self.geometry, 8 if self.case.dtype is torch.float64 else 4
        values = {"barrier": 2 * 2 * g.groups, "two_kernels": 3 * g.slabs}.get(self.exchange, 0)
        return int(values * g.group * g.slab_channels * compute)

    @property
    def words(self) -> int:
        return int(1 + self.geometry.groups) if self.exchange == "barrier" else 1

    @property
    def instance(self) -> str:
        """Of the kernel that must run."""
        words = (
            "backward" if self.direction == "backward" else "forward",
            ELEMENTS[self.case.dtype],
            self.plan.mapping,
            "whole" if self.plan.whole else "partial",
            CURVES.get(self.case.activation, "other"),
        )
        return " ".join(words)


class Run:
    """A forward and a backward, which reads what the forward saved, with all their memory."""

    def __init__(
        self,
        case: Case,
        tensors: Tensors,
        forward: Launch,
        backward: Launch | None = None,
        module: ModuleType | None = None,
        without: Collection[str] = (),
        backward_gathers: bool = True,
    ) -> None:
        self.case, self.tensors, self.without = case, tensors, without
        self.module = module or kernels()
        self.memory = Memory(self.module, forward.alignment)
        direction = "forward" if case.training else "evaluation"
        self.configurations = (
            Configuration(self.module, case, forward, direction),
            Configuration(self.module, case, backward or forward, "backward"),
        )
        if not backward_gathers:
            self.configurations[1].gather_nothing()
        self._forward_params()
        self._backward_params()

    def _common(self, params: Any, configuration: Configuration) -> Tensor:
        """Sets what forward and backward have in common; returns the words of their workspace."""
        n, _, s, _ = view_of(self.case)
        params.geometry = configuration.geometry
        params.exchange = getattr(self.module.Exchange, configuration.exchange)
        params.training = int(self.case.training)
        params.inverse_count = 1.0 / (n * s)
        params.activation = getattr(self.module.Activation, self.case.activation)
        params.activation_param = self.case.activation_param or 0.0
        space = self.module.Workspace()
        space.partials = self.memory.workspace(configuration.workspace_bytes)
        space.words, words = self.memory.empty(32 * configuration.words, torch.int32)
        words.zero_()
        params.workspace = space
        return words

    def _vector(self, tensor: Tensor | None, *, filled: bool = True) -> tuple[Any, Tensor | None]:
        """A per-channel vector with the tensor's values, or without any."""
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
        if case.residual and case.activation in KINKS:
            p.mask, self.mask = memory.empty(self.configurations[0].plan.mask_bytes, torch.uint8)
        p.weight, _ = self._vector(tensors.weight)
        p.bias, _ = self._vector(tensors.bias)
        p.running_mean, self.running_mean = self._vector(tensors.running_mean)
        p.running_var, self.running_var = self._vector(tensors.running_var)
        p.num_batches_tracked, self.tracked = memory.copy(tensors.num_batches_tracked)
        compute = torch.float64 if case.dtype is torch.float64 else torch.float32
        p.statistics, self.statistics = memory.empty(3 * case.channels, compute)
        p.cumulative, p.momentum = int(case.momentum is None), case.momentum or 0.0
        p.eps = case.eps
        count = tensors.input.numel() // case.channels
        p.unbiased = count / max(count - 1, 1)
        self.forward_words = self._common(p, self.configurations[0])

    def _backward_params(self) -> None:
        case, memory, tensors, p = self.case, self.memory, self.tensors, self.p
        self.b = b = self.module.BackwardParams()
        b.grad_output, _ = memory.copy(tensors.grad_output)
        b.input, b.statistics, b.mask, b.weight, b.bias = p.input, p.statistics, p.mask, p.weight, p.bias
        if case.activation not in KINKS and case.activation != "none":
            b.residual = p.residual
        b.grad_input, self.grad_input = memory.like(tensors.input)
        b.grad_residual, self.grad_residual = 0, None
        if case.residual:
            b.grad_residual, self.grad_residual = memory.like(tensors.input)
        b.grad_weight, self.grad_weight = self._vector(tensors.weight, filled=False)
        b.grad_bias, self.grad_bias = self._vector(tensors.bias, filled=False)
        self.backward_words = self._common(b, self.configurations[1])
        for name in self.without:
            setattr(b, name, self.module.ChannelVector() if name in ("grad_weight", "grad_bias") else 0)

    def launch_forward(self) -> None:
        """Whatever of it the params ask for."""
        self._launch("run_forward", self.p, self.configurations[0], self.forward_words)

    def launch_backward(self) -> None:
        self._launch("run_backward", self.b, self.configurations[1], self.backward_words)

    def _launch(self, name: str, params: Any, configuration: Configuration, words: Tensor) -> None:
        ran = getattr(self.module, name)(
            params,
            configuration.dtype,
            grid=configuration.grid,
            shared_bytes=configuration.shared_bytes,
            seed=configuration.launch.seed,
            workers=configuration.launch.workers,
        )
        launches = 2 if configuration.exchange == "two_kernels" else 1
        assert ran == [configuration.instance] * launches, "one launch a direction, but for two kernels"
        self.memory.check()
        assert not (words & 0x7FFFFFFF).any(), "the counters are not as the next launch needs them"

    def forward(self) -> None:
        self.launch_forward()
        assert is_written(self.output), "an element of the output was left out"
        assert is_written(self.statistics), "a channel's statistics were left out"

    def backward(self) -> None:
        self.launch_backward()
        for name in ("grad_input", "grad_residual", "grad_weight", "grad_bias"):
            gradient = getattr(self, name)
            if gradient is not None:
                assert is_written(gradient) == (name not in self.without), name
        assert torch.equal(
            in_memory_order(present(self.input)).view(torch.uint8),
            in_memory_order(self.tensors.input).view(torch.uint8),
        ), "the input was written"

    def passed(self) -> Tensor | None:
        """Whether the mask lets each element's gradient through, in the order of memory."""
        if self.mask is None:
            return None
        assert extension is not None
        bits = torch.frombuffer(
            bytearray(extension.plan_mask_bits(self.configurations[0].plan)), dtype=torch.int64
        )
        return (self.mask[bits // 8] >> (bits % 8) & 1).bool()

    def outcome(self) -> "Outcome":
        buffers = (self.running_mean, self.running_var, self.tracked)
        gradients = (self.grad_input, self.grad_weight, self.grad_bias)
        result = Result(self.output, *gradients, *buffers, self.grad_residual)
        return Outcome(result, self.statistics.view(3, -1), self.passed())


@dataclass
class Outcome:
    """Everything that the two launches wrote."""

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
    """One forward and, from what it saved, one backward; `without` some of the gradients."""
    both = Run(case, tensors, forward, backward, module, without)
    both.forward()
    both.backward()
    return both.outcome()


def assert_right(case: Case, tensors: Tensors, outcome: Outcome, demands: dict[str, float] = DEMANDS) -> None:
    """All results within their demands, statistics, mask and counter included."""
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
