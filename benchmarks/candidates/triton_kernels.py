"""What stands between the products, each in one pass over memory, as Triton kernels.

The maths is that of suri/model/elementwise.py; the values are computed in fp32 and rounded once.
No kernel uses shared memory beyond that of a sum over a block, so that 100 KB (compute capability
8.6) are far away. TRITON_INTERPRET=1 runs them on a CPU, slowly.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _norm(x, weight, y, size, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * size
    place = tl.arange(0, BLOCK)
    inside = place < size
    value = tl.load(x + row + place, mask=inside, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(value * value) / size + eps)
    scale = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row + place, (value * inverse * scale).to(y.dtype.element_ty), mask=inside)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., size] divided by its root mean square, times weight [size]."""
    x = x.contiguous()
    y, size = torch.empty_like(x), x.shape[-1]
    _norm[(x.numel() // size,)](
        x, weight, y, size, eps, BLOCK=triton.next_power_of_2(size), num_warps=8
    )
    return y


@triton.jit
def _norm_pullback(x, gradient, weight, dx, size, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * size
    place = tl.arange(0, BLOCK)
    inside = place < size
    value = tl.load(x + row + place, mask=inside, other=0.0).to(tl.float32)
    pulled = tl.load(gradient + row + place, mask=inside, other=0.0).to(tl.float32)
    pulled *= tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(value * value) / size + eps)
    normed = value * inverse
    mean = tl.sum(pulled * normed) / size
    result = (pulled - normed * mean) * inverse
    tl.store(dx + row + place, result.to(dx.dtype.element_ty), mask=inside)


def norm_pullback(x: Tensor, gradient: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The gradient of x, given that of the norm's value."""
    x, gradient = x.contiguous(), gradient.contiguous()
    dx, size = torch.empty_like(x), x.shape[-1]
    _norm_pullback[(x.numel() // size,)](
        x, gradient, weight, dx, size, eps, BLOCK=triton.next_power_of_2(size), num_warps=8
    )
    return dx


@triton.jit
def _swiglu(x, y, inner, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < inner
    gate = tl.load(x + 2 * row * inner + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + 2 * row * inner + inner + place, mask=inside, other=0.0).to(tl.float32)
    value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(y + row * inner + place, value.to(y.dtype.element_ty), mask=inside)


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up of x [T, 2 * inner] = (gate, up)."""
    x = x.contiguous()
    tokens, inner = x.shape[0], x.shape[1] // 2
    y = torch.empty(tokens, inner, dtype=x.dtype, device=x.device)
    _swiglu[(tokens, triton.cdiv(inner, BLOCK))](x, y, inner, BLOCK=BLOCK)
    return y


@triton.jit
def _swiglu_pullback(x, gradient, dx, inner, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < inner
    first = 2 * row * inner + place
    gate = tl.load(x + first, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + first + inner, mask=inside, other=0.0).to(tl.float32)
    pulled = tl.load(gradient + row * inner + place, mask=inside, other=0.0).to(tl.float32)
    chance = 1.0 / (1.0 + tl.exp(-gate))
    for_gate = pulled * up * chance * (1.0 + gate * (1.0 - chance))
    tl.store(dx + first, for_gate.to(dx.dtype.element_ty), mask=inside)
    for_up = (pulled * gate * chance).to(dx.dtype.element_ty)
    tl.store(dx + first + inner, for_up, mask=inside)


def swiglu_pullback(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of x, given that of silu(gate) * up."""
    x, gradient = x.contiguous(), gradient.contiguous()
    tokens, inner = gradient.shape
    dx = torch.empty_like(x)
    _swiglu_pullback[(tokens, triton.cdiv(inner, BLOCK))](x, gradient, dx, inner, BLOCK=BLOCK)
    return dx


@triton.jit
def _turn(x, cos, sin, stride, heads, half, HEADS: tl.constexpr, HALF: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    head, pair = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (pair < half)
    place = x + token * stride + head * 2 * half + pair
    a = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + token * half + pair, mask=pair < half, other=0.0).to(tl.float32)
    s = tl.load(sin + token * half + pair, mask=pair < half, other=0.0).to(tl.float32)
    tl.store(place, (a * c - b * s).to(x.dtype.element_ty), mask=inside)
    tl.store(place + half, (b * c + a * s).to(x.dtype.element_ty), mask=inside)


def turn(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Pairs (i, i + d/2) of the first `heads` heads of x [T, all heads, d] turned, in x itself.

    cos and sin [T, 1, d/2]. Each pair is read and written by one program alone.
    """
    tokens, _, size = x.shape
    if x.stride(-1) != 1 or x.stride(1) != size:
        return x.copy_(turn(x.contiguous(), cos, sin, heads))
    blocks = {"HEADS": triton.next_power_of_2(heads), "HALF": triton.next_power_of_2(size // 2)}
    _turn[(tokens,)](x, cos.contiguous(), sin.contiguous(), x.stride(0), heads, size // 2, **blocks)
    return x


@triton.jit
def _scaled_sums(sums, rows, columns, y, size, HAS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    value = tl.load(sums + row * size + place, mask=inside, other=0).to(tl.float32)
    value *= tl.load(rows + row)
    if HAS:
        value *= tl.load(columns + place, mask=inside, other=0.0)
    tl.store(y + row * size + place, value.to(y.dtype.element_ty), mask=inside)


def scaled_sums(sums: Tensor, rows: Tensor, columns: Tensor | None, dtype: torch.dtype) -> Tensor:
    """int32 [T, n] times its rows' scales [T, 1] and its columns' [n]."""
    tokens, size = sums.shape
    y = torch.empty(sums.shape, dtype=dtype, device=sums.device)
    given = rows if columns is None else columns.float()
    _scaled_sums[(tokens, triton.cdiv(size, BLOCK))](
        sums, rows, given, y, size, HAS=columns is not None, BLOCK=BLOCK
    )
    return y


@triton.jit
def _unpack_nf4(packed, scale, levels, y, count, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    byte = tl.load(packed + place // 2, mask=inside, other=0).to(tl.int32)
    code = (byte >> (4 * (1 - place % 2))) & 15
    value = tl.load(levels + code) * tl.load(scale + place // SIZE, mask=inside, other=0.0)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=inside)


def unpack_nf4(
    packed: Tensor, scale: Tensor, levels: Tensor, shape: torch.Size, dtype: torch.dtype
) -> Tensor:
    """Values of `shape` from codes uint8 [n / 2] and scales fp32 [n / 64]."""
    y = torch.empty(shape, dtype=dtype, device=packed.device)
    count = y.numel()
    _unpack_nf4[(triton.cdiv(count, BLOCK),)](
        packed, scale, levels, y, count, SIZE=count // len(scale), BLOCK=BLOCK
    )
    return y
