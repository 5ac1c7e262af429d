"""The command `python -m benchmarks.report`: the runs it shows, its files, its page, and its errors."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("jinja2")

from benchmarks import history
from benchmarks.history import Accuracy, Instructions, Record, Run
from benchmarks.report import job, page
from benchmarks.report.section import Section, section
from tests.benchmarks.report_history import (
    CPU_NAME,
    DATE,
    GPU_NAME,
    accuracies,
    environment,
    instructions,
    quick,
    record,
    run_of,
    speed,
    speeds,
    steps,
    whole,
    without,
)

SLUG = "amd-epyc-9b45-64-core-processor"
PNG = b"\x89PNG\r\n\x1a\n"


def day(number: int) -> str:
    return f"2026-12-{number:02}T10:00:00+00:00"


@pytest.fixture(scope="module")
def complete() -> Section:
    """The sections of one run that recorded everything."""
    run = run_of(*whole(0))
    return section([run], run)


# Parts of a run


PARTS: dict[str, Callable[[], list[Record]]] = {
    "the quick part": lambda: quick(0),
    "no torch.compile": lambda: without("compile", quick(0)),
    "accuracy alone": lambda: list(accuracies(0)),
    "instructions alone": lambda: list(instructions()),
    "training steps alone": lambda: list(steps()),
    "nothing at all": list,
}
CHARTS = {
    "the quick part": {"speedup", "roofline", "memory"},
    "no torch.compile": {"speedup", "roofline", "memory"},
    "accuracy alone": {"accuracy"},
    "instructions alone": {"instructions"},
    "training steps alone": {"speedup", "memory"},
    "nothing at all": set(),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_run_is_shown_as_far_as_it_goes(part: str) -> None:
    run = run_of(*PARTS[part]())
    found = section([run], run)
    assert {name.partition("-")[0] for name in found.charts} == CHARTS[part]
    html = page.html([found])
    assert html.count("<img ") == len(found.charts)
    for gap in found.gaps:
        assert f"<li>{gap.replace(chr(39), '&#39;')}</li>" in html
    assert ("The worst" in html) == bool(found.cells)


# The command


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "history", "a1", [*quick(0), *instructions()], DATE)
    record(tmp_path / "history", "a2", [*quick(1), *steps(), *accuracies(1), *instructions()], day(2))
    record(tmp_path / "history", "a2", quick(2, cuda=True), day(2), GPU_NAME)
    out = tmp_path / "new" / "report"
    assert job.main(["--history", str(tmp_path / "history"), "--out", str(out)]) == 0
    names = {path.name for path in out.iterdir()}
    families = ("lenet", "mobilenet", "slow-elsewhere")
    charts = [f"{kind}-{family}" for kind in ("speedup", "memory") for family in (*families, "steps")]
    charts += ["roofline", "accuracy-float32", "accuracy-bfloat16", "trend", "instructions"]
    of_gpu = ["roofline", *(f"{kind}-{family}" for kind in ("speedup", "memory") for family in families)]
    of_gpu += ["roofline-graphs", *(f"speedup-{family}-graphs" for family in families)]
    assert names == {
        "index.html",
        *(f"{SLUG}-{chart}.png" for chart in charts),
        *(f"nvidia-h200-{chart}.png" for chart in of_gpu),
    }
    assert all(path.read_bytes().startswith(PNG) for path in out.glob("*.png"))
    printed = capsys.readouterr().out.split()
    assert {Path(line).name for line in printed} == names
    assert printed[-1] == str(out / "index.html")


def test_an_earlier_page_is_replaced(tmp_path: Path) -> None:
    record(tmp_path, "a1", [*instructions()], DATE)
    out = tmp_path / "report"
    out.mkdir()
    (out / "index.html").write_text("earlier")
    (out / "other.txt").write_text("mine")
    assert job.main(["--history", str(tmp_path), "--out", str(out)]) == 0
    assert "Instructions of the host" in (out / "index.html").read_text()
    assert sorted(path.name for path in out.iterdir()) == [
        f"{SLUG}-instructions.png",
        "index.html",
        "other.txt",
    ]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Three runs of two devices."""
    for commit, number, device in (("aa1", 1, CPU_NAME), ("ab2", 2, CPU_NAME), ("ab2", 3, GPU_NAME)):
        record(tmp_path, commit, [], day(number), device)
    return tmp_path


@pytest.mark.parametrize(
    ("beginning", "shown"),
    [
        (None, [("ab2", CPU_NAME), ("ab2", GPU_NAME)]),
        ("a", [("ab2", CPU_NAME), ("ab2", GPU_NAME)]),
        ("aa1", [("aa1", CPU_NAME)]),
        ("2026-12-01", [("aa1", CPU_NAME)]),
        ("2026-12-03", [("ab2", GPU_NAME)]),
    ],
)
def test_chosen_runs(beginning: str | None, shown: list[tuple[str, str]], recorded: Path) -> None:
    runs = job.chosen(history.load(recorded), beginning, recorded)
    assert [(run.commit, run.device) for run in runs] == shown


def test_a_small_later_run_adds_what_the_shown_one_lacks(tmp_path: Path) -> None:
    """A later run of accuracy alone does not replace the run of all cells. It has its own commit there."""
    record(tmp_path, "speed00", [*speeds(1)], DATE)
    record(tmp_path, "exact00", [*accuracies(1)], "2026-12-02T10:00:00+00:00")
    record(tmp_path, "quick00", [*speeds(1, chosen=lambda cell: cell.quick)], "2026-12-03T10:00:00+00:00")
    runs = history.load(tmp_path)
    (shown,) = job.chosen(runs, None, tmp_path)
    assert shown.commit == "speed00"
    found = section(runs, shown)
    assert len(found.accuracies) == len(list(accuracies(1)))
    assert "Accuracy against float64; shown is that of exact00, 2026-12-02." in found.gaps
    assert "Instructions of the host." in found.gaps
    (asked,) = job.chosen(runs, "quick", tmp_path)
    assert asked.commit == "quick00"


def test_an_older_run_is_shown_without_what_came_after(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        record(tmp_path, f"c{number}", [*instructions(), speed(number + 1.0)], day(number))
    assert job.main(["--history", str(tmp_path), "--out", str(tmp_path / "out"), "--run", "c2"]) == 0
    html = (tmp_path / "out" / "index.html").read_text()
    assert "<dt>commit</dt><dd>c2</dd>" in html
    assert "all 2 runs have" in html
    assert "c3" not in re.sub('base64,[^"]*', "", html)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "holds no recorded run; `pytest benchmarks --record` adds a run"),
        (["--run", "zz"], "holds no recorded run"),
    ],
)
def test_no_history(argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _refused(["--history", str(tmp_path), "--out", str(tmp_path / "out"), *argv], said, capsys)
    assert list((tmp_path / "out").iterdir()) == []


def test_no_such_run(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = (
        "no commit or date begins with 'zz'; there are aa1 (2026-12-01), ab2 (2026-12-02), ab2 (2026-12-03)"
    )
    _refused(["--history", str(recorded), "--out", str(recorded / "out"), "--run", "zz"], said, capsys)


def test_no_such_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _refused(["--history", str(tmp_path / "no"), "--out", str(tmp_path)], "is no directory", capsys)


def test_a_damaged_history_is_named(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recorded / "nvidia-h200.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    _refused(["--history", str(recorded), "--out", str(recorded / "out")], f"{path.name}, line 1", capsys)


def test_what_cannot_be_drawn_is_named_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ratio of zero has no logarithm. The message names file and line instead of a traceback."""
    (tmp_path / "a.jsonl").mkdir()
    argv = ["--history", str(tmp_path), "--out", str(tmp_path / "out")]
    _refused(argv, f"Not a regular file: '{tmp_path / 'a.jsonl'}'", capsys)
    (tmp_path / "a.jsonl").rmdir()
    path = record(tmp_path, "a1", [speed(2.0), speed(3.0)], DATE)
    path.write_text(path.read_text().replace('"ratio": 3.0', '"ratio": 0.0'))
    _refused(argv, f"{path.name}, line 3 is no record of this format: ratio is 0.0, not from", capsys)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.filterwarnings("ignore:Data has no positive values")
def test_an_instruction_count_of_zero_is_drawn() -> None:
    """If all calls have zero, a logarithmic axis still needs a positive number."""
    run = run_of(Instructions("forward", 0))
    assert set(section([run], run).charts) == {"instructions"}


def _refused(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        job.main(argv)
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


# The page


class References(HTMLParser):
    """Collects a page's references, its texts, and its pictures' alternative texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.alts: list[str | None] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attributes)
        refer = ("src", "href", "srcset", "action", "data", "poster", "background", "style")
        self.references += [named[name] or "" for name in refer if name in named]
        if tag == "img":
            self.alts.append(named.get("alt"))


def test_the_page_needs_no_other_file(complete: Section) -> None:
    other = Run("r", "b1", environment(DATE, GPU_NAME), quick(0))
    html = page.html([complete, section([other], other)])
    found = References(html)
    assert [ref for ref in found.references if not ref.startswith(("data:image/png;base64,", "#"))] == []
    assert not {"link", "iframe", "object", "embed", "base"} & set(found.tags)
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"https?:", html)
    assert html.count("Content-Security-Policy") == 1
    assert len(found.alts) == len(complete.charts) + 7
    assert all(alt and len(alt) > 20 for alt in found.alts)
    assert len(set(found.alts)) == len(found.alts)


def test_every_text_is_escaped() -> None:
    name = '<b onclick="x">&\'$5'
    records: list[Record] = [
        speed(2.0, name, compiled=1.0, family=name),
        speed(3.0, name, name, compiled=1.0),
        Accuracy(name, "float32", name, {"eager": 1.0, "ours": 2.0}),
        Instructions(name, 3),
    ]
    records[0].rows[name] = records[0].rows["eager"]  # type: ignore[union-attr]
    fields = {"torch": name, "threads": name, name: name}
    run = Run(name, name, environment(DATE, name, **fields), records)
    older = Run("older", name, environment(DATE, name, **fields), records)
    html = page.html([section([older, run], run)])
    assert name not in html
    assert "<b onclick" not in html
    assert html.count("&lt;b onclick=&#34;x&#34;&gt;&amp;&#39;$5") > 20


def test_the_worst_cells_come_first_and_say_how_bad() -> None:
    cells = [speed(1.5 + number, f"case{number}", compiled=1.0) for number in range(8)]
    run = run_of(*cells, speed(0.8, "slowest", compiled=1.6))
    html = page.html([section([run], run)])
    headings = re.findall(r"<h3>(.*?)</h3>", html)
    assert headings[0] == "The worst five cells"
    assert headings[1] == "Summary"
    (table,) = re.findall(r'<table class="worst">(.*?)</table>', html, re.DOTALL)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert rows[0] == ["slowest", "forward", "0.80", "10%", "0.50"]
    assert [row[0] for row in rows] == ["slowest", "case0", "case1", "case2", "case3"]
    assert html.index('<table class="worst">') < html.index('<table class="summary">') < html.index("<img")


@pytest.mark.parametrize(("ratio", "shown", "marked"), [(0.994, "0.99", True), (0.996, "1.00", False)])
def test_a_number_is_marked_as_it_is_shown(ratio: float, shown: str, marked: bool) -> None:
    """In the worst cells, in both lines of the summary and among all cells."""
    run = run_of(speed(ratio))
    html = page.html([section([run], run)])
    assert html.count(f">{shown}</td>") == 4
    assert html.count(f" class=bad>{shown}</td>") == (4 if marked else 0)


def test_the_table_has_every_cell(complete: Section) -> None:
    html = page.html([complete])
    (table,) = re.findall(r'<table class="sortable">(.*?)</table>', html, re.DOTALL)
    assert table.count("<tr>") == 1 + 264
    assert "lenet" in table
    assert "steps" in table


@pytest.mark.parametrize(
    ("format", "value", "text"),
    [
        (page.times, 0.984, "0.98"),
        (page.times, 1234.5, "1,234"),
        (page.times, None, "\u2013"),
        (page.share, 0.0123, "1.2%"),
        (page.share, 1.04, "104%"),
        (page.microseconds, 1.2345e-6, "1.23"),
        (page.microseconds, 0.0123, "12,300"),
        (page.megabytes, 2_408_448, "2.41"),
        (page.megabytes, None, "\u2013"),
        (page.key, None, "Infinity"),
    ],
)
def test_numbers_as_texts(format: Callable[[float | None], str], value: float | None, text: str) -> None:
    assert format(value) == text
