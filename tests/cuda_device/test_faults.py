"""Every planted fault is caught, and by the check that is there for it."""

import json
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from tests.cuda.launches import compiled
from tests.cuda_device.build import FOLDER
from tests.cuda_device.environment import in_python
from tests.cuda_device.faults import FAULTS, Fault
from tests.simt.build import ROOT, digest, made, run


def commands() -> dict[str, list[str]]:
    """How the extension that is installed here was compiled: the command of each file below csrc/."""
    objects = ROOT / "build" / f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    if not (objects / "build.ninja").exists():
        pytest.fail("the extension was not compiled in this folder's build/")
    command = ["ninja", "-t", "compdb", "compile", "cuda_compile"]
    listed = subprocess.run(command, cwd=objects, capture_output=True, text=True, check=True)
    return {
        str(Path(each["file"]).relative_to(ROOT / "csrc")): shlex.split(each["command"])
        for each in json.loads(listed.stdout)
    }


def faulty_package(fault: Fault, directory: Path) -> Path:
    """A folder with the installed package, whose extension has the fault."""
    fault.plant(directory / "csrc")
    planted = directory / "csrc" / fault.file
    objects = []
    for file, command in commands().items():
        output = Path(command[command.index("-o") + 1])
        if file == (fault.compiled or fault.file):
            # Compiled anew where the right one was: a header that it includes may have changed.
            key = digest(planted.read_text(), str(output.stat().st_mtime_ns), *command)
            wrong = again(command, ROOT / "csrc", directory / "csrc", file)
            output = made(FOLDER / "faults" / key / output.name, wrong)
        objects.append(str(output))
    extension = Path(compiled().__file__)
    package = directory / "package" / "fused_bn"
    shutil.copytree(extension.parent, package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    libraries = Path(torch.__file__).parent / "lib"
    names = ("c10", "c10_cuda", "torch", "torch_cpu", "torch_cuda", "torch_python")
    link = ["g++", "-shared", "-fopenmp", "-o", str(package / extension.name), *objects]
    run([*link, f"-L{libraries}", *(f"-l{name}" for name in names)])
    return package.parent


def again(command: list[str], csrc: Path, overlay: Path, file: str) -> list[str]:
    """The command with the overlay's files, without what it writes: an object and a list of headers."""
    written = {i for i, part in enumerate(command) if part in ("-o", "-MF", "--dependency-output")}
    left_out = ("-MMD", "--generate-dependencies-with-compile")
    kept = [p for i, p in enumerate(command) if not {i, i - 1} & written and p not in left_out]
    source = kept.index(str(csrc / file))
    kept[source] = str(overlay / file if (overlay / file).exists() else csrc / file)
    fast = ["-O0"] * file.endswith(".cpp")
    return [kept[0], f"-I{overlay}", *kept[1:], *fast]


def run_test(package: Path | None, fault: Fault) -> subprocess.CompletedProcess[str]:
    options = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "cuda")
    return in_python("-m", "pytest", *options, fault.test, settings=fault.settings, package=package)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_caught(fault: Fault, tmp_path: Path) -> None:
    done = run_test(faulty_package(fault, tmp_path), fault)
    assert done.returncode == fault.exit_code, done.stdout
    assert fault.caught_by in done.stdout + done.stderr


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_same_test_passes_without_the_fault(fault: Fault) -> None:
    """A test that fails anyway catches nothing."""
    done = run_test(None, fault)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
