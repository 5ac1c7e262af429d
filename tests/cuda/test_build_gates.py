"""Every kernel, for every architecture that a wheel holds: compiled, without spills, in wide instructions.

`make test` looks at one architecture, `make gates` at all of them.
"""

import re

import pytest

import setup
from tests.cuda import compile as build
from tests.cuda import toolchain
from tests.cuda.gates import faults_of_instructions, faults_of_presence, faults_of_usage

QUICK = "9.0"  # with all that the kernels are made of: asynchronous copies and clusters

needs_nvcc = pytest.mark.skipif(bool(toolchain.why_no_nvcc()), reason=toolchain.why_no_nvcc())
needs_nvdisasm = pytest.mark.skipif(bool(toolchain.why_no_nvdisasm()), reason=toolchain.why_no_nvdisasm())


@pytest.fixture(
    params=[
        pytest.param(each, marks=() if each == QUICK else pytest.mark.kernels_full)
        for each in setup.DEFAULT_ARCHITECTURES
    ],
    ids=lambda each: f"sm_{each.replace('.', '')}",
)
def architecture(request: pytest.FixtureRequest) -> int:
    """90 for sm_90."""
    toolkit = toolchain.toolkit()
    if toolkit is not None and request.param not in toolkit.architectures:
        pytest.skip(f"nvcc {toolkit.version} does not know {request.param}")
    return int(request.param.replace(".", ""))


@needs_nvcc
def test_every_kernel_is_compiled(architecture: int) -> None:
    """A combination that the planner can ask for and nobody instantiated, or one that nobody asks for."""
    assert faults_of_presence(kernel for kernel, _ in build.usages(architecture)) == []


@needs_nvcc
def test_nothing_spills(architecture: int) -> None:
    """A spill costs memory traffic that no measurement of correctness shows; registers beyond the bound, the
    launch.
    """
    found = build.usages(architecture)
    assert [fault for each in found for fault in faults_of_usage(*each)] == []


@needs_nvcc
def test_merging_the_moments_of_processes_spills_nothing(architecture: int) -> None:
    """One block of 1024 threads: 64 registers each."""
    report = (build.compiled(build.MERGE, architecture) / "ptxas.txt").read_text()
    spilled = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report
    )
    assert spilled == [("0", "0", "0")] * 2, "in float and in double"


@needs_nvcc
@needs_nvdisasm
def test_memory_is_reached_by_wide_instructions(architecture: int) -> None:
    """Elements read or written one by one, local memory, and clusters where there are none."""
    found = build.instructions(architecture)
    assert faults_of_presence(kernel for kernel, _ in found) == []
    faults = [
        fault for kernel, counts in found for fault in faults_of_instructions(kernel, architecture, counts)
    ]
    assert faults == []


@needs_nvcc
def test_a_second_run_compiles_nothing(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty compilations of a quarter of a minute each are for the first run alone."""
    directories = build.all_compiled(architecture)

    def fail(command: object) -> None:
        raise AssertionError(f"compiled again: {command}")

    monkeypatch.setattr(build, "run", fail)
    assert build.all_compiled(architecture) == directories
