"""Attempts at forward and backward with values of any kind, judged by the reference.

The demands are those of `tests.reference`: so close to the truth, and no further from it than PyTorch. Of
float64 the truth of mean and variance is computed in long double, which has 64 bits on x86.
"""

import math
import random

import numpy as np
import torch
from torch import Tensor

from fused_bn._activations import ACTIVATIONS
from tests.cases import DTYPES, Case, Result, Tensors, in_layout, layouts, make_tensors, run_fused, run_torch
from tests.reference import (
    DEMANDED_MEAN_ADVERSARIAL,
    DEMANDS,
    U,
    beyond_rounding,
    errors_against,
    passed,
    precision,
    reference,
)

SHAPES = (
    *((2, 3), (33, 5), (700, 3), (3, 300), (3, 5, 7), (32, 1, 9, 13), (4, 3, 2, 2), (2, 4, 14, 14)),
    *((8, 7, 7, 7), (16, 33, 5, 5), (5, 2, 40, 30), (2, 3, 70, 70), (2, 3, 2, 3, 4)),
)

CONTINUOUS = [name for name in ACTIVATIONS if name not in ("hardswish", "hardsigmoid")]
"""Without the two whose slope jumps where no output tells on which side a value fell."""


def random_values(rng: random.Random, case: Case) -> tuple[Tensor, str]:
    """In float64, with what they are."""
    shape, channels = case.shape, (1, case.channels, *[1] * (len(case.shape) - 2))
    noise = torch.randn(shape, dtype=torch.float64)
    scale = 10.0 ** rng.uniform(-6, 6) * torch.rand(channels, dtype=torch.float64).add(0.5)
    ramp = torch.linspace(-1, 1, noise.numel(), dtype=torch.float64).view(shape)
    sparse = torch.where(torch.rand(shape) < 0.02, 1e3, 1.0).double()
    largest = 10.0 ** rng.uniform(0, math.log10(math.sqrt(2.0 ** (-2 + precision_bits(case.dtype)))))
    kinds = {
        "noise": noise,
        "mean": noise + largest,
        "trend": ramp,
        "trend and noise": ramp + 0.1 * noise,
        "few values": (2 * noise).round(),
        "constant": torch.ones(shape, dtype=torch.float64),
        "heavy tails": noise * sparse,
        "ones and zeros": (noise > 0).double(),
    }
    kind = rng.choice(list(kinds))
    return kinds[kind] * scale, f"{kind} * {float(scale.mean()):.1e}"


def precision_bits(dtype: torch.dtype) -> int:
    return {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}[dtype]


def attempt(seed: int) -> str | None:
    """What is wrong with one forward and backward; None where nothing is."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    shape = rng.choice(SHAPES)
    dtype, parameter_dtype = rng.choice(DTYPES)
    case = Case(
        shape,
        rng.choice(layouts(shape)),
        dtype,
        parameter_dtype,
        training=rng.random() < 0.9,
        momentum=rng.choice((0.1, 1.0)),
        activation=rng.choice(CONTINUOUS),
        residual=rng.random() < 0.3,
    )
    values, told = random_values(rng, case)
    tensors = make_tensors(case, seed=seed)
    # A variance that a float16 buffer can hold.
    limit = 100 if parameter_dtype is torch.float16 else torch.finfo(dtype).max / 8
    tensors.input = in_layout(values.clamp(-limit, limit).to(dtype), case.layout)
    wrong = faults_of(case, tensors)
    return f"{case} of {told}: {'; '.join(wrong)}" if wrong else None


def faults_of(case: Case, tensors: Tensors) -> list[str]:
    """Beyond the demands, or twice as far from the truth as PyTorch is or as roundings alone may lead."""
    ours, theirs = run_fused(case, tensors), run_torch(case, tensors)
    if case.dtype is torch.float64:
        return statistics_faults(case, tensors, ours.running_mean, ours.running_var)
    found, of_torch = judged(case, tensors, ours), judged(case, tensors, theirs)
    faults = []
    for name, error in found.items():
        demanded = DEMANDS[name] + DEMANDED_MEAN_ADVERSARIAL
        allowed = min(demanded, 2 * max(of_torch[name], beyond_rounding(name, case.dtype)))
        if not error <= allowed:
            faults.append(f"{name}: error {error:.2e}, allowed {allowed:.2e}, PyTorch's {of_torch[name]:.2e}")
    return faults


def judged(case: Case, tensors: Tensors, result: Result) -> dict[str, float]:
    """`errors`, with no scale far below the precision of a type, or almost below its range."""
    truth = reference(case, tensors, passed(case, tensors, result.output))
    truth.scales["grad_weight"] = torch.maximum(truth.scales["grad_weight"], U * truth.scales["grad_bias"])
    for name, scale in truth.scales.items():
        truth.scales[name] = scale.clamp(min=1e-30)
    return errors_against(truth, case, result)


def statistics_faults(
    case: Case, tensors: Tensors, running_mean: Tensor | None, running_var: Tensor | None
) -> list[str]:
    """Of float64 in training: errors of the running statistics against long double."""
    if not case.training or running_mean is None or running_var is None:
        return []
    assert tensors.running_mean is not None
    assert tensors.running_var is not None
    x = tensors.input.transpose(0, 1).flatten(1).numpy().astype(np.longdouble)
    mean = x.mean(1)
    mean += (x - mean[:, None]).mean(1)  # what the first mean was rounded by
    variance = np.square(x - mean[:, None]).sum(1) / (x.shape[1] - 1)
    momentum = np.longdouble(case.momentum)
    allowed = DEMANDS["running_var"] * precision(case.dtype)
    faults = []
    for name, found, before, new, size in (
        ("running_mean", running_mean, tensors.running_mean, mean, abs(mean) + np.sqrt(variance)),
        ("running_var", running_var, tensors.running_var, variance, variance),
    ):
        kept = (1 - momentum) * before.numpy().astype(np.longdouble)
        scale = np.maximum(abs(kept) + momentum * size, np.finfo(np.float64).tiny)
        error = float((abs(found.numpy() - (kept + momentum * new)) / scale).max())
        if not error <= allowed:
            faults.append(f"{name}: error {error:.2e}, demanded {allowed:.2e}")
    return faults
