"""All pages: their code runs, and the commands, files and headings that they name exist."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, Block, blocks, text

LANGUAGES = {"python", "sh", "text", "yaml"}
BLOCKS = blocks()
PYTHON = [block for block in BLOCKS if block.language == "python"]


def test_every_block_names_its_language() -> None:
    """Code in another language would escape the test below."""
    assert {block.id: block.language for block in BLOCKS if block.language not in LANGUAGES} == {}
    for page in PAGES:
        assert page.read_text().count("```") == 2 * sum(
            block.page == str(page.relative_to(ROOT)) for block in BLOCKS
        )


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.id)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs each block as a program. A block of text directly after it is part of what it prints."""
    if "keras" in block.code:
        pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.code, block.id, "exec"), {"__name__": "__main__"})
    index = BLOCKS.index(block)
    following = BLOCKS[index + 1] if index + 1 < len(BLOCKS) else block
    end = block.line + block.code.count("\n") + 1
    if following.page == block.page and following.language == "text" and following.line == end + 2:
        assert following.code in printed.getvalue()


def commands() -> list[str]:
    """The commands in shell blocks and in inline code, on all pages."""
    lines = [line for block in BLOCKS if block.language == "sh" for line in block.code.splitlines()]
    found = [re.split(r"\s+#", line)[0] for line in lines]
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        spans = re.findall(r"`([^`\n]+)`", prose)
        found += [span for span in spans if re.match(r"(make [a-z]|python -m |torchrun )", span)]
    return list(dict.fromkeys(found))


def test_there_are_commands() -> None:
    assert {"make", "python", "pip", "torchrun"} <= {command.split()[0] for command in commands()}


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.replace("/", "-"))
def test_commands_exist(command: str) -> None:
    """Targets and variables of make, modules and their options, extras and variables of the build."""
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        assert words[0].split("=")[0] in text("setup.py")
        words = words[1:]
    if words[0] == "make":
        check_make(words[1:])
    elif words[0] in ("python", "torchrun"):
        check_module(words[words.index("-m") + 1 :])
    elif words[0] == "pip":
        (extras,) = re.findall(r"\[(\w+)\]", words[-1]) or [""]
        assert not extras or re.search(rf"^{extras} = \[", text("pyproject.toml"), re.MULTILINE)
    else:
        assert words == ["pre-commit", "install"]


def check_make(words: list[str]) -> None:
    makefile = text("Makefile")
    target, *variables = words
    assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for variable in variables:
        name, _, value = variable.partition("=")
        assert re.search(rf"^{name} \?=", makefile, re.MULTILINE), name
        if name == "ARGS":
            recipe = makefile[makefile.index(f"\n{target}:") :].split("\n\n")[0]
            (module,) = re.findall(r"-m (\S+(?: benchmarks)?)", recipe)
            check_module([*module.split(), *shlex.split(value)])


def check_module(words: list[str]) -> None:
    """Checks that the module exists and that its source has every option."""
    module, *arguments = words
    if module == "pytest":
        paths = [word for word in arguments if word.startswith(("tests", "benchmarks"))]
        assert all((ROOT / path).exists() for path in paths)
        sources = [ROOT / "benchmarks/conftest.py", ROOT / "pyproject.toml"]
        arguments = [word for word in arguments if word not in ("-m", "-k")]
        marks = [word for word in arguments if word in ("quick", "accuracy", "instructions")]
        assert all(f'"{mark}: ' in text("pyproject.toml") for mark in marks)
    else:
        path = ROOT.joinpath(*module.split("."))
        assert (path / "__main__.py").exists(), module
        sources = [*path.glob("*.py"), ROOT / "benchmarks/options.py"]
        if module == "fused_bn" and arguments:
            assert f'add_parser("{arguments[0]}"' in text("fused_bn/__main__.py")
    source = "".join(path.read_text() for path in sources)
    for word in arguments:
        if word.startswith("--") and word != "--help":
            assert f'"{word.split("=")[0]}"' in source, word


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_files_exist(page: Path) -> None:
    """Links between pages, pictures, and paths of the project. No page names a host."""
    content = page.read_text()
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", content):
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text()), f"{target}#{anchor}"
    for path in re.findall(r"`((?:csrc|fused_bn|tests|benchmarks|docs|\.ci)/[^`\s]*)`", content):
        assert list(ROOT.glob(path.rstrip("/"))), path
    assert "://" not in content


def test_workflows_run_the_stages_of_ci() -> None:
    """CI runs all stages of .ci/run with the same calls, except the build, which each stage does itself."""
    stages = re.findall(r"^stage (.*)$", text(".ci/run"), re.MULTILINE)
    workflows = text(".github/workflows/ci.yml") + text(".github/workflows/docs.yml")
    run = re.findall(r"^ +- (?:run: make )?(.*)$", workflows, re.MULTILINE)
    assert len(stages) > 10
    assert set(stages) - set(run) == {"build", "wheel"}
    assert "make wheel" in text(".github/workflows/wheels.yml")


def anchors(content: str) -> set[str]:
    """The anchors of the page's headings, as the site makes them."""
    headings = re.findall(r"^#+ (.*)$", content, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_contributing_lists_all_places_of_an_activation() -> None:
    """The list has every file of the project that names mish."""
    content = text("docs/contributing.md")
    section = content[content.index("## Add an activation") : content.index("## Add a dtype")]
    files = [path for folder in ("csrc", "fused_bn", "tests") for path in (ROOT / folder).rglob("*")]
    having = [
        str(path.relative_to(ROOT))
        for path in files
        if path.suffix in (".py", ".h", ".cpp", ".cuh", ".cu") and re.search(r"\bmish\b", path.read_text())
    ]
    having.remove("tests/docs/test_pages.py")
    assert len(having) > 10
    assert [name for name in having if f"`{name}`" not in section] == []


PRIVATE = re.compile(
    r"\btorch(?:\.\w+)*?\.(_[a-z]\w*)|\bfrom torch[\w.]* import .*?\b(_[a-z]\w*)", re.IGNORECASE
)


def test_contributing_lists_the_private_parts_of_torch() -> None:
    """Every name with an underscore that the package or a benchmark takes from torch by its path."""
    content = text("docs/contributing.md")
    section = content[content.index("## Private parts of PyTorch") :]
    used = {
        (str(path.relative_to(ROOT)), name)
        for folder in ("fused_bn", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if not path.name.startswith("test_")
        for match in PRIVATE.findall(path.read_text())
        for name in match
        if name
    }
    assert len(used) > 8
    assert [each for each in sorted(used) if not re.search(rf"\b{each[1]}\b", section)] == []
