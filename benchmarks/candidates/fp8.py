"""Frozen weights and what they are multiplied with in fp8 (e4m3), one scale per row of each.

Micikevicius et al., 2022 (arXiv:2209.05433). The tensor cores want both factors with the summed
dimension last, so the pullback has a transposed copy of the weight: two bytes per weight in all,
as in bf16.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

LARGEST = 448.0
"""Of e4m3."""


class Scaled(NamedTuple):
    """e4m3 [rows, n] and its scales, fp32 [rows, 1]."""

    values: Tensor
    scale: Tensor


def eight_bits(x: Tensor) -> Scaled:
    """Each row by its largest entry."""
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp_(min=1e-12).div_(LARGEST)
    return Scaled((x / scale).to(torch.float8_e4m3fn), scale)


def scaled_product(x: Scaled, weight: Scaled, dtype: torch.dtype) -> Tensor:
    """x [T, in] times weight [out, in] transposed."""
    if not x.values.is_cuda:  # a stand-in with the same numbers
        exact = x.values.float() @ weight.values.float().t()
        return (exact * x.scale * weight.scale.t()).to(dtype)
    return torch._scaled_mm(
        x.values,
        weight.values.t(),
        scale_a=x.scale,
        scale_b=weight.scale.t(),
        out_dtype=dtype,
        use_fast_accum=True,
    )


def quantise(x: Tensor) -> Scaled:
    """As `eight_bits`, by one kernel on a GPU that has Triton."""
    if not x.is_cuda:
        return eight_bits(x)
    try:
        from suri.model.triton_rows import quantise_rows
    except ImportError:
        return eight_bits(x)
    return Scaled(*quantise_rows(x, torch.float8_e4m3fn, LARGEST))


class Fp8(nn.Module):
    """A frozen weight in fp8, as a Storage."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        weight = torch.cat([*weights]) if len(weights) > 1 else weights[0]
        self.forth = eight_bits(weight)
        self.back = eight_bits(weight.t().contiguous())

    def product(self, x: Tensor) -> Tensor:
        """As in Storage."""
        return scaled_product(quantise(x), self.forth, x.dtype)

    def pullback(self, gradient: Tensor) -> Tensor:
        """As in Storage."""
        return scaled_product(quantise(gradient), self.back, gradient.dtype)
