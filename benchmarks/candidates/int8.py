"""Frozen weights multiplied in int8 on a GPU, outlier columns exact.

The pullback has a copy of the weight in the other order, as cuBLAS wants it; where the device takes
any order (`takes_rows`), one copy would do.

The numbers are those of suri.model.storage.Int8. torch._int_mm wants more than
16 rows and widths that are multiples of 8; other inputs take the exact way.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from suri.model.storage import Int8

LARGEST = 127.0


@functools.cache
def takes_rows(device: torch.device) -> bool:
    """Whether the right factor may lie row by row; the other order is always taken."""
    x = torch.ones(33, 64, dtype=torch.int8, device=device)
    try:
        return bool((torch._int_mm(x, x.new_ones(64, 64)) == 64).all())
    except RuntimeError:
        return False


def by_columns(weight: Tensor) -> Tensor:
    """The same numbers [n, m], laid column by column."""
    return weight.t().contiguous().t()


class Int8Torch(Int8):
    """Quantised and scaled by plain torch."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__(weights)
        self.back = by_columns(self.weight)

    def product(self, x: Tensor) -> Tensor:
        """As in Storage."""
        if len(x) <= 16:
            return self._exactly(x, transposed=True)
        shown = x.index_fill(1, self.columns, 0) if len(self.columns) else x
        packed, scale = self.quantise(shown)
        y = self.scaled(torch._int_mm(packed, self.weight.t()), scale, self.scale, x.dtype)
        return y.addmm_(x[:, self.columns], self.exact.t()) if len(self.columns) else y

    def pullback(self, gradient: Tensor) -> Tensor:
        """As in Storage."""
        if len(gradient) <= 16:
            return self._exactly(gradient, transposed=False)
        packed, scale = self.quantise(gradient, self.scale)
        dx = self.scaled(torch._int_mm(packed, self.back), scale, None, gradient.dtype)
        if len(self.columns):
            dx[:, self.columns] = gradient @ self.exact
        return dx

    def quantise(self, x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [T, n], times `columns` [n], as int8 with one scale per row, fp32 [T, 1]."""
        wide = x.float() if columns is None else x * columns
        scale = wide.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12).div_(LARGEST)
        return (wide / scale).round_().to(torch.int8), scale

    def scaled(
        self, sums: Tensor, rows: Tensor, columns: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """int32 [T, n] times its rows' and columns' scales."""
        wide = sums.float().mul_(rows)
        return (wide if columns is None else wide.mul_(columns)).to(dtype)

    def _exactly(self, x: Tensor, *, transposed: bool) -> Tensor:
        weight = self.weight.to(x.dtype) * self.scale.to(x.dtype).unsqueeze(1)
        if len(self.columns):
            weight[:, self.columns] = self.exact
        return x @ (weight.t() if transposed else weight)


class Int8Triton(Int8Torch):
    """Quantised by one kernel and scaled by another."""

    def quantise(self, x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As in Int8Torch."""
        from suri.model.triton_rows import quantise_rows

        return quantise_rows(x, torch.int8, LARGEST, columns)

    def scaled(
        self, sums: Tensor, rows: Tensor, columns: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """As in Int8Torch."""
        from candidates.triton_kernels import scaled_sums

        return scaled_sums(sums, rows, columns, dtype)
