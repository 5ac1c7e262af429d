"""The two states of the sources to compare: git revisions, or the working tree as it is."""

import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCES = ("csrc", "fused_bn", "setup.py")
"""Everything that can change the speed of a revision. The present checkout's benchmarks time all revisions.
"""

BASE_VARIABLE = "FUSED_BN_BASE"


class RevisionError(Exception):
    """git does not know, or cannot do, what was asked. The text says it in one sentence."""


class NoHistoryError(RevisionError):
    """There is no commit to compare with."""


@dataclass(frozen=True)
class Revision:
    """A commit's name, as the user wrote it, and its full id."""

    name: str
    commit: str

    def __str__(self) -> str:
        return f"{self.name} ({self.commit[:10]})"


class Repository:
    """The git repository of a checkout; every method may raise RevisionError."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def git(self, *arguments: str) -> str:
        """Returns what git prints. Runs no git hooks."""
        command = ["git", "-C", str(self.root), "-c", f"core.hooksPath={os.devnull}", *arguments]
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise RevisionError(f"git cannot be run: {error}") from error
        if found.returncode:
            words = found.stderr.strip().splitlines() or ["no reason given"]
            raise RevisionError(f"git {arguments[0]}: {words[-1]}")
        return found.stdout.strip()

    def revision(self, name: str) -> Revision:
        """The commit that git knows by `name`."""
        self.git("rev-parse", "--git-dir")  # gives the right error outside of a repository
        try:
            commit = self.git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        except RevisionError:
            raise RevisionError(f"{name!r} is no revision that git knows here") from None
        return Revision(name, commit)

    def working_tree(self) -> Revision:
        """The tracked files as they are now, as a commit on no branch. HEAD if nothing changed."""
        stashed = self.git("stash", "create")
        return Revision("the working tree", stashed) if stashed else self.revision("HEAD")

    def untracked(self) -> list[str]:
        """Untracked sources, which `working_tree` leaves out."""
        return self.git("ls-files", "--others", "--exclude-standard", "--", *SOURCES).splitlines()

    def changed(self, base: Revision, head: Revision, paths: Iterable[str] = SOURCES) -> list[str]:
        """The files below `paths` that differ."""
        return self.git("diff", "--name-only", base.commit, head.commit, "--", *paths).splitlines()

    def contents(self, revision: Revision, paths: Iterable[str]) -> str:
        """A text that is the same if the files below `paths` are the same."""
        return self.git("ls-tree", revision.commit, "--", *paths)

    def before(self, env: Mapping[str, str] = os.environ) -> Revision:
        """The revision that HEAD is compared with by default. Raises NoHistoryError.

        It is $FUSED_BN_BASE if set. Otherwise it is the commit where HEAD left origin/main. If HEAD is
        origin/main, it is the commit before the last one that changed sources, because main may have moved by
        several commits.
        """
        if env.get(BASE_VARIABLE):
            return self.revision(env[BASE_VARIABLE])
        head = self.revision("HEAD")
        try:
            base = Revision("origin/main", self.git("merge-base", "origin/main", "HEAD"))
            if base.commit != head.commit:
                return base
        except RevisionError:
            pass  # no such remote, or no common commit
        try:
            last = self.git("log", "-1", "--format=%H", "HEAD", "--", *SOURCES)
            return self.revision(f"{last[:10]}~1" if last else "HEAD~1")
        except RevisionError:
            raise NoHistoryError(
                f"there is nothing before the last change of sources (a shallow clone?): set {BASE_VARIABLE}"
            ) from None
