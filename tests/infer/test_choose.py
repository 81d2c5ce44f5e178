"""The choice of a token agrees with transformers' own warpers."""

import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from suri.infer.choose import choose, draw_numbers, penalise
from suri.recipe import GREEDY, Decoding

VOCAB = 37


@pytest.fixture
def scores():
    return 3 * torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(1))


def test_temperature_zero_takes_the_likeliest(scores):
    draws = torch.tensor([0.999, 0.999])
    assert choose(scores, GREEDY, draws).tolist() == scores.argmax(-1).tolist()


@pytest.mark.parametrize(
    "temperature, top_k, top_p",
    [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.6, 0, 0.6), (1.3, 9, 0.8), (0.9, 4000, 0.0)],
)
def test_frequencies_equal_the_warped_probabilities(scores, temperature, top_k, top_p):
    decoding = Decoding(temperature=temperature, top_k=top_k, top_p=top_p)
    warped = TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        warped = TopKLogitsWarper(min(top_k, VOCAB))(None, warped)
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(None, warped)
    expected = warped.softmax(-1)

    count = 20_000
    draws = (torch.arange(count) + 0.5) / count
    for row in range(len(scores)):
        tokens = choose(scores[row].expand(count, -1), decoding, draws)
        found = torch.bincount(tokens, minlength=VOCAB) / count
        assert (found - expected[row]).abs().max() <= 2 / count
        assert set(tokens.tolist()) <= set(expected[row].nonzero().flatten().tolist())


def test_the_largest_draw_stays_among_the_allowed(scores):
    draws = torch.tensor([1 - 2**-24, 1 - 2**-24])
    decoding = Decoding(temperature=1.0, top_k=3, top_p=1.0)
    tokens = choose(scores, decoding, draws)
    assert all(token in scores[row].topk(3).indices for row, token in enumerate(tokens))


def test_penalty_equals_transformers(scores):
    texts = [[3, 5, 3, 36], [0]]
    expected = torch.cat(
        [
            RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([text]), scores[row : row + 1])
            for row, text in enumerate(texts)
        ]
    )
    assert not torch.equal(expected, scores)
    assert torch.equal(penalise(scores.clone(), texts, 1.7), expected)
    assert torch.equal(penalise(scores.clone(), texts, 1.0), scores)


def test_draws_depend_on_seed_and_prompt_alone():
    prompts = [[1, 2, 3], [1, 2, 4], [1, 2, 3]]
    first = draw_numbers(prompts, Decoding(seed=3, max_new_tokens=5))
    assert first.shape == (3, 5)
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first[1:2], draw_numbers([prompts[1]], Decoding(seed=3, max_new_tokens=5)))
    assert not torch.equal(first, draw_numbers(prompts, Decoding(seed=4, max_new_tokens=5)))
