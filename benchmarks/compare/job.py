"""The job behind `python -m benchmarks.compare`: its arguments, the order of work, and its results."""

import argparse
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import console, options
from benchmarks.compare import tables, verdicts, workers
from benchmarks.compare.builds import BuildCache, BuildError
from benchmarks.compare.results import EXIT_ERROR, CellResult, Results
from benchmarks.compare.revisions import SOURCES, NoHistoryError, Repository, Revision, RevisionError
from benchmarks.compare.verdicts import Verdict
from benchmarks.compare.workers import ROOT, Conditions, WorkerError
from benchmarks.environment import environment
from benchmarks.grid.cells import Cell, cells

LAUNCHES = 4
ROUNDS = 8
REPEATS = 2
MINUTES = 4.0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line. Exits with a message and status 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description="Builds two revisions, times the grid's quick cells of both in turns, and says of each "
        "cell whether head is faster, the same or slower. Exit code 0: nothing is slower, 1: something is, "
        "confirmed by a second measurement, 2: a cell could not be timed, or an error.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("base", nargs="?", metavar="BASE", help="any name that git has for a commit")
    parser.add_argument("head", nargs="?", metavar="HEAD", help="the working tree as it is, without")
    parser.add_argument(
        "--against-main",
        action="store_true",
        help="instead of BASE: $FUSED_BN_BASE, else where HEAD left origin/main, else the commit before the "
        "last change of sources; exit code 0 where there is none",
    )
    parser.add_argument(
        "--always", action="store_true", help="times them although no source differs: base against itself"
    )
    parser.add_argument("--device", type=options.device, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument(
        "--threads", type=options.threads, default=1, help="of torch; with one, a busy core disturbs least"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="the cells with TEXT in their names")
    parser.add_argument("--rounds", type=options.positive, default=ROUNDS, help="readings a launch")
    parser.add_argument("--launches", type=options.positive, default=LAUNCHES, help="starts of all processes")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="after which what is unstable is not measured again"
    )
    parser.add_argument("--seed", type=options.seed, default=0, help="of the order of cells and turns")
    parser.add_argument(
        "--out", type=options.directory, default="results/compare", help="directory for the JSON"
    )
    args = parser.parse_args(argv)
    if (args.base is None) != args.against_main:
        parser.error("BASE or --against-main is required, and not both")
    if args.launches < 2:
        parser.error("--launches must be at least 2: one start of the processes says nothing about the next")
    if not chosen(args.only):
        parser.error(f"no quick cell has {args.only!r} in its name; one is {chosen('')[0].id!r}")
    return args


def chosen(only: str) -> list[Cell]:
    """The quick cells whose ids contain `only`."""
    return [cell for cell in cells() if cell.quick and only in cell.id]


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Runs the job in the checkout at `root`. Returns 0, 1, 2 or, interrupted, 130."""
    args = arguments(argv)
    repository = Repository(root)
    try:
        base, head = _revisions(args, repository)
        if not args.always and not repository.changed(base, head):
            print(f"{head} has the same {', '.join(SOURCES)} as {base}: nothing to time (--always does it)")
            return 0
        cache = BuildCache(repository, args.device)
        with cache.locked():
            checkouts = {"base": cache.built(base), "head": cache.built(head)}
            checkouts["twin"] = checkouts["base"]
            cache.prune()
            found = [CellResult(cell) for cell in chosen(args.only)]
            results = Results(base, head, options.plain(args), _environment(args), found)
            compare(results, checkouts, args)
    except NoHistoryError as error:
        print(f"Nothing is compared: {error}")
        return 0
    except (RevisionError, BuildError, WorkerError) as error:
        print(error, file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("Interrupted before anything was measured: nothing is written.", file=sys.stderr)
        return console.EXIT_INTERRUPTED
    return _write_results(results, args.out)


def _revisions(args: argparse.Namespace, repository: Repository) -> tuple[Revision, Revision]:
    base = repository.before() if args.against_main else repository.revision(args.base)
    if args.head is not None:
        return base, repository.revision(args.head)
    head = repository.working_tree()
    if untracked := repository.untracked():
        print(f"Not in the comparison, as git does not track it: {', '.join(untracked)}", file=sys.stderr)
    return base, head


def _environment(args: argparse.Namespace) -> dict[str, object]:
    return {**environment(args.device), "threads": args.threads}


def compare(results: Results, checkouts: Mapping[str, Path], args: argparse.Namespace) -> None:
    """Measures all cells, measures ambiguous ones again, and judges. Ctrl-C keeps the finished readings."""
    conditions = Conditions(str(args.device), args.threads, args.rounds, random.Random(args.seed))
    start = time.monotonic()
    todo = results.cells
    try:
        for number in range(1 + REPEATS):
            _pass(todo, checkouts, conditions, args.launches, "again" if number else "all cells")
            late = time.monotonic() - start > 60 * args.minutes
            todo = [result for result in todo if _is_open(result, late)]
            if not todo:
                return
    except KeyboardInterrupt:
        results.interrupted = True
        for result in results.cells:
            result.judge()


def _is_open(result: CellResult, late: bool) -> bool:
    """Whether to measure again. A slowdown seen once is always measured again, however late it is."""
    if late and result.verdict is not Verdict.SLOWER:
        return False
    return verdicts.ambiguous(result.verdict, len(result.passes))


def _pass(
    todo: Sequence[CellResult],
    checkouts: Mapping[str, Path],
    conditions: Conditions,
    launches: int,
    title: str,
) -> None:
    """Adds a pass to each of the cells and judges them."""
    # Without a terminal every update of the bar is a new line, so one every ten seconds is enough.
    interval = 0.1 if sys.stderr.isatty() else 10
    for result in todo:
        result.passes.append([])
    with tqdm(total=launches * len(todo), desc=title, mininterval=interval, dynamic_ncols=True) as bar:
        for _ in range(launches):
            able = {result.cell.id: result for result in todo if result.failed is None}
            measured = workers.launch(
                [result.cell for result in able.values()], checkouts, conditions, lambda: bar.update()
            )
            for id, readings in measured.items():
                able[id].add(readings)
    for result in todo:
        result.judge()


def _write_results(results: Results, out: Path) -> int:
    """Prints and writes the results and returns the exit code."""
    if all(result.verdict is Verdict.NO_DATA and result.failed is None for result in results.cells):
        print("Interrupted before a cell could be judged: nothing is written.", file=sys.stderr)
        return console.EXIT_INTERRUPTED
    path = out / "compare.json"
    try:
        results.write(path)
    finally:
        # If output is no terminal, rich assumes 80 columns, and the table is wider.
        Console(width=None if sys.stdout.isatty() else 120).print(tables.terminal(results))
    for result in results.cells:
        if result.failed is not None:
            print(f"NO DATA: {result.cell.id}: {result.failed}", file=sys.stderr)
    print(results.summary)
    print(f"{path} is written")
    if results.interrupted:
        print("Interrupted: only what was measured before is there.", file=sys.stderr)
    return results.exit_code
