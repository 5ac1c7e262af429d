"""The decisions of setup.py: the toolkit, CUDA or not, the architectures, and its error messages."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
from torch.torch_version import TorchVersion
from torch.utils import cpp_extension

from fused_bn._version import TESTED_TORCH

ROOT = Path(__file__).resolve().parent.parent.parent
TORCH = "2.11.0+cu130"
NAME = ("setup.py", "--name")


def load_setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fused_bn_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_setup()

CUDA_13 = build.Toolkit("/toolkits/13.0", "13.0", frozenset({"7.5", "8.0", "8.6", "9.0", "10.0", "12.0"}))
CUDA_12 = build.Toolkit("/toolkits/12.4", "12.4", frozenset({"5.0", "7.5", "8.0", "9.0"}))


def fake_nvcc(directory: Path, home: Path, version: str) -> Path:
    """A fake nvcc outside of its toolkit. It answers setup.py's two questions as the real one does."""
    major, minor = version.split(".")
    script = directory / "nvcc"
    directory.mkdir(parents=True, exist_ok=True)
    script.write_text(
        textwrap.dedent(f"""\
            #!/bin/sh
            if [ "$1" = --list-gpu-arch ]; then
                printf 'compute_75\\ncompute_80\\ncompute_90\\ncompute_120\\n'
            else
                echo '#$ _HERE_={home}/bin' >&2
                echo '#$ TOP={home}/bin/..' >&2
                echo '#$ gcc -D__CUDACC_VER_MAJOR__={major} -D__CUDACC_VER_MINOR__={minor} "any.cu"' >&2
            fi
            """)
    )
    script.chmod(0o755)
    (home / "bin").mkdir(parents=True, exist_ok=True)
    return script


class TestToolkit:
    def test_is_where_nvcc_says_not_where_its_wrapper_lies(self, tmp_path: Path) -> None:
        fake_nvcc(tmp_path / "wrapper", tmp_path / "cuda", "13.0")
        toolkit = build.find_toolkit({"PATH": f"{tmp_path}/wrapper"}, "13.0")
        assert toolkit == (str(tmp_path / "cuda"), "13.0", {"7.5", "8.0", "9.0", "12.0"})

    def test_on_path_goes_before_cuda_home_where_both_fit(self, tmp_path: Path) -> None:
        fake_nvcc(tmp_path / "wrapper", tmp_path / "first", "13.0")
        fake_nvcc(tmp_path / "second" / "bin", tmp_path / "second", "13.1")
        env = {"PATH": f"{tmp_path}/wrapper", "CUDA_HOME": f"{tmp_path}/second"}
        assert build.find_toolkit(env, "13.0").version == "13.0"

    def test_in_cuda_home_is_taken_where_the_one_on_path_does_not_fit(self, tmp_path: Path) -> None:
        fake_nvcc(tmp_path / "wrapper", tmp_path / "first", "12.4")
        fake_nvcc(tmp_path / "second" / "bin", tmp_path / "second", "13.1")
        env = {"PATH": f"{tmp_path}/wrapper", "CUDA_HOME": f"{tmp_path}/second"}
        assert build.find_toolkit(env, "13.0").version == "13.1"

    def test_that_does_not_fit_is_still_found_for_the_message(self, tmp_path: Path) -> None:
        fake_nvcc(tmp_path / "wrapper", tmp_path / "cuda", "12.4")
        assert build.find_toolkit({"PATH": f"{tmp_path}/wrapper"}, "13.0").version == "12.4"

    def test_is_none_without_nvcc_or_with_something_else_of_that_name(self, tmp_path: Path) -> None:
        assert build.find_toolkit({"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path)}, "13.0") is None
        (tmp_path / "nvcc").write_text("#!/bin/sh\necho not a compiler\n")
        (tmp_path / "nvcc").chmod(0o755)
        assert build.find_toolkit({"PATH": str(tmp_path)}, "13.0") is None


class TestObstacle:
    def test_is_none_where_the_major_versions_agree(self) -> None:
        assert build.obstacle_to_cuda(TORCH, "13.0", CUDA_13, True) == ""
        assert build.obstacle_to_cuda(TORCH, "13.2", CUDA_13, True) == ""

    def test_of_different_versions_is_one_sentence_with_both_and_the_remedy(self) -> None:
        text = build.obstacle_to_cuda(TORCH, "13.0", CUDA_12, True)
        assert "12.4" in text
        assert f"torch {TORCH} was built for CUDA 13.0" in text
        assert "set CUDA_HOME to a CUDA 13 toolkit, or install a torch built for CUDA 12" in text
        assert ". " not in text
        assert "\n" not in text

    def test_names_what_is_missing(self) -> None:
        assert "install a CUDA build of torch" in build.obstacle_to_cuda("2.13.0+cpu", None, CUDA_13, True)
        assert "no nvcc" in build.obstacle_to_cuda(TORCH, "13.0", None, True)
        assert "csrc/cuda" in build.obstacle_to_cuda(TORCH, "13.0", CUDA_13, False)


class TestCuda:
    def test_is_built_where_nothing_stands_against_it(self) -> None:
        assert build.reason_without_cuda({}, "") == ""
        assert build.reason_without_cuda({"FORCE_CUDA": "1", "FUSED_BN_CPU_ONLY": "0"}, "") == ""

    def test_is_left_out_with_the_reason_where_something_does(self) -> None:
        assert build.reason_without_cuda({"FORCE_CUDA": "0"}, "no nvcc") == "no nvcc"

    def test_is_left_out_on_demand(self) -> None:
        assert "FUSED_BN_CPU_ONLY" in build.reason_without_cuda({"FUSED_BN_CPU_ONLY": "1"}, "")

    def test_demanded_in_vain_stops_the_build_and_says_why(self) -> None:
        with pytest.raises(SystemExit, match="FORCE_CUDA is set, but no nvcc"):
            build.reason_without_cuda({"FORCE_CUDA": "1"}, "no nvcc")

    def test_demanded_and_refused_at_once_is_an_error(self) -> None:
        with pytest.raises(SystemExit, match="contradict"):
            build.reason_without_cuda({"FORCE_CUDA": "1", "FUSED_BN_CPU_ONLY": "1"}, "")


class TestArchitectures:
    def test_are_those_of_the_environment(self) -> None:
        assert (
            build.architectures({"TORCH_CUDA_ARCH_LIST": "8.0 9.0+PTX"}, CUDA_13.architectures)
            == "8.0;9.0+PTX"
        )

    def test_default_to_what_this_nvcc_knows_with_ptx_of_the_newest(self) -> None:
        assert build.architectures({}, CUDA_13.architectures) == "7.5;8.0;9.0;10.0;12.0+PTX"
        assert build.architectures({"TORCH_CUDA_ARCH_LIST": ""}, CUDA_12.architectures) == "7.5;8.0;9.0+PTX"

    def test_of_an_nvcc_that_knows_none_of_them_stop_the_build(self) -> None:
        with pytest.raises(SystemExit, match=r"compiles for none of .*TORCH_CUDA_ARCH_LIST"):
            build.architectures({}, {"11.0"})

    def test_are_understood_by_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", build.architectures({}, CUDA_13.architectures))
        flags = cpp_extension._get_cuda_arch_flags()
        assert "-gencode=arch=compute_90,code=sm_90" in flags
        assert "-gencode=arch=compute_120,code=compute_120" in flags


@pytest.mark.parametrize(
    ("command", "compiler"),
    [("c++", "c++"), ("g++ -m64", "g++"), ("ccache g++-13 -m64 -pipe", "g++-13"), ("'/a b/g++'", "/a b/g++")],
)
def test_compiler_is_found_among_wrappers_and_options(command: str, compiler: str) -> None:
    assert build.compiler_itself(command) == compiler


def test_cuda_sources_are_picked_up_as_they_come(tmp_path: Path) -> None:
    for name in (
        "module.cpp",
        "cpu/a.cpp",
        "cpu/a.h",
        "cuda/planner/plan.cpp",
        "cuda/host/scratch_cuda.cpp",
        "cuda/host/launch.cu",
        "cuda/kernels/k.cuh",
    ):
        path = tmp_path / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    host = ["csrc/cpu/a.cpp", "csrc/cuda/planner/plan.cpp", "csrc/module.cpp"]
    cuda = ["csrc/cuda/host/launch.cu", "csrc/cuda/host/scratch_cuda.cpp"]
    assert build.sources(tmp_path, with_cuda=False) == host
    assert build.sources(tmp_path, with_cuda=True) == sorted([*host, *cuda])


def test_max_jobs_is_what_ninja_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch reads MAX_JOBS for us. If it stops doing so, this test fails."""
    monkeypatch.setenv("MAX_JOBS", "3")
    assert cpp_extension._get_num_workers(verbose=False) == 3


def test_setup_never_asks_for_a_gpu() -> None:
    called = {
        node.attr
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Attribute)
    }
    assert called.isdisjoint({"is_available", "device_count", "get_device_capability", "current_device"})


def test_make_builds_anew_when_a_variable_of_setup_changes() -> None:
    """build/settings has all variables of setup.py, except for the number of compilers and their output."""
    read = set(re.findall(r"is_set\(\w+(?:\.\w+)?, \"(\w+)\"\)", (ROOT / "setup.py").read_text()))
    read ^= {"V", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH", "CXX"}
    assert {"FORCE_CUDA", "FUSED_BN_CPU_ONLY", "FUSED_BN_NO_EXTENSION", "FUSED_BN_SANITIZE"} < read
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile[makefile.index("\nbuild/settings:") :]
    assert set(re.findall(r"\$\$([A-Z_]+)", recipe)) == read


def test_the_tested_versions_of_torch_are_the_same_everywhere() -> None:
    oldest, newest = TESTED_TORCH
    assert f'dependencies = ["torch>={oldest}"]' in (ROOT / "pyproject.toml").read_text()
    row = re.search(rf"^\| torch \| {oldest} to {newest} .*", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert row is not None
    in_ci = re.findall(r"^\w*TORCH \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(in_ci) == 3
    for version in in_ci:
        assert version in row[0]
        assert oldest <= TorchVersion(version) <= newest


def small_tree(directory: Path) -> Path:
    """The package with one source file that does not compile."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, directory)
    shutil.copytree(
        ROOT / "fused_bn", directory / "fused_bn", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    shutil.copytree(ROOT / ".ci", directory / ".ci")
    (directory / "csrc").mkdir()
    (directory / "csrc" / "module.cpp").write_text("#error this cannot be compiled\n")
    return directory


def test_a_failing_compiler_ends_in_one_sentence_with_the_way_out(tmp_path: Path) -> None:
    result = python("setup.py", "build_ext", at=small_tree(tmp_path), FUSED_BN_CPU_ONLY="1")
    assert result.returncode != 0
    assert "this cannot be compiled" in result.stdout + result.stderr
    assert "csrc/module.cpp" in result.stdout
    assert " -c " not in result.stdout
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("fused_bn: the extension could not be compiled (")
    assert "FUSED_BN_NO_EXTENSION=1" in last


def test_without_the_extension_the_package_installs_and_runs(tmp_path: Path) -> None:
    """The installation needs neither torch nor a compiler, includes the types, and warns once."""
    tree = small_tree(tmp_path)
    built = python("setup.py", "build", "--build-lib", "lib", at=tree, FUSED_BN_NO_EXTENSION="1", PATH="")
    assert built.returncode == 0, built.stdout + built.stderr
    assert "building no extension (FUSED_BN_NO_EXTENSION was set)" in built.stdout
    package = tree / "lib" / "fused_bn"
    assert (package / "py.typed").exists()
    assert (package / "_C.pyi").exists()
    assert not list(package.glob("*.so"))
    code = (
        "import torch, fused_bn\n"
        "norm = fused_bn.BatchNorm2d(3, activation='relu')\n"
        "norm(torch.randn(2, 3, 4, 4)).sum().backward()\n"
        "print(fused_bn.__file__, int(norm.num_batches_tracked), norm.weight.grad.shape)"
    )
    found = python("-c", code, at=tree / "lib")
    assert found.stdout.strip() == f"{package / '__init__.py'} 1 torch.Size([3])", found.stderr
    assert found.stderr.count("fused_bn runs on its slow pure-PyTorch fallback") == 1
    doctor = python("-m", "fused_bn", at=tree / "lib")
    assert "ok, but only the slow pure-PyTorch fallback" in doctor.stdout


def python(*arguments: str, at: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=at,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_force_cuda_fails_loudly_where_there_is_none(tmp_path: Path) -> None:
    result = python(
        *NAME, FORCE_CUDA="1", FUSED_BN_CPU_ONLY="0", PATH=str(tmp_path), CUDA_HOME="", CUDA_PATH=""
    )
    assert result.returncode != 0
    assert result.stderr.startswith("FORCE_CUDA is set, but ")
    assert "Traceback" not in result.stderr


def test_force_cuda_without_an_extension_is_an_error() -> None:
    result = python(*NAME, FORCE_CUDA="1", FUSED_BN_NO_EXTENSION="1")
    assert result.returncode != 0
    assert "contradict" in result.stderr
