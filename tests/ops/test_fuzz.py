"""Short runs of the fuzzers. `make fuzz SECONDS=600` runs them longer, under the sanitizers."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.fuzz import __main__ as fuzz
from tests.fuzz import operators
from tests.ops.test_backends import ROOT

pytestmark = pytest.mark.needs_extension


@pytest.mark.parametrize(("fuzzer", "tries"), [("operators", 1500), ("values", 400)])
def test_no_attempt_finds_a_fault(fuzzer: str, tries: int) -> None:
    command = [sys.executable, "-m", "tests.fuzz", fuzzer, "--tries", str(tries)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.splitlines()[-1:] == [f"{fuzzer}: {tries} tried, 0 faults"], result.stdout
    assert result.returncode == 0


def freed() -> dict[str, Any]:
    weight = torch.ones(3)
    weight.untyped_storage().resize_(0)
    return {"input": torch.ones(2, 3), "weight": weight}


def test_a_call_that_accepts_freed_memory_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "call", lambda *_: [])
    monkeypatch.setitem(operators.NAMES, "batch_norm", ("input", "weight"))
    assert operators.misbehaves("batch_norm", freed(), "told") == "told: accepts weight without memory"


def test_a_refused_call_that_writes_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_: str, arguments: dict[str, Any]) -> None:
        arguments["input"].add_(1)
        raise ValueError("no")

    monkeypatch.setattr(operators, "call", write)
    fault = operators.misbehaves("batch_norm", {"input": torch.ones(2, 3)}, "told")
    assert fault == "told: input was written by a call that raised ValueError: no"


def test_a_worker_that_cannot_start_is_one_fault() -> None:
    tried, faults = fuzz.watch("values", 0, 4, 60.0, worker=(sys.executable, "-c", "raise SystemExit('no')"))
    assert tried == 0
    assert len(faults) == 1


def test_an_attempt_that_ends_the_process_is_a_fault_and_the_next_one_is_made() -> None:
    """A fuzzing module that crashes at its second seed."""
    code = (
        "import os, sys; from tests.fuzz import __main__ as fuzz\n"
        "fuzz.ATTEMPTS['values'] = lambda seed: os.abort() if seed == 1 else None\n"
        "sys.argv = ['fuzz', *sys.argv[1:]]; sys.exit(fuzz.main())"
    )
    watched = fuzz.watch("values", 0, 4, 60.0, worker=(sys.executable, "-c", code))
    assert watched[0] == 4
    assert len(watched[1]) == 1
    assert watched[1][0].startswith("seed 1: exit code -6")


def test_what_stays_as_it_is_counts_as_unwritten_whatever_its_type() -> None:
    for values in (torch.tensor([1j, float("nan")]), torch.tensor([1.0, float("nan")]), torch.tensor(1)):
        assert operators.is_copy(values, values.clone())
        assert not operators.is_copy(values + 1, values)
