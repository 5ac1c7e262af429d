"""The core tests for each CPU instruction set and for the fallback, each in its own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fused_bn._extension import DISABLE_VARIABLE, extension

ROOT = Path(__file__).parent.parent.parent
CAPABILITIES = ("default", "avx2", "avx512", "avx512_bf16")


def run_core_tests(**variables: str) -> str:
    """Runs `pytest -m core` in a new process, which must succeed, and returns its report."""
    command = [sys.executable, "-m", "pytest", "tests", "-m", "core", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "-W", "ignore::RuntimeWarning"],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    return result.stdout


def why_not(capability: str) -> str:
    """Why the core tests for `capability` do not run. Empty if they do."""
    if extension is None:
        return "the compiled extension is not loaded"
    if capability not in extension.build_info()["cpu_capabilities"]:
        return f"the extension was built without {capability} kernels"
    if capability != "default" and not getattr(torch.cpu, f"_is_{capability}_supported")():
        return f"this processor has no {capability}"
    if capability == extension.active_cpu_capability():
        return "these kernels are what the rest of this run tests"
    return ""


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_core_tests_pass_with_the_kernels_for(capability: str) -> None:
    """FUSED_BN_CPU_CAPABILITY picks the kernels when the process starts."""
    if why_not(capability):
        pytest.skip(why_not(capability))
    report = run_core_tests(FUSED_BN_CPU_CAPABILITY=capability)
    assert "fused_bn: compiled extension" in report
    assert " passed" in report


@pytest.mark.skipif(extension is None, reason="the rest of this run tests the fallback")
def test_core_tests_pass_on_the_fallback() -> None:
    """FUSED_BN_DISABLE_EXTENSION=1: plain PyTorch calls fulfil the same contract."""
    report = run_core_tests(**{DISABLE_VARIABLE: "1"})
    assert "fused_bn: pure-PyTorch fallback" in report
    assert " passed" in report


@pytest.mark.needs_extension
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_environment_variable_selects_the_kernels(capability: str) -> None:
    """Otherwise the tests above would all run the same kernels."""
    assert extension is not None
    if why_not(capability) and capability != extension.active_cpu_capability():
        pytest.skip(why_not(capability))
    code = "from fused_bn import _C; print(_C.active_cpu_capability())"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"FUSED_BN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    assert shown.stdout.strip() == capability
