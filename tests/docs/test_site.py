"""The site that `make docs` builds: strict, complete, and shown by a real browser without other hosts."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fused_bn
from tests.docs.browser import ask
from tests.docs.pages import ROOT, text

for module in ("jinja2", "keras", "mkdocs", "material", "mkdocstrings"):
    pytest.importorskip(module)

LOOK = """
const look = () => {
  const shown = element => element !== null && element.getBoundingClientRect().height > 0;
  const entry = document.getElementById("fused_bn.BatchNorm2d");
  return {
    nav: [...document.querySelectorAll(".md-nav--primary > .md-nav__list > .md-nav__item > a")]
      .filter(shown).map(link => [link.textContent.trim(), link.getAttribute("href")]),
    entry: shown(entry) ? entry.closest(".doc-class").textContent : "",
    pictures: [...document.images].map(image => [image.alt, image.naturalWidth, image.width]),
    loaded: [...document.querySelectorAll("script[src], img[src], iframe[src], link[href]")]
      .map(each => each.src || each.href),
  };
};
"""


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Builds the site as `make docs` does."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    environment = {
        **os.environ,
        "KERAS_BACKEND": "torch",
        "NO_MKDOCS_2_WARNING": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [*command, "--site-dir", str(site)], capture_output=True, text=True, check=False, env=environment
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site") / "site"
    result = build(ROOT / "mkdocs.yml", directory)
    assert result.returncode == 0, result.stdout + result.stderr
    return directory


@pytest.fixture(scope="module")
def seen(browser: str, site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the browser shows of each page."""
    profile = tmp_path_factory.mktemp("profile")
    return {name: ask(browser, site / f"{name}.html", LOOK, profile) for name in ("api", "benchmarks")}


def test_the_nav_leads_to_every_page(seen: dict[str, dict[str, Any]]) -> None:
    listed = re.findall(r"^  - (.*): ([\w-]+)\.md$", text("mkdocs.yml"), re.MULTILINE)
    assert {page for _, page in listed} == {path.stem for path in (ROOT / "docs").glob("*.md")}
    for name in seen:
        shown = [(title, target) for title, target in seen[name]["nav"] if not target.startswith("#")]
        others = [(title, f"{page}.html") for title, page in listed if page != name]
        assert [each for each in shown if each[1] != f"{name}.html"] == others


def test_the_api_is_made_from_docstrings(seen: dict[str, dict[str, Any]], site: Path) -> None:
    assert "over (N, C, H, W) input" in " ".join(seen["api"]["entry"].split())
    html = (site / "api.html").read_text()
    names = [name for name in fused_bn.__all__ if name not in ("__version__", "functional")]
    names += ["functional.batch_norm", "keras.BatchNormalization"]
    assert [name for name in names if f'id="fused_bn.{name}"' not in html] == []


def test_pictures_are_shown(seen: dict[str, dict[str, Any]]) -> None:
    pictures = seen["benchmarks"]["pictures"]
    assert len(pictures) == text("docs/benchmarks.md").count("![") > 5
    assert [alt for alt, width, shown in pictures if width < 600 or shown < 300] == []


def test_nothing_is_loaded_from_elsewhere(seen: dict[str, dict[str, Any]], site: Path) -> None:
    loaded = [name for each in seen.values() for name in each["loaded"]]
    assert len(loaded) > 10
    assert [name for name in loaded if not name.startswith(site.as_uri())] == []
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"url\([\"']?(?:https?:)?//[^)]*|@import[^;]*", styles) == []


def test_broken_links_and_references_end_the_build(tmp_path: Path) -> None:
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for page, broken in (
        ("keras.md", "[a page](nowhere.md)"),
        ("guide.md", "[a heading](install.md#nowhere)"),
        ("tools.md", "![a picture](pictures/nowhere.png)"),
        ("index.md", "[an object][fused_bn.nowhere]"),
    ):
        with (tmp_path / "docs" / page).open("a") as file:
            file.write(f"\n{broken}\n")
    (tmp_path / "docs" / "unlisted.md").write_text("# Nobody finds this\n")
    result = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert result.returncode == 1
    for name in (
        "nowhere.md",
        "install.md#nowhere",
        "pictures/nowhere.png",
        "fused_bn.nowhere",
        "unlisted.md",
    ):
        assert name in result.stderr, name
