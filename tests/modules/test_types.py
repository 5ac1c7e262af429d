"""The constructors' types for type checkers and `help()`."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from torch import nn

import fused_bn
from fused_bn._activations import ACTIVATIONS, ActivationName

ROOT = Path(__file__).resolve().parent.parent.parent

CHECKED = """\
import torch
from torch import nn
from torch.nn import functional as F

from fused_bn import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm

norm: nn.BatchNorm2d = BatchNorm2d(64)
BatchNorm1d(64, 1e-3, None, False, True, "cuda", torch.float16)
BatchNorm3d(64, activation="gelu_tanh", bias=False, frozen=True, weight_init=0, bias_init=nn.init.zeros_)
BatchNorm2d(64, activation=nn.LeakyReLU(0.1))
BatchNorm2d(64, activation=nn.ReLU)
BatchNorm2d(64, activation=F.silu)
BatchNorm2d(64, activation=None)
SyncBatchNorm(64, process_group=None, activation="relu")
"""
"""The tests add lines with errors to these lines, which have none."""

WRONG = {
    "BatchNorm2d()": "call-arg",
    'BatchNorm2d("64")': "arg-type",
    'BatchNorm2d(64, act="relu")': "call-arg",
    'BatchNorm2d(64, activation="rellu")': "arg-type",
    "BatchNorm1d(64, momentum='0.1')": "arg-type",
    "BatchNorm3d(64, device=1.5)": "arg-type",
    'SyncBatchNorm(64, act="relu")': "call-arg",
    'SyncBatchNorm(64, activation="rellu")': "arg-type",
}


@pytest.mark.slow
def test_mypy_catches_wrong_arguments_of_constructors_and_no_right_ones(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(CHECKED + "\n".join(WRONG) + "\n")
    command = ["-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", "user.py"]
    result = subprocess.run(
        [
            sys.executable,
            *command,
            "--cache-dir",
            str(ROOT / ".mypy_cache" / "user"),
            "--follow-imports",
            "silent",
        ],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    found = [line for line in result.stdout.splitlines() if ": error: " in line]
    first = CHECKED.count("\n") + 1
    expected = [f"user.py:{first + n}: [{code}]" for n, code in enumerate(WRONG.values())]
    said = [f"{line.split(' error: ')[0]} {line.split()[-1]}" for line in found]
    assert said == expected, result.stdout + result.stderr


def test_the_type_of_names_has_the_table_of_activations() -> None:
    assert get_args(ActivationName) == tuple(ACTIVATIONS)


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"])
def test_signatures_begin_as_those_of_torch_and_go_on_by_keyword(name: str) -> None:
    ours = inspect.signature(getattr(fused_bn, name)).parameters
    theirs = inspect.signature(getattr(nn, name)).parameters
    positional = [given for given in theirs.values() if given.kind is given.POSITIONAL_OR_KEYWORD]
    for mine, other in zip(ours.values(), positional, strict=False):
        assert (mine.name, mine.kind, mine.default) == (other.name, other.kind, other.default)
    options = list(ours.values())[len(positional) :]
    assert [option.name for option in options] == [
        *("bias", "activation", "activation_param", "weight_init", "bias_init", "frozen")
    ]
    assert all(option.kind is option.KEYWORD_ONLY for option in options)
    assert "'hardswish'" in str(ours["activation"])
