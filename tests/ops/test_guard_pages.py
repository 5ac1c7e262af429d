"""No kernel reads or writes an element outside its tensors: the pages beside them have no access rights."""

import os
import signal
import subprocess
import sys

import pytest

from tests.ops.test_backends import CAPABILITIES, ROOT, why_not

pytestmark = [
    pytest.mark.needs_extension,
    pytest.mark.skipif(sys.platform != "linux", reason="mprotect and its signal are used as on Linux"),
]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.ops.guard_pages", *arguments],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_stay_within_their_tensors(capability: str) -> None:
    reason = why_not(capability)
    if reason and "rest of this run" not in reason:
        pytest.skip(reason)
    result = run(FUSED_BN_CPU_CAPABILITY=capability)
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout) > 800


@pytest.mark.parametrize("by", ["0", "1", "-1"])
def test_one_element_outside_is_noticed(by: str) -> None:
    """The first element outside, on either side. The last one inside may be read."""
    assert (run(by).returncode == -signal.SIGSEGV) is (by != "0")
