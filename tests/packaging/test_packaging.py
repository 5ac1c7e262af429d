"""The packages' content and version, and the errors of tools that build and install."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import fused_bn
from fused_bn._version import __version__
from tests.packaging.test_build import ROOT, build, python, small_tree

TORCHES = "pip install torch setuptools ninja"


def in_git() -> set[str]:
    """The files that git tracks, and new files that it does not ignore."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return {name for name in listed if (ROOT / name).exists()}


@pytest.mark.parametrize("variable", ["FUSED_BN_NO_EXTENSION", "FUSED_BN_CPU_ONLY"])
def test_a_source_distribution_holds_what_git_holds(variable: str, tmp_path: Path) -> None:
    """It has the tests and the CUDA sources, whatever is built."""
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no checkout")
    commands = ("egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path))
    made = python("setup.py", "--quiet", *commands, at=ROOT, **{variable: "1"})
    assert made.returncode == 0, made.stdout + made.stderr
    top = f"fused_bn-{__version__}"
    with tarfile.open(tmp_path / f"{top}.tar.gz") as archive:
        packed = {
            name.removeprefix(f"{top}/") for name in archive.getnames() if archive.getmember(name).isfile()
        }
    assert packed - {"PKG-INFO", "setup.cfg"} == in_git()


def test_a_source_distribution_needs_no_torch() -> None:
    """`python -m build` makes one in an isolated environment."""
    for commands, without in {
        ("sdist",): True,
        ("egg_info",): True,
        ("--quiet", "egg_info", "--egg-base", "/tmp", "sdist"): True,
        ("sdist", "bdist_wheel"): False,
        ("build_ext", "--inplace"): False,
        ("dist_info",): False,
        ("--name",): False,
    }.items():
        assert build.packs_sources_only(commands) is without, commands


def test_the_version_stands_in_one_place_and_names_torch_and_cuda_where_compiled() -> None:
    assert fused_bn.__version__ == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    printed = python("-m", "fused_bn", "--version")
    assert printed.stdout == f"fused_bn {__version__}\n", printed.stderr
    assert python("setup.py", "--version", FUSED_BN_NO_EXTENSION="1").stdout.split()[-1] == __version__
    compiled = python("setup.py", "--version", FUSED_BN_CPU_ONLY="1").stdout.split()[-1]
    assert compiled == f"{__version__}+{build.local_version(torch.__version__, '')}"
    assert build.local_version("2.13.0+cu130", "13.0") == "torch2.13.0cu130"
    assert build.local_version("2.13.1+cpu", "") == "torch2.13.1cpu"
    holders = [
        path for path in (ROOT / "pyproject.toml", ROOT / "setup.py") if __version__ in path.read_text()
    ]
    assert not holders


@pytest.mark.parametrize(
    ("env", "install", "again"),
    [
        ({}, TORCHES, "pip install --no-build-isolation ."),
        ({"PIP_BUILD_TRACKER": "/tmp/t"}, TORCHES, "pip install --no-build-isolation ."),
        ({"_PYPROJECT_HOOKS_BUILD_BACKEND": "build_backend"}, TORCHES, "python -m build --no-isolation"),
        (
            {"PIP_BUILD_TRACKER": "/tmp/t", "_PYPROJECT_HOOKS_BUILD_BACKEND": "build_backend"},
            *(TORCHES, "pip install --no-build-isolation ."),
        ),
        ({"UV": "/bin/uv"}, f"uv {TORCHES}", "uv pip install --no-build-isolation ."),
    ],
    ids=["by hand", "pip", "build", "newer pip", "uv"],
)
def test_a_build_without_torch_says_the_lines_to_type(env: dict[str, str], install: str, again: str) -> None:
    said = build.refusal(ImportError("No module named 'torch'"), env)
    assert said.endswith(f"(No module named 'torch'): type `{install}`, then `{again}`")
    assert "\n" not in said


def test_a_build_of_what_pip_cloned_says_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = tmp_path / "pip-req-build-abc"
    subprocess.run(["git", "init", "--quiet", str(clone)], check=True)
    monkeypatch.setattr(build, "ROOT", clone)
    again = "pip install --no-build-isolation"
    assert f"then `{again} .`" in build.refusal(ImportError(), {})
    git = ("git", "-C", str(clone), "remote")
    subprocess.run([*git, "add", "origin", "file:///home/user/fused_bn"], check=True)
    assert f"then `{again} git+file:///home/user/fused_bn`" in build.refusal(ImportError(), {})
    subprocess.run([*git, "set-url", "origin", "https://user:token@host/fused_bn"], check=True)
    assert f"then `{again} git+https://host/fused_bn`" in build.refusal(ImportError(), {})


@pytest.mark.parametrize("script", ["setup.py", ".ci/build_backend.py"])
def test_without_torch_and_setuptools_one_sentence_says_what_to_do(script: str) -> None:
    """A new environment of Python 3.12. -S: this Python without its site-packages."""
    for no_extension in ("0", "1"):
        result = python("-S", script, "--name", PYTHONPATH=str(ROOT), FUSED_BN_NO_EXTENSION=no_extension)
        assert result.returncode == 1
        assert "pip install --no-build-isolation ." in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("job", ["lenet", "speed", "compare"])
def test_jobs_run_with_what_make_installs_for_them(job: str) -> None:
    """`make lenet`, `make bench` and `make compare` install only .ci/requirements.txt."""
    pins = (ROOT / ".ci" / "requirements-test.txt").read_text()
    names = {name.replace("-", "_") for name in re.findall(r"^([\w-]+)==", pins, re.MULTILINE)}
    assert {"jax", "keras", "transformers", "scikit_learn"} < names
    absent = names - {"scikit_learn"} | {"sklearn"}
    code = (
        f"import sys, runpy; sys.modules |= dict.fromkeys({absent})\n"
        f"sys.argv = ['', '--help']; runpy.run_module('benchmarks.{job}', run_name='__main__')"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert "--help" in result.stdout


def test_a_wheel_is_made_by_pip(tmp_path: Path) -> None:
    """Calls this tree's build backend, as every tool that builds does."""
    tree = small_tree(tmp_path)
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--wheel-dir", "made")
    made = python("-m", "pip", "wheel", *options, ".", at=tree, FUSED_BN_NO_EXTENSION="1")
    assert made.returncode == 0, made.stdout + made.stderr
    assert [path.name for path in (tree / "made").iterdir()] == [f"fused_bn-{__version__}-py3-none-any.whl"]


class TestOutput:
    COMPILES = f"c++ -MMD -MF x.o.d -O3 -c {ROOT}/csrc/cpu/rows.cpp -o /tmp/x.o -DFUSED_BN_HAS_CUDA=0\n"

    def test_of_a_compiler_is_the_name_of_its_file(self) -> None:
        assert build.without_command(f"[7/19, 01:10 left] {self.COMPILES}") == (
            "[7/19, 01:10 left] csrc/cpu/rows.cpp\n"
        )
        assert build.without_command(self.COMPILES) == "csrc/cpu/rows.cpp\n"
        nvcc = self.COMPILES.replace("c++ -MMD", "/cuda/bin/nvcc -MD").replace("rows.cpp", "rows.cu")
        assert build.without_command(f"[1/2] {nvcc}") == "[1/2] csrc/cpu/rows.cu\n"

    def test_of_the_linker_is_the_name_of_the_library(self) -> None:
        line = "g++ -shared -O3 a.o b.o -L/torch/lib -o build/lib/fused_bn/_C.so -lc10\n"
        assert build.without_command(line) == "linking build/lib/fused_bn/_C.so\n"

    @pytest.mark.parametrize(
        "line",
        [
            "/a/rows.cpp:12:3: error: 'x' was not declared in this scope\n",
            "   12 |   x = a -c b;\n",
            "cc1plus: note: unrecognized option -o of -c\n",
            "ninja: build stopped: subcommand failed.\n",
            "\n",
        ],
    )
    def test_of_anything_else_stays(self, line: str) -> None:
        assert build.without_command(line) == line

    def test_of_children_is_shortened_and_then_all_is_as_before(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with build.without_commands():
            print("before", flush=True)
            os.system(f"echo '{self.COMPILES.strip()}'; echo after")
        print("outside", flush=True)
        assert capfd.readouterr().out == "before\ncsrc/cpu/rows.cpp\nafter\noutside\n"

    @pytest.mark.parametrize(
        ("version", "status"),
        [
            ("1.11.1", "[%f/%t] "),
            ("1.12.0", "[%f/%t, %W left] "),
            ("1.13.2.git.kitware", "[%f/%t, %W left] "),
            ("odd", "[%f/%t] "),
        ],
    )
    def test_has_the_time_left_where_ninja_knows_it(
        self, version: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Older tags refuse a %W."""
        ninja = tmp_path / "ninja"
        ninja.write_text(f"#!{sys.executable}\nprint('{version}')\n")
        ninja.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert build.ninja_status() == status
        ninja.unlink()
        assert build.ninja_status() == "[%f/%t] "
