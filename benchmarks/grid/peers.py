"""Fused layers of other libraries, if they are installed, on CUDA, for the cases that they support."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.comparison import Case, Maker

NEARLY_ZERO = 1e-6
"""Leaky ReLU with this slope equals ReLU within rounding. inplace_abn divides by it, so it is not 0."""


class OnCopy(nn.Module):
    """A layer that overwrites its input. It gets a copy here, so its time includes the copy."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, input: Tensor) -> Tensor:
        return self.norm(input.clone())


class OnPixels(nn.Module):
    """A layer for (N, H, W, C). A channels_last tensor has this form without a copy."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, input: Tensor) -> Tensor:
        return self.norm(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Peer:
    """A row: the module to import, the constructor, and the supported cases."""

    row: str
    module: str
    make: Callable[[Any, int], nn.Module]
    takes: Callable[[Case], bool]


def _apex(module: Any, channels: int) -> nn.Module:
    return OnPixels(module.BatchNorm2d_NHWC(channels, fuse_relu=True))


def _inplace_abn(module: Any, channels: int) -> nn.Module:
    return OnCopy(module.InPlaceABN(channels, activation="leaky_relu", activation_param=NEARLY_ZERO))


PEERS = (
    Peer(
        "apex groupbn",
        "apex.contrib.groupbn.batch_norm",
        _apex,
        lambda case: (case.layout, case.dtype) == ("channels_last", "float16"),
    ),
    Peer("inplace_abn and a copy", "inplace_abn", _inplace_abn, lambda case: case.dtype == "float32"),
    Peer("timm", "timm.layers", lambda m, channels: m.BatchNormAct2d(channels), lambda _: True),
)


def installed(case: Case, device: torch.device) -> dict[str, Maker]:
    """Constructors by row. Empty unless the device is CUDA and the input is (N, C, H, W)."""
    found: dict[str, Maker] = {}
    if device.type != "cuda" or len(case.shape) != 4:
        return found
    for peer in PEERS:
        if peer.takes(case) and (module := _imported(peer.module)) is not None:
            found[peer.row] = lambda channels, make=peer.make, module=module: make(module, channels)  # type: ignore[misc]
    return found


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception:  # not installed, or built for another torch
        return None
