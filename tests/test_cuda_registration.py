"""A build with CUDA registers what `fused_bn` then uses; no GPU is needed to see that."""

from typing import Any

import pytest
import torch

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
    """Else CUDA tensors would silently be computed by plain PyTorch calls."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fused_bn::{operator}", "CUDA")
    assert "cuda" in devices_with_kernels


@pytest.mark.core
def test_importing_launches_nothing(cuda_build: Any) -> None:
    if not torch.cuda.is_available():
        assert cuda_build.cuda_launches() == 0
