"""Runs launches of a kernels' module in a process of its own, for ThreadSanitizer and for faulty kernels.

`python -m tests.simt.watched MODULE SEEDS [TRIALS]`, numbers with commas between them. Exit status 0 where
all results are right, 66 after a report of ThreadSanitizer, else what is wrong on stderr.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from tests.cases import Case, make_tensors
from tests.reference import DEMANDS
from tests.simt.build import ROOT, load_module, thread_sanitizer_environment
from tests.simt.grid import Trial, small
from tests.simt.harness import Launch, assert_right, run

DATA_RACE = 66

ROWS, COLUMNS = Case((2, 2, 4096)), Case((53, 264), residual=True)
ELEMENTS, FOLDED = Case((25, 5, 7, 3), "channels_last", momentum=None), Case((16, 3, 8, 8), "channels_last")

TRIALS = (
    # Eight passes of rows, in one block or several; tiles of columns, which groups take in turn.
    Trial(ROWS, small("none")),
    Trial(ROWS, small("cluster", group=4)),
    Trial(ROWS, small("words", group=3, groups=1)),
    Trial(ROWS, small("streamed", group=3)),
    Trial(COLUMNS, small("none", tile=64)),
    Trial(COLUMNS, small("cluster", group=2, tile=64)),
    Trial(COLUMNS, small("words", group=3, tile=60, groups=2)),
    Trial(COLUMNS, small("streamed", group=2)),
    # Single elements, where several threads share a byte of the mask.
    Trial(ELEMENTS, small("streamed", group=3)),
    Trial(replace(ELEMENTS, residual=True), small("streamed", group=2)),
    Trial(replace(FOLDED, residual=True), small("cluster", group=2)),
    Trial(replace(COLUMNS, training=False), small()),
    # Backward reads the residual. There are so many words that channels have owners.
    Trial(replace(COLUMNS, activation="silu"), small("words", group=9, tile=256, groups=1)),
    Trial(replace(COLUMNS, activation="silu"), small("streamed", group=2)),
    # With an outlier of a million sigmas, see check().
    Trial(replace(ROWS, activation="none"), small("cluster", group=4)),
)
"""Every exchange with rows and columns, several tiles, with and without a mask."""


def run_watched(
    module: Path,
    seeds: Sequence[int],
    trials: Sequence[int] = (),
    *,
    thread_sanitizer: bool,
    halt: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Runs some of TRIALS, or all, in another process. `halt` ends it at the first report."""
    environment = dict(os.environ)
    if thread_sanitizer:
        environment = thread_sanitizer_environment()
        environment["TSAN_OPTIONS"] += f":halt_on_error={int(halt)}"
    numbers = [",".join(map(str, each)) for each in (seeds, trials)]
    command = [sys.executable, "-m", "tests.simt.watched", str(module), *numbers]
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )


def check(case: Case, launch: Launch, module: ModuleType) -> None:
    tensors = make_tensors(case)
    if case.activation == "none":
        tensors.input[0, :, 0], tensors.grad_output[0, :, 0] = 1e6, 1
    assert_right(case, tensors, run(case, tensors, launch, module=module))
    if tensors.residual is None:
        return
    tensors.residual[0, 0] = float("nan")  # which passes, but leaves no scale to measure gradients by
    gradients = dict.fromkeys(("grad_input", "grad_weight", "grad_bias"), float("inf"))
    assert_right(case, tensors, run(case, tensors, launch, module=module), {**DEMANDS, **gradients})


def main() -> None:
    torch.set_num_threads(1)
    module = load_module(Path(sys.argv[1]))
    seeds, chosen = ([int(number) for number in word.split(",") if number] for word in sys.argv[2:4])
    for seed in seeds:
        for trial in (TRIALS[i] for i in chosen or range(len(TRIALS))):
            check(trial.case, replace(trial.launch, seed=seed), module)


if __name__ == "__main__":
    main()
