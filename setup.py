"""Builds the extension `fused_bn._C`: C++ everywhere, CUDA where torch and the toolkit allow it.

Environment variables:
    FORCE_CUDA=1             build the CUDA kernels, with or without a GPU; stop where that cannot work
    FUSED_BN_CPU_ONLY=1      leave the CUDA kernels out
    TORCH_CUDA_ARCH_LIST     architectures to compile for, in torch's notation ("8.0;9.0+PTX")
    MAX_JOBS                 how many compilers run at once (torch reads it)
    FUSED_BN_NO_EXTENSION=1  compile nothing: the package runs, slowly, on plain PyTorch calls
    FUSED_BN_SANITIZE=1      build with AddressSanitizer and UndefinedBehaviorSanitizer
    CXX                      the C++ compiler; one like g++ builds kernels that use all cores, clang's use one
    V=1                      show the compiler's command lines
"""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent

# SASS runs on every later minor version of its major one; PTX covers what is newer than the list.
DEFAULT_ARCHITECTURES = ("7.5", "8.0", "9.0", "10.0", "12.0")

# The standard is torch's choice, which asks for C++20 from 2.14 on; the sources need C++17.
# -ffp-contract=off: backward recomputes the ReLU mask of forward, which must agree bit for bit, so the
# compiler may not choose between a fused and a separate multiply-add. -g0: Python's own flags may hold -g.
# -fno-math-errno, -fno-trapping-math: who would set errno or an exception's flag for each element makes no
# vectors of loops with square roots and selections.
COMMON_FLAGS = [
    "-Wall",
    "-Wextra",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
]
RELEASE_FLAGS = ["-O3", "-g0"]
# Without vptr and null, which the address sanitizer's report of the crash covers, torch's headers compile in
# two thirds of the time.
SANITIZE_FLAGS = [
    "-O1",
    "-g1",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize=vptr,null",
    "-fno-sanitize-recover=undefined",
]
NVCC_FLAGS = ["-O3"]


class Toolkit(NamedTuple):
    """A CUDA toolkit: where it is, its version ("13.0"), the architectures its nvcc knows ("9.0")."""

    home: str
    version: str
    architectures: frozenset[str]


def is_set(env: Mapping[str, str], variable: str) -> bool:
    return env.get(variable, "0") not in ("", "0")


def major(version: str) -> str:
    return version.split(".")[0]


def sources(root: Path, *, with_cuda: bool) -> list[str]:
    """All .cpp below csrc; with CUDA the .cu files too, and *_cuda.cpp, which includes CUDA's headers."""
    found = [*root.glob("csrc/**/*.cpp"), *(root.glob("csrc/**/*.cu") if with_cuda else ())]
    return sorted(
        str(path.relative_to(root)) for path in found if with_cuda or not path.stem.endswith("_cuda")
    )


def parse_toolkit(dryrun: str, listed: str) -> Toolkit | None:
    """The toolkit as its nvcc tells it by `--dryrun` and by `--list-gpu-arch`."""
    home = re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE)
    version = re.search(r"__CUDACC_VER_MAJOR__=(\d+).*?__CUDACC_VER_MINOR__=(\d+)", dryrun, re.DOTALL)
    if home is None or version is None:
        return None
    known = frozenset(f"{a}.{b}" for a, b in re.findall(r"compute_(\d+)(\d)\b", listed))
    return Toolkit(os.path.realpath(home[1].strip()), ".".join(version.groups()), known)


def ask_nvcc(nvcc: str) -> Toolkit | None:
    """What nvcc says of itself: the one on PATH may be a wrapper that lies outside its toolkit."""

    def run(*arguments: str) -> str:
        result = subprocess.run([nvcc, *arguments], capture_output=True, text=True, check=False)
        return result.stdout + result.stderr

    try:
        return parse_toolkit(run("--dryrun", "any.cu"), run("--list-gpu-arch"))
    except OSError:
        return None


def find_toolkit(env: Mapping[str, str], torch_cuda: str | None) -> Toolkit | None:
    """Of the toolkits on PATH and in CUDA_HOME, the first that fits torch's CUDA, else the first."""
    homes = [env[name] for name in ("CUDA_HOME", "CUDA_PATH") if env.get(name)]
    compilers = [shutil.which("nvcc", path=env.get("PATH")), *(f"{home}/bin/nvcc" for home in homes)]
    found = [toolkit for nvcc in compilers if nvcc and (toolkit := ask_nvcc(nvcc))]
    fitting = [toolkit for toolkit in found if torch_cuda and major(toolkit.version) == major(torch_cuda)]
    return next(iter(fitting + found), None)


def obstacle_to_cuda(torch: str, torch_cuda: str | None, toolkit: Toolkit | None, has_kernels: bool) -> str:
    """Why the CUDA kernels cannot be built here, with the remedy; empty where they can."""
    if torch_cuda is None:
        return f"torch {torch} is a build without CUDA: install a CUDA build of torch"
    if toolkit is None:
        return (
            f"torch {torch} was built for CUDA {torch_cuda}, but no nvcc is on PATH or in CUDA_HOME: "
            f"install the CUDA {major(torch_cuda)} toolkit, or set CUDA_HOME to it"
        )
    if major(toolkit.version) != major(torch_cuda):
        return (
            f"nvcc is of CUDA {toolkit.version}, but torch {torch} was built for CUDA {torch_cuda}: set "
            f"CUDA_HOME to a CUDA {major(torch_cuda)} toolkit, or install a torch built for CUDA "
            f"{major(toolkit.version)}"
        )
    if not has_kernels:
        return "this source tree holds no CUDA kernels (no .cu file below csrc/cuda)"
    return ""


def reason_without_cuda(env: Mapping[str, str], obstacle: str) -> str:
    """Why this build leaves CUDA out, empty where it does not; exits where the caller insists in vain."""
    if is_set(env, "FORCE_CUDA") and is_set(env, "FUSED_BN_CPU_ONLY"):
        sys.exit("FORCE_CUDA and FUSED_BN_CPU_ONLY contradict each other: set one of them")
    if is_set(env, "FUSED_BN_CPU_ONLY"):
        return "FUSED_BN_CPU_ONLY was set"
    if obstacle and is_set(env, "FORCE_CUDA"):
        sys.exit(f"FORCE_CUDA is set, but {obstacle}")
    return obstacle


def architectures(env: Mapping[str, str], known: Iterable[str]) -> str:
    """TORCH_CUDA_ARCH_LIST, else the default list as far as nvcc knows it, with PTX of the newest."""
    if env.get("TORCH_CUDA_ARCH_LIST"):
        return env["TORCH_CUDA_ARCH_LIST"].replace(" ", ";")
    chosen = [arch for arch in DEFAULT_ARCHITECTURES if arch in set(known)]
    if not chosen:
        sys.exit(
            f"this nvcc compiles for none of {', '.join(DEFAULT_ARCHITECTURES)}: set TORCH_CUDA_ARCH_LIST to "
            "what it compiles for, or FUSED_BN_CPU_ONLY=1"
        )
    return ";".join(chosen) + "+PTX"


def compiler_itself(command: str) -> str:
    """The compiler in a command like CXX's, which may hold a wrapper before it and options behind it."""
    return [word for word in shlex.split(command) if not word.startswith("-")][-1]


def packs_sources_only(commands: Iterable[str]) -> bool:
    """Whether setup.py is to make a source distribution, which is the same with any torch and without."""
    given = set(commands)
    return not given.isdisjoint({"sdist", "egg_info"}) and given.isdisjoint(
        {"bdist_wheel", "build", "build_ext", "develop", "dist_info", "editable_wheel", "install"}
    )


def local_version(torch: str, cuda: str) -> str:
    """What the version of a build says of the torch and the CUDA it is for: "torch2.13.0cpu"."""
    return f"torch{torch.split('+')[0]}" + (f"cu{cuda.replace('.', '')}" if cuda else "cpu")


def refusal(error: ImportError, env: Mapping[str, str]) -> str:
    """What to type where torch or setuptools cannot be imported, in the words of the tool that builds."""
    installer = "uv pip install" if "UV" in env else "pip install"
    if "UV" not in env and "PIP_BUILD_TRACKER" not in env and "_PYPROJECT_HOOKS_BUILD_BACKEND" in env:
        again = "python -m build --no-isolation"
    else:
        again = f"{installer} --no-build-isolation {cloned_from() or '.'}"
    return (
        "fused_bn is built by setuptools for the torch that will run it, and this build cannot import one of "
        f"them ({error}): type `{installer} torch setuptools ninja`, then `{again}`"
    )


def cloned_from() -> str:
    """The address that pip cloned this tree from, without a token in it; empty where it did not."""
    if not ROOT.name.startswith("pip-req-build-"):
        return ""
    command = ["git", "-C", str(ROOT), "config", "--get", "remote.origin.url"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return "git+" + re.sub(r"^(https?://)[^/@]*@", r"\1", found) if found else ""


def without_command(line: str) -> str:
    """A line of the build's output, where the name of the file stands for a compiler's command."""
    compiles = re.match(r"(\[[^]]*\] )?\S.* -c (\S+) -o \S+", line)
    if compiles:
        return f"{compiles[1] or ''}{compiles[2].removeprefix(f'{ROOT}/')}\n"
    links = re.match(r"\S.* -shared .* -o (\S+)", line)
    return f"linking {links[1]}\n" if links else line


@contextmanager
def without_commands() -> Iterator[None]:
    """Takes the compiler's commands out of all that this process and its children print."""
    sys.stdout.flush()
    shown = os.dup(1)
    read, write = os.pipe()

    def show() -> None:
        with os.fdopen(read, errors="replace") as lines:
            for line in lines:
                os.write(shown, without_command(line).encode())

    thread = threading.Thread(target=show)
    thread.start()
    os.dup2(write, 1)
    os.close(write)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(shown, 1)
        thread.join()
        os.close(shown)


def ninja_status() -> str:
    """How ninja counts files; from 1.12 on it knows the time left too, and an older one would stop at %W."""
    try:
        version = subprocess.run(["ninja", "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return "[%f/%t] "
    known = re.match(r"(\d+)\.(\d+)", version)
    return "[%f/%t, %W left] " if known and tuple(map(int, known.groups())) >= (1, 12) else "[%f/%t] "


def failure_to_compile(error: BaseException) -> str:
    reason = str(error).strip().split("\n")[0]
    return (
        f"fused_bn: the extension could not be compiled ({reason}; the compiler's own words are above): give "
        "it g++ 11 or later, or set FUSED_BN_NO_EXTENSION=1 to install the package without it, which then "
        "runs slowly on plain PyTorch calls"
    )


def main() -> None:
    version = runpy.run_path(str(ROOT / "fused_bn" / "_version.py"))["__version__"]
    try:
        if is_set(os.environ, "FUSED_BN_NO_EXTENSION") or packs_sources_only(sys.argv[1:]):
            without_extension(version)
        else:
            with_extension(version)
    except ImportError as error:
        sys.exit(refusal(error, os.environ))


def without_extension(version: str) -> None:
    from setuptools import setup

    if is_set(os.environ, "FUSED_BN_NO_EXTENSION"):
        if is_set(os.environ, "FORCE_CUDA"):
            sys.exit("FORCE_CUDA and FUSED_BN_NO_EXTENSION contradict each other: set one of them")
        print("fused_bn: building no extension (FUSED_BN_NO_EXTENSION was set)", flush=True)
    setup(version=version)


def with_extension(version: str) -> None:
    import torch
    from setuptools import setup

    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        sys.exit(f"the headers of {sys.executable} (Python.h) are missing: install python3-dev or its like")

    toolkit = find_toolkit(os.environ, torch.version.cuda)
    obstacle = obstacle_to_cuda(
        torch.__version__, torch.version.cuda, toolkit, any(ROOT.glob("csrc/cuda/**/*.cu"))
    )
    without_cuda = reason_without_cuda(os.environ, obstacle)
    with_cuda = not without_cuda
    print("fused_bn: building", "C++ and CUDA" if with_cuda else f"C++ only ({without_cuda})", flush=True)
    cuda_version = cuda_architectures = ""
    if with_cuda and toolkit is not None:
        cuda_version = toolkit.version
        cuda_architectures = architectures(os.environ, toolkit.architectures)
        os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_architectures
        os.environ["CUDA_HOME"] = toolkit.home  # before the import below, which would guess it from PATH

    # ninja lies beside the interpreter, which is on PATH only in an activated environment.
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    from torch.utils import cpp_extension

    sanitize = is_set(os.environ, "FUSED_BN_SANITIZE")
    mode = SANITIZE_FLAGS if sanitize else RELEASE_FLAGS
    # Of all sources, because ninja does not see that torch's headers have changed.
    facts = [
        f'-DFUSED_BN_TORCH="{torch.__version__.split("+")[0]}"',
        f'-DFUSED_BN_BUILD_TYPE="{"sanitize" if sanitize else "release"}"',
        f'-DFUSED_BN_CUDA_VERSION="{cuda_version}"',
        f'-DFUSED_BN_CUDA_ARCHITECTURES="{cuda_architectures}"',
        f'-DFUSED_BN_WITHOUT_CUDA="{without_cuda}"',
        f"-DFUSED_BN_HAS_CUDA={int(with_cuda)}",
    ]
    # at::parallel_for is a header, so that our compiler makes its OpenMP calls; the linker gets no -fopenmp,
    # so that torch's own runtime serves them. That is GNU's, which clang's calls do not fit.
    has_openmp = cpp_extension.check_compiler_is_gcc(compiler_itself(cpp_extension.get_cxx_compiler()))
    if not has_openmp:
        print("fused_bn: the CPU kernels will use one thread only; g++ (CXX=g++) builds them for all cores")
    # -isystem: torch's headers do not compile cleanly under -Wextra.
    torch_headers = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
    make_extension = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    extension = make_extension(
        "fused_bn._C",
        sources(ROOT, with_cuda=with_cuda),
        include_dirs=[str(ROOT / "csrc")],
        depends=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.*h")),
        extra_compile_args={
            "cxx": [*COMMON_FLAGS, *mode, *["-fopenmp"] * has_openmp, *facts, *torch_headers],
            "nvcc": NVCC_FLAGS,
        },
        extra_link_args=[flag for flag in mode if flag.startswith("-fsanitize")],
    )

    class Build(cpp_extension.BuildExtension):
        def build_extensions(self) -> None:
            os.environ.setdefault("NINJA_STATUS", ninja_status())
            try:
                with nullcontext() if is_set(os.environ, "V") else without_commands():
                    super().build_extensions()
            except Exception as error:
                raise SystemExit(failure_to_compile(error)) from error

    local = local_version(torch.__version__, torch.version.cuda or "" if with_cuda else "")
    setup(version=f"{version}+{local}", ext_modules=[extension], cmdclass={"build_ext": Build})


if __name__ == "__main__":
    main()
