"""The figures of docs/benchmarks.md, accuracy.md and keras.md are those of the recorded files."""

import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

pytest.importorskip("jinja2")

from benchmarks import history
from benchmarks.accuracy import table as accuracy_table
from benchmarks.accuracy.data import DATA, LENET
from benchmarks.comparison import DIRECTIONS, Case
from benchmarks.grid.cells import cells
from benchmarks.history import Run
from benchmarks.instructions import stored
from benchmarks.report import figures
from benchmarks.report import job as report
from benchmarks.resnet import job as resnet
from benchmarks.speed import tables as speed_tables
from benchmarks.speed.results import CaseResult, Results, speedup
from benchmarks.test_accuracy import not_far_better, worse
from tests.docs.pages import ROOT, measured, table, text, unwrapped

PAGE = "docs/benchmarks.md"


def speed(name: str) -> Results:
    found = measured(name)
    results = [
        CaseResult(
            Case(tuple(each["case"]["shape"]), each["case"]["layout"], each["case"]["dtype"]),
            *(each[key] for key in ("timings", "kept_bytes", "peak_bytes", "wrong")),
        )
        for each in found["cases"]
    ]
    return Results(found["arguments"], found["environment"], results, found["host"], found["interrupted"])


def mean_speedup(results: Results, direction: str, row: str = "ours") -> float:
    return statistics.geometric_mean(speedup(each.timings[direction], row) for each in results.results)


def test_the_table_of_layers_and_its_required_figures() -> None:
    results = speed("speed.json")
    rows, _, conditions_and_figures = speed_tables.markdown(results).partition("\n\n")
    assert len(rows.splitlines()) == 2 + 24
    assert rows in text(PAGE)
    required = conditions_and_figures[conditions_and_figures.index("- ") :].strip()
    assert len(required.splitlines()) == 6
    assert required in text(PAGE)
    assert f"{results.environment['date'][:10]}; `benchmarks/results/cpu/speed.json`" in text(PAGE)


def test_the_figures_of_compile_and_of_another_machine() -> None:
    ours, compiled = (
        [mean_speedup(speed("speed.json"), direction, row) for direction in DIRECTIONS]
        for row in ("ours", "compile")
    )
    assert (
        f"`torch.compile` takes {1 / compiled[0]:.1f} times as long as eager in forward and "
        f"{1 / compiled[1]:.1f} times in forward + backward; that is {ours[0] / compiled[0]:.1f} and "
        f"{ours[1] / compiled[1]:.1f} times as long as ours"
    ) in unwrapped(PAGE)
    other = speed("speed_xeon.json")
    means = " and ".join(f"{mean_speedup(other, direction):.2f}" for direction in DIRECTIONS)
    assert f"gave geometric means of {means}." in unwrapped(PAGE)
    assert other.environment["date"][:10] in unwrapped(PAGE)


def named(begin: str, page: str = PAGE) -> Run:
    """The recorded run whose commit the page names after these words."""
    (commit,) = re.findall(rf"{begin}(\w+)", unwrapped(page))
    return next(run for run in history.load() if run.commit == commit)


def grid_rows() -> Iterator[list[str]]:
    for summary in figures.summaries(figures.measured(named("2026-11-26, commit ")))[:-1]:
        assert summary.over_compile is not None
        yield [
            summary.name,
            str(summary.cells),
            f"{summary.ratio:.2f}",
            f"{summary.over_compile:.2f}",
            "" if summary.share is None else f"{summary.share:.0%}",
            f"{summary.peak_share:.2f}",
            str(summary.slower_than_eager),
        ]


def test_the_table_of_the_grid() -> None:
    headings = (
        "direction | groups | times faster than eager | than torch.compile | of the floor | "
        "peak memory, of eager's | slower than eager"
    )
    assert table(headings, grid_rows()) in text(PAGE)


def test_where_the_grid_is_slower() -> None:
    """The page names each group that is slower than eager or than torch.compile."""
    found = figures.measured(named("2026-11-26, commit "))
    (slow,) = (cell for cell in found if figures.slower(cell.ratio))
    assert (slow.case, slow.speed.direction) == ("8x3x224x224 channels_last float32", "ResNet-50 step")
    kept = slow.speed.rows["ours, kept"].ratio
    assert (
        f"ResNet-50 in channels_last float32 with recomputation, {slow.ratio:.2f} times as fast "
        f"({kept:.2f} with outputs kept)"
    ) in unwrapped(PAGE)
    behind = {cell.case for cell in found if cell.over_compile and figures.slower(cell.over_compile)}
    shapes = ("32x1024x14x14", "32x24x56x56", "20x6x65536")
    assert behind == {
        *(f"{shape} contiguous float32" for shape in shapes),
        "32x24x56x56 channels_last float32",
    }
    assert (
        "In four groups of evaluation `torch.compile` is faster than ours: 32x1024x14x14, 32x24x56x56 and "
        "20x6x65536 contiguous float32, and 32x24x56x56 channels_last float32."
    ) in unwrapped(PAGE)


def resnet_rows() -> Iterator[list[str]]:
    by_row: dict[str, dict[str, Any]] = {}
    for row in measured("resnet.json")["rows"]:
        by_row.setdefault(row["row"], {})[row["case"]] = row
    for case, eager in by_row["eager"].items():
        shown = [*case.split(), f"{eager['images_per_second']:.2f}"]
        for name in ("fused", "fused, recomputed"):
            shown += [f"{by_row[name][case][figure]:.2f}" for figure in ("speedup", "memory")]
        yield shown


def test_the_table_of_resnet() -> None:
    headings = (
        "images | layout | dtype | eager, images/s | fused, speedup | its activations, of eager's | "
        "recomputed, speedup | its activations"
    )
    assert table(headings, resnet_rows(), left=3) in text(PAGE)
    assert measured("resnet.json")["environment"]["date"][:10] in text(PAGE)
    required = resnet.REQUIRED["cpu"]
    assert (
        f"fused at least {required['speedup']:.2f} times as fast as eager, and recomputed at most "
        f"{required['memory']:.2f} of eager's peak"
    ) in unwrapped(PAGE)
    missed = [row for row in measured("resnet.json")["rows"] if row["row"] == "fused"]
    assert all(row["speedup"] < required["speedup"] for row in missed)
    assert "The speed is missed." in text(PAGE)


LENET_ROWS = {
    "none": "no batch norm",
    "torch": "tanh, `nn.BatchNorm2d`",
    "fused": "tanh, `fused_bn`",
    "torch-relu": "`nn.BatchNorm2d`, ReLU",
    "fused-relu": "`fused_bn` with ReLU",
}


def lenet_rows() -> Iterator[list[str]]:
    for id, variant in measured("lenet/results.json")["variants"].items():
        yield [
            LENET_ROWS[id],
            *(f"{100 * variant['epochs'][i]['test_accuracy']:.2f}" for i in (0, -1)),
            f"{variant['images_per_second']:,.0f}",
            "" if variant["norm_ms"] is None else f"{variant['norm_ms']:.3f}",
            f"{variant['peak_bytes'] / 2**20:.2f}",
        ]


def test_the_table_of_lenet() -> None:
    headings = "variant | epoch 1, % | epoch 10, % | images/s | norm layers, ms a step | peak, MiB"
    assert table(headings, lenet_rows()) in text(PAGE)
    for checked in measured("lenet/results.json")["agreements"]:
        mantissa, exponent = f"{checked['largest']:.1e}".split("e")
        assert f"{mantissa}e{int(exponent)} with" in text(PAGE)


def test_what_the_comparison_found() -> None:
    found = measured("compare.json")
    (null, of_null), (planted, of_planted) = found["alarms_of_null"], found["alarms_of_planted"]
    assert (
        f"Of {of_null} comparisons of a revision with itself {null} raised an alarm. Of {of_planted} "
        f"comparisons with a kernel made a fifth slower {planted} did"
    ) in unwrapped(PAGE)
    assert "a fifth" in found["note"]
    assert f"the {sum(cell.quick for cell in cells())} small cells of both" in unwrapped(PAGE)
    assert f"its {found['confidence']:.0%} interval".replace("%", " %") in unwrapped(PAGE)


def instruction_rows() -> Iterator[list[str]]:
    found = {record.call: record.count for record in named("Counts of commit ").of(history.Instructions)}
    for call in ("forward", "forward+backward", "evaluation"):
        ours, eager = found[call], found[f"eager {call}"]
        yield [call.replace("+", " + "), f"{ours:,}", f"{eager:,}", f"{ours / eager:.2f}"]


def test_instruction_counts() -> None:
    """Checks the table, and that its counts are within the tolerance of the stored ones."""
    headings = "call on (2, 4, 2, 2) | ours | eager | ours / eager"
    assert table(headings, instruction_rows()) in text(PAGE)
    run = named("Counts of commit ")
    found = {record.call: record.count for record in run.of(history.Instructions)}
    torch, python = run.environment["torch"], ".".join(run.environment["python"].split(".")[:2])
    begin = f"torch {torch}, python {python} "
    entries = [counts for key, counts in stored.load().items() if key.startswith(begin)]
    assert f"fails if a call takes {100 * stored.TOLERANCE:g} % more" in unwrapped(PAGE)
    assert any(
        all(abs(stored.change(found[call], entry[call])) <= stored.TOLERANCE for call in entry)
        for entry in entries  # one set of counts per compiler
    )


def test_the_pictures_of_the_report_are_of_that_run(tmp_path: Path) -> None:
    """The committed pictures are what the report draws today. Other fonts may move a pixel."""
    commit = named("2026-11-26, commit ").commit
    assert report.main(["--run", commit, "--out", str(tmp_path)]) == 0
    committed = sorted((ROOT / "docs/pictures").glob("amd-epyc-*.png"))
    assert len(committed) == 5
    for picture in committed:
        shown, drawn = imread(picture), imread(tmp_path / picture.name)
        assert shown.shape == drawn.shape
        assert np.abs(shown - drawn).mean() < 0.01, picture.name


def accuracies(quantity: str = "") -> list[history.Accuracy]:
    found = named("2026-11-26, commit ", "docs/accuracy.md").of(history.Accuracy)
    return [record for record in found if quantity in ("", record.quantity)]


def test_the_table_of_errors() -> None:
    rows = accuracy_table.markdown(accuracies("output"))
    assert rows.strip() in text("docs/accuracy.md")
    assert f"The data are {len(rows.splitlines()) - 2} sets" in unwrapped("docs/accuracy.md")


def test_ours_is_nearer_in_every_recorded_row() -> None:
    """Checks README's and docs/accuracy.md's statements about all rows."""
    far = {data.id for data in (*DATA, *LENET) if data.far_mean}
    assert far
    assert [text for record in accuracies() for text in worse(record)] == []
    assert [text for record in accuracies() if record.data in far for text in not_far_better(record)] == []


def keras_rows() -> Iterator[list[str]]:
    by_case: dict[str, list[Any]] = {}
    for row in measured("keras.json")["rows"]:
        by_case.setdefault(row["case"], []).append(row)
    for case, (keras, *ours) in by_case.items():
        yield [case, f"{keras['step_ms']:.2f}", *(f"{row['speedup']:.2f}x" for row in ours)]


def test_the_table_of_keras() -> None:
    (version,) = re.findall(r'^keras = \["keras>=([\d.]+)"\]', text("pyproject.toml"), re.MULTILINE)
    assert f"It needs Keras {version} or later" in unwrapped("docs/keras.md")
    headings = "model | Keras' layers, ms a step | ours in their place | ours with ReLU"
    assert table(headings, keras_rows()) in text("docs/keras.md")


def version(environment: dict[str, Any]) -> str:
    return f"torch {environment['torch'].split('+')[0]}"


def test_the_conditions_are_the_recorded_ones() -> None:
    """The conditions of all tables of the page. Instructions are counted on one thread."""
    names = ("speed.json", "lenet/results.json", "resnet.json")
    environments = [measured(name)["environment"] for name in names]
    for environment in (*environments, named("2026-11-26, commit ").environment):
        assert (
            f"on an {environment['device']} (Zen 5, AVX-512), {environment['threads']} cores of a virtual "
            f"machine, with {version(environment)}."
        ) in unwrapped(PAGE)
    assert measured("lenet/results.json")["environment"]["date"][:10] in text(PAGE)
    counted = named("Counts of commit ").environment
    python = counted["python"].rpartition(".")[0]
    assert f"{version(counted)}, Python {python}:" in unwrapped(PAGE)


def test_the_conditions_of_other_pages() -> None:
    keras, batch = measured("keras.json")["environment"], measured("keras.json")["arguments"]["batch"]
    assert (
        f"{keras['device']} (Zen 5), {keras['threads']} cores, batch {batch}, {version(keras)}, "
        f"{keras['date'][:10]}"
    ) in unwrapped("docs/keras.md")
    errors = named("2026-11-26, commit ", "docs/accuracy.md").environment
    assert (f"({errors['device']}, Zen 5, {version(errors)}, {errors['date'][:10]}, commit") in unwrapped(
        "docs/accuracy.md"
    )
