"""Every kernel, for every architecture of a wheel, is compiled, does not spill, and has the instructions that
the design relies on, with no more per element than the prototypes had.

`make test` looks at one architecture and `make gates` at all of them. `python -m tests.gates` prints the
figures.
"""

import pytest

import setup
from tests.gates import compile as build
from tests.gates import toolchain
from tests.gates.gates import (
    faults_of_counts,
    faults_of_flight,
    faults_of_instructions,
    faults_of_presence,
    faults_of_usage,
)

QUICK = "9.0"  # with all that the kernels are made of: asynchronous copies and clusters

needs_nvcc = pytest.mark.skipif(bool(toolchain.why_no_nvcc()), reason=toolchain.why_no_nvcc())
needs_nvdisasm = pytest.mark.skipif(bool(toolchain.why_no_nvdisasm()), reason=toolchain.why_no_nvdisasm())


def number(architecture: str) -> int:
    """90 for sm_90."""
    toolkit = toolchain.toolkit()
    if toolkit is not None and architecture not in toolkit.architectures:
        pytest.skip(f"nvcc {toolkit.version} does not know {architecture}")
    return int(architecture.replace(".", ""))


@pytest.fixture(
    params=[
        pytest.param(each, marks=() if each == QUICK else pytest.mark.kernels_full)
        for each in setup.DEFAULT_ARCHITECTURES
    ],
    ids=lambda each: f"sm_{each.replace('.', '')}",
)
def architecture(request: pytest.FixtureRequest) -> int:
    return number(request.param)


@needs_nvcc
def test_every_kernel_is_compiled(architecture: int) -> None:
    """The instances are those that the planner can select."""
    assert faults_of_presence(kernel for kernel, _ in build.usages(architecture)) == []


@needs_nvcc
def test_nothing_spills(architecture: int) -> None:
    """A spill costs memory traffic; too many registers reduce the number of blocks."""
    found = build.usages(architecture)
    assert [fault for kernel, usage in found for fault in faults_of_usage(kernel, architecture, usage)] == []


@needs_nvcc
@needs_nvdisasm
def test_the_instructions_are_those_of_the_design(architecture: int) -> None:
    """Elements in local memory, and copies, exchanges and waits that an architecture has or lacks."""
    found = build.codes(architecture)
    assert faults_of_presence(kernel for kernel, _ in found) == []
    assert [
        fault for kernel, code in found for fault in faults_of_instructions(kernel, architecture, code)
    ] == []


@needs_nvcc
@needs_nvdisasm
def test_many_vectors_are_in_flight(architecture: int) -> None:
    """A load that is used before the next ones are issued costs its latency each time."""
    assert [fault for each in build.codes(architecture) for fault in faults_of_flight(*each)] == []


@needs_nvcc
@needs_nvdisasm
def test_an_element_takes_no_more_instructions_than_in_the_prototypes() -> None:
    assert [fault for each in build.codes(number(QUICK)) for fault in faults_of_counts(*each)] == []


@needs_nvcc
def test_a_second_run_compiles_nothing(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilations of a minute each are for the first run alone."""
    directories = build.all_compiled(architecture)

    def fail(command: object) -> None:
        raise AssertionError(f"compiled again: {command}")

    monkeypatch.setattr(build, "run", fail)
    assert build.all_compiled(architecture) == directories
