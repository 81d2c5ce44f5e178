"""Answers that grow together, a token each in one pass; more may join between two passes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Event

import torch
from torch import Tensor

from suri.infer.choose import choose, draw_numbers, penalise
from suri.infer.graphed import Steps
from suri.model.decoder import Decoder
from suri.model.kv_cache import KVCache
from suri.recipe import Decoding

CACHE_BYTES = 2**30
"""Most memory for keys and values of all answers; a single one may exceed it."""
CACHE_SHARE = 1 / 16
"""The share of a GPU's memory that they may take where that is more."""
LEAST_SHARED = 8
"""Fewer tokens in common are read as quickly as copied."""
READ_TOKENS = 512
"""Most tokens of prompts that are read in one pass: nobody waits long for a long one."""


@dataclass(eq=False)
class Row:
    """One answer under way: `ids` are the prompt and what was written after it."""

    ids: list[int]
    decoding: Decoding
    stop: Event
    """Ends the answer within a token."""
    written: int = 0
    ended: bool = False

    def __post_init__(self) -> None:
        self.capacity = len(self.ids) + self.decoding.max_new_tokens
        self.draws = draw_numbers([self.ids], self.decoding)[0]
        self.kind = replace(self.decoding, seed=0, max_new_tokens=1)


class Together:
    """The answers under way over one decoder; each is what it is alone, up to rounding."""

    def __init__(self, decoder: Decoder, eos_id: int) -> None:
        self.decoder, self.eos_id = decoder, eos_id
        self.rows: list[Row] = []
        self._begin()

    def _begin(self) -> None:
        self.cache = new_cache(self.decoder, 0, 0)
        self.steps = Steps(self.decoder)

    def fits(self, capacity: int) -> bool:
        """Whether memory has room for one more row of so many tokens, prompt and answer."""
        longest = max([capacity, *(row.capacity for row in self.rows)])
        return not self.rows or (len(self.rows) + 1) * longest <= most_tokens(self.decoder)

    def join(self, row: Row) -> None:
        """Take one more row; its prompt is read in the passes to come."""
        if not self.rows:
            self._begin()  # one long row's memory ends with it
        self.rows.append(row)
        self.cache.add(row.capacity)

    @torch.no_grad()
    def step(self) -> list[tuple[Row, int]]:
        """One pass: the next token of every row whose prompt has been read, the end among them.

        Rows leave with their last token, or once their stop is set.
        """
        self._let_go([row.stop.is_set() for row in self.rows])
        if not self.rows:
            return []
        self._share_starts()
        parts = self._unread()
        ready = [
            place
            for place, (row, part) in enumerate(zip(self.rows, parts, strict=True))
            if self.cache.lengths[place] + len(part) == len(row.ids)
        ]
        scores = self._read(parts, ready)
        rows = [self.rows[place] for place in ready]
        tokens = self._choose(rows, scores)
        for row, token in zip(rows, tokens, strict=True):
            row.ids.append(token)
            row.written += 1
            row.ended = token == self.eos_id or row.written >= row.decoding.max_new_tokens
        self._let_go([row.ended for row in self.rows])
        return list(zip(rows, tokens, strict=True))

    def _share_starts(self) -> None:
        """What a new prompt has in common with one that was read is not read again."""
        lengths = self.cache.lengths
        read = [place for place, length in enumerate(lengths) if length]
        for place in [place for place, length in enumerate(lengths) if not length]:
            ids = self.rows[place].ids[:-1]  # the last one is fed: its scores are wanted
            counts = {other: _common(ids, self.rows[other].ids[: lengths[other]]) for other in read}
            other = max(counts, key=counts.__getitem__, default=place)
            if counts.get(other, 0) >= LEAST_SHARED:
                self.cache.share(place, other, counts[other])

    def _unread(self) -> list[list[int]]:
        """What each row feeds in this pass: its last token, or some of its prompt."""
        parts, left = [], READ_TOKENS
        for row, start in zip(self.rows, self.cache.lengths, strict=True):
            count = len(row.ids) - start
            if count > 1:
                count = min(count, left)
                left -= count
            parts.append(row.ids[start : start + count])
        return parts

    def _read(self, parts: list[list[int]], ready: list[int]) -> Tensor:
        """Feed each row its part; the scores [ready, vocab] after these, until the next pass."""
        if all(len(part) == 1 for part in parts):
            left = max(row.capacity - len(row.ids) for row in self.rows)
            scores = self.steps.read(self.cache, [token for (token,) in parts], left)
            if scores is not None:
                return scores if len(ready) == len(parts) else scores[ready]
        self.steps.last = None  # its positions are not those of this pass
        return read(self.decoder, self.cache, parts, ready)

    def _choose(self, rows: list[Row], scores: Tensor) -> list[int]:
        """The next token of each row by its own settings, from scores [rows, vocab]."""
        tokens = [0] * len(rows)
        for kind in dict.fromkeys(row.kind for row in rows):
            places = [place for place, row in enumerate(rows) if row.kind == kind]
            own = scores if len(places) == len(rows) else scores[places]
            own = penalise(own, [rows[place].ids for place in places], kind.repetition_penalty)
            draws = torch.stack([rows[place].draws[rows[place].written] for place in places])
            draws = draws.to(scores.device, non_blocking=True)  # the host waits for the tokens
            chosen = choose(own, kind, draws)
            if len(places) == len(self.rows):
                return self.steps.go_on(self.cache, chosen)
            for place, token in zip(places, chosen.tolist(), strict=True):
                tokens[place] = token
        return tokens

    def _let_go(self, leaving: list[bool]) -> None:
        """End these rows; the last row takes the place of each, so that nothing else moves."""
        for place in reversed([place for place, leaves in enumerate(leaving) if leaves]):
            self.rows[place].ended = True
            self.cache.drop(place)
            last = self.rows.pop()
            if place < len(self.rows):
                self.rows[place] = last


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many same tokens both begin."""
    differing = (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def read(
    decoder: Decoder, cache: KVCache, parts: Sequence[Sequence[int]], ready: Sequence[int]
) -> Tensor:
    """Feed each row its part, as one flat stream; the scores [ready, vocab] after these rows'."""
    device = decoder.embedding.device
    starts, counts = list(cache.lengths), [len(part) for part in parts]
    positions = [
        place
        for start, count in zip(starts, counts, strict=True)
        for place in range(start, start + count)
    ]
    last = (torch.tensor(counts).cumsum(0) - 1)[list(ready)].to(device)
    hidden = decoder(
        torch.tensor([token for part in parts for token in part], device=device),
        torch.tensor(positions, device=device),
        cache.extend(counts),
        kept=last if ready else None,
    )
    return decoder.logits(hidden) if ready else hidden.new_empty(0, decoder.config.vocab_size)


def new_cache(decoder: Decoder, rows: int, capacity: int) -> KVCache:
    """A cache in the decoder's dtype, on its device."""
    weights = decoder.embedding
    return KVCache(decoder.config, rows, capacity, weights.dtype, weights.device)


def most_tokens(decoder: Decoder) -> int:
    """How many tokens of all rows together the cache may hold."""
    config = decoder.config
    numbers = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    weights, most = decoder.embedding, CACHE_BYTES
    if weights.is_cuda:
        whole = torch.cuda.get_device_properties(weights.device).total_memory
        most = max(most, int(CACHE_SHARE * whole))
    return most // (numbers * weights.element_size())
