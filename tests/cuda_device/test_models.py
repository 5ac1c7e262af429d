"""Devices of other architectures and sizes run the tests that launch most, as the planner plans for them."""

import re

import pytest

from tests.cuda_device.environment import in_python

LAUNCHING = (
    "tests/cuda/test_cuda.py",
    "tests/cuda/test_cuda_plans.py",
    "tests/sync/test_pieces.py",
    "tests/ops/test_prelu.py",
)
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


@pytest.mark.parametrize(("name", "settings"), MODELS)
def test_the_launching_tests_pass(name: str, settings: dict[str, str]) -> None:
    device = "import torch; print(torch.cuda.get_device_name())"
    assert f"NVIDIA {name} (emulated)" in in_python("-c", device, settings=settings).stdout
    small = ("-m", "cuda and not kernels_full", "-k", "not 256x")
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", *small)
    done = in_python("-m", "pytest", *options, *LAUNCHING, settings=settings)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 250, done.stdout  # 282 on an H200; the rest is of plans that a device has not


@pytest.mark.parametrize(
    ("devices", "clusters"), [("H200", [132, 66, 30, 15, 7]), ("H200:16", [16, 8, 3, 1, 0]), ("T4", [])]
)
def test_clusters_that_run_at_once(devices: str, clusters: list[int]) -> None:
    """As few as an H200 answered, of 1, 2, 4, 8 and 16 blocks; none before sm_90."""
    call = (
        "from tests.cases import *; case = Case((8, 4, 5, 5)); call_fused(case, make_tensors(case, 'cuda'))"
    )
    logged = in_python("-c", call, settings={"CUDA_DEVICES": devices, "CUDA_DEVICE_LOG": "1"}).stderr
    found = re.findall(r"cudaOccupancyMaxActiveClusters of \d+ blocks: (\d+)", logged)
    assert [int(each) for each in found] == clusters


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
    whole, half = (
        in_python("-c", TWO_ROUNDS, settings={"CUDA_DEVICES": devices, "CUDA_DEVICE_LOG": "1"})
        for devices in ("H200:16", "H200:16/8")
    )
    assert whole.returncode == half.returncode == 0, whole.stderr + half.stderr
    assert "cooperative 1" in whole.stderr
    assert COOPERATIVE_LAUNCH_TOO_LARGE not in whole.stderr
    first, second = half.stderr.split("second round")
    assert COOPERATIVE_LAUNCH_TOO_LARGE in first
    assert COOPERATIVE_LAUNCH_TOO_LARGE not in second


CAPTURED = """
from tests.cases import *
from tests.cuda.launches import forced, last_plan
case = Case((16, 16, 56, 56), "channels_last", torch.bfloat16)
tensors = make_tensors(case, "cuda")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    output = call_fused(case, tensors)
graph.replay()
torch.cuda.synchronize()
assert "words" not in last_plan()
assert same_bits(output, call_fused(case, make_tensors(case, "cuda")))
try:
    with forced("resident exchange=words"):
        call_fused(case, tensors)
except ValueError as error:
    assert "at once" in str(error), error
else:
    raise AssertionError("a forced plan that the driver refuses was accepted")
call_fused(case, tensors)
torch.cuda.synchronize()
"""


def test_a_launch_that_is_refused_in_a_capture_or_was_forced() -> None:
    """A capture goes on with the other plan; a plan that was asked for is never replaced."""
    done = in_python("-c", CAPTURED, settings={"CUDA_DEVICES": "H200:16/8"})
    assert done.returncode == 0, done.stderr
