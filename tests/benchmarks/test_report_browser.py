"""The report's page in a real browser: every chart is decoded and shown, and clicks sort the table."""

import base64
import html
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

pytest.importorskip("jinja2")

from benchmarks.report import job
from tests.benchmarks.report_history import GPU_NAME, quick, record, several_runs
from tests.docs.browser import HEIGHT, WIDTH, ask, run

COLORS = 50
"""A chart has hundreds of colours, because its letters have smooth edges. A blank picture has one."""

LOOK = """
const look = () => {
  const chart = image => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const colors = new Set();
    if (canvas.width) {
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0);
      const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
      new Uint32Array(pixels.buffer).forEach(pixel => colors.add(pixel));
    }
    const box = image.getBoundingClientRect();
    return { alt: image.alt, width: image.naturalWidth, shown: box.width, height: box.height,
             ratio: image.naturalWidth / image.naturalHeight, right: box.right, colors: colors.size };
  };
  const charts = [...document.images].map(chart);
  const column = (table, number) => [...table.tBodies[0].rows].map(row => row.cells[number].textContent);
  const table = document.querySelector("table.sortable");
  const heading = table.tHead.rows[0].cells[3];
  const orders = [column(table, 3)];
  for (const click of [1, 2]) {
    heading.querySelector("button").click();
    orders.push(column(table, 3), [heading.ariaSort]);
  }
  return { charts, orders, page: document.documentElement.scrollWidth };
};
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two devices, one of which has several whole runs."""
    directory = tmp_path_factory.mktemp("report")
    several_runs(directory / "history", 3)
    record(directory / "history", "b1", quick(0), "2026-12-09T10:00:00+00:00", GPU_NAME)
    assert job.main(["--history", str(directory / "history"), "--out", str(directory / "out")]) == 0
    return directory / "out" / "index.html"


def look(browser: str, page: str, directory: Path) -> dict[str, Any]:
    """What the browser shows of this HTML: its charts, and the order of rows after clicks."""
    file = directory / "page.html"
    file.write_text(page)
    return ask(browser, file, LOOK, directory / "profile")


def broken(charts: list[dict[str, Any]]) -> list[str]:
    """The alternative texts of charts that were not decoded, or are blank, distorted, tiny or cut off."""
    return [
        chart["alt"]
        for chart in charts
        if not (
            chart["width"] > 0
            and chart["colors"] >= COLORS
            and chart["shown"] > 600
            and chart["shown"] / chart["height"] == pytest.approx(chart["ratio"], rel=0.01)
            and chart["right"] <= WIDTH
        )
    ]


def test_charts_are_shown_and_the_table_sorts(browser: str, page: Path, tmp_path: Path) -> None:
    seen = look(browser, page.read_text(), tmp_path)
    pictures = list(page.parent.glob("*.png"))
    assert len(seen["charts"]) == len(pictures) == 15 + 7
    assert broken(seen["charts"]) == []
    assert seen["page"] <= WIDTH
    unsorted, up, up_said, down, down_said = seen["orders"]
    values = [float(text) for text in unsorted]
    assert values != sorted(values)
    assert [float(text) for text in up] == sorted(values)
    assert [float(text) for text in down] == sorted(values, reverse=True)
    assert (up_said, down_said) == (["ascending"], ["descending"])


def blank() -> bytes:
    """A white PNG of 1000 x 500 pixels."""
    file = io.BytesIO()
    Figure(figsize=(10, 5), dpi=100).savefig(file)
    return file.getvalue()


@pytest.mark.parametrize("damage", ["torn", "no picture", "blank"])
def test_a_broken_chart_is_noticed(damage: str, browser: str, page: Path, tmp_path: Path) -> None:
    """The third chart's address is broken. All other charts are still found to be whole."""
    text = page.read_text()
    uri = re.findall(r'src="(data:[^"]*)"', text)[2]
    alt = html.unescape(re.findall(r'<img [^>]*alt="([^"]*)"', text)[2])
    start = "data:image/png;base64,"
    spoiled = {
        "torn": uri[:60],
        "no picture": start + base64.b64encode(b"no picture").decode(),
        "blank": start + base64.b64encode(blank()).decode(),
    }[damage]
    seen = look(browser, text.replace(uri, spoiled), tmp_path)
    assert len(seen["charts"]) == 22
    assert broken(seen["charts"]) == [alt]


def test_the_page_as_it_is_has_pixels(browser: str, page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    run(browser, f"--screenshot={picture}", page.as_uri(), profile=tmp_path / "profile")
    pixels = imread(picture)[..., :3]
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    background = np.all(pixels == pixels[0, 0], axis=-1)
    rows = ~background.all(axis=1)
    assert 0.5 < background.mean() < 0.99
    assert rows[: HEIGHT // 4].any()
    assert rows[-HEIGHT // 4 :].any()  # the position of the first charts
    blue = np.abs(pixels - np.array([0x00, 0x72, 0xB2]) / 255).max(axis=-1) < 0.02
    assert blue.mean() > 0.005  # the bars of ours
