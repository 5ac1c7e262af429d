"""Devices of other architectures and sizes run the tests that launch most, as the planner plans for them."""

import os
import subprocess
import sys

import pytest

from tests.simt.build import ROOT

LAUNCHING = ("tests/test_cuda.py", "tests/test_cuda_plans.py", "tests/test_pieces.py", "tests/test_prelu.py")
FULL = pytest.mark.kernels_full

MODELS = (
    pytest.param("T4", {"CUDA_DEVICES": "T4:16,T4:16"}, id="sm_75 without cooperative launches"),
    pytest.param("A100", {"CUDA_DEVICES": "A100:16,A100:16"}, id="sm_80"),
    pytest.param("L40", {"CUDA_DEVICES": "L40:16,L40:16"}, id="sm_89", marks=FULL),
    pytest.param("B200", {"CUDA_DEVICES": "B200:16,B200:16"}, id="sm_100", marks=FULL),
    pytest.param("RTX 5090", {"CUDA_DEVICES": "RTX 5090:16,RTX 5090:16"}, id="sm_120", marks=FULL),
    pytest.param("H200", {"CUDA_DEVICES": "H200,T4"}, id="a whole H200, with uneven clusters", marks=FULL),
    pytest.param(
        "H200", {"CUDA_DEVICES": "H200:16/8,A100:16/8"}, id="half of the multiprocessors, as under MPS"
    ),
    pytest.param(
        *("H200", {"CUDA_DEVICES": "H200:16,H200:16", "CUDA_DEVICE_COMPILED_FOR": "80"}),
        id="sm_90 that runs code for sm_80",
        marks=FULL,
    ),
    pytest.param("H200", {"CUDA_DEVICE_ORDER": "now"}, id="work that runs at once", marks=FULL),
    pytest.param("H200", {"CUDA_DEVICE_ORDER": "1", "CUDA_DEVICE_SEED": "5"}, id="work in a drawn order"),
    pytest.param("H200", {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, id="guard pages around every tensor"),
)


def in_python(settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])
    environment = {**os.environ, **settings, "PYTHONPATH": path}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("name", "settings"), MODELS)
def test_the_launching_tests_pass(name: str, settings: dict[str, str]) -> None:
    device = "import torch; print(torch.cuda.get_device_name())"
    assert f"NVIDIA {name} (emulated)" in in_python(settings, "-c", device).stdout
    small = ("-m", "cuda and not kernels_full", "-k", "not 256x")
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", *small)
    done = in_python(settings, "-m", "pytest", *options, *LAUNCHING)
    assert done.returncode == 0, done.stdout


TWO_ROUNDS = """
import sys
from tests.cases import *
from tests.reference import assert_meets_demands
for number in ("first", "second"):
    print(number, "round", file=sys.stderr, flush=True)
    for layout in ("contiguous", "channels_last"):
        case = Case((16, 16, 56, 56), layout, torch.bfloat16)
        assert_meets_demands(case, make_tensors(case, "cuda"))
"""
COOPERATIVE_LAUNCH_TOO_LARGE = "error 720"


def test_a_refused_cooperative_launch_is_planned_anew_once() -> None:
    """As under MPS, where a process has fewer multiprocessors than the device says."""
    logged = []
    for devices in ("H200:16", "H200:16/8"):
        done = in_python({"CUDA_DEVICES": devices, "CUDA_DEVICE_LOG": "1"}, "-c", TWO_ROUNDS)
        assert done.returncode == 0, done.stderr
        logged.append(done.stderr)
    whole, half = logged
    assert "cooperative 1" in whole
    assert COOPERATIVE_LAUNCH_TOO_LARGE not in whole
    first, second = half.split("second round")
    assert COOPERATIVE_LAUNCH_TOO_LARGE in first
    assert COOPERATIVE_LAUNCH_TOO_LARGE not in second
