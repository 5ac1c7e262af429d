"""Stage graph: replays of CUDA graphs compute what eager calls compute, bit for bit, a thousand times."""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.calls import Case, Tensors, differences
from benchmarks.gpu.captured import Captured, another_stream, beside, own_stream
from benchmarks.gpu.job import Job, main, require_kernels
from benchmarks.timing import synchronize

REPLAYS = 1000
SMOKE_REPLAYS = 20
CHECKS = 10
"""Of a scenario, evenly over its replays."""
POISON = 7.0
"""Written over a graph's results before a replay that is checked: results left from before are wrong."""

CASES = [
    Case((64, 6, 28, 28)),
    Case((64, 6, 28, 28), "channels_last"),
    Case((64, 16, 10, 10), "channels_last"),
    Case((32, 64, 28, 28), "channels_last", "bfloat16"),
    Case((8, 65, 33, 31), "contiguous", "bfloat16"),
    Case((8, 512, 7, 7), "contiguous", "float16"),
]
SMOKE_CASES = [Case((4, 6, 9, 7), "channels_last")]

Results = dict[str, Tensor]


def poison(results: Results) -> None:
    for tensor in results.values():
        tensor.fill_(POISON)


def new_inputs(case: Case, device: torch.device, replays: int) -> list[str]:
    """Other inputs for every replay; an eager twin sees the same ones, so that what they update agrees, too.

    The counter of batches is compared with everything else: it must advance by one a replay.
    """
    layer = Tensors(case, device)
    captured = Captured(layer.both, device)
    twin = layer.twin()
    start = int(layer.num_batches_tracked)
    found = []
    for replay in range(1, replays + 1):
        layer.refill()
        twin.input.copy_(layer.input)
        twin.grad_output.copy_(layer.grad_output)
        if replay % (replays // CHECKS) == 0:
            poison(captured.result)
        captured.replay()
        expected = twin.both()
        if replay % (replays // CHECKS) == 0:
            actual = {**captured.result, **layer.updated()}
            wrong = differences(actual, {**expected, **twin.updated()})
            found += [f"replay {replay}: {', '.join(wrong)}"] if wrong else []
    counted = int(layer.num_batches_tracked) - start
    return found if counted == replays else [*found, f"{replays} replays counted {counted} batches"]


def two_launches(case: Case, device: torch.device, replays: int) -> list[str]:
    """Two layers in one graph, replayed back to back: each has memory of its own to exchange sums in."""
    layers = [Tensors(case, device, seed) for seed in (1, 2)]
    captured = Captured(lambda: [layer.both() for layer in layers], device)
    expected = [layer.twin().both() for layer in layers]
    found = []
    for check in range(1, CHECKS + 1):
        for results in captured.result:
            poison(results)
        for _ in range(replays // CHECKS):
            captured.replay()
        for number, (results, right) in enumerate(zip(captured.result, expected, strict=True)):
            wrong = differences(results, right)
            found += [f"check {check}, layer {number}: {', '.join(wrong)}"] if wrong else []
    return found


def beside_eager_calls(case: Case, device: torch.device, replays: int) -> list[str]:
    """Replays on one stream while eager calls run on another."""
    layer, other = Tensors(case, device, seed=3), Tensors(case, device, seed=4)
    captured = Captured(layer.both, device)
    expected = {"graph": layer.twin().both(), "eager": other.twin().both()}
    side = another_stream(device)
    synchronize(device)
    found = []
    for check in range(1, CHECKS + 1):
        poison(captured.result)
        eager: Results = {}
        for _ in range(replays // CHECKS):
            captured.replay()
            with beside(side):
                eager = other.both()
        synchronize(device)
        for name, results in (("graph", captured.result), ("eager", eager)):
            wrong = differences(results, expected[name])
            found += [f"check {check}, {name}: {', '.join(wrong)}"] if wrong else []
    return found


Scenario = Callable[[Case, torch.device, int], list[str]]
SCENARIOS: dict[str, Scenario] = {
    "new inputs": new_inputs,
    "two launches": two_launches,
    "beside eager calls": beside_eager_calls,
}


def work(job: Job) -> None:
    device = require_kernels(job)
    replays = SMOKE_REPLAYS if job.smoke else REPLAYS
    job.readings.update(replays=replays, cases=[])
    with own_stream(device):
        for case in SMOKE_CASES if job.smoke else CASES:
            for name, scenario in SCENARIOS.items():
                if job.left < 1:
                    job.fail(f"no time left from {case}, {name} on")
                    return
                wrong = scenario(case, device, replays)
                job.readings["cases"].append({"case": str(case), "scenario": name, "wrong": wrong})
                print(f"{case}, {name}: {len(wrong)} of {CHECKS} checks wrong", flush=True)
                if wrong:
                    job.fail(f"{case}, {name}: {wrong[0]}; {len(wrong)} in all")
                job.save()


if __name__ == "__main__":
    sys.exit(main(work))
