"""Frozen weights and what they are multiplied with in 8-bit floating point, on GPUs that do it."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from suri.model.kernels import on_gpu, product

E4M3 = torch.float8_e4m3fn
"""Four bits of exponent and three of mantissa (Micikevicius et al., 2022, arXiv:2209.05433)."""
LARGEST = 448.0
"""The largest number in e4m3."""
CAPABILITY = (8, 9)
"""The least compute capability of a GPU that multiplies them."""
MULTIPLE = 16
"""What both sides of a weight must be multiples of for torch._scaled_mm."""
BLOCK_NUMBERS = 4_000_000
"""Most numbers of a weight that are quantised at once."""


class Scaled(NamedTuple):
    """e4m3 [rows, n] and the scale of each row, fp32 [rows, 1]."""

    values: Tensor
    scale: Tensor

    def dense(self, dtype: torch.dtype) -> Tensor:
        """What they stand for, [rows, n]."""
        return (self.values.float() * self.scale).to(dtype)


def eight_bits(x: Tensor) -> Scaled:
    """x [rows, n] rounded to e4m3, the largest entry of each row to LARGEST.

    e4m3 has an exponent in each number: beside an outlier the others keep their digits down to
    1/28672 of it. So no column need stay exact, as it must in int8.
    """
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp_(min=1e-12).div_(LARGEST)
    return Scaled((x / scale).to(E4M3).contiguous(), scale)


def quantise(x: Tensor) -> Scaled:
    """As `eight_bits`, in one pass on a GPU where Triton works."""
    kernels = on_gpu(x)
    return Scaled(*kernels.quantise_rows(x, E4M3, LARGEST)) if kernels else eight_bits(x)


def scaled_product(x: Scaled, weight: Scaled, dtype: torch.dtype) -> Tensor:
    """x [T, in] times weight [out, in] transposed gives [T, out]; on a GPU `dtype` is bf16."""
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


class Fp8(nn.Module):
    """A frozen weight in e4m3, multiplied in it: each token is quantised by its largest entry.

    y = s_x * s_w * (x8 W8^T). The units take both factors with the summed dimension last, so the
    pullback has a transposed copy with scales of its own: two bytes per weight in all, as in bf16.
    On a GPU, weights of sides that the units do not take become x's dtype for each product.
    """

    weight: Tensor
    scale: Tensor
    weight_turned: Tensor
    scale_turned: Tensor

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        rows = max(1, BLOCK_NUMBERS // weights[0].shape[1])
        self._keep("", (block for weight in weights for block in weight.split(rows)))
        columns = max(1, BLOCK_NUMBERS // sum(len(weight) for weight in weights))
        parts = zip(*(weight.t().split(columns) for weight in weights), strict=True)
        self._keep("_turned", (torch.cat(part, dim=1) for part in parts))

    def _keep(self, name: str, blocks: Iterable[Tensor]) -> None:
        """Quantise one block after the other, so that no copy of a whole weight is ever made.

        Bytes, because not everything that moves tensors, between processes say, knows e4m3.
        """
        found = [quantise(block) for block in blocks]
        values = torch.cat([block.values.view(torch.uint8) for block in found])
        self.register_buffer(f"weight{name}", values)
        self.register_buffer(f"scale{name}", torch.cat([block.scale for block in found]))

    def product(self, x: Tensor) -> Tensor:
        """As in Storage."""
        return _product(x, Scaled(self.weight.view(E4M3), self.scale))

    def pullback(self, gradient: Tensor) -> Tensor:
        """As in Storage."""
        return _product(gradient, Scaled(self.weight_turned.view(E4M3), self.scale_turned))


def _product(x: Tensor, weight: Scaled) -> Tensor:
    """x [T, in] times weight [out, in] transposed; x is rounded where the units take it."""
    fits = not any(size % MULTIPLE for size in weight.values.shape) and x.dtype == torch.bfloat16
    if x.is_cuda and not fits:
        return product(x, weight.dense(x.dtype))
    return scaled_product(quantise(x), weight, x.dtype)
