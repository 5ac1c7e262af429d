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

ROWS, COLUMNS = Case((2, 2, 16384)), Case((77, 1032), residual=True)
SHORT = Case((25, 5, 7, 3), "channels_last", momentum=None)

TRIALS = (
    # Eight steps of rows, of a block or shared; three slabs of columns, which groups take in turns.
    Trial(ROWS, small("none", register_steps=1, shared_steps=2)),
    Trial(ROWS, small("cluster", group=4, groups=1)),
    Trial(ROWS, small("barrier", group=2, groups=1, register_steps=1)),
    Trial(ROWS, small("two_kernels", group=3, groups=2)),
    Trial(COLUMNS, small("none", group=1, groups=2, register_steps=1, shared_steps=4)),
    Trial(COLUMNS, small("cluster", group=2, groups=2)),
    Trial(COLUMNS, small("barrier", group=3, groups=2, register_steps=0)),
    Trial(COLUMNS, small("two_kernels", group=2, groups=2)),
    # Without whole vectors, and counted by the last block of all.
    Trial(SHORT, small("cluster", group=2, groups=1)),
    Trial(SHORT, small("barrier", group=3, groups=1)),
    Trial(replace(COLUMNS, training=False), small("none", group=1, groups=2)),
    # Backward reads the residual.
    Trial(replace(COLUMNS, activation="silu"), small("barrier", group=2, groups=2, shared_steps=1)),
)
"""Every exchange with both mappings, one slab after the other, and all ways to keep steps."""


def run_watched(
    module: Path,
    seeds: Sequence[int],
    trials: Sequence[int] = (),
    *,
    thread_sanitizer: bool,
    halt: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Runs those of TRIALS, or all, in another process; `halt` ends it at the first report."""
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
