"""Answering prompts with a decoder: greedy, sampled or by beams, many at once or as a stream."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from suri.errors import UsageError
from suri.infer.choose import choose, draw_numbers, penalise
from suri.model.attention import KVCache
from suri.model.config import ModelConfig
from suri.model.decoder import Decoder
from suri.recipe import Decoding

CACHE_BYTES = 2**30
"""Most memory for the keys and values of one batch; a single row may exceed it."""


@dataclass(frozen=True)
class Generated:
    """The tokens of one answer, without the end-of-text token that may have ended it."""

    ids: list[int]
    stopped: bool
    """Ended by the end-of-text token, not by a limit or a stop."""


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    eos_id: int,
    decoding: Decoding,
    *,
    stop: Event | None = None,
) -> list[Generated]:
    """Answer prompts of token ids, in the order given; batching never changes an answer.

    `stop` ends all answers within one token. Raises UsageError for a prompt that fills the
    model's window.
    """
    texts = [[int(token) for token in prompt] for prompt in prompts]
    limits = [_room(decoder.config, text, decoding) for text in texts]
    capacities = [len(text) + limit for text, limit in zip(texts, limits, strict=True)]
    answers: list[list[int]] = [[] for _ in texts]
    for rows in _batches(capacities, _most_tokens(decoder)):
        batch, most = [texts[row] for row in rows], [limits[row] for row in rows]
        for place, token in _tokens(decoder, batch, most, eos_id, decoding, stop):
            answers[rows[place]].append(token)
    return [_without_end(answer, eos_id) for answer in answers]


def stream(
    decoder: Decoder,
    prompt: Sequence[int],
    eos_id: int,
    decoding: Decoding,
    *,
    stop: Event | None = None,
) -> Iterator[int]:
    """Yield the tokens of one answer as they come, the end-of-text token not among them.

    The answer is that of `generate`. With beams nothing is certain before the end, so all tokens
    come then.
    """
    text = [int(token) for token in prompt]
    limits = [_room(decoder.config, text, decoding)]
    for _, token in _tokens(decoder, [text], limits, eos_id, decoding, stop):
        if token != eos_id:
            yield token


def stream_together(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    eos_id: int,
    decodings: Sequence[Decoding],
    stops: Sequence[Event],
) -> Iterator[tuple[int, int]]:
    """Yield (row, token) of several answers that grow together, the end-of-text tokens included.

    Each row's tokens are those it has alone. The decodings may differ in seed and max_new_tokens
    and have no beams; each row has its own stop. The caller sees to it that the rows fit together.
    """
    assert len({replace(each, seed=0, max_new_tokens=1) for each in decodings}) == 1
    texts = [[int(token) for token in prompt] for prompt in prompts]
    rows = list(zip(texts, decodings, strict=True))
    limits = [_room(decoder.config, text, decoding) for text, decoding in rows]
    return _one_each(decoder, texts, limits, eos_id, decodings, stops)


def fit_together(decoder: Decoder, capacities: Sequence[int]) -> bool:
    """Whether rows of so many tokens, prompt and answer, are held in memory at once."""
    return len(capacities) == 1 or len(capacities) * max(capacities) <= _most_tokens(decoder)


def _tokens(
    decoder: Decoder,
    texts: list[list[int]],
    limits: list[int],
    eos_id: int,
    decoding: Decoding,
    stop: Event | None,
) -> Iterator[tuple[int, int]]:
    """Yield (row, token) of all answers, the end-of-text token included."""
    stop = stop or Event()
    if decoding.num_beams == 1:
        same, stops = [decoding] * len(texts), [stop] * len(texts)
        yield from _one_each(decoder, texts, limits, eos_id, same, stops)
        return
    for row, (text, limit) in enumerate(zip(texts, limits, strict=True)):
        for token in _best_beam(decoder, text, limit, eos_id, decoding, stop):
            yield row, token


@torch.no_grad()
def _one_each(
    decoder: Decoder,
    prompts: list[list[int]],
    limits: list[int],
    eos_id: int,
    decodings: Sequence[Decoding],
    stops: Sequence[Event],
) -> Iterator[tuple[int, int]]:
    """All prompts as one stream, then one token per unfinished row and step."""
    decoding = decodings[0]
    texts = [list(prompt) for prompt in prompts]
    live = list(range(len(texts)))
    cache = _new_cache(decoder, texts, limits)
    draws = _draws(prompts, decodings).to(decoder.embedding.device)
    scores = _read(decoder, cache, texts)
    for step in range(max(limits)):
        if all(stops[row].is_set() for row in live):
            return
        scores = penalise(scores, [texts[row] for row in live], decoding.repetition_penalty)
        tokens = choose(scores, decoding, draws[live, step]).tolist()
        for row, token in zip(live, tokens, strict=True):
            texts[row].append(token)
            yield row, token
        going = [
            place
            for place, (row, token) in enumerate(zip(live, tokens, strict=True))
            if token != eos_id and step + 1 < limits[row] and not stops[row].is_set()
        ]
        if not going:
            return
        cache.keep(going)
        live = [live[place] for place in going]
        scores = _read(decoder, cache, [[tokens[place]] for place in going])


def _draws(prompts: list[list[int]], decodings: Sequence[Decoding]) -> Tensor:
    """Each row's numbers as it draws them alone, [rows, the most tokens of a row]."""
    rows = zip(prompts, decodings, strict=True)
    drawn = [draw_numbers([prompt], decoding)[0] for prompt, decoding in rows]
    return pad_sequence(drawn, batch_first=True)


@dataclass(frozen=True)
class _Beam:
    """An answer under way: its tokens, their log-probability, and the row it came from."""

    ids: list[int]
    total: float
    parent: int = 0

    @property
    def score(self) -> float:
        """Log-probability per token."""
        return self.total / len(self.ids)


@torch.no_grad()
def _best_beam(
    decoder: Decoder,
    prompt: list[int],
    limit: int,
    eos_id: int,
    decoding: Decoding,
    stop: Event,
) -> list[int]:
    """The most probable answer by beam search without sampling, as transformers' default.

    Answers compare by log-probability per token, the end-of-text token counted. The search ends
    when as many answers are complete as there are beams, and the best open one is no better than
    the worst of them.
    """
    width = decoding.num_beams
    cache = _new_cache(decoder, [prompt], [limit])
    scores = _read(decoder, cache, [prompt])
    beams, complete = [_Beam([], 0.0)], list[_Beam]()
    for length in range(1, limit + 1):
        texts = [prompt + beam.ids for beam in beams]
        chances = penalise(scores.log_softmax(dim=-1), texts, decoding.repetition_penalty)
        # Twice as many, because each open answer can end in one way only.
        candidates = _likeliest(chances, beams, 2 * width)
        ended = [length == limit or beam.ids[-1] == eos_id for beam in candidates]
        complete += [beam for beam, end in zip(candidates[:width], ended, strict=False) if end]
        complete = sorted(complete, key=lambda beam: -beam.score)[:width]
        beams = [beam for beam, end in zip(candidates, ended, strict=True) if not end][:width]
        if not beams or stop.is_set() or _settled(beams, complete, width):
            break
        cache.keep([beam.parent for beam in beams])
        scores = _read(decoder, cache, [beam.ids[-1:] for beam in beams])
    return (complete or beams)[0].ids


def _likeliest(chances: Tensor, beams: list[_Beam], count: int) -> list[_Beam]:
    """The `count` best continuations by one token, of log-probabilities [beams, vocab]."""
    so_far = torch.tensor([beam.total for beam in beams], device=chances.device)
    totals, places = (chances + so_far.unsqueeze(1)).flatten().topk(min(count, chances.numel()))
    return [
        _Beam([*beams[parent].ids, token], total, parent)
        for total, (parent, token) in zip(
            totals.tolist(),
            (divmod(place, chances.shape[1]) for place in places.tolist()),
            strict=True,
        )
    ]


def _settled(beams: list[_Beam], complete: list[_Beam], width: int) -> bool:
    return len(complete) == width and beams[0].score <= complete[-1].score


def _read(decoder: Decoder, cache: KVCache, rows: list[list[int]]) -> Tensor:
    """Feed each row its next tokens as one flat stream; the scores [rows, vocab] after them."""
    device = decoder.embedding.device
    starts, counts = cache.lengths, [len(row) for row in rows]
    positions = [
        place
        for start, count in zip(starts, counts, strict=True)
        for place in range(start, start + count)
    ]
    hidden = decoder(
        torch.tensor([token for row in rows for token in row], device=device),
        torch.tensor(positions, device=device),
        cache.extend(counts),
    )
    last = torch.tensor(counts, device=device).cumsum(0) - 1
    return decoder.logits(hidden[last])


def _new_cache(decoder: Decoder, texts: list[list[int]], limits: list[int]) -> KVCache:
    capacity = max(len(text) + limit for text, limit in zip(texts, limits, strict=True))
    weights = decoder.embedding
    return KVCache(decoder.config, len(texts), capacity, weights.dtype, weights.device)


def _room(config: ModelConfig, text: list[int], decoding: Decoding) -> int:
    """How many tokens the answer to `text` may have."""
    room = config.max_positions - len(text)
    if room < 1:
        raise UsageError(
            f"a prompt of {len(text)} tokens leaves no room for an answer",
            found=f"the model reads {config.max_positions} tokens at most",
            do="shorten the instruction or the input",
        )
    return min(decoding.max_new_tokens, room)


def _most_tokens(decoder: Decoder) -> int:
    """How many tokens of all rows together the cache may hold."""
    config = decoder.config
    numbers = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return CACHE_BYTES // (numbers * decoder.embedding.element_size())


def _batches(capacities: list[int], most: int) -> list[list[int]]:
    """Rows by length, cut so that rows times the longest of a batch stays within `most`."""
    batches: list[list[int]] = []
    for row in sorted(range(len(capacities)), key=capacities.__getitem__):
        if batches and (len(batches[-1]) + 1) * capacities[row] <= most:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _without_end(ids: list[int], eos_id: int) -> Generated:
    stopped = bool(ids) and ids[-1] == eos_id
    return Generated(ids[:-1] if stopped else ids, stopped)
