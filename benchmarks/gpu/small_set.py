"""A small set of calls for compute-sanitizer: every way of exchanging sums that plans of small shapes have.

Each result is compared with PyTorch's own on the CPU, in float64: a tool that changes results would show.
"""

import argparse
import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.calls import EPS, LAYOUTS, Case, Tensors, plans
from benchmarks.gpu.tables import in_short

SHAPES = (
    (2, 4, 2, 2),
    (64, 6, 28, 28),
    (64, 16, 10, 10),
    (2, 33, 5, 13),
    (3, 1030, 2, 2),
    (8, 1, 13, 17),
    (4, 3, 64, 64),
    (16, 64, 14, 14),
    (2, 256, 7, 7),
    (1, 2, 256, 256),
    (32, 12, 16, 16),
    (64, 64, 16, 16),
)
TOLERANCES = {"float64": 1e-12, "float32": 1e-4, "bfloat16": 2.0**-7}
"""Of values around 1: float32 sums in another order, bfloat16 rounded once to one part in 2^8."""
DONE = "small set: done"


def cases() -> list[Case]:
    return [Case(shape, layout, dtype) for shape in SHAPES for layout in LAYOUTS for dtype in TOLERANCES]


def expected(tensors: Tensors) -> dict[str, Tensor]:
    """The output and the gradients by PyTorch on the CPU, in float64."""
    x, weight, bias = (
        tensor.detach().double().cpu().requires_grad_()
        for tensor in (tensors.input, tensors.weight, tensors.bias)
    )
    output = F.relu(F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS))
    gradients = torch.autograd.grad(output, (x, weight, bias), tensors.grad_output.double().cpu())
    names = ("output", "grad_input", "grad_weight", "grad_bias")
    return dict(zip(names, (output.detach(), *gradients), strict=True))


def wrong(tensors: Tensors) -> list[str]:
    """The results that are not PyTorch's. No gradient flows where ReLU's input is within rounding of zero."""
    tolerance = TOLERANCES[tensors.case.dtype]
    on_cpu = F.batch_norm(
        tensors.input.double().cpu(),
        None,
        None,
        tensors.weight.double().cpu(),
        tensors.bias.double().cpu(),
        training=True,
        eps=EPS,
    )
    tensors.grad_output.mul_((on_cpu.abs() > 1e-3).to(tensors.grad_output))
    right = expected(tensors)
    terms = tensors.input.numel() / tensors.input.shape[1]
    actual = tensors.both()
    found = []
    for name, value in right.items():
        scale = terms**0.5 if name in ("grad_weight", "grad_bias") else 1.0
        difference = (actual[name].double().cpu() - value).abs() / (scale + value.abs())
        if not bool((difference <= tolerance).all()):  # NaN is wrong, too
            found.append(f"{name} by {difference.max().item():.1e}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", type=torch.device)
    device = parser.parse_args().device
    failures = 0
    for case in cases():
        planned = plans(case, device)
        found = wrong(Tensors(case, device))
        failures += bool(found)
        text = f"WRONG: {', '.join(found)}" if found else "ok"
        print(f"{case}: {in_short(planned['forward'])} | {in_short(planned['backward'])}: {text}", flush=True)
    print(DONE, flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
