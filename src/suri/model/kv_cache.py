"""Keys and values of growing rows, and attention over them."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from suri.model.attention import Attend, headed, visible
from suri.model.config import ModelConfig
from suri.model.kernels import on_gpu


class KVCache:
    """Keys and values of several growing rows, [places, kv_heads, capacity, d] for each layer.

    The rows stand in the first places, one for each entry of `lengths`.
    """

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

    def add(self, capacity: int) -> None:
        """One more row, empty; there is room for `capacity` tokens in each then."""
        _, places, _, room, _ = self.keys.shape
        if len(self.lengths) == places or capacity > room:
            # Twice as many, so that rows that come one by one are seldom copied; a CPU gives
            # memory only where something is written.
            places = places if len(self.lengths) < places else max(1, 2 * places)
            self.keys = self._larger(self.keys, places, max(capacity, room))
            self.values = self._larger(self.values, places, max(capacity, room))
        self.lengths.append(0)

    def _larger(self, old: Tensor, places: int, capacity: int) -> Tensor:
        layers, _, heads, _, size = old.shape
        new = old.new_zeros(layers, places, heads, capacity, size)
        rows, used = len(self.lengths), max(self.lengths, default=0)
        new[:, :rows, :, :used] = old[:, :rows, :, :used]
        return new

    def share(self, row: int, other: int, count: int) -> None:
        """Begin an empty row with the first `count` tokens of another one."""
        for held in (self.keys, self.values):
            held[:, row, :, :count] = held[:, other, :, :count]
        self.lengths[row] = count

    def drop(self, row: int) -> None:
        """Forget a row; the last one takes its place."""
        length = self.lengths.pop()
        if row < len(self.lengths):
            last = len(self.lengths)
            for held in (self.keys, self.values):
                held[:, row, :, :length] = held[:, last, :, :length]
            self.lengths[row] = length

    def keep(self, rows: Sequence[int]) -> None:
        """Hold only these rows, in this order; a row may be named more than once."""
        if list(rows) == list(range(len(self.lengths))):
            return
        index = torch.tensor(list(rows), device=self.keys.device)
        self.keys, self.values = self.keys[:, index], self.values[:, index]
        self.lengths = [self.lengths[row] for row in rows]

    def extend(self, counts: Sequence[int]) -> Attend:
        """Make room for counts[i] new tokens of row i; they come as one stream, row after row."""
        starts = self.lengths
        self.grow(counts)
        if all(count == 1 for count in counts):
            return _OneEach(self, starts)
        return _SeveralEach(self, starts, counts)

    def grow(self, counts: Sequence[int]) -> None:
        """Row i has counts[i] more tokens, which somebody writes."""
        self.lengths = [old + new for old, new in zip(self.lengths, counts, strict=True)]
        if max(self.lengths) > self.keys.shape[3]:
            raise ValueError(f"{max(self.lengths)} tokens in a cache for {self.keys.shape[3]}")


class _OneEach:
    """Every row gets one token: one call for all rows, masked where they are not equally long."""

    def __init__(self, cache: KVCache, starts: Sequence[int]) -> None:
        self.cache, self.rows, self.longest = cache, len(starts), max(cache.lengths)
        self.places: tuple[Tensor, Tensor] | None = None
        self.mask: Tensor | None = None
        if min(starts) == max(starts) and (cache.window or self.longest) >= self.longest:
            return
        device = cache.keys.device
        own = torch.tensor(starts, device=device)
        seen = visible(own.unsqueeze(1), torch.arange(self.longest, device=device), cache.window)
        mask = torch.zeros(seen.shape, dtype=cache.keys.dtype, device=device)
        # [rows, 1, 1, keys]
        self.mask = mask.masked_fill_(~seen, -math.inf).unsqueeze(1)
        self.places = torch.arange(self.rows, device=device), own

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys = self.cache.keys[layer, : self.rows, :, : self.longest]
        values = self.cache.values[layer, : self.rows, :, : self.longest]
        if self.places is None:
            keys[:, :, -1], values[:, :, -1] = k, v
        else:
            rows, own = self.places
            keys[rows, :, own], values[rows, :, own] = k, v
        out = F.scaled_dot_product_attention(
            q.unsqueeze(2), keys, values, attn_mask=self.mask, enable_gqa=True
        )
        return out.squeeze(2)


class FixedEach:
    """As _OneEach, where the number of rows and of keys stays the same from pass to pass.

    Keys and values are [layers, rows, kv_heads, keys, d]; a row's token comes at its position of
    `positions`, int64 [rows], and the keys after that are masked.
    """

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor, window: int | None) -> None:
        self.keys, self.values, self.positions = keys, values, positions
        self.rows = torch.arange(keys.shape[1], device=keys.device)
        places = torch.arange(keys.shape[3], device=keys.device)
        seen = visible(positions.unsqueeze(1), places, window)
        mask = torch.zeros(seen.shape, dtype=keys.dtype, device=keys.device)
        # [rows, 1, 1, keys]
        self.mask = mask.masked_fill_(~seen, -math.inf).unsqueeze(1)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Shapes as in Attend, a token for each row."""
        keys, values = self.keys[layer], self.values[layer]
        if kernels := on_gpu(k):
            kernels.place(k, keys, self.positions)
            kernels.place(v, values, self.positions)
        else:
            keys[self.rows, :, self.positions] = k
            values[self.rows, :, self.positions] = v
        # Heads that share keys stand as several queries of one: with a mask torch's fused kernels
        # for GPUs take no grouped heads, and its other way copies the keys for each of them.
        q = q.unflatten(1, (k.shape[1], -1))
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self.mask).flatten(1, 2)


class _SeveralEach:
    """Rows get any number of tokens: one call per row that gets some."""

    def __init__(self, cache: KVCache, starts: Sequence[int], counts: Sequence[int]) -> None:
        self.cache, self.counts = cache, list(counts)
        self.parts = [
            (row, slice(start, start + count), self._mask(start, start + count))
            for row, (start, count) in enumerate(zip(starts, counts, strict=True))
        ]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        streams = zip(*(x.split(self.counts) for x in (q, k, v)), strict=True)
        rows = zip(self.parts, streams, strict=True)
        return torch.cat([self._one(layer, *part, *own) for part, own in rows if len(own[0])])

    def _mask(self, start: int, end: int) -> Tensor | None:
        """Which keys the new tokens see, bool [new, end]; None where that is plainly causal."""
        if start == 0 and (self.cache.window or end) >= end:
            return None
        places = torch.arange(end, device=self.cache.keys.device)
        return visible(places[start:], places, self.cache.window)

    def _one(
        self, layer: int, row: int, new: slice, mask: Tensor | None, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        keys = self.cache.keys[layer, row, :, : new.stop]
        values = self.cache.values[layer, row, :, : new.stop]
        keys[:, new], values[:, new] = k.transpose(0, 1), v.transpose(0, 1)
        out = F.scaled_dot_product_attention(
            headed(q), keys[None], values[None], attn_mask=mask, is_causal=mask is None,
            enable_gqa=True,
        )  # fmt: skip
        return out.squeeze(0).transpose(0, 1)
