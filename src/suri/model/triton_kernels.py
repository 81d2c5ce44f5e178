"""What stands between a layer's products, each in one pass over a GPU's memory.

Triton kernels of maths that is also there in plain torch; values are computed in fp32 and rounded
once. TRITON_INTERPRET=1 runs them on a CPU, slowly.
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
    """The first `heads` heads of x [T, all heads, d] turned, in x itself; cos and sin [T, 1, d/2].

    Each pair is read and written by one program alone.
    """
    tokens, _, size = x.shape
    if x.stride(-1) != 1 or x.stride(1) != size:
        return x.copy_(turn(x.contiguous(), cos, sin, heads))
    blocks = {"HEADS": triton.next_power_of_2(heads), "HALF": triton.next_power_of_2(size // 2)}
    _turn[(tokens,)](x, cos.contiguous(), sin.contiguous(), x.stride(0), heads, size // 2, **blocks)
    return x


@triton.jit
def _quantise_rows(x, q, scale, largest, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    most = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, SIZE, BLOCK):
        place = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * SIZE + place, mask=place < SIZE, other=0.0).to(tl.float32)
        most = tl.maximum(most, tl.abs(value))
    step = tl.maximum(tl.max(most), 1e-12) / largest
    tl.store(scale + row, step)
    for start in range(0, SIZE, BLOCK):
        place = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * SIZE + place, mask=place < SIZE, other=0.0).to(tl.float32)
        tl.store(q + row * SIZE + place, (value / step).to(q.dtype.element_ty), mask=place < SIZE)


def quantise_rows(x: Tensor, dtype: torch.dtype, largest: float) -> tuple[Tensor, Tensor]:
    """x [T, n] as `dtype`, the largest entry of each row as `largest`; scales fp32 [T, 1]."""
    x = x.contiguous()
    tokens, size = x.shape
    q = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty(tokens, 1, dtype=torch.float32, device=x.device)
    block = min(2048, triton.next_power_of_2(size))
    _quantise_rows[(tokens,)](x, q, scale, largest, SIZE=size, BLOCK=block)
    return q, scale


@triton.jit
def _place(new, held, positions, stride, for_row, for_head, size, BLOCK: tl.constexpr):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    entry = tl.arange(0, BLOCK)
    value = tl.load(new + row * stride + head * size + entry, mask=entry < size)
    start = row * for_row + head * for_head + tl.load(positions + row) * size
    tl.store(held + start + entry, value, mask=entry < size)


def place(new: Tensor, held: Tensor, positions: Tensor) -> None:
    """Write new [rows, heads, d] into held [rows, heads, keys, d], at each row's position."""
    rows, heads, size = new.shape
    if (new.stride(1), new.stride(2), held.stride(2), held.stride(3)) != (size, 1, size, 1):
        raise ValueError(f"strides {new.stride()} and {held.stride()}")
    _place[(rows, heads)](
        new, held, positions, new.stride(0), held.stride(0), held.stride(1), size,
        BLOCK=triton.next_power_of_2(size),
    )  # fmt: skip
