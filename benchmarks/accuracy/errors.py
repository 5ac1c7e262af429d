"""The error of a result in ulps: one measure for every quantity, dtype and implementation."""

import math

import torch
from torch import Tensor

SIGNIFICAND_BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def ulp(sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance from each size (float64, >= 0) to the next number of `dtype`, as float64.

    It is 2^(e - p) for sizes in [2^(e-1), 2^e) and a significand of p bits. Below the smallest normal number
    it is the distance of the subnormal numbers.
    """
    smallest = torch.finfo(dtype).smallest_normal
    _, exponent = torch.frexp(sizes.clamp(min=smallest))
    return torch.ldexp(torch.ones_like(sizes), exponent - SIGNIFICAND_BITS[dtype])


def ulps(found: Tensor, exact: Tensor, scale: Tensor) -> float:
    """The largest |found - exact| in ulps of `found`'s dtype, at the larger of |exact| and `scale`.

    `exact` and `scale` (broadcast against it) are float64. The scale is the size of a quantity in its channel
    without cancellation. A sum whose terms cancel, or an output near zero, has the rounding errors of its
    terms. Measured in ulps of the small result, these errors would look like millions.

    A correctly rounded result is within 0.5. If only one of the two is NaN or infinite, the error is
    infinite. An empty result has no error.
    """
    if found.numel() == 0:
        return 0.0
    exact = exact.expand(found.shape)
    unit = ulp(torch.maximum(exact.abs(), scale), found.dtype)
    actual = found.detach().double()
    distance = (actual - exact).abs() / unit
    same = (actual == exact) | (actual.isnan() & exact.isnan())
    return float(torch.where(same, 0.0, distance).nan_to_num(nan=math.inf, posinf=math.inf).max())
