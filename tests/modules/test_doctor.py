"""`python -m fused_bn` and the fallback's one warning, each in its own process as for a user."""

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

import fused_bn
from fused_bn import _doctor
from fused_bn._extension import DISABLE_VARIABLE, extension
from fused_bn._version import TESTED_TORCH

FALLBACK = "RuntimeWarning: fused_bn runs on its slow pure-PyTorch fallback"
RUNNING = torch.__version__.split("+")[0]


def python(*arguments: str, at: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=at or Path(fused_bn.__file__).parent.parent,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.needs_extension
def test_doctor_reports_versions_builds_and_a_working_cpu_path() -> None:
    result = python("-m", "fused_bn")
    assert result.returncode == 0, result.stdout + result.stderr
    assert FALLBACK not in result.stderr
    report = result.stdout
    assert f"fused_bn  {fused_bn.__version__}" in report
    assert f"torch     {torch.__version__}" in report
    assert f"active: {_doctor.active_cpu_capability()}" in report
    assert "CUDA kernels: " in report
    assert "CPU threads: " in report
    assert "\ncpu       ok, compiled kernels\n" in report
    assert "\ncuda      " in report


def test_doctor_says_whether_this_torch_is_among_the_tested_ones() -> None:
    oldest, newest = TESTED_TORCH
    said = f"tested: {oldest} to {newest}"
    for inside in (oldest, newest, f"{newest}+cu130", "2.13.0+cpu"):
        assert _doctor.tested_torch(inside) == said
    for outside in ("2.2.0", f"{oldest}a0+git1", "2.100.0", "3.0.0"):
        assert _doctor.tested_torch(outside) == f"{said}, not this one"


def test_without_torch_the_doctor_says_so_in_one_sentence() -> None:
    """-S: this Python without its site-packages."""
    result = python("-S", "-m", "fused_bn", PYTHONPATH="")
    assert result.returncode == 1
    assert (
        "fused_bn needs PyTorch, which this Python cannot import (No module named 'torch')" in result.stderr
    )
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.needs_extension
def test_doctor_says_whether_all_cores_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extension is not None
    info = extension.build_info()
    assert info["openmp"] is info["compiler"].startswith("gcc")
    monkeypatch.setattr(extension, "build_info", lambda: info | {"openmp": False})
    assert any("one, because the compiler was not g++" in text for _, text in _doctor.versions())


@pytest.mark.needs_extension
@pytest.mark.parametrize("capability", ["default", "unheard-of"])
def test_doctor_knows_the_chosen_instruction_set(capability: str) -> None:
    result = python("-m", "fused_bn", "doctor", FUSED_BN_CPU_CAPABILITY=capability)
    if capability == "default":
        assert result.returncode == 0
        assert "active: default" in result.stdout
    else:
        assert result.returncode == 1
        assert "cpu       failed: FUSED_BN_CPU_CAPABILITY is 'unheard-of'" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.needs_extension
def test_a_call_without_kernels_is_refused_and_not_counted() -> None:
    """Also for empty input, which needs no kernel."""
    code = (
        "import torch, fused_bn\n"
        "norm = fused_bn.BatchNorm2d(3)\n"
        "for shape in ((2, 3, 4, 4), (0, 3, 4, 4)):\n"
        "    try: norm(torch.randn(shape))\n"
        "    except RuntimeError as error: print(error, int(norm.num_batches_tracked))\n"
    )
    result = python("-c", code, FUSED_BN_CPU_CAPABILITY="unheard-of")
    lines = result.stdout.splitlines()
    assert len(lines) == 2, result.stdout + result.stderr
    assert all(line.startswith("FUSED_BN_CPU_CAPABILITY is 'unheard-of'") for line in lines)
    assert all(line.endswith(" 0") for line in lines)


def test_doctor_on_the_fallback_says_what_to_do() -> None:
    result = python("-m", "fused_bn", FUSED_BN_DISABLE_EXTENSION="1")
    assert result.returncode == 1
    assert "cpu       ok, but only the slow pure-PyTorch fallback" in result.stdout
    assert f"-> {DISABLE_VARIABLE} is set: unset it" in result.stdout
    assert result.stderr.count(FALLBACK) == 1


def test_fallback_warns_exactly_once_and_says_how_to_build() -> None:
    code = (
        "import torch, fused_bn, fused_bn.functional, fused_bn.modules\n"
        "for _ in range(3): fused_bn.BatchNorm2d(3)(torch.randn(2, 3, 4, 4)).sum().backward()\n"
    )
    result = python("-W", "always", "-c", code, FUSED_BN_DISABLE_EXTENSION="1")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(FALLBACK) == 1
    assert "pip install --no-build-isolation ." in result.stderr


@pytest.mark.needs_extension
def test_compiled_extension_warns_of_nothing() -> None:
    result = python("-W", "always", "-c", "import fused_bn")
    assert result.returncode == 0, result.stderr
    assert FALLBACK not in result.stderr


def test_doctor_sees_wrong_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wrong(fused_bn.BatchNorm2d):
        def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(input, residual) * 1.01

    monkeypatch.setattr(fused_bn, "BatchNorm2d", Wrong)
    assert _doctor.main() == 1
    report = capsys.readouterr().out
    assert "cpu       failed: output differs from nn.BatchNorm2d's by up to " in report
    assert DISABLE_VARIABLE in report


def test_the_doctors_values_are_of_the_size_that_its_tolerance_supposes() -> None:
    step = _doctor.training_step(torch.nn.BatchNorm2d(3), torch.nn.ReLU(), "cpu")
    assert max(float(value.abs().max()) for value in step.values()) < _doctor.LARGEST


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A copy of the package without its extension."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    return shutil.copytree(Path(fused_bn.__file__).parent, tmp_path / "fused_bn", ignore=ignored)


@pytest.mark.parametrize("other", ["1.0.0", f"{RUNNING}1"], ids=["another minor", "another patch release"])
def test_an_extension_built_for_another_torch_is_told_by_its_file(elsewhere: Path, other: str) -> None:
    """Also patch releases: their headers may change the layout of C++ types."""
    library = elsewhere / f"_C{EXTENSION_SUFFIXES[0]}"
    library.write_bytes(b"\0code\0fused_bn built for torch %b\0more code\0" % other.encode())
    said = f"built for torch {other}, this is {RUNNING}"
    result = python("-c", "import fused_bn", at=elsewhere.parent)
    assert f"could not be loaded ({said}); build it with" in result.stderr
    doctor = python("-m", "fused_bn", at=elsewhere.parent)
    assert doctor.returncode == 1
    assert f"-> the extension is {said}: build it with" in doctor.stdout


@pytest.mark.needs_extension
@pytest.mark.parametrize(
    ("written", "said"),
    [
        (f"built for torch {'9' * len(RUNNING)}", f"built for torch {'9' * len(RUNNING)}, this is {RUNNING}"),
        (f"BUILT FOR TORCH {RUNNING}", f"built for torch of unknown version, this is {RUNNING}"),
    ],
)
def test_an_extension_built_for_another_torch_is_not_loaded_even_where_it_could_be(
    elsewhere: Path, written: str, said: str
) -> None:
    assert extension is not None
    library = Path(str(extension.__file__))
    content = library.read_bytes()
    ours = f"built for torch {RUNNING}\0".encode()
    assert content.count(ours) == 1
    (elsewhere / library.name).write_bytes(content.replace(ours, f"{written}\0".encode()))
    result = python("-c", "import fused_bn", at=elsewhere.parent)
    assert f"could not be loaded ({said})" in result.stderr


def test_a_file_that_is_no_library_leaves_the_fallback(elsewhere: Path) -> None:
    (elsewhere / f"_C{EXTENSION_SUFFIXES[0]}").touch()
    result = python("-c", "import fused_bn", at=elsewhere.parent)
    assert result.returncode == 0
    assert FALLBACK in result.stderr


def test_doctor_explains_an_extension_that_is_absent_or_does_not_load(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_doctor, "extension", None)
    monkeypatch.setattr(_doctor, "missing_reason", "undefined symbol: _ZN5torch")
    monkeypatch.setattr(fused_bn, "__file__", str(tmp_path / "__init__.py"))
    assert _doctor.remedy_for_extension().startswith("the extension is not built: build it with")
    (tmp_path / "_C.cpython-311.so").touch()
    assert "_C.cpython-311.so does not load (undefined symbol: _ZN5torch)" in _doctor.remedy_for_extension()


def test_doctor_explains_a_gpu_without_kernels_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Extension:
        @staticmethod
        def build_info() -> dict[str, str | list[str]]:
            return {"without_cuda": "no nvcc is on PATH", "cuda_architectures": []}

    monkeypatch.setattr(_doctor, "extension", Extension)
    assert "built without CUDA, because no nvcc is on PATH" in _doctor.remedy_for_cuda()
    monkeypatch.setattr(
        Extension, "build_info", lambda: {"without_cuda": "", "cuda_architectures": ["8.0", "9.0+PTX"]}
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "built for 8.0, 9.0+PTX, this GPU is 7.5" in _doctor.remedy_for_cuda()
