"""README: it is short, its chart exists, and its figures are the recorded ones."""

from datetime import datetime

from benchmarks import history
from benchmarks.grid.cells import STEPS
from benchmarks.report import figures
from tests.docs.pages import ROOT, measured, text, unwrapped

README = "README.md"
CHART = "docs/pictures/amd-epyc-speedup-resnet50.png"


def grid() -> list[figures.Cell]:
    """The figures of the last run that measured the whole grid."""
    return [found for run in history.load() if (found := figures.measured(run))][-1]


def test_the_readme_is_short() -> None:
    assert len(text(README).splitlines()) <= 150


def test_the_first_lines_say_what_is_measured_and_what_has_not_run() -> None:
    first = "\n".join(text(README).splitlines()[:5])
    assert "measured on the CPU" in first
    assert "the present one has not yet" in first


def test_speeds_of_a_layer() -> None:
    """Geometric mean and range over all layers of the grid."""
    for direction, words in (("forward", "forward"), ("forward+backward", "forward and backward")):
        ratios = [cell.ratio for cell in grid() if cell.speed.direction == direction and cell.family != STEPS]
        (summary,) = (each for each in figures.summaries(grid()) if each.name == direction)
        row = f"{summary.ratio:.1f} times as fast ({min(ratios):.1f} to {max(ratios):.0f})"
        assert f"| one layer, {words} | {row} |" in text(README)
        assert f"(and ranges) of {len(ratios)} layers" in unwrapped(README)


def test_speed_and_memory_of_resnet() -> None:
    rows = measured("resnet.json")["rows"]

    def seen(row: str, figure: str) -> list[str]:
        return sorted({f"{each[figure]:.2f}" for each in rows if each["row"] == row})

    slowest, *_, fastest = seen("fused", "speedup")
    assert f"| a training step of ResNet-50 | {slowest} to {fastest} times as fast |" in text(README)
    (kept,) = seen("fused", "memory")
    least, *_, most = seen("fused, recomputed", "memory")
    memory = f"{kept} times as much; {least} to {most} with `recompute=True`"
    assert f"| memory of ResNet-50's activations | {memory} |" in text(README)
    assert f"ResNet-50 on {measured('resnet.json')['arguments']['batch']} images" in unwrapped(README)


def test_the_conditions_are_those_of_both_runs() -> None:
    of_grid = [run for run in history.load() if figures.measured(run)][-1].environment
    for environment in (of_grid, measured("resnet.json")["environment"]):
        torch, cores = environment["torch"].split("+")[0], environment["threads"]
        month = datetime.fromisoformat(environment["date"]).strftime("%B %Y")
        said = f"{environment['device']} (Zen 5), {cores} cores, torch {torch}, {month}"
        assert said in unwrapped(README)


def test_the_chart_is_the_only_picture() -> None:
    assert text(README).count("![") == 1
    assert f"({CHART})" in text(README)
    assert (ROOT / CHART).exists()
