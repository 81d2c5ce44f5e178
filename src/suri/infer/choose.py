"""From the scores of the next token to the token: greedy or sampled, repetition made costly."""

import zlib
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from suri.recipe import Decoding


def choose(scores: Tensor, decoding: Decoding, draws: Tensor) -> Tensor:
    """The next token [rows] from scores [rows, vocab] and uniform numbers `draws` [rows].

    Temperature, then top-k, then nucleus (Holtzman et al., 2020, arXiv:1904.09751), in the order
    of transformers; the token is where the cumulative probability passes the draw.
    """
    if decoding.temperature == 0:
        return scores.argmax(dim=-1)
    most = min(decoding.top_k or scores.shape[-1], scores.shape[-1])
    best, order = scores.topk(most, dim=-1)
    weights = (best / decoding.temperature).softmax(dim=-1)
    before = weights.cumsum(dim=-1) - weights
    # Rounding must not cut a token where nothing is to be cut.
    outside = before >= (decoding.top_p if decoding.top_p < 1 else 2)
    outside[:, 0] = False
    reached = weights.masked_fill(outside, 0).cumsum(dim=-1)
    passed = reached <= draws.unsqueeze(1) * reached[:, -1:]
    last = (~outside).sum(dim=-1) - 1
    place = torch.minimum(passed.sum(dim=-1), last)
    return order.gather(1, place.unsqueeze(1)).squeeze(1)


def penalise(scores: Tensor, texts: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Make the tokens of each text less likely in its row of scores [rows, vocab], in place.

    Positive scores are divided by the penalty and negative ones multiplied (Keskar et al., 2019,
    arXiv:1909.05858); as in transformers, the prompt counts as used.
    """
    if penalty != 1:
        for row, text in zip(scores, texts, strict=True):
            used = torch.tensor(sorted(set(text)), device=scores.device)
            row[used] = torch.where(row[used] < 0, row[used] * penalty, row[used] / penalty)
    return scores


def draw_numbers(prompts: list[list[int]], decoding: Decoding) -> Tensor:
    """Uniform numbers [rows, max_new_tokens]; a row's depend on the seed and its prompt alone."""
    generators = [
        torch.Generator().manual_seed(decoding.seed + zlib.crc32(array("q", prompt).tobytes()))
        for prompt in prompts
    ]
    return torch.stack(
        [torch.rand(decoding.max_new_tokens, generator=generator) for generator in generators]
    )
