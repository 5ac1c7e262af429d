"""The benchmarks of a GPU run on the emulated device, at tiny sizes. Their times mean nothing there."""

import json
from pathlib import Path

import pytest

from tests.cuda_device.environment import in_python

PARTS = ("correct", "bits", "table", "forced")


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_gpu_benchmarks_runs(part: str, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.touch()
    done = in_python("-m", f"benchmarks.gpu.{part}", "--smoke", "--part", part, "--file", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert any("case" in line for line in lines)
    assert not [line for line in lines if "error" in line or line.get("wrong")]
