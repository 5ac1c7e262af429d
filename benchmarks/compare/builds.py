"""Checks out and builds revisions in worktrees below build/compare, which are kept for the next run."""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

import torch

from benchmarks import files
from benchmarks.compare.revisions import Repository, Revision, RevisionError

COMPILED = ("csrc", "setup.py")
"""The sources of the extension. Tools and variables also determine it."""

STEERING = (
    *(
        "FORCE_CUDA",
        "FUSED_BN_CPU_ONLY",
        "FUSED_BN_NO_EXTENSION",
        "FUSED_BN_SANITIZE",
        "TORCH_CUDA_ARCH_LIST",
    ),
    *("CUDA_HOME", "CUDA_PATH", "CXX", "CC", "CPPFLAGS", "CFLAGS", "CXXFLAGS", "LDFLAGS"),
)
KEPT = 6
"""How many worktrees and how many extensions are kept: the last used ones."""

LOG_LINES = 30

LONGEST_WAIT_SECONDS = 3600.0
"""How long to wait for another run in the same checkout."""


class BuildError(Exception):
    """A revision's extension could not be built. The text ends with the end of the log."""


class BuildCache:
    """The directory below build/ with revisions that were checked out and built for one type of device."""

    def __init__(self, repository: Repository, device: torch.device) -> None:
        self.repository = repository
        self.directory = repository.root / "build" / "compare"
        # Without CUDA in torch the variable would only change a text in the extension, and so the address of
        # the code.
        cpu_only = {"FUSED_BN_CPU_ONLY": "1"} if device.type == "cpu" and torch.version.cuda else {}
        self._env = {**os.environ, **cpu_only}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the directory. They would also disturb the timings."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("wb") as file:
            files.lock(file, LONGEST_WAIT_SECONDS)
            yield

    def built(self, revision: Revision) -> Path:
        """Returns the revision's files with its extension in place. Raises RevisionError and BuildError."""
        checkout = self._checked_out(revision)
        name = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        stored = self.directory / "extensions" / self.key(revision) / name
        if not stored.exists():
            self._fill(stored, revision, checkout)
        os.utime(stored.parent)
        _copy(stored, checkout / "fused_bn" / name)
        return checkout

    def key(self, revision: Revision) -> str:
        """A key that is the same for revisions and runs whose extensions would be the same."""
        facts = {
            "sources": self.repository.contents(revision, COMPILED),
            "tools": [
                sys.executable,
                sys.version,
                torch.__version__,
                platform.machine(),
                *compilers(self._env),
            ],
            "variables": steering(self._env),
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def _checked_out(self, revision: Revision) -> Path:
        git = self.repository.git
        checkout = self.directory / "trees" / revision.commit[:16]
        git("worktree", "prune")  # forgets worktrees whose directories were removed by hand
        if not (checkout / ".git").exists():
            shutil.rmtree(checkout, ignore_errors=True)
            git("worktree", "add", "--quiet", "--force", "--detach", str(checkout), revision.commit)
        os.utime(checkout)
        return checkout

    def _fill(self, stored: Path, revision: Revision, checkout: Path) -> None:
        made = self._made_by_make(revision, stored.name)
        if made is None:
            print(f"building {revision}", flush=True)
            made = build(checkout, stored.name, self._env)
        else:
            print(f"{revision}: the extension that `make build` made is its own", flush=True)
        _copy(made, stored)

    def _made_by_make(self, revision: Revision, name: str) -> Path | None:
        """The checkout's own extension, if a build of `revision` would give the same.

        This needs three things: the sources are the same files, no source is newer than the Makefile's note
        of the build, and the build used this interpreter, torch and variables.
        """
        root = self.repository.root
        note, settings, extension = (
            root / "build/extension",
            root / "build/settings",
            root / "fused_bn" / name,
        )
        if not (note.exists() and settings.exists() and extension.exists()):
            return None
        git = self.repository.git
        if git("diff", "--name-only", revision.commit, "--", *COMPILED) or git(
            "ls-files", "--others", "csrc"
        ):
            return None
        built = note.stat().st_mtime
        if any(path.stat().st_mtime > built for path in (root / "setup.py", *root.glob("csrc/**/*"))):
            return None
        if any(steering(self._env).values()) or not _has_our_tools(settings.read_text(), root):
            return None
        return extension

    def prune(self) -> None:
        """Removes all worktrees and extensions but the last used ones."""
        for old in _but_the_latest(self.directory / "trees"):
            try:
                self.repository.git("worktree", "remove", "--force", str(old))
            except RevisionError:  # git does not know this worktree
                shutil.rmtree(old, ignore_errors=True)
        for old in _but_the_latest(self.directory / "extensions"):
            shutil.rmtree(old, ignore_errors=True)
        self.repository.git("worktree", "prune")


def steering(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that steer a build; "" if unset."""
    return {name: env.get(name, "") for name in STEERING}


def compilers(env: Mapping[str, str]) -> list[str]:
    """The version texts of the C++ compiler and, if there is one, of the CUDA compiler."""
    found = []
    for command in (env.get("CXX") or "c++", "nvcc"):
        with suppress(OSError):  # no such compiler
            asked = subprocess.run([*shlex.split(command), "--version"], capture_output=True, text=True)
            found.append(asked.stdout)
    return found


def build(checkout: Path, name: str, env: Mapping[str, str]) -> Path:
    """Builds the extension of a checkout in place and returns its file; raises BuildError."""
    log = checkout / "build.log"
    with log.open("w") as file:
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        code = subprocess.run(
            command, cwd=checkout, env=env, stdout=file, stderr=file, check=False
        ).returncode
    extension = checkout / "fused_bn" / name
    if code or not extension.exists():
        end = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise BuildError(f"{end}\n{checkout} could not be built (exit code {code}); the whole log is {log}")
    shutil.rmtree(checkout / "build", ignore_errors=True)  # the object files are not needed again
    return extension


def _has_our_tools(settings: str, root: Path) -> bool:
    """Whether the Makefile's build/settings name this interpreter and torch, with no variable set."""
    interpreter, *versions = settings.splitlines()[:2]
    found = shutil.which(interpreter) or str(root / interpreter)
    same_python = os.path.abspath(found) == os.path.abspath(sys.executable)
    variables = "".join(settings.splitlines()[2:4]).replace(",", "")
    return same_python and versions == [f"{sys.version} {metadata.version('torch')}"] and not variables


def _copy(source: Path, target: Path) -> None:
    """Copies a whole file or nothing. Replaces an old file, because a process may have it open."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    shutil.copy2(source, partial)
    partial.replace(target)


def _but_the_latest(directory: Path) -> list[Path]:
    if not directory.exists():
        return []
    return sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]
