"""Frozen linear layers: dense, int8 or nf4 storage behind one interface, low-rank pairs on top."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suri.errors import UsageError
from suri.model.lora import low_rank

NF4_BLOCK = 64
"""Weights that share one scale; QLoRA's block size (Dettmers et al., 2023, arXiv:2305.14314)."""


class Dense(nn.Module):
    """A frozen weight [out, in] as it is."""

    weight: Tensor

    def __init__(self, parts: Sequence[Tensor]) -> None:
        super().__init__()
        self.register_buffer("weight", parts[0] if len(parts) == 1 else torch.cat(list(parts)))

    def forward(self, x: Tensor) -> Tensor:
        """x [T, in] gives [T, out]."""
        return F.linear(x, self.weight)


class Int8(nn.Module):
    """A frozen weight as int8 with one scale per output row; products run in x's dtype."""

    weight: Tensor
    scale: Tensor

    def __init__(self, parts: Sequence[Tensor]) -> None:
        super().__init__()
        pairs = [quantize_int8(part) for part in parts]
        self.register_buffer("weight", torch.cat([weight for weight, _ in pairs]))
        self.register_buffer("scale", torch.cat([scale for _, scale in pairs]))

    def forward(self, x: Tensor) -> Tensor:
        """x [T, in] gives [T, out]."""
        return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round weight [out, in] to int8 by each row's largest entry; gives it and scale [out]."""
    scale = weight.float().abs().amax(dim=1).clamp(min=1e-12) / 127
    return (weight.float() / scale.unsqueeze(1)).round().to(torch.int8), scale


class NF4(nn.Module):
    """A frozen weight in 4-bit NormalFloat with double quantisation, dequantised for each product.

    Each part is quantised by itself, so that fusing layers never changes their values.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        super().__init__()
        self.packed = [quantize_nf4(part) for part in parts]

    def dense(self) -> Tensor:
        """The weight [out, in] that the products use."""
        return torch.cat([dequantize_nf4(part) for part in self.packed])

    def forward(self, x: Tensor) -> Tensor:
        """x [T, in] gives [T, out]."""
        return cast(Tensor, _NF4Product.apply(x, self))  # type: ignore[no-untyped-call]


class _NF4Product(torch.autograd.Function):
    """x W^T with W dequantised again for the backward pass instead of being kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: NF4) -> Tensor:
        ctx.frozen = frozen
        return F.linear(x, frozen.dense().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.frozen.dense().to(gradient.dtype), None


def quantize_nf4(weight: Tensor) -> tuple[Tensor, Any]:
    """Quantise [out, in] with bitsandbytes: NF4 in blocks of 64, scales themselves in 8 bits."""
    try:
        from bitsandbytes import functional
    except ImportError:
        raise UsageError(
            "4-bit weights need the package bitsandbytes", do="pip install bitsandbytes"
        ) from None
    return cast(
        tuple[Tensor, Any],
        functional.quantize_4bit(
            weight.contiguous(), blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4"
        ),
    )


def dequantize_nf4(packed: tuple[Tensor, Any]) -> Tensor:
    """The values [out, in] that `quantize_nf4` kept, in the dtype it was given."""
    from bitsandbytes import functional

    return cast(Tensor, functional.dequantize_4bit(*packed))


def nf4_roundtrip(weight: Tensor) -> Tensor:
    """The weight as a model in nf4 sees it: quantised and dequantised, same shape and dtype."""
    return dequantize_nf4(quantize_nf4(weight))


STORAGE: dict[str, type[Dense] | type[Int8] | type[NF4]] = {
    "none": Dense,
    "int8": Int8,
    "nf4": NF4,
}


@dataclass(frozen=True)
class Dropout:
    """Which inputs of the adapter are dropped, as a function of the row and never of the batch.

    Masks are drawn for a whole document from (seed, step, row, module), so that cutting a batch
    into other micro-batches changes nothing.
    """

    probability: float
    seed: int
    step: int
    rows: tuple[int, ...]
    lengths: tuple[int, ...]

    def __call__(self, x: Tensor, module: int) -> Tensor:
        """x [T, in] with entries zeroed and the rest scaled by 1 / (1 - probability)."""
        masks = [
            torch.rand((length, x.shape[1]), generator=self._generator(row, module))
            for row, length in zip(self.rows, self.lengths, strict=True)
        ]
        kept = torch.cat(masks) >= self.probability
        return x * kept.to(x) / (1 - self.probability)

    def _generator(self, row: int, module: int) -> torch.Generator:
        key = hash((self.seed, self.step, row, module)) & (2**63 - 1)
        return torch.Generator().manual_seed(key)


class LowRank(nn.Module):
    """The trainable pair of one linear: A [r, in] and B [out, r], kept in fp32."""

    def __init__(self, a: Tensor, b: Tensor, scaling: float, number: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.scaling, self.number = scaling, number

    def forward(self, x: Tensor, dropout: Dropout | None) -> Tensor:
        """x [T, in] gives the delta [T, out]."""
        x = x if dropout is None else dropout(x, self.number)
        return low_rank(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype), self.scaling)


class Linear(nn.Module):
    """One or several linears with the same input, stored and multiplied as one.

    `names` are the parts' names in the layer, e.g. q_proj, k_proj, v_proj; each part may carry
    its own low-rank pair, which adds to that part's columns of the output.
    """

    bias: Tensor | None

    def __init__(
        self, names: Sequence[str], weights: Sequence[Tensor], bias: Tensor | None, quantize: str
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self.sizes = tuple(len(weight) for weight in weights)
        self.base = STORAGE[quantize](weights)
        self.register_buffer("bias", bias)
        self.pairs = nn.ModuleDict()

    def forward(self, x: Tensor, dropout: Dropout | None = None) -> tuple[Tensor, ...]:
        """x [T, in] gives one [T, out] for each part."""
        y = self.base(x)
        if self.bias is not None:
            y = y + self.bias
        parts = y.split(self.sizes, dim=-1)
        return tuple(
            part + self.pairs[name](x, dropout) if name in self.pairs else part
            for name, part in zip(self.names, parts, strict=True)
        )
