"""What a layer computes between its products, each with its gradient by hand.

Autograd would keep several copies of every activation; here nothing is kept but the input, and the
values are computed again in the backward pass, which costs less than keeping them.
"""

from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suri.model.kernels import on_gpu


class Before(Protocol):
    """What stands before a product: a cheap function of its input."""

    def value(self, x: Tensor) -> Tensor:
        """The product's input [T, in] from x."""
        ...

    def pullback(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of x, of x's shape, given that of the value."""
        ...


class Unchanged:
    """Nothing stands before the product."""

    def value(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def pullback(self, x: Tensor, gradient: Tensor) -> Tensor:  # noqa: ARG002
        """The gradient itself."""
        return gradient


class Norm(nn.Module):
    """Root-mean-square norm in fp32 (Zhang and Sennrich, 2019, arXiv:1910.07467).

    y = w * x / rms(x); with n = x / rms(x) the gradient of x is (w g - n * mean(w g n)) / rms(x).
    """

    weight: Tensor

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] gives the same shape and dtype."""
        if not x.requires_grad:
            return self.value(x)
        return cast(Tensor, _Apply.apply(x, self))  # type: ignore[no-untyped-call]

    def value(self, x: Tensor) -> Tensor:
        """As forward, without a gradient."""
        if kernels := on_gpu(x):
            return cast(Tensor, kernels.norm(x, self.weight, self.eps))
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        normed, _ = self._normed(x)
        return self.weight * normed.to(x.dtype)

    def pullback(self, x: Tensor, gradient: Tensor) -> Tensor:
        """As in Before."""
        if kernels := on_gpu(x):
            return cast(Tensor, kernels.norm_pullback(x, gradient, self.weight, self.eps))
        normed, inverse = self._normed(x)
        weighted = (gradient * self.weight).float()
        mean = (weighted * normed).mean(-1, keepdim=True)
        return weighted.sub_(normed.mul_(mean)).mul_(inverse).to(x.dtype)

    def _normed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.float()
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide * inverse, inverse


class SwiGLU:
    """silu(gate) * up of x = (gate, up) side by side (Shazeer, 2020, arXiv:2002.05202)."""

    def value(self, x: Tensor) -> Tensor:
        """x [T, 2 * inner] gives [T, inner]."""
        if kernels := on_gpu(x):
            return cast(Tensor, kernels.swiglu(x))
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def pullback(self, x: Tensor, gradient: Tensor) -> Tensor:
        """As in Before."""
        if kernels := on_gpu(x):
            return cast(Tensor, kernels.swiglu_pullback(x, gradient))
        gate, up = x.chunk(2, dim=-1)
        result = torch.empty_like(x)
        for_gate, for_up = result.chunk(2, dim=-1)
        torch.mul(F.silu(gate), gradient, out=for_up)
        for_gate.copy_(torch.ops.aten.silu_backward(gradient * up, gate))
        return result


class _Apply(torch.autograd.Function):
    """The value of a `Before`, standing alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: Before) -> Tensor:
        ctx.save_for_backward(x)
        ctx.before = before
        return before.value(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.before.pullback(x, gradients[0]), None


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor], heads: int) -> Tensor:
    """Turn the first `heads` heads of x [T, all heads * d] by their positions' angles, in place.

    Pairs (i, i + d/2) turn; `rotation` is (cos, sin), each [T, 1, d/2]. Rotary embedding
    (Su et al., 2021, arXiv:2104.09864) in the half-split layout of HF weights. x is given up; were
    it a view, autograd would copy all of it several times.
    """
    cos, sin = rotation
    if not x.requires_grad:
        return _turn(x, cos, sin, heads)
    return cast(Tensor, _Rotation.apply(x, cos, sin, heads))  # type: ignore[no-untyped-call]


def _turn(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    by_head = x.view(len(x), -1, 2 * cos.shape[-1])
    if kernels := on_gpu(x):
        kernels.turn(by_head, cos, sin, heads)
        return x
    first, second = by_head[:, :heads].chunk(2, dim=-1)
    unturned = first.clone()
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).addcmul_(unturned, sin)
    return x


class _Rotation(torch.autograd.Function):
    """Backward turns a copy of the gradient the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.heads = heads
        ctx.mark_dirty(x)
        return _turn(x, cos, sin, heads)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(gradients[0].clone(), cos, -sin, ctx.heads), None, None, None
