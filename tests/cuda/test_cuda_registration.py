"""What a build with CUDA registers, and that `fused_bn` uses it. These tests need no GPU."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fused_bn._extension import devices_with_kernels, extension

OPERATORS = (
    *("batch_norm_forward", "batch_norm_elementwise", "batch_norm_moments", "batch_norm_merge"),
    *("batch_norm_backward", "batch_norm_backward_sums", "batch_norm_backward_elementwise"),
)


@pytest.fixture
def cuda_build() -> Any:
    if extension is None or not extension.build_info()["cuda_version"]:
        pytest.skip("the extension was built without CUDA kernels")
    return extension


@pytest.mark.core
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.usefixtures("cuda_build")
def test_every_operator_has_a_cuda_kernel(operator: str) -> None:
    """Without the registration plain PyTorch calls would silently compute CUDA tensors."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fused_bn::{operator}", "CUDA")
    assert "cuda" in devices_with_kernels


@pytest.mark.core
def test_importing_launches_nothing(cuda_build: Any) -> None:
    if not torch.cuda.is_available():
        assert cuda_build.cuda_launches() == 0


@pytest.mark.core
def test_plans_are_forced_by_text(cuda_build: Any) -> None:
    with pytest.raises(ValueError, match="a plan is 'resident' or 'streamed'"):
        cuda_build.cuda_force_plan("resident exchange=barrier")
    cuda_build.cuda_force_plan("streamed group=4")
    cuda_build.cuda_force_plan("")
    if not torch.cuda.is_available():
        assert cuda_build.cuda_last_plan() == ""


@pytest.mark.needs_extension
@pytest.mark.parametrize(("shape", "size"), [((3, 5, 7, 7), 92), ((4, 8, 10, 10), 400), ((0, 3, 4, 4), 0)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_mask_on_cuda_has_a_bit_an_element(
    shape: tuple[int, ...], size: int, layout: torch.memory_format
) -> None:
    """Its shape does not depend on the layout, so that compilers may change the layout."""
    with FakeTensorMode():
        x = torch.empty(shape, device="cuda", memory_format=layout)
        for residual, expected in ((x, size), (None, 0)):
            _, _, mask, _ = torch.ops.fused_bn.batch_norm_forward(
                x, residual, *[None] * 5, True, 0.1, 1e-5, "relu", 0.0, None, True
            )
            assert mask.shape == (expected,)
            assert mask.device == x.device
