"""Attention over a flat stream of tokens: packed documents, or rows with a key-value cache."""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from suri.model.config import ModelConfig


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

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        """Shapes as in Attend; one call of the fused kernel per document."""
        sizes = [self.prefix, *self.lengths] if self.prefix else self.lengths
        documents = list(zip(*(x.split(sizes) for x in (q, k, v)), strict=True))
        if not self.prefix:
            return torch.cat([self._one(*document) for document in documents])
        (_, first_k, first_v), *own = documents
        return torch.cat(
            [
                self._one(*documents[0]),
                *(
                    self._one(q, torch.cat([first_k, k]), torch.cat([first_v, v]))
                    for q, k, v in own
                ),
            ]
        )

    def _one(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The last tokens of a document, [n, heads, d], over all of it, [length, kv_heads, d]."""
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        own, length = q.shape[2], k.shape[2]
        if own < length or (self.window is not None and length > self.window):
            place = torch.arange(length, device=q.device)
            mask = visible(place[length - own :], place, self.window)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.squeeze(0).transpose(0, 1)


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which keys a query may see, by position: bool [..., query, key]."""
    distance = queries.unsqueeze(-1) - keys.unsqueeze(-2)
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


class KVCache:
    """Keys and values of several growing rows, [rows, kv_heads, capacity, d] for each layer."""

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.num_layers, rows, config.num_kv_heads, capacity, config.head_dim)
        # Zeros, because a masked value still meets a probability of 0, and 0 * nan is nan.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * rows
        self.window = config.sliding_window

    def keep(self, rows: Sequence[int]) -> None:
        """Hold only these rows, in this order; a row may be named more than once."""
        if list(rows) == list(range(len(self.lengths))):
            return
        index = torch.tensor(list(rows), device=self.keys.device)
        self.keys, self.values = self.keys[:, index], self.values[:, index]
        self.lengths = [self.lengths[row] for row in rows]

    def extend(self, counts: Sequence[int]) -> Attend:
        """Make room for counts[i] new tokens of row i; they come as one stream, row after row."""
        starts, self.lengths = (
            self.lengths,
            [old + new for old, new in zip(self.lengths, counts, strict=True)],
        )
        if max(self.lengths) > self.keys.shape[3]:
            raise ValueError(f"{max(self.lengths)} tokens in a cache for {self.keys.shape[3]}")
        if all(count == 1 for count in counts):
            return _OneEach(self, starts)
        if not any(starts):
            return _FirstTokens(self, counts)
        return _MoreTokens(self, starts, counts)


class _OneEach:
    """Every row gets one token: one masked call for all rows."""

    def __init__(self, cache: KVCache, starts: Sequence[int]) -> None:
        self.cache, self.longest = cache, max(cache.lengths)
        device = cache.keys.device
        self.rows = torch.arange(len(starts), device=device)
        self.places = torch.tensor(starts, device=device)
        keys = torch.arange(self.longest, device=device)
        # [rows, 1, 1, keys]
        self.mask = visible(self.places.unsqueeze(1), keys, cache.window).unsqueeze(1)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.rows, :, self.places] = k
        values[self.rows, :, self.places] = v
        out = F.scaled_dot_product_attention(
            q.unsqueeze(2),
            keys[:, :, : self.longest],
            values[:, :, : self.longest],
            attn_mask=self.mask,
            enable_gqa=True,
        )
        return out.squeeze(2)


class _FirstTokens:
    """Every row is empty: attention as in training, keys and values kept."""

    def __init__(self, cache: KVCache, counts: Sequence[int]) -> None:
        self.cache, self.counts = cache, counts
        self.packed = PackedAttention(counts, cache.window)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for row, (key, value) in enumerate(
            zip(k.split(list(self.counts)), v.split(list(self.counts)), strict=True)
        ):
            self.cache.keys[layer, row, :, : len(key)] = key.transpose(0, 1)
            self.cache.values[layer, row, :, : len(value)] = value.transpose(0, 1)
        return self.packed(layer, q, k, v)


class _MoreTokens:
    """Rows that hold tokens get several more: one masked call per row."""

    def __init__(self, cache: KVCache, starts: Sequence[int], counts: Sequence[int]) -> None:
        self.cache, self.starts, self.counts = cache, starts, counts

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(x.split(list(self.counts)) for x in (q, k, v)), strict=True)
        return torch.cat([self._one(layer, row, *part) for row, part in enumerate(parts)])

    def _one(self, layer: int, row: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        start, end = self.starts[row], self.cache.lengths[row]
        keys, values = self.cache.keys[layer, row], self.cache.values[layer, row]
        keys[:, start:end] = k.transpose(0, 1)
        values[:, start:end] = v.transpose(0, 1)
        places = torch.arange(end, device=q.device)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0),
            keys[None, :, :end],
            values[None, :, :end],
            attn_mask=visible(places[start:], places, self.cache.window),
            enable_gqa=True,
        )
        return out.squeeze(0).transpose(0, 1)
