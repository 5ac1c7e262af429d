"""Part correct: small calls of every kernel and exchange against float64, with the tests' tolerances.

Eight of them also run under compute-sanitizer's tools. The planner has one choice for each of these sizes, so
the other plans are forced.
"""

import sys
from typing import Any

import torch

from benchmarks.gpu.job import Job, main, require_kernels
from benchmarks.gpu.parts import SANITIZERS
from benchmarks.gpu.planned import forced, last_plan
from tests.cases import Case, make_tensors, run_fused
from tests.reference import DEMANDS, errors, precision

BF16, F16, F64 = torch.bfloat16, torch.float16, torch.float64
LARGE_ENOUGH = Case((16, 64, 14, 14), "channels_last", BF16)
"""Plans for any exchange."""
CASES = (
    Case((64, 6, 28, 28)),
    Case((64, 6, 28, 28), "channels_last"),
    Case((64, 16, 10, 10), "channels_last"),
    LARGE_ENOUGH,
    Case((16, 64, 14, 14), dtype=F16, residual=True),
    Case((16, 512, 7, 7), dtype=BF16),
    Case((8, 65, 33, 31)),
    Case((3, 1030, 2, 2), "channels_last"),
    Case((2, 33, 5, 13), "channels_last", F64, F64),
    Case((1, 2, 256, 256)),
    Case((4099, 50)),
    Case((8, 20, 15, 9), "channels_last", F16, F16, activation="gelu", residual=True),
    Case((8, 64, 28, 28), "channels_last", BF16, residual=True),
)
PLANS = (
    "",
    "resident exchange=none",
    "resident exchange=cluster",
    "resident exchange=words group=5",
    "streamed",
    "streamed group=3",
)
EVALUATION = (
    Case((64, 6, 28, 28), training=False),
    Case((8, 20, 15, 9), "channels_last", BF16, training=False, residual=True),
)
FEW = (
    (Case((64, 6, 28, 28)), ""),
    (Case((64, 6, 28, 28), "channels_last"), ""),
    (LARGE_ENOUGH, "resident exchange=cluster"),
    (LARGE_ENOUGH, "resident exchange=words group=5"),
    (LARGE_ENOUGH, "streamed group=3"),
    (Case((16, 64, 14, 14), dtype=F16, residual=True), "resident exchange=none"),
    (Case((3, 65, 13, 11), residual=True), "streamed"),
    (EVALUATION[1], ""),
)
SMOKE = FEW[-3:]


def check(case: Case, plan: str, job: Job) -> dict[str, Any]:
    """The largest error of every result, as a share of its tolerance."""
    tensors = make_tensors(case, job.device.type)
    try:
        with forced(plan):
            result = run_fused(case, tensors)
            taken = last_plan()
    except ValueError as error:
        return {"refused": str(error)}
    found = errors(case, tensors, result)
    shares = {name: error / (DEMANDS[name] * precision(case.dtype)) for name, error in found.items()}
    for name, share in shares.items():
        if not share <= 1:
            job.fail(f"{case}, {plan or 'planned'}: {name} off by {share:.2g} times what is demanded")
    return {"plan": taken, "errors": {name: f"{share:.2g}" for name, share in shares.items()}}


def work(job: Job) -> None:
    require_kernels(job)
    pairs = [(case, plan) for case in CASES for plan in PLANS] + [(case, "") for case in EVALUATION]
    if job.smoke:
        pairs = list(SMOKE)
    elif job.part in {part.name for part in SANITIZERS}:
        pairs = list(FEW)
    job.each(
        {f"{case}, {plan or 'planned'}": (case, plan) for case, plan in pairs}, lambda pair: check(*pair, job)
    )


if __name__ == "__main__":
    sys.exit(main(work))
