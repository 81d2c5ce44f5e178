"""Beam search: the most probable answer among several that are held at once."""

from dataclasses import dataclass
from threading import Event

import torch
from torch import Tensor

from suri.infer.choose import penalise
from suri.infer.together import READ_TOKENS, new_cache, read
from suri.model.decoder import Decoder
from suri.recipe import Decoding


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
def best_beam(
    decoder: Decoder, prompt: list[int], eos_id: int, decoding: Decoding, stop: Event
) -> list[int]:
    """The most probable answer by beam search without sampling, as transformers' default.

    Answers compare by log-probability per token, the end-of-text token counted. The search ends
    when as many answers are complete as there are beams, and the best open one is no better than
    the worst of them.
    """
    width, limit = decoding.num_beams, decoding.max_new_tokens
    cache = new_cache(decoder, 1, len(prompt) + limit)
    for start in range(0, len(prompt), READ_TOKENS):
        scores = read(decoder, cache, [prompt[start : start + READ_TOKENS]], [0])
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
        scores = read(decoder, cache, [beam.ids[-1:] for beam in beams], range(len(beams)))
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
