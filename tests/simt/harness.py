"""Runs the CUDA kernels' own source on the CPU: a case of the grid, on plans, in memory with guard pages."""

import functools
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fused_bn._extension import extension
from tests.cases import Case, Result, Tensors, present
from tests.reference import DEMANDED_INVSTD, DEMANDED_MEAN, DEMANDS, error, errors, precision, reference
from tests.simt import build

ELEMENTS = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}

SMALL_DEVICE = {"architecture": 90, "multiprocessors": 6, "shared_per_block": 65536, "max_cluster": 4}
"""So little shared memory and so few multiprocessors that small tensors fill them."""

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
    s = 1
    for size in spatial:
        s *= size
    first = case.layout == "contiguous" and s > 1
    return n, c, s, "channels_first" if first else "channels_last"


@dataclass(frozen=True)
class Launch:
    """How one direction is launched: a plan, and what a test changes of it."""

    device: Any = "h200"
    exchange: str | None = None
    alignment: int = 16
    register_steps: int | None = None
    shared_steps: int | None = None
    seed: int = 0

    def plan(self, case: Case, direction: str) -> Any:
        device = self.device if isinstance(self.device, str) else dict(self.device)
        element = ELEMENTS[case.dtype]
        return present_extension().plan(
            *view_of(case), element, direction, case.residual, self.alignment, device, self.exchange
        )


def present_extension() -> Any:
    assert extension is not None
    return extension


class Memory:
    """The tensors of a launch, each in memory of its own that ends at a guard page."""

    def __init__(self, module: ModuleType, alignment: int) -> None:
        self._module, self._alignment = module, alignment
        self._buffers: list[Any] = []

    def empty(self, size: int, dtype: torch.dtype) -> tuple[int, Tensor]:
        """The address of `size` elements full of NaN, and a tensor over them."""
        alignment = max(self._alignment, dtype.itemsize)
        buffer = self._module.GuardedBuffer(max(1, size * dtype.itemsize), alignment)
        self._buffers.append(buffer)
        return buffer.address, torch.frombuffer(buffer, dtype=dtype)[:size]

    def copy(self, tensor: Tensor | None) -> tuple[int, Tensor | None]:
        """The same in its own order in memory; address 0 for None."""
        if tensor is None:
            return 0, None
        address, flat = self.empty(tensor.numel(), tensor.dtype)
        flat.copy_(in_memory_order(tensor))
        return address, flat.as_strided(tensor.shape, tensor.stride())

    def like(self, tensor: Tensor) -> tuple[int, Tensor]:
        address, flat = self.empty(tensor.numel(), tensor.dtype)
        return address, flat.as_strided(tensor.shape, tensor.stride())

    def check(self) -> None:
        assert all(buffer.intact() for buffer in self._buffers), "something was written beside a tensor"


def in_memory_order(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,))


@dataclass
class Outcome:
    """Everything that the two launches wrote."""

    result: Result
    statistics: Tensor


def geometry_of(module: ModuleType, plan: Any, launch: Launch) -> Any:
    geometry = module.Geometry()
    for name in GEOMETRY:
        setattr(geometry, name, getattr(plan, name))
    geometry.mapping = getattr(module.Mapping, plan.mapping)
    geometry.row_vectors = module.Division(plan.row_vectors)
    geometry.cut_steps()
    assert geometry.steps == plan.steps
    if launch.register_steps is not None:
        geometry.register_steps = min(launch.register_steps, geometry.register_steps)
    if launch.shared_steps is not None:
        geometry.shared_steps = min(launch.shared_steps, geometry.shared_steps)
    return geometry


def channel_vector(module: ModuleType, memory: Memory, tensor: Tensor | None) -> tuple[Any, Tensor | None]:
    address, copy = memory.copy(tensor)
    vector = module.ChannelVector()
    vector.data, vector.stride = address, 1
    if tensor is not None:
        vector.dtype = getattr(module.DType, ELEMENTS[tensor.dtype])
    return vector, copy


def workspace(module: ModuleType, memory: Memory, plan: Any) -> tuple[Any, Tensor]:
    space = module.Workspace()
    space.partials, _ = memory.empty(plan.workspace_bytes, torch.uint8)
    space.words, words = memory.empty(32 * plan.words, torch.int32)
    words.zero_()
    return space, words


def run_kernel(module: ModuleType, name: str, params: Any, plan: Any, case: Case, launch: Launch) -> None:
    """Sets what forward and backward have in common, and launches."""
    n, _, s, _ = view_of(case)
    params.geometry = geometry_of(module, plan, launch)
    params.exchange = getattr(module.Exchange, plan.exchange)
    params.training = int(case.training)
    params.inverse_count = 1.0 / (n * s)
    params.negative_slope = {"none": 1.0, "relu": 0.0, "leaky_relu": case.negative_slope}[case.activation]
    activation = module.Activation.relu if case.activation == "relu" else module.Activation.leaky_relu
    getattr(module, name)(
        params,
        getattr(module.DType, ELEMENTS[case.dtype]),
        activation,
        grid=plan.grid,
        shared_bytes=plan.shared_bytes,
        seed=launch.seed,
    )


def run(case: Case, tensors: Tensors, forward: Launch = Launch(), backward: Launch | None = None) -> Outcome:
    """One forward and, from what it saved, one backward."""
    module = kernels()
    memory = Memory(module, forward.alignment)
    compute = torch.float64 if case.dtype is torch.float64 else torch.float32

    plan = forward.plan(case, "forward" if case.training else "evaluation")
    p = module.ForwardParams()
    p.input, x = memory.copy(tensors.input)
    p.residual, _ = memory.copy(tensors.residual)
    p.output, output = memory.like(tensors.input)
    masked = case.residual and case.activation != "none"
    if masked:
        p.mask, _ = memory.empty(plan.mask_bytes, torch.uint8)
    p.weight, _ = channel_vector(module, memory, tensors.weight)
    p.bias, _ = channel_vector(module, memory, tensors.bias)
    p.running_mean, running_mean = channel_vector(module, memory, tensors.running_mean)
    p.running_var, running_var = channel_vector(module, memory, tensors.running_var)
    p.num_batches_tracked, tracked = memory.copy(tensors.num_batches_tracked)
    p.statistics, statistics = memory.empty(3 * case.channels, compute)
    p.cumulative, p.momentum = int(case.momentum is None), case.momentum or 0.0
    p.eps = case.eps
    count = tensors.input.numel() // case.channels
    p.unbiased = count / max(count - 1, 1)
    p.workspace, words = workspace(module, memory, plan)
    run_kernel(module, "run_forward", p, plan, case, forward)
    memory.check()
    assert not (words & 0x7FFFFFFF).any(), "the counters are not as the next launch needs them"

    backward = backward or forward
    plan = backward.plan(case, "backward")
    b = module.BackwardParams()
    b.grad_output, _ = memory.copy(tensors.grad_output)
    b.input, b.statistics, b.mask = p.input, p.statistics, p.mask
    b.weight, b.bias = p.weight, p.bias
    b.grad_input, grad_input = memory.like(tensors.input)
    grad_residual = None
    if case.residual:
        b.grad_residual, grad_residual = memory.like(tensors.input)
    b.grad_weight, grad_weight = channel_vector(module, memory, tensors.weight)
    b.grad_bias, grad_bias = channel_vector(module, memory, tensors.bias)
    b.workspace, words = workspace(module, memory, plan)
    run_kernel(module, "run_backward", b, plan, case, backward)
    memory.check()
    assert not (words & 0x7FFFFFFF).any(), "the counters are not as the next launch needs them"
    assert torch.equal(in_memory_order(present(x)), in_memory_order(tensors.input)), "the input was written"

    result = Result(
        output, grad_input, grad_weight, grad_bias, running_mean, running_var, tracked, grad_residual
    )
    return Outcome(result, statistics.view(3, -1))


def assert_right(case: Case, tensors: Tensors, outcome: Outcome, demands: dict[str, float] = DEMANDS) -> None:
    """All results within their demands, statistics and counter included."""
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
    assert not wrong, "\n".join(wrong)
