"""Part forced: cases of part table with other plans than the planner's, timed in the same way.

One line per case and direction: the plans by the text that asked for them, with times and predictions.
"""

import sys
from typing import Any

from benchmarks.comparison import WrongResultError
from benchmarks.gpu import rows
from benchmarks.gpu.captured import own_stream
from benchmarks.gpu.job import Job, main, require_kernels
from benchmarks.gpu.planned import forced, last_plan, predicted
from benchmarks.gpu.table import LENET, SMOKE_CASES, Bench, TimedRows, case, free
from tests.cases import Case

ROUNDS = 5
CASES = (
    case((256, 1024, 14, 14), "cl", "bfloat16"),
    case((256, 512, 28, 28), "cl", "bfloat16"),
    case((256, 256, 56, 56), "cl", "bfloat16"),
    case((32, 256, 56, 56), "cf"),
    case(LENET[0], "cf"),
    case(LENET[0], "cl"),
    case((256, 2048, 7, 7), "cl", "bfloat16"),
    case((128, 128, 28, 28), "cl"),
    case((4096, 1024, 1, 1), "cl", "bfloat16"),
    case((64, 40, 56, 56), "cl", "bfloat16"),
    case((32, 2048, 7, 7), "cf"),
    case((256, 1024, 14, 14), "cf", "float16"),
    case((2, 32, 512, 512), "cf"),
)
TEXTS = (
    "",
    "resident",
    "streamed",
    *(f"resident exchange={exchange}" for exchange in ("none", "cluster", "words")),
    *(f"resident tile={channels}" for channels in (32, 64, 128)),
    *(f"resident group={blocks}" for blocks in (4, 8, 16, 32)),
    *(f"resident slots={vectors}" for vectors in (4, 7, 13)),
    *(f"streamed tile={channels}" for channels in (32, 64, 128)),
    *(f"streamed group={blocks}" for blocks in (33, 66, 132, 264, 528)),
)
SMOKE_TEXTS = ("", "resident", "streamed")


def measure(case: Case, direction: str, texts: tuple[str, ...], job: Job) -> dict[str, Any]:
    """A plan that several texts ask for is timed once."""
    device = job.device
    free(device)
    bench = Bench(case, device, job.smoke)
    asked: dict[str, str] = {}
    with own_stream(device):
        timed = TimedRows(bench, direction)
        calls = timed.calls(rows.ours)  # for backward, the forward runs with the planner's own plan
        for text in texts:
            try:
                with forced(text):
                    calls[0]()
                    plan = last_plan() or text or "planned"
                    if plan not in timed.slots:
                        timed.add(plan, calls)
                asked[text] = plan
            except ValueError as error:  # the plan does not fit
                asked[text] = f"refused: {error}"
            except WrongResultError as error:
                asked[text] = f"wrong: {error}"
                job.fail(f"{case}, {direction}, {text}: {error}")
        times = timed.microseconds(ROUNDS)
    return {
        **bench.described(),
        "direction": direction,
        "asked": asked,
        "us": times,
        "floor": timed.floor(times),
        "predicted": {plan: predicted(case, device, direction, plan) for plan in times if plan != "copy"},
    }


def work(job: Job) -> None:
    require_kernels(job)
    cases = SMOKE_CASES if job.smoke else CASES
    pairs = {f"{case}, {way}": (case, way) for case in cases for way in rows.directions(case)}
    texts = SMOKE_TEXTS if job.smoke else TEXTS
    job.each(pairs, lambda pair: measure(*pair, texts, job))


if __name__ == "__main__":
    sys.exit(main(work))
