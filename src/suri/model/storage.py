"""How a frozen weight is stored and multiplied: dense, int8, fp8 or nf4, behind one interface."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suri.errors import UsageError
from suri.model.fp8 import Fp8
from suri.model.kernels import few_rows, int8_product, product

NF4_BLOCK = 64
"""Weights that share one scale; QLoRA's block size (Dettmers et al., 2023, arXiv:2305.14314)."""
BLOCK_BYTES = 16_000_000
"""Most bytes of a weight, in fp32, that are quantised at once."""
OUTLIER = 8.0
"""A column whose largest entry is this many times the columns' median stays exact."""
MOST_OUTLIERS = 1 / 32
"""The share of columns that may stay exact; the largest ones do."""


class Storage(Protocol):
    """A frozen weight [out, in] that can be multiplied from both sides."""

    def product(self, x: Tensor) -> Tensor:
        """x [T, in] gives x W^T, a new tensor [T, out]."""
        ...

    def pullback(self, gradient: Tensor) -> Tensor:
        """The gradient of x, a new tensor [T, in], given that of the product [T, out]."""
        ...


class Dense(nn.Module):
    """A frozen weight as it is."""

    weight: Tensor

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.register_buffer("weight", weights[0] if len(weights) == 1 else torch.cat([*weights]))

    def product(self, x: Tensor) -> Tensor:
        """As in Storage."""
        return product(x, self.weight)

    def pullback(self, gradient: Tensor) -> Tensor:
        """As in Storage."""
        return product(gradient, self.weight.t())


class Watched(Dense):
    """A dense weight that remembers the largest entry of each column of what it is given."""

    largest: Tensor | None = None

    def product(self, x: Tensor) -> Tensor:
        """As in Storage."""
        largest = x.abs().amax(dim=0)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        return super().product(x)


@dataclass(frozen=True)
class Unread:
    """A weight [out, in] that is somewhere else until it is read, to the CPU; nobody keeps it."""

    rows: int
    read: Callable[[], Tensor]
    device = torch.device("cpu")

    def __len__(self) -> int:
        return self.rows


class Deferred(nn.Module):
    """Frozen weights that are read for each product and let go after it."""

    def __init__(self, weights: Sequence[Unread]) -> None:
        super().__init__()
        self.weights = weights

    def product(self, x: Tensor) -> Tensor:
        """As in Storage."""
        return torch.cat([product(x, weight.read()) for weight in self.weights], dim=1)

    def pullback(self, gradient: Tensor) -> Tensor:
        """As in Storage."""
        parts = gradient.split([len(weight) for weight in self.weights], dim=1)
        pairs = zip(parts, self.weights, strict=True)
        return torch.stack([product(part, w.read().t()) for part, w in pairs]).sum(dim=0)


class Int8Weight(nn.Module):
    """A frozen weight as int8 with one scale per output row; what it is multiplied with is exact.

    On a CPU a few rows are multiplied as they are. Of many, each becomes two digits to the base
    256, 1/32512 of its largest entry the unit, and both are multiplied in int8 with sums exact in
    int32. Elsewhere the weight becomes x's dtype for each product.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        pairs = [quantize_int8(block) for block in _blocks(weights)]
        self.register_buffer("weight", torch.cat([weight for weight, _ in pairs]))
        self.register_buffer("scale", torch.cat([scale for _, scale in pairs]).squeeze(1))

    def product(self, x: Tensor) -> Tensor:
        """As in Storage."""
        if x.is_cuda:
            return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        found = few_rows(x, self.weight, self.scale)
        if found is not None:
            return found
        digits, unit = two_digits(x)
        low, high = int8_product(digits, self.weight.t()).to(torch.float32).chunk(2)
        return low.add_(high, alpha=256).mul_(unit).mul_(self.scale).to(x.dtype)

    def pullback(self, gradient: Tensor) -> Tensor:
        """As in Storage."""
        return (gradient * self.scale.to(gradient.dtype)) @ self.weight.to(gradient.dtype)


def two_digits(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, n] as low and high digits, int8 [2 T, n], and the unit of each row, fp32 [T, 1].

    x = unit * (256 high + low), to half a unit; the row's largest entry has 32512 of them.
    """
    unit = x.abs().amax(dim=1, keepdim=True).float().clamp_(min=1e-12).div_(32512)
    # With 128 more the bytes are the digits, the low one with its highest bit turned over.
    whole = (x / unit).add_(128.5).floor_().to(torch.int16).bitwise_xor_(128)
    return whole.view(torch.int8).view(*x.shape, 2).permute(2, 0, 1).reshape(-1, x.shape[1]), unit


class Int8(nn.Module):
    """A frozen weight as int8, multiplied in int8: each token is quantised by its largest entry.

    y = s_x * s_w * (x8 W8^T), the sums exact in int32. Backward multiplies by the same W8: the
    gradient takes s_w in before it is quantised. Input columns with outliers, in the weight or in
    `inputs` [in] (the largest entries that were seen), are multiplied in full precision
    (Dettmers et al., 2022, arXiv:2208.07339); they would leave the others no digits.
    """

    weight: Tensor
    scale: Tensor
    columns: Tensor
    exact: Tensor

    def __init__(self, weights: Sequence[Tensor], inputs: Tensor | None = None) -> None:
        super().__init__()
        largest = torch.stack([weight.abs().amax(dim=0) for weight in _blocks(weights)]).amax(dim=0)
        outlying = outliers(largest.float())
        if inputs is not None:
            outlying = outlying | outliers(inputs.float())
        columns = outlying.nonzero().squeeze(1)
        pairs = [quantize_int8(weight, columns) for weight in _blocks(weights)]
        packed = torch.cat([weight for weight, _ in pairs])
        packed[:, columns] = 0
        self.register_buffer("columns", columns)
        self.register_buffer("exact", torch.cat([weight[:, columns] for weight in weights]))
        self.register_buffer("weight", packed)
        self.register_buffer("scale", torch.cat([scale for _, scale in pairs]).squeeze(1))

    def product(self, x: Tensor) -> Tensor:
        """As in Storage."""
        y = self._scaled(x, self.weight.t(), self.columns).mul_(self.scale).to(x.dtype)
        if len(self.columns):
            y.addmm_(x[:, self.columns], self.exact.t())
        return y

    def pullback(self, gradient: Tensor) -> Tensor:
        """As in Storage."""
        dx = self._scaled(gradient * self.scale, self.weight).to(gradient.dtype)
        if len(self.columns):
            dx[:, self.columns] = gradient @ self.exact
        return dx

    def _scaled(self, x: Tensor, weight: Tensor, apart: Tensor | None = None) -> Tensor:
        """x @ weight in int8, fp32; columns `apart` of x meet weights of 0."""
        packed, scale = quantize_int8(x, apart)
        return int8_product(packed, weight).to(torch.float32).mul_(scale)


def _blocks(weights: Sequence[Tensor]) -> Iterator[Tensor]:
    """The rows of all weights, some at a time, so that no copy of a whole weight is ever made."""
    for weight in weights:
        yield from weight.split(max(1, BLOCK_BYTES // (4 * weight.shape[1])))


def quantize_int8(x: Tensor, apart: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Round x [rows, n] to int8 by each row's largest entry; gives it and scale [rows, 1], fp32.

    Columns `apart` are left out when the largest entry is looked for, and come out meaningless.
    """
    sizes = x.abs()
    if apart is not None and len(apart):
        sizes[:, apart] = 0
    scale = sizes.amax(dim=1, keepdim=True).float().clamp_(min=1e-12).div_(127)
    return torch.mul(x, 1 / scale).round_().to(torch.int8), scale


def outliers(largest: Tensor) -> Tensor:
    """Which columns stand out, bool [n], by their largest entries [n]."""
    most = max(1, int(MOST_OUTLIERS * len(largest)))
    bound = torch.maximum(OUTLIER * largest.median(), largest.topk(most).values[-1])
    return largest >= bound.clamp(min=1e-12)


class NF4(nn.Module):
    """A frozen weight in 4-bit NormalFloat with double quantisation, dequantised for each product.

    Each part is quantised by itself, so that fusing layers never changes their values.
    """

    weight0: Tensor

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.states = []
        self.rows = [len(weight) for weight in weights]
        for number, weight in enumerate(weights):
            packed, state = quantize_nf4(weight)
            self.register_buffer(f"weight{number}", packed)
            self.states.append(state)

    def dense(self) -> Tensor:
        """The weight [out, in] that the products use; its memory is free again after them."""
        packed = [
            (getattr(self, f"weight{number}"), state) for number, state in enumerate(self.states)
        ]
        if len(packed) == 1 or not self.weight0.is_cuda:
            parts = [dequantize_nf4(part) for part in packed]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        shape, dtype = (sum(self.rows), *self.states[0].shape[1:]), self.states[0].dtype
        whole = torch.empty(shape, dtype=dtype, device=self.weight0.device)
        for part, place in zip(packed, whole.split(self.rows), strict=True):
            dequantize_nf4(part, place)
        return whole

    def product(self, x: Tensor) -> Tensor:
        """As in Storage."""
        return product(x, self.dense().to(x.dtype))

    def pullback(self, gradient: Tensor) -> Tensor:
        """As in Storage."""
        return product(gradient, self.dense().to(gradient.dtype).t())


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


def dequantize_nf4(packed: tuple[Tensor, Any], out: Tensor | None = None) -> Tensor:
    """The values [out, in] that `quantize_nf4` kept, in the dtype it was given; into `out`."""
    from bitsandbytes import functional

    return cast(Tensor, functional.dequantize_4bit(*packed, out=out))


def nf4_roundtrip(weight: Tensor) -> Tensor:
    """The weight as a model in nf4 sees it: quantised and dequantised, same shape and dtype."""
    return dequantize_nf4(quantize_nf4(weight))


IN_USE = {"none": "none", "int8": "none", "fp8": "none", "nf4": "nf4"}
"""How a base is stored in use by how it was stored in training. int8 and fp8 make training faster
and belong to no weights: what was learned is added to the base as it is."""
STORAGE: dict[str, Callable[[Any], Storage]] = {
    "none": Dense,
    "deferred": Deferred,
    "watched": Watched,
    "int8": Int8,
    "int8-weight": Int8Weight,
    "fp8": Fp8,
    "nf4": NF4,
}
