"""Attention over a flat stream of tokens: packed documents."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from suri.model.kernels import flash, flash_pullback, has_flash, varlen


class Attend(Protocol):
    """Attention of one layer: q [T, heads, d], k and v [T, kv_heads, d] give [T, heads, d]."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The mixed values of one layer."""
        ...


class PackedAttention:
    """Causal attention inside each document of a packed stream, and never across documents.

    The first `prefix` tokens of the stream stand before every document: each attends to them and
    to itself.
    """

    def __init__(self, lengths: Sequence[int], window: int | None = None, prefix: int = 0) -> None:
        self.lengths, self.window, self.prefix = list(lengths), window, prefix
        self.masks: dict[tuple[int, int], Tensor] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        """Shapes as in Attend; one call of the fused kernel per document."""
        if q.is_cuda and self.window is None and q.dtype in (torch.bfloat16, torch.float16):
            return self._varlen(q, k, v)
        if not q.is_cuda and has_flash():
            return cast(Tensor, _Documents.apply(q, k, v, self))  # type: ignore[no-untyped-call]
        parts = [
            self._one(*document, self.mask_of(document[0], len(document[1])))
            for document in self.documents(q, k, v)
        ]
        return torch.cat(parts)

    def documents(self, q: Tensor, k: Tensor, v: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Each document's own q [n, heads, d], and k and v [prefix + n, kv_heads, d]."""
        if self.prefix:
            yield q[: self.prefix], k[: self.prefix], v[: self.prefix]
        start = self.prefix
        for length in self.lengths:
            own = slice(start, start + length)
            if self.prefix:
                keys = torch.cat([k[: self.prefix], k[own]])
                values = torch.cat([v[: self.prefix], v[own]])
                yield q[own], keys, values
            else:
                yield q[own], k[own], v[own]
            start += length

    def mask_of(self, q: Tensor, keys: int) -> Tensor | None:
        """0 where a query may see a key, else -inf, [n, keys]; None where it is plainly causal."""
        own = len(q)
        if own == keys and (self.window is None or keys <= self.window):
            return None
        if (own, keys) not in self.masks:
            place = torch.arange(keys, device=q.device)
            seen = visible(place[keys - own :], place, self.window)
            mask = torch.zeros(own, keys, dtype=q.dtype, device=q.device)
            self.masks[own, keys] = mask.masked_fill_(~seen, -math.inf)
        return self.masks[own, keys]

    def _one(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """The last tokens of a document, [n, heads, d], over all of it, [length, kv_heads, d]."""
        q, k, v = (headed(x) for x in (q, k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return out.squeeze(0).transpose(0, 1)

    def _varlen(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All documents in one call on a GPU; the prefix is a document, and copied before each."""
        if not hasattr(self, "varlen"):
            self.varlen = Varlen(self.lengths, self.prefix, q.device)
        return self.varlen(q, k, v)


def headed(x: Tensor) -> Tensor:
    """[n, heads, d] as [1, heads, n, d], as torch's attention takes it."""
    return x.transpose(0, 1).unsqueeze(0)


class _Documents(torch.autograd.Function):
    """PackedAttention on a CPU: one result and one gradient for all documents, no copies kept."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, packed: PackedAttention) -> Tensor:
        mixed = torch.empty_like(q)
        log_sums, start = [], 0
        for document in packed.documents(q, k, v):
            mask = packed.mask_of(document[0], len(document[1]))
            q_own, k_own, v_own = (headed(x) for x in document)
            out, log_sum = flash(q_own, k_own, v_own, mask)
            mixed[start : start + len(document[0])] = out[0].transpose(0, 1)
            log_sums.append(log_sum)
            start += len(document[0])
        ctx.packed = packed
        ctx.save_for_backward(q, k, v, mixed, *log_sums)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (gradient,), (q, k, v, mixed, *log_sums), packed = gradients, ctx.saved_tensors, ctx.packed
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        prefix, start = packed.prefix, 0
        for document, log_sum in zip(packed.documents(q, k, v), log_sums, strict=True):
            own = slice(start, start + len(document[0]))
            found = flash_pullback(
                headed(gradient[own]),
                tuple(headed(x) for x in document),
                (headed(mixed[own]), log_sum),
                packed.mask_of(document[0], len(document[1])),
            )
            for whole, part in zip((dq, dk, dv), found, strict=True):
                tokens = part[0].transpose(0, 1)
                shared = len(tokens) - len(document[0])
                whole[own] = tokens[shared:]
                if shared:
                    whole[:prefix] += tokens[:shared]
            start = own.stop
        return dq, dk, dv, None


class Varlen:
    """Every document of a stream in one call; lengths and places are made once, on the host.

    With a prefix the keys are copied before each document. Autograd keeps no copies: where it wants
    them, they are made again.
    """

    def __init__(self, lengths: Sequence[int], prefix: int, device: torch.device) -> None:
        queries = [prefix, *lengths] if prefix else [*lengths]
        keys = [prefix, *(prefix + length for length in lengths)] if prefix else queries
        self.longest = max(queries), max(keys)
        ends = [torch.tensor([0, *accumulate(sizes)]) for sizes in (queries, keys)]
        self.ends = [end.to(device, torch.int32) for end in ends]
        self.copied = _Copied(lengths, prefix, device) if prefix else None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Shapes as in Attend."""
        if self.copied is None:
            return varlen(q, k, v, self.ends, self.longest)
        keys, values = (
            cast(Tensor, _WithPrefix.apply(x, self.copied))  # type: ignore[no-untyped-call]
            for x in (k, v)
        )
        with torch.autograd.graph.saved_tensors_hooks(self._keeper((keys, k), (values, v)), _kept):
            return varlen(q, keys, values, self.ends, self.longest)

    def _keeper(self, *copied: tuple[Tensor, Tensor]) -> Callable[[Tensor], Callable[[], Tensor]]:
        """What autograd keeps of a tensor: it, or how it is made again from what is kept anyway."""
        sources = {copies.untyped_storage()._cdata: x.detach() for copies, x in copied}
        shape, places = copied[0][0].shape, cast(_Copied, self.copied).places

        def keep(saved: Tensor) -> Callable[[], Tensor]:
            source = sources.get(saved.untyped_storage()._cdata)
            if source is None or saved.shape != shape:
                return lambda: saved
            return lambda: source[places]

        return keep


def _kept(make: Callable[[], Tensor]) -> Tensor:
    return make()


class _Copied:
    """Where the keys of each document come from: the prefix, and prefix and own for each."""

    def __init__(self, lengths: Sequence[int], prefix: int, device: torch.device) -> None:
        shared, start, places = range(prefix), prefix, [*range(prefix)]
        own: list[int] = []
        copies = []
        for length in lengths:
            copies.append([*range(len(places), len(places) + prefix)])
            own += range(len(places) + prefix, len(places) + prefix + length)
            places += [*shared, *range(start, start + length)]
            start += length
        self.prefix = prefix
        self.places = torch.tensor(places, device=device)
        """Of all keys, in the stream."""
        self.own = torch.tensor(own, device=device)
        """Of each token behind the prefix, among all keys."""
        self.copies = torch.tensor(copies, device=device)
        """Of the prefix' copies among all keys, [documents, prefix]."""


class _WithPrefix(torch.autograd.Function):
    """x [T, kv_heads, d] as all keys [S, kv_heads, d]; the gradients of copies are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, copied: _Copied) -> Tensor:
        ctx.copied = copied
        return x[copied.places]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), copied = gradients, ctx.copied
        shared = gradient[copied.copies].sum(dim=0) + gradient[: copied.prefix]
        return torch.cat([shared, gradient[copied.own]]), None


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which keys a query may see, by position: bool [..., query, key]."""
    distance = queries.unsqueeze(-1) - keys.unsqueeze(-2)
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)
