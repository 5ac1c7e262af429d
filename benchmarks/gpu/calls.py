"""One case's tensors and the operators' calls on them, by their raw schemas; plans of the device at hand."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fused_bn import _plan

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PLAN_LAYOUTS = {"contiguous": "channels_first", "channels_last": "channels_last"}
ACTIVATION = "relu"
MOMENTUM, EPS = 0.1, 1e-5


@dataclass(frozen=True)
class Case:
    """An (N, C, H, W) input; parameters are float32, in float64 float64."""

    shape: tuple[int, int, int, int]
    layout: str = "contiguous"
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.layout} {self.dtype}"


class Tensors:
    """Random tensors for one call, made on the device; each channel has a mean and a spread of its own."""

    def __init__(self, case: Case, device: torch.device, seed: int = 0) -> None:
        self.case = case
        self.generator = torch.Generator(device).manual_seed(seed)
        dtype = getattr(torch, case.dtype)
        parameters = torch.float64 if dtype is torch.float64 else torch.float32
        channels = case.shape[1]

        def vector() -> Tensor:
            return torch.rand(channels, generator=self.generator, device=device, dtype=parameters)

        self.input = torch.empty(case.shape, dtype=dtype, device=device, memory_format=LAYOUTS[case.layout])
        self.grad_output = torch.empty_like(self.input)
        self.spread, self.centre = (1 + vector()).view(-1, 1, 1), (2 * vector() - 1).view(-1, 1, 1)
        self.weight, self.bias = 0.5 + vector(), 2 * vector() - 1
        self.running_mean, self.running_var = vector(), 1 + vector()
        self.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=device)
        self.refill()

    def refill(self) -> None:
        """New values for the input and the gradient, in place."""
        self.input.normal_(generator=self.generator).mul_(self.spread).add_(self.centre)
        self.grad_output.normal_(generator=self.generator)

    def twin(self) -> "Tensors":
        """Independent copies of all tensors."""
        twin = object.__new__(Tensors)
        copies = {
            name: value.clone() if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        vars(twin).update(copies)
        return twin

    def forward(self, counts: bool = True) -> tuple[Tensor, Tensor]:
        """The output and the statistics; updates the running statistics."""
        output, statistics, _ = torch.ops.fused_bn.batch_norm_forward(
            self.input,
            None,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.num_batches_tracked if counts else None,
            True,
            MOMENTUM,
            EPS,
            ACTIVATION,
            0.0,
            False,
        )
        return output, statistics

    def backward(self, statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of input, weight and bias."""
        grad_input, _, grad_weight, grad_bias = torch.ops.fused_bn.batch_norm_backward(
            self.grad_output,
            self.input,
            None,
            self.weight,
            self.bias,
            statistics,
            None,
            True,
            ACTIVATION,
            0.0,
            [True, False, True, True],
        )
        return grad_input, grad_weight, grad_bias

    def both(self) -> dict[str, Tensor]:
        """Everything that a forward and a backward compute, but what they update."""
        output, statistics = self.forward()
        grad_input, grad_weight, grad_bias = self.backward(statistics)
        return {
            "output": output,
            "statistics": statistics,
            "grad_input": grad_input,
            "grad_weight": grad_weight,
            "grad_bias": grad_bias,
        }

    def updated(self) -> dict[str, Tensor]:
        """What a forward updates."""
        return {
            "running_mean": self.running_mean,
            "running_var": self.running_var,
            "num_batches_tracked": self.num_batches_tracked,
        }


def differences(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """The names whose bits differ."""
    return [name for name, tensor in expected.items() if not same_bits(actual[name], tensor)]


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Also of NaN, and of the two zeros."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[left.element_size()]
    return torch.equal(left.view(integers), right.view(integers))


def device_fields(device: torch.device) -> dict[str, float | str] | str:
    """The device as the planner takes it: what torch reports, the rest from the nearest model."""
    if device.type != "cuda":
        return "h200"
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "architecture": 10 * properties.major + properties.minor,
        "multiprocessors": properties.multi_processor_count,
        "shared_per_block": properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
        "l2_bytes": properties.L2_cache_size,
    }


def plans(case: Case, device: torch.device) -> dict[str, dict[str, Any]]:
    """By direction, the plan that the operators make on this device, and its variant in words."""
    found = {}
    for direction in ("forward", "backward"):
        plan = _plan.plan(case.shape, case.dtype, PLAN_LAYOUTS[case.layout], device_fields(device), direction)
        found[direction] = {**asdict(plan), "variant": plan.variant}
    return found
