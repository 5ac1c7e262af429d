"""Unsupported uses: devices without a kernel use plain PyTorch calls; everything else raises an error."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import fused_bn
from fused_bn import _fallback, functional
from tests.cases import HAS_EXTENSION, present
from tests.modules.test_module import OUTPUT_TOLERANCE


@pytest.mark.skipif(not HAS_EXTENSION, reason="without the extension its absence is what is warned of")
def test_a_device_without_kernels_warns_once_and_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is the CPU, treated as by a build without kernels for it."""
    x = torch.randn(2, 3, 4, 4)
    expected = fused_bn.BatchNorm2d(3, activation="relu")(x)
    monkeypatch.setattr(functional, "devices_with_kernels", frozenset())
    monkeypatch.setattr(_fallback, "_warned_of", set())
    norm = fused_bn.BatchNorm2d(3, activation="relu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [norm(x), norm(x)]
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 1, texts
    assert "'cpu'" in texts[0]
    assert "python -m fused_bn" in texts[0]
    for y in found:
        torch.testing.assert_close(y, expected)


@pytest.mark.skipif(not HAS_EXTENSION, reason="the fallback leaves dtypes to PyTorch")
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_8_bit_floats_are_refused(dtype: torch.dtype) -> None:
    """torch counts them as reduced floating types. They would be read as a wider type."""
    x = torch.zeros(2, 3, 4, 4, dtype=dtype)
    with pytest.raises(NotImplementedError, match="Float8"):
        fused_bn.functional.batch_norm(x, None, None, training=True)


NOT_SUPPORTED: dict[str, tuple[Callable[[nn.Module, Tensor], object], str]] = {
    "torch.jit.script": (
        lambda norm, _: torch.jit.script(nn.Sequential(norm)),
        "nn.BatchNorm\\* and a module of the activation",
    ),
    "torch.fx of the module alone": (
        lambda norm, _: fx.symbolic_trace(norm),
        "within a model",
    ),
}


@pytest.mark.needs_extension
@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_what_is_not_supported_raises(name: str, training: bool) -> None:
    """As with nn.BatchNorm2d if torch.fx traces it alone. Nothing is counted."""
    attempt, text = NOT_SUPPORTED[name]
    norm = fused_bn.BatchNorm2d(3, activation="relu").train(training)
    with pytest.raises((RuntimeError, fx.proxy.TraceError), match=text):
        attempt(norm, torch.randn(2, 3, 4, 4))
    assert norm.num_batches_tracked == 0
    assert torch.equal(present(norm.running_var), torch.ones(3))


@pytest.mark.needs_extension
@pytest.mark.parametrize("inference", [True, False])
def test_mkldnn_tensors_are_normalised_by_pytorch(inference: bool) -> None:
    norm = fused_bn.BatchNorm2d(8, activation="relu").eval().requires_grad_(False)
    x = torch.randn(2, 8, 4, 4)
    with torch.inference_mode(inference):
        found = norm(x.to_mkldnn()).to_dense()
    torch.testing.assert_close(found, norm(x), rtol=0, atol=OUTPUT_TOLERANCE)


@pytest.mark.needs_extension
def test_refused_mkldnn_tensors_change_nothing() -> None:
    norm = fused_bn.BatchNorm2d(8, activation="silu").requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"in training MKLDNN tensors take .* but got silu"):
        norm(torch.randn(2, 8, 4, 4).to_mkldnn())
    assert torch.equal(norm.get_buffer("running_mean"), torch.zeros(8))
    assert norm.num_batches_tracked == 0
