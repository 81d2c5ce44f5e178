"""Rows of numbers in 8 bits, each by its largest entry, in one Triton kernel.

Read twice and written once, where plain torch makes a copy in fp32 on the way.
TRITON_INTERPRET=1 runs it on a CPU, slowly.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _quantise_rows(x, columns, q, scale, largest, SIZE: tl.constexpr, HAS: tl.constexpr,
                   ROUND: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    most = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, SIZE, BLOCK):
        place = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * SIZE + place, mask=place < SIZE, other=0.0).to(tl.float32)
        if HAS:
            value *= tl.load(columns + place, mask=place < SIZE, other=0.0)
        most = tl.maximum(most, tl.abs(value))
    step = tl.maximum(tl.max(most), 1e-12) / largest
    tl.store(scale + row, step)
    for start in range(0, SIZE, BLOCK):
        place = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * SIZE + place, mask=place < SIZE, other=0.0).to(tl.float32)
        if HAS:
            value *= tl.load(columns + place, mask=place < SIZE, other=0.0)
        value = value / step
        if ROUND:
            value = tl.floor(value + 0.5)
        tl.store(q + row * SIZE + place, value.to(q.dtype.element_ty), mask=place < SIZE)


def quantise_rows(
    x: Tensor, dtype: torch.dtype, largest: float, columns: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x [T, n], times `columns` [n], in 8 bits by each row's largest entry; scales fp32 [T, 1]."""
    x = x.contiguous()
    tokens, size = x.shape
    q = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty(tokens, 1, dtype=torch.float32, device=x.device)
    given = scale if columns is None else columns.float()
    _quantise_rows[(tokens,)](
        x, given, q, scale, largest, SIZE=size, HAS=columns is not None,
        ROUND=not dtype.is_floating_point, BLOCK=min(2048, triton.next_power_of_2(size)),
    )  # fmt: skip
    return q, scale
