"""The error of a result in ulps: one measure for every quantity, dtype and implementation."""

import math

import torch
from torch import Tensor

SIGNIFICAND_BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def ulp(sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance from a number of each size (float64, >= 0) to the next one of `dtype`, as float64.

    2^(e - p) for sizes in [2^(e-1), 2^e) and a significand of p bits; below the smallest normal number that
    of the subnormal ones.
    """
    smallest = torch.finfo(dtype).smallest_normal
    _, exponent = torch.frexp(sizes.clamp(min=smallest))
    return torch.ldexp(torch.ones_like(sizes), exponent - SIGNIFICAND_BITS[dtype])


def ulps(found: Tensor, exact: Tensor, scale: Tensor) -> float:
    """The largest |found - exact| in ulps of `found`'s dtype, at the larger of |exact| and `scale`.

    `exact` and `scale` (broadcast against it) are float64. The scale is the size that a quantity has in its
    channel where nothing cancels: a sum whose terms happen to cancel, or an output next to zero, owes the
    rounding of its terms, and in ulps of its own would seem wrong by millions. Rounded correctly a result is
    within 0.5. A NaN or an infinity that only one of the two has is an infinite error; an empty result has
    none.
    """
    if found.numel() == 0:
        return 0.0
    exact = exact.expand(found.shape)
    unit = ulp(torch.maximum(exact.abs(), scale), found.dtype)
    actual = found.detach().double()
    distance = (actual - exact).abs() / unit
    same = (actual == exact) | (actual.isnan() & exact.isnan())
    return float(torch.where(same, 0.0, distance).nan_to_num(nan=math.inf, posinf=math.inf).max())
