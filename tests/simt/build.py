"""Compiles the executor and its kernels with g++ into build/simt/. A second call compiles nothing.

An object's name contains a hash of its compiler, its flags and every file that it includes from here or from
csrc/. A mutant of one header thus shares all other objects with the original.
"""

import functools
import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType


class CompileError(RuntimeError):
    pass


@dataclass(frozen=True)
class Source:
    path: Path
    defines: tuple[str, ...] = ()
    optimise: str = "2"
    flags: tuple[str, ...] = ()  # beside those of all sources


HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / "build" / "simt"
COMPILER = os.environ.get("CXX", "g++")
# ThreadSanitizer takes every fiber for a thread, and would report the fibers' shared data in these as races.
UNWATCHED = frozenset({"fiber.cpp", "guarded.cpp", "block.cpp", "executor.cpp"})
EXECUTOR = tuple(HERE / name for name in sorted(UNWATCHED))
# Not optimised, because that would take four times as long. All variants of the kernels share this object.
BINDINGS = Source(HERE / "kernels.cpp", optimise="0")

FLAGS = (
    *("-std=c++17", "-g", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"),
    # Keep modules in one process separate.
    *("-fno-gnu-unique", "-ftls-model=initial-exec"),
    # The device's arithmetic; and like nvcc, no strict aliasing.
    *("-ffp-contract=off", "-fno-strict-aliasing"),
)


@functools.cache
def compiler_version() -> str:
    return subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout


@functools.cache
def has_fma() -> bool:
    if platform.machine() != "x86_64":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and " fma " in cpuinfo.read_text()


def included_files(source: Path, include: Sequence[Path]) -> list[Path]:
    """The source and all files that it includes in quotes, directly or not."""
    found = [source]
    for file in found:
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', file.read_text(), re.MULTILINE):
            path = next((p for d in (file.parent, *include) if (p := d / name).is_file()), None)
            if path is not None and path not in found:
                found.append(path)
    return found


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(f"{' '.join(command)}\n{done.stderr[:4000]}")


def made(target: Path, command: Sequence[str]) -> Path:
    """The target, made by `command` if it does not exist. Atomic, also if another process makes it."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as directory:
            unfinished = Path(directory) / target.name
            run([*command, "-o", str(unfinished)])
            unfinished.replace(target)
    return target


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def compiled(source: Source, flags: Sequence[str], include: Sequence[Path]) -> Path:
    defines = (f"-D{define}" for define in source.defines)
    options = [*flags, f"-O{source.optimise}", *defines, *source.flags]
    # Without paths, so that files that an overlay leaves alone use the original's object.
    texts = [f"{file.name}\n{file.read_text()}" for file in included_files(source.path, include)]
    target = CACHE / "objects" / f"{source.path.stem}-{digest(compiler_version(), *options, *texts)}.o"
    return made(target, [COMPILER, *options, *(f"-I{d}" for d in include), "-c", str(source.path)])


def python_flags() -> list[str]:
    from torch.utils.cpp_extension import include_paths

    directories = (sysconfig.get_paths()["include"], include_paths()[0])  # torch brings pybind11's headers
    return [flag for directory in directories for flag in ("-isystem", directory)]


def build(
    name: str,
    sources: Sequence[Source],
    *,
    module: bool,
    thread_sanitizer: bool = False,
    defines: Sequence[str] = (),
    overlay: Path | None = None,
) -> Path:
    """The path of a Python module or a program from `sources` and the executor.

    `overlay` is a directory whose files replace those of the same path below csrc/ or tests/simt/twin/.
    Raises CompileError with the compiler's output.
    """
    include = [HERE / "twin", HERE, ROOT / "csrc"]
    if overlay is not None:
        include.insert(0, overlay)
    flags = [*FLAGS, *(f"-D{define}" for define in defines)]
    if has_fma():
        flags.append("-mfma")

    def compile_one(source: Source) -> Path:
        more: list[str] = []
        if source == BINDINGS:
            more += python_flags()
        elif thread_sanitizer:
            more.append("-DSIMT_THREAD_SANITIZER")
            if source.path.name not in UNWATCHED:
                more.append("-fsanitize=thread")
        return compiled(source, [*flags, *more], include)

    everything = [*sources, *(Source(path) for path in EXECUTOR)]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        objects = [str(path) for path in pool.map(compile_one, everything)]
    link = [COMPILER, "-pthread", *(["-shared"] if module else []), *objects]
    if thread_sanitizer:
        link.append("-fsanitize=thread")
    return made(CACHE / digest(*link) / (f"{name}.so" if module else name), link)


def thread_sanitizer_environment() -> dict[str, str]:
    """The environment in which Python can load a module that was built with ThreadSanitizer."""
    library = subprocess.run(
        [COMPILER, "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return {**os.environ, "LD_PRELOAD": library, "TSAN_OPTIONS": TSAN_OPTIONS}


# Fibers are never joined, and would all be reported as leaks.
TSAN_OPTIONS = "halt_on_error=0:exitcode=66:report_thread_leaks=0:report_signal_unsafe=0"


ELEMENTS = {"f32": "float", "f64": "double", "bf16": "fused_bn::BFloat16", "f16": "fused_bn::Float16"}


def build_kernels(
    *,
    thread_sanitizer: bool = False,
    elements: Sequence[str] = tuple(ELEMENTS),
    overlay: Path | None = None,
    optimise: str = "2",
) -> Path:
    """The module simt_kernels: the CUDA kernels of these element types, to run on the CPU."""
    path = HERE / "kernels_one_type.cpp"
    kernels = [Source(path, (f"SIMT_ELEMENT={ELEMENTS[name]}",), optimise) for name in elements]
    sources = [BINDINGS, Source(HERE / "kernels_merge.cpp", optimise=optimise), *kernels]
    return build("simt_kernels", sources, module=True, thread_sanitizer=thread_sanitizer, overlay=overlay)


def load_module(path: Path) -> ModuleType:
    """A built module; several variants of one may be loaded."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
