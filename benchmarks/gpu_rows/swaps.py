"""Another way to compute what stands between the products, put in place of the plain one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpu_rows.bench import Bench
from gpu_rows.rates import tokens_of
from suri.model import elementwise
from suri.model.elementwise import Norm, SwiGLU


@dataclass(frozen=True)
class Elementwise:
    """The five functions of suri/model/elementwise.py, free of their classes."""

    norm: Callable[[Tensor, Tensor, float], Tensor]
    """x, weight, eps."""
    norm_pullback: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    """x, gradient, weight, eps."""
    swiglu: Callable[[Tensor], Tensor]
    swiglu_pullback: Callable[[Tensor, Tensor], Tensor]
    """x, gradient."""
    turn: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    """x [T, all heads, d], cos, sin, heads: turns the first heads of x in place and gives x."""


@contextmanager
def swapped(way: Elementwise) -> Iterator[None]:
    """Let the decoder compute in this way for a while."""
    before = (Norm.value, Norm.pullback, SwiGLU.value, SwiGLU.pullback, elementwise._turn)
    Norm.value = lambda self, x: way.norm(x, self.weight, self.eps)  # type: ignore[method-assign]
    Norm.pullback = lambda self, x, g: way.norm_pullback(x, g, self.weight, self.eps)  # type: ignore[method-assign]
    SwiGLU.value = lambda _, x: way.swiglu(x)  # type: ignore[method-assign]
    SwiGLU.pullback = lambda _, x, g: way.swiglu_pullback(x, g)  # type: ignore[method-assign]
    elementwise._turn = way.turn
    try:
        yield
    finally:
        Norm.value, Norm.pullback, SwiGLU.value, SwiGLU.pullback, elementwise._turn = before


def compare(bench: Bench, name: str, way: Elementwise, sizes: tuple[int, int, int, int]) -> None:
    """Each function against the plain one in fp32, and its time beside the plain one's in bf16.

    sizes: hidden, inner, heads (of q and k together) and head_dim.
    """
    hidden, inner, heads, size = sizes
    tokens = 37 if bench.tiny else tokens_of(bench)
    x, g = _drawn(bench, tokens, hidden), _drawn(bench, tokens, hidden)
    weight, eps = 1 + 0.1 * _drawn(bench, hidden), 1e-5
    wide, narrow = _drawn(bench, tokens, 2 * inner), _drawn(bench, tokens, inner)
    # As in the model: heads of values behind them stay as they are, and all share the cosines.
    turning = _drawn(bench, tokens, heads + heads // 2, size)
    angles = torch.rand(tokens, 1, size // 2, device=bench.device) * 6
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    cases = {
        "norm": (way.norm, _norm, (x, weight, eps)),
        "norm, gradient": (way.norm_pullback, _norm_pullback, (x, g, weight, eps)),
        "SwiGLU": (way.swiglu, SwiGLU().value, (wide,)),
        "SwiGLU, gradient": (way.swiglu_pullback, SwiGLU().pullback, (wide, narrow)),
        "rotary": (_in_place(way.turn), _in_place(elementwise._turn), (turning, cos, sin, heads)),
    }
    for what, (found, plain, inputs) in cases.items():
        precise = [i.float() if isinstance(i, Tensor) else i for i in inputs]
        bench.check(f"{name}: {what}", found(*inputs), plain(*precise), 1e-2)
        for label, work in (("plain", plain), (name, found)):
            seconds = bench.times(lambda work=work, i=inputs: [work(*i) for _ in range(10)])
            bench.figure(f"{label}: {what}", [1e5 * t for t in seconds], "us")


def _drawn(bench: Bench, *shape: int) -> Tensor:
    return torch.randn(shape, device=bench.device, dtype=torch.bfloat16)


def _in_place(turn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What lies in the first input afterwards, whatever is returned."""

    def call(x: Tensor, *others: Any) -> Tensor:
        if turn(x, *others) is not x:
            raise ValueError("turned another tensor than the one given")
        return x

    return call


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return Norm(weight, eps).value(x)


def _norm_pullback(x: Tensor, g: Tensor, weight: Tensor, eps: float) -> Tensor:
    return Norm(weight, eps).pullback(x, g)
