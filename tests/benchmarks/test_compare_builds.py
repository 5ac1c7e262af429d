"""What `python -m benchmarks.compare` asks of git, and when it builds, on a small repository."""

import os
import subprocess
import sys
import sysconfig
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch

from benchmarks.compare import builds
from benchmarks.compare.builds import BuildCache, BuildError
from benchmarks.compare.revisions import NoHistoryError, Repository, RevisionError

CPU = torch.device("cpu")
EXTENSION = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"

SETUP = """
import pathlib, sysconfig
source = pathlib.Path("csrc/kernel.cpp").read_text()
if "error" in source:
    raise SystemExit("kernel.cpp: expected ;")
pathlib.Path("fused_bn/_C" + sysconfig.get_config_var("EXT_SUFFIX")).write_text(source)
pathlib.Path("build").mkdir()
"""
"""A fake compiler: the extension is a copy of the source."""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A repository with one commit. git uses no settings but its own."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for variable in (*builds.STEERING, "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "FUSED_BN_BASE"):
        monkeypatch.delenv(variable, raising=False)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "somebody@example.org")
    repository = Repository(tmp_path / "checkout")
    repository.root.mkdir()
    repository.git("init", "--quiet", "--initial-branch=main")
    commit(
        repository,
        {
            "setup.py": SETUP,
            "csrc/kernel.cpp": "fast",
            "fused_bn/__init__.py": "",
            ".gitignore": "build/\n*.so\n",
        },
    )
    return repository


def commit(repository: Repository, files: dict[str, str]) -> str:
    write(repository.root, files)
    repository.git("add", "--all")
    repository.git("commit", "--quiet", "--message", "a change")
    return repository.git("rev-parse", "HEAD")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


# Revisions


def test_the_working_tree_is_head_where_nothing_is_changed(repository: Repository) -> None:
    assert repository.working_tree() == repository.revision("HEAD")


def test_the_working_tree_as_it_is(repository: Repository) -> None:
    write(repository.root, {"csrc/kernel.cpp": "faster", "csrc/new.cpp": "", "notes.txt": ""})
    before = repository.git("status", "--porcelain")
    head = repository.working_tree()
    assert repository.git("show", f"{head.commit}:csrc/kernel.cpp") == "faster"
    assert repository.changed(repository.revision("HEAD"), head) == ["csrc/kernel.cpp"]
    assert repository.untracked() == ["csrc/new.cpp"]
    assert repository.git("status", "--porcelain") == before
    assert repository.git("stash", "list") == ""


def test_only_sources_count_as_changed(repository: Repository) -> None:
    base = repository.revision("HEAD")
    commit(repository, {"README.md": "more", "tests/test_it.py": ""})
    assert repository.changed(base, repository.revision("HEAD")) == []


@pytest.mark.parametrize("name", ["no-such-branch", "--help", "", "HEAD:csrc"])
def test_unknown_revision(repository: Repository, name: str) -> None:
    with pytest.raises(RevisionError, match="is no revision that git knows here"):
        repository.revision(name)


def test_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(RevisionError, match="not a git repository"):
        Repository(tmp_path).revision("HEAD")


def test_before_the_first_commit_there_is_nothing(repository: Repository) -> None:
    with pytest.raises(NoHistoryError, match="FUSED_BN_BASE"):
        repository.before({})


def test_the_default_base(repository: Repository) -> None:
    """The commit before the last change of sources, the last one shared with main, or $FUSED_BN_BASE."""
    first = repository.git("rev-parse", "HEAD")
    second = commit(repository, {"csrc/kernel.cpp": "second"})
    third = commit(repository, {"csrc/kernel.cpp": "third"})
    assert repository.before({}).commit == second
    fourth = commit(repository, {"README.md": "about it"})
    assert repository.before({}).commit == second
    repository.git("update-ref", "refs/remotes/origin/main", fourth)
    assert repository.before({}).commit == second
    repository.git("update-ref", "refs/remotes/origin/main", third)
    assert repository.before({}).commit == third
    repository.git("update-ref", "refs/remotes/origin/main", first)
    assert repository.before({}).commit == first
    assert repository.before({"FUSED_BN_BASE": second}).commit == second
    with pytest.raises(RevisionError, match="'nonsense' is no revision"):
        repository.before({"FUSED_BN_BASE": "nonsense"})


# Builds


@pytest.fixture
def builds_made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The checkouts that were built, in order."""
    made: list[Path] = []
    original = builds.build

    def counting(checkout: Path, *rest: object) -> Path:
        made.append(checkout)
        return original(checkout, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builds, "build", counting)
    return made


def test_the_same_sources_are_built_once(repository: Repository, builds_made: list[Path]) -> None:
    base = repository.revision("HEAD")
    commit(repository, {"fused_bn/__init__.py": "new = True"})
    python_only = repository.revision("HEAD")
    commit(repository, {"csrc/kernel.cpp": "slow"})
    head = repository.revision("HEAD")
    cache = BuildCache(repository, CPU)
    checkouts = [cache.built(revision) for revision in (base, base, python_only, head)]
    assert builds_made == [checkouts[0], checkouts[3]]
    texts = [(checkout / "fused_bn" / EXTENSION).read_text() for checkout in checkouts]
    assert texts == ["fast", "fast", "fast", "slow"]
    assert (checkouts[2] / "fused_bn/__init__.py").read_text() == "new = True"
    assert not (checkouts[3] / "build").exists()
    BuildCache(repository, CPU).built(head)  # another call
    assert len(builds_made) == 2
    assert repository.git("status", "--porcelain") == ""


def test_other_settings_are_another_build(
    repository: Repository, builds_made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = repository.revision("HEAD")
    BuildCache(repository, CPU).built(head)
    monkeypatch.setenv("CXXFLAGS", "-O1")
    BuildCache(repository, CPU).built(head)
    assert len(builds_made) == 2


def test_a_failing_build_shows_the_end_of_its_log(repository: Repository) -> None:
    commit(repository, {"csrc/kernel.cpp": "error"})
    cache = BuildCache(repository, CPU)
    for _ in range(2):  # no file of the first attempt counts as built
        with pytest.raises(BuildError, match=r"expected ;\n.*could not be built \(exit code 1\)"):
            cache.built(repository.revision("HEAD"))


def test_a_checkout_removed_by_hand_comes_back(repository: Repository) -> None:
    cache = BuildCache(repository, CPU)
    checkout = cache.built(repository.revision("HEAD"))
    subprocess.run(["rm", "-r", str(repository.root / "build")], check=True)
    assert cache.built(repository.revision("HEAD")) == checkout
    assert (checkout / "fused_bn" / EXTENSION).exists()


def test_old_worktrees_and_extensions_are_removed(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "KEPT", 2)
    cache = BuildCache(repository, CPU)
    checkouts = []
    for number in range(4):
        commit(repository, {"csrc/kernel.cpp": f"{number}"})
        checkouts.append(cache.built(repository.revision("HEAD")))
        os.utime(checkouts[-1], (number, number))  # seconds apart, as real runs are
        os.utime(cache.directory / "extensions" / cache.key(repository.revision("HEAD")), (number, number))
        cache.prune()
    assert [checkout.exists() for checkout in checkouts] == [False, False, True, True]
    assert len(list((cache.directory / "extensions").iterdir())) == 2
    assert repository.git("worktree", "list").count("\n") == 2


def made_by_make(repository: Repository) -> None:
    """The files that `make build` leaves behind."""
    settings = f"{sys.executable}\n{sys.version} {metadata.version('torch')}\n,,,\n,,,\n"
    write(
        repository.root, {f"fused_bn/{EXTENSION}": "made", "build/settings": settings, "build/extension": ""}
    )


def test_an_extension_that_make_built_is_used(repository: Repository, builds_made: list[Path]) -> None:
    made_by_make(repository)
    checkout = BuildCache(repository, CPU).built(repository.revision("HEAD"))
    assert (checkout / "fused_bn" / EXTENSION).read_text() == "made"
    assert builds_made == []


@pytest.mark.parametrize("why", ["newer", "changed", "untracked", "settings", "variable", "another", "gone"])
def test_an_extension_that_may_not_fit_is_not_used(
    repository: Repository, why: str, builds_made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cases in which the extension may not fit the revision's sources."""
    if why == "another":
        commit(repository, {"csrc/kernel.cpp": "another"})
    made_by_make(repository)
    later = time.time() + 60
    if why == "newer":
        os.utime(repository.root / "csrc/kernel.cpp", (later, later))
    elif why == "changed":
        write(repository.root, {"csrc/kernel.cpp": "changed"})
        os.utime(repository.root / "build/extension", (later, later))
    elif why == "untracked":
        write(repository.root, {"csrc/kernel.so": ""})  # git ignores this file, but the compiler would use it
        os.utime(repository.root / "build/extension", (later, later))
    elif why == "settings":
        write(repository.root, {"build/settings": f"{sys.executable}\n3.9 1.0\n,,,\n,,,\n"})
    elif why == "variable":
        monkeypatch.setenv("FUSED_BN_SANITIZE", "1")
    elif why == "gone":
        (repository.root / "fused_bn" / EXTENSION).unlink()
    BuildCache(repository, CPU).built(repository.revision("HEAD~1" if why == "another" else "HEAD"))
    assert len(builds_made) == 1
