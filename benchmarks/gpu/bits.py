"""Parts repeat and graph: every run and every replay gives the same bits, under other load on the GPU."""

import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import rows
from benchmarks.gpu.captured import Captured, another_stream, beside, own_stream
from benchmarks.gpu.job import Job, main, require_kernels
from benchmarks.gpu.planned import last_plan
from benchmarks.gpu.table import LENET, SMOKE_CASES, case, named
from benchmarks.timing import synchronize
from tests.cases import Case, Tensors, call_fused

RUNS, SMOKE_RUNS = 100, 3
REPLAYS, SMOKE_REPLAYS = 1000, 20
CHECKS = 10
"""Spread evenly over the replays."""
POISON = 7.0
"""Written over a graph's results before a checked replay, so that old results count as wrong."""
REPEATED = (
    *(case(shape, layout) for shape in LENET for layout in ("cf", "cl")),
    *(
        case((32, *shape), layout, dtype)
        for layout, dtype in (("cl", "bfloat16"), ("cf", "float32"))
        for shape in ((64, 112, 112), (256, 56, 56), (1024, 14, 14), (2048, 7, 7))
    ),
    *(case((8, 65, 33, 31), layout, "float16", residual=True) for layout in ("cf", "cl")),
    case((8, 64, 28, 28), "cl", "float64"),
)
REPLAYED = (
    case(LENET[0], "cf"),
    case(LENET[1], "cl"),
    case((32, 64, 28, 28), "cl", "bfloat16", residual=True),
    case((8, 65, 33, 31), "cf", "bfloat16"),
    case((8, 512, 7, 7), "cf", "float16"),
    case((64, 256, 56, 56), "cl", "bfloat16"),
)

Results = dict[str, Tensor]


def layer(case: Case, device: torch.device, seed: int = 0) -> Tensors:
    """A layer's tensors, with a counter of batches."""
    counter = torch.zeros((), dtype=torch.int64, device=device)
    return replace(rows.tensors_on(device, case, seed), num_batches_tracked=counter)


def copied(tensors: Tensors) -> Tensors:
    return tensors.clone().require_grad()


def step(case: Case, tensors: Tensors) -> tuple[Results, Results]:
    """The results of forward and backward, and the tensors that they update."""
    t = tensors
    output = call_fused(case, t)
    wanted = {name: getattr(t, name) for name in ("input", "weight", "bias", "residual")}
    wanted = {name: tensor for name, tensor in wanted.items() if tensor is not None}
    gradients = torch.autograd.grad(output, list(wanted.values()), t.grad_output)
    updated = {name: getattr(t, name) for name in ("running_mean", "running_var", "num_batches_tracked")}
    return {"output": output.detach(), **dict(zip(wanted, gradients, strict=True))}, updated


def differences(actual: tuple[Results, Results], expected: tuple[Results, Results]) -> list[str]:
    """The names of results whose bits differ. A gradient has the name of its tensor."""
    pairs = zip(actual, expected, strict=True)
    return [name for one, other in pairs for name in other if not same_bits(one[name], other[name])]


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Compares bits, also of NaN and of the two zeros."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[left.element_size()]
    return torch.equal(left.view(integers), right.view(integers))


def repeat(case: Case, device: torch.device, runs: int) -> list[str]:
    """Returns each run's differences from the first. Runs use new memory, and every other one a load."""
    start = layer(case, device)
    other = Case((32, 128, 28, 28), "channels_last", torch.bfloat16)
    load = layer(other, device, seed=1)
    matrix = torch.full((2048 if device.type == "cuda" else 16,) * 2, 1e-3, device=device)
    product, side = torch.empty_like(matrix), another_stream(device)
    synchronize(device)
    expected = step(case, copied(start))
    kept, found = [], []
    for run in range(1, runs):
        with beside(side):
            if run % 4 == 1:
                for _ in range(4):  # about a tenth of a millisecond each
                    torch.mm(matrix, matrix, out=product)
            elif run % 4 == 3:
                step(other, load)
        kept.append(torch.empty(1000 * (run % 7) + 1, device=device))  # so that addresses differ
        names = differences(step(case, copied(start)), expected)
        found += [f"run {run}: {', '.join(names)}"] if names else []
    return found


def replay(case: Case, device: torch.device, replays: int) -> list[str]:
    """Replays a graph of two layers, each time with new inputs. Copies run eagerly on another stream."""
    layers = [layer(case, device, seed) for seed in (1, 2)]
    captured = Captured(lambda: [step(case, own) for own in layers], device)
    copies = [copied(own) for own in layers]
    side = another_stream(device)
    found = []
    for number in range(1, replays + 1):
        for own, other in zip(layers, copies, strict=True):
            with torch.no_grad():
                other.input.copy_(own.input.normal_())
                other.grad_output.copy_(own.grad_output.normal_())
        checked = number % (replays // CHECKS) == 0
        for computed, _ in captured.result if checked else ():
            for tensor in computed.values():
                tensor.fill_(POISON)
        if side is not None:
            side.wait_stream(torch.cuda.current_stream(device))
        captured.replay()
        with beside(side):
            expected = [step(case, other) for other in copies]
        if side is not None:
            torch.cuda.current_stream(device).wait_stream(side)
        for i in range(2) if checked else ():
            names = differences(captured.result[i], expected[i])
            found += [f"replay {number}, layer {i}: {', '.join(names)}"] if names else []
    return found


def work(job: Job) -> None:
    device = require_kernels(job)
    graph = job.part == "graph"
    times = (SMOKE_REPLAYS if job.smoke else REPLAYS) if graph else (SMOKE_RUNS if job.smoke else RUNS)

    def line(case: Case) -> dict[str, Any]:
        with own_stream(device):
            wrong = (replay if graph else repeat)(case, device, times)
        if wrong:
            job.fail(f"{case}: {wrong[0]}; {len(wrong)} in all")
        return {"times": times, "wrong": wrong, "plan": last_plan()}

    job.each(named(SMOKE_CASES[:2] if job.smoke else REPLAYED if graph else REPEATED), line)


if __name__ == "__main__":
    sys.exit(main(work))
