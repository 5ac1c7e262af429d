"""The job behind `python -m benchmarks.report`: its arguments, the choice of runs, and its files."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import files, history, options
from benchmarks.history import HistoryError, Run, Speed
from benchmarks.report import page
from benchmarks.report.section import Section, section
from benchmarks.report.trend import KEPT


class NothingToShowError(Exception):
    """No run fits the arguments. The text says which runs there are."""


def parser() -> argparse.ArgumentParser:
    """Parses the command line. Exits with a message and status 2 if it is wrong."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description="Turns recorded runs into one HTML page that needs no other file, index.html, and into "
        "its pictures as PNGs: the worst cells, speed, bandwidth, accuracy, memory and the trend over "
        "commits, a section a device.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--history", type=Path, default=history.DIRECTORY, help="directory of the records")
    made.add_argument(
        "--run", help="show the run whose commit or date begins so, instead of each device's latest whole one"
    )
    made.add_argument("--out", type=options.directory, default="results/report", help="directory to write to")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page and the pictures. Returns 0, or exits with 2 if there is nothing to show."""
    args = parser().parse_args(argv)
    try:
        runs = history.load(args.history)
        sections = [_section(runs, last) for last in chosen(runs, args.run, args.history)]
    except (HistoryError, NothingToShowError, OSError) as error:
        parser().error(str(error))
    for path in write(sections, args.out):
        print(path)
    return 0


def chosen(runs: Sequence[Run], beginning: str | None, directory: Path) -> list[Run]:
    """The latest run of each device, or the latest whose commit or date begins with `wanted`.

    Without `wanted`, runs with a small part of another run's cells (quick or accuracy alone) are skipped.
    Raises NothingToShowError.
    """
    if not runs:
        lacking = "holds no recorded run" if directory.is_dir() else "is no directory"
        raise NothingToShowError(f"--history: {directory} {lacking}; `pytest benchmarks --record` adds a run")
    fitting = [
        run
        for run in runs
        if beginning is None or run.commit.startswith(beginning) or run.date.startswith(beginning)
    ]
    if not fitting:
        known = ", ".join(dict.fromkeys(f"{run.commit} ({run.date[:10]})" for run in runs))
        raise NothingToShowError(f"--run: no commit or date begins with {beginning!r}; there are {known}")
    if beginning is None:
        most = {run.device: 0 for run in fitting}
        for run in fitting:
            most[run.device] = max(most[run.device], len(run.of(Speed)))
        fitting = [run for run in fitting if len(run.of(Speed)) >= KEPT * most[run.device]]
    return list({run.device: run for run in fitting}.values())


def _section(runs: Sequence[Run], last: Run) -> Section:
    return section([run for run in runs if run.device == last.device], last)


def write(sections: Sequence[Section], directory: Path) -> list[Path]:
    """Writes each file whole, the page last. Returns their paths."""
    contents = {
        section.file_of(chart): chart.png for section in sections for chart in section.charts.values()
    }
    contents["index.html"] = page.html(sections).encode()
    for name, content in contents.items():
        files.write_whole(directory / name, content)
    return [directory / name for name in contents]
