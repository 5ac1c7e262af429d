"""Compiles csrc/cuda/host/*.cu as setup.py does, for one architecture at a time, into build/cuda/.

The name of a directory there is a hash of the source, of all that it includes, of the flags and of nvcc's
version. It holds the cubin, the report of ptxas and the output of nvdisasm. A second call compiles nothing.
"""

import functools
import gzip
import os
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

import setup
from tests.gates import toolchain
from tests.gates.kernels import Kernel
from tests.gates.reports import Code, Usage, read_code, read_usage
from tests.simt.build import CompileError, digest, included_files

CACHE = setup.ROOT / "build" / "cuda"
INCLUDE = setup.ROOT / "csrc"
SOURCES = tuple(sorted(INCLUDE.glob("cuda/host/*.cu")))
# torch's headers come first, as in the build of an extension.
FLAGS = (*cpp_extension.COMMON_NVCC_FLAGS, "--compiler-options", "-fPIC", "-std=c++17", *setup.NVCC_FLAGS)


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done


def compiled(source: Path, architecture: int) -> Path:
    """The directory with cubin and report. Atomic, also if another process makes it."""
    flags = [*FLAGS, f"-arch=sm_{architecture}"]
    texts = [f"{path.name}\n{path.read_text()}" for path in included_files(source, [INCLUDE])]
    key = digest(toolchain.version(toolchain.nvcc()), *flags, *texts)
    target = CACHE / f"{source.stem}-sm_{architecture}-{key}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            unfinished = Path(directory, target.name)
            unfinished.mkdir()
            command = [str(toolchain.nvcc()), *flags, "-cubin", "-Xptxas", "-v", f"-I{INCLUDE}", str(source)]
            report = run([*command, "-o", str(unfinished / "cubin")]).stderr
            (unfinished / "ptxas.txt").write_text(report)
            move(unfinished, target)
    return target


def move(unfinished: Path, target: Path) -> None:
    try:
        unfinished.rename(target)
    except OSError:
        if not target.exists():  # another process may have made it
            raise


def all_compiled(architecture: int) -> list[Path]:
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda source: compiled(source, architecture), SOURCES))


def listing(directory: Path) -> list[str]:
    """The lines that nvdisasm prints for the directory's cubin."""
    tool = toolchain.nvdisasm()
    assert tool is not None
    kept = directory / f"sass-{digest(toolchain.version(tool))}.gz"
    if not kept.exists():
        text = run([str(tool), "-c", str(directory / "cubin")]).stdout
        with tempfile.NamedTemporaryFile(dir=directory, delete=False) as unfinished:
            unfinished.write(gzip.compress(text.encode(), compresslevel=1))
        Path(unfinished.name).replace(kept)
    return gzip.decompress(kept.read_bytes()).decode().splitlines()


@functools.cache
def usages(architecture: int) -> list[tuple[Kernel, Usage]]:
    """Of all kernels for an architecture, by the report of ptxas."""
    reports = [(directory / "ptxas.txt").read_text() for directory in all_compiled(architecture)]
    return [each for report in reports for each in read_usage(report).items()]


@functools.cache
def codes(architecture: int) -> list[tuple[Kernel, Code]]:
    """Of all kernels for an architecture, by what is in the cubin."""
    directories = all_compiled(architecture)
    return [each for directory in directories for each in read_code(listing(directory)).items()]
