"""A frozen linear layer, or several fused, with low-rank pairs on top and its gradient by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from suri.model.elementwise import Before, Unchanged
from suri.model.kernels import product
from suri.model.lora import low_rank
from suri.model.storage import STORAGE, Storage, Unread

UNCHANGED = Unchanged()


@dataclass(frozen=True)
class Dropout:
    """Which inputs of the adapter are dropped, as a function of the row and never of the batch.

    Masks are drawn for a whole document from (seed, step, row, module), so that cutting a batch
    into other micro-batches changes nothing, and drawing them again gives the same ones.
    They are drawn where x is; a GPU draws others than a CPU.
    """

    probability: float
    seed: int
    step: int
    rows: tuple[int, ...]
    lengths: tuple[int, ...]

    def __call__(self, x: Tensor, module: int) -> Tensor:
        """x [T, in] with entries zeroed and the rest scaled by 1 / (1 - probability)."""
        masks = [
            torch.rand(
                (length, x.shape[1]),
                generator=self._generator(row, module, x.device),
                device=x.device,
            )
            for row, length in zip(self.rows, self.lengths, strict=True)
        ]
        kept = torch.cat(masks) >= self.probability
        return x * kept.to(x) / (1 - self.probability)

    def _generator(self, row: int, module: int, device: torch.device) -> torch.Generator:
        key = hash((self.seed, self.step, row, module)) & (2**63 - 1)
        return torch.Generator(device).manual_seed(key)


class LowRank(nn.Module):
    """The trainable pair of one linear: A [r, in] and B [out, r], kept in fp32."""

    def __init__(self, a: Tensor, b: Tensor, scaling: float, number: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.scaling, self.number = scaling, number

    def inputs(self, h: Tensor, dropout: Dropout | None) -> Tensor:
        """What A is multiplied with."""
        return h if dropout is None else dropout(h, self.number)


class Linear(nn.Module):
    """One or several linears with the same input, stored and multiplied as one.

    `names` are the parts' names in the layer, e.g. q_proj, k_proj, v_proj; each part may carry
    its own low-rank pair, which adds to that part's columns of the output.
    """

    bias: Tensor | None

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[Tensor | Unread],
        bias: Tensor | None,
        quantize: str,
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self.sizes = tuple(len(weight) for weight in weights)
        self.base: Storage = STORAGE[quantize](weights)
        self.register_buffer("bias", bias)
        self.pairs = nn.ModuleDict()
        self.device = weights[0].device

    def forward(
        self, x: Tensor, before: Before = UNCHANGED, dropout: Dropout | None = None
    ) -> Tensor:
        """The parts side by side, [T, sum of outs], of h = before(x), [T, in]."""
        placed = [
            (cast(LowRank, self.pairs[name]), slice(end - size, end))
            for name, size, end in zip(self.names, self.sizes, _ends(self.sizes), strict=True)
            if name in self.pairs
        ]
        factors = [factor for pair, _ in placed for factor in (pair.a, pair.b)]
        if torch.is_grad_enabled() and (x.requires_grad or any(f.requires_grad for f in factors)):
            call = _Call(self, before, dropout, placed)
            return cast(Tensor, _Product.apply(x, call, *factors))  # type: ignore[no-untyped-call]
        return _Call(self, before, dropout, placed).value(x)[0]


def _ends(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[: i + 1]) for i in range(len(sizes))]


@dataclass(frozen=True)
class _Call:
    """One use of a linear: what stands before it, and its pairs with their columns of y."""

    linear: Linear
    before: Before
    dropout: Dropout | None
    placed: list[tuple[LowRank, slice]]

    def value(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """y [T, out], and each pair's projection [T, r]."""
        h = self.before.value(x)
        y = self.linear.base.product(h)
        if self.linear.bias is not None:
            y += self.linear.bias
        projected = [
            product(pair.inputs(h, self.dropout), pair.a.to(h.dtype)) for pair, _ in self.placed
        ]
        for (pair, columns), thin in zip(self.placed, projected, strict=True):
            low_rank(thin, pair.b.to(h.dtype), pair.scaling, onto=y[:, columns])
        return y, projected


class _Product(torch.autograd.Function):
    """Keeps x and the thin projections; h = before(x) is computed again in the backward pass.

    With e = h A^T, y = h W^T + s e B^T and g the gradient of y, d = s g B is the gradient of e:
    dB = s g^T e, dA = d^T h, dh = g W + d A. W is frozen and has none.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: _Call, *factors: Tensor) -> Tensor:  # noqa: ARG004
        y, projected = call.value(x)
        ctx.call = call
        ctx.save_for_backward(x, *projected)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, *projected), call = gradients, ctx.saved_tensors, ctx.call
        wanted = ctx.needs_input_grad[0]
        dh = call.linear.base.pullback(gradient) if wanted else None
        h = call.before.value(x) if call.placed else None
        found: list[Tensor | None] = []
        for (pair, columns), thin in zip(call.placed, projected, strict=True):
            part, a = gradient[:, columns], pair.a.to(gradient.dtype)
            slope = low_rank(part, pair.b.to(gradient.dtype).t(), pair.scaling)
            inputs = pair.inputs(h, call.dropout)
            # e^T g, not g^T e: thin matrices on the left multiply several times faster.
            found += [slope.t() @ inputs, (thin.t() @ part).t() * pair.scaling]
            if dh is not None:
                _add_pulled(dh, slope, a, pair, call.dropout)
        dx = None if dh is None else call.before.pullback(x, dh)
        return (dx, None, *(None if f is None else f.float() for f in found))


def _add_pulled(
    dh: Tensor, slope: Tensor, a: Tensor, pair: LowRank, dropout: Dropout | None
) -> None:
    """Add the pair's part of the input's gradient, d A, through its dropout mask."""
    if dropout is None:
        dh.addmm_(slope, a)
    else:
        dh += dropout(slope @ a, pair.number)
