"""The patterns and options in docs/guide.md are complete and true."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fused_bn
from benchmarks.resnet.model import ResNet50
from fused_bn._activations import ACTIVATIONS
from fused_bn.fusion.recompute import WORTH_BYTES
from tests.docs.pages import text, unwrapped

PAGE = "docs/guide.md"

MODULE = """
from torch import nn, relu

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.bn = self.bn1 = nn.BatchNorm2d(4)
        self.bn2 = nn.BatchNorm2d(4)
        self.drop = nn.Identity()

    def forward(self, x, r):
        bn, bn1, bn2, drop = self.bn, self.bn1, self.bn2, self.drop
        {statements}
        return self.conv({result})
"""


def patterns() -> list[tuple[str, str]]:
    """Each spelling in the table, with what it is fused with."""
    content = text(PAGE)
    section = content[content.index("### Patterns") : content.index("### What is not fused")]
    rows = re.findall(r"^\| (`.*) \| (.*) \|$", section, re.MULTILINE)
    return [(code, label) for spellings, label in rows for code in re.findall(r"`([^`]*\(.*?)`", spellings)]


def test_patterns_are_found_as_the_table_says(tmp_path: Path) -> None:
    found = patterns()
    assert len(found) >= 7
    for number, (code, label) in enumerate(found):
        model: Any = fused_bn.fuse(written(code, tmp_path / f"written{number}.py"))
        fused = {norm.name: norm.fused for norm in model.fusion_report.norms}
        if label.startswith("the later norm"):
            assert sorted(fused.values()) == [(), ("add",)], code
        else:
            assert fused["bn"] == (() if label.startswith("nothing") else (label,)), code
        model(torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3))


def written(code: str, path: Path) -> nn.Module:
    """A model with this code in its forward, from a file of its own, because fuse reads the source."""
    *statements, result = code.split("; ")
    path.write_text(MODULE.format(statements="; ".join(statements) or "pass", result=result))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = module.Block()
    return model


def test_all_activations_are_listed() -> None:
    assert f"| `activation` | {', '.join(ACTIVATIONS)}; or " in text(PAGE)


def test_how_many_norms_are_fused() -> None:
    """ResNet-50's norms. test_fuse_transformers.py counts MobileNetV2's."""
    with torch.device("meta"):
        model: Any = fused_bn.fuse(ResNet50())
    norms, fused = model.fusion_report.norms, model.fusion_report.fused
    assert f"Of {len(norms)} norms of ResNet-50 `fuse` joins {len(fused)} with" in unwrapped(PAGE)
    fused, norms = re.findall(r"mobilenet, (\d+), (\d+), ", text("tests/fuse/test_fuse_transformers.py"))[0]
    assert f"of {norms} of MobileNetV2 it is {fused}" in unwrapped(PAGE)


def test_from_which_size_outputs_are_computed_again() -> None:
    assert f"for outputs of {WORTH_BYTES / 2**20:g} MiB or more" in unwrapped(PAGE)
