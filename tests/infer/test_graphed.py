"""Steps of fixed size give what passes of any size give, whoever comes, goes or is exchanged.

Without a GPU a step is not captured; all else is as it is there.
"""

import logging
from dataclasses import replace
from itertools import pairwise
from threading import Event
from weakref import WeakSet

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from suri.infer import graphed
from suri.infer.engine import DecoderEngine
from suri.infer.graphed import Step, Steps
from suri.infer.together import Row, Together, new_cache, read
from suri.model.adapter import initial_adapter
from suri.model.kv_cache import KVCache
from suri.model.load import load_decoder
from suri.recipe import Decoding

SHAPE = dict(
    vocab_size=61, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
    num_attention_heads=6, num_key_value_heads=2, head_dim=10, max_position_embeddings=96,
    initializer_range=0.3, tie_word_embeddings=False,
)  # fmt: skip


def made(folder, kind, config):
    torch.manual_seed(11)
    kind(config).save_pretrained(folder)
    return load_decoder(folder)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """Six heads over two of keys."""
    return made(tmp_path_factory.mktemp("llama"), LlamaForCausalLM, LlamaConfig(**SHAPE))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """Each token sees the last seven alone."""
    config = MistralConfig(**SHAPE, sliding_window=7)
    return made(tmp_path_factory.mktemp("mistral"), MistralForCausalLM, config)


@pytest.fixture
def used(monkeypatch):
    """Has steps used on a CPU, from 8 keys on; gives (rows, keys) of those that were captured."""
    captured = []
    monkeypatch.setattr(graphed, "possible", lambda decoder: decoder not in graphed._REFUSED)
    monkeypatch.setattr(graphed, "LEAST_KEYS", 8)
    monkeypatch.setattr(
        Step, "capture", lambda step, other: captured.append((step.rows, step.longest))
    )
    return captured


def prompts_of(*lengths):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 46, (n,), generator=generator).tolist() for n in lengths]


def rows_of(prompts, *tokens):
    return [
        Row(list(prompt), Decoding(temperature=0, max_new_tokens=most), Event())
        for prompt, most in zip(prompts, tokens, strict=True)
    ]


def alone(decoder, rows):
    """What each answers by passes that were never captured."""
    engine = DecoderEngine(decoder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphed, "possible", lambda decoder: False)
        return [engine.generate([row.ids], -1, row.decoding)[0].ids for row in rows]


def answers(decoder, rows, every=3):
    """The rows' answers; one more joins after every so many passes, 0: all at once."""
    together, waiting, passes = Together(decoder, -1), list(rows), 0
    starts = [len(row.ids) for row in rows]
    while waiting or together.rows:
        while waiting and passes >= every * (len(rows) - len(waiting)):
            together.join(waiting.pop(0))
        together.step()
        passes += 1
    return [row.ids[start:] for row, start in zip(rows, starts, strict=True)]


@pytest.mark.parametrize("which", ["grouped", "windowed"])
def test_rows_that_come_and_go_in_steps_are_what_they_are_alone(which, request, used):
    """The cache grows in places and in capacity, and places that were left are taken again."""
    decoder = request.getfixturevalue(which)
    rows = rows_of(prompts_of(9, 1, 20, 4), 12, 10, 11, 12)
    expected = alone(decoder, rows)
    assert answers(decoder, rows, every=3) == expected
    assert {rows for rows, _ in used} == {1, 2, 4}
    assert {keys for _, keys in used} == {16, 31}


def test_steps_take_over_a_common_start_and_a_repetition_made_costly(grouped, used):
    start = prompts_of(12)[0]
    rows = rows_of([[*start, n] for n in range(3)], 12, 12, 12)
    rows[1].decoding = rows[1].kind = replace(rows[1].decoding, repetition_penalty=1.4)
    expected = alone(grouped, rows)
    shared, share = [], KVCache.share

    def counting(cache, row, other, count):
        shared.append(count)
        share(cache, row, other, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVCache, "share", counting)
        assert answers(grouped, rows, every=2) == expected
    assert shared == [12, 12]
    assert used


def test_nothing_is_captured_for_a_few_tokens_or_without_a_gpu(grouped, used, monkeypatch):
    rows = rows_of(prompts_of(5, 7), 9, 4)  # the first of nine comes of the prompt
    answers(grouped, rows)
    assert not used
    monkeypatch.undo()
    assert not graphed.possible(grouped)
    assert Steps(grouped).read(new_cache(grouped, 1, 9), [3], 99) is None


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_step_begins_before_the_host_knows_its_tokens(grouped, used, temperature, monkeypatch):
    """Once for each token: none is done twice, or in vain but the last one."""
    decoding = Decoding(temperature=temperature, max_new_tokens=20, seed=3)
    rows = [Row(ids, decoding, Event()) for ids in prompts_of(6, 9)]
    expected, fed, told = alone(grouped, rows), [], []
    feed, tell = Step.feed, Step.tell
    monkeypatch.setattr(Step, "feed", lambda step, *given: fed.append(1) or feed(step, *given))
    monkeypatch.setattr(Step, "tell", lambda step, chosen: told.append(1) or tell(step, chosen))
    assert answers(grouped, rows, every=0) == expected
    # The first of 20 tokens comes of the prompts. A step is fed where it is a longer one: for its
    # capture, and then for itself.
    assert used == [(2, 16), (2, 29)]
    assert len(fed) == 2 * len(used)
    assert len(told) == 18  # after 19 steps, but not where the keys of a step are full


def test_few_steps_are_captured(grouped, used):
    """By powers of two, and none for rows that have ended: the others go on in the larger one."""
    answers(grouped, rows_of(prompts_of(3, 3, 3), 30, 20, 5), every=0)
    assert used == [(4, 8), (2, 16), (2, 32)]


def test_steps_for_one_row_replace_those_for_many_of_which_most_are_idle(grouped, used):
    answers(grouped, rows_of(prompts_of(*[3] * 8), 26, *[3] * 7), every=0)
    assert used == [(8, 8), (1, 8), (1, 16), (1, 29)]


@torch.no_grad()
def test_another_adapter_or_cache_makes_new_steps(grouped, used):
    """Scores of steps against those of passes, on the same tokens."""
    prompts = prompts_of(5, 3)
    cache, other = new_cache(grouped, 2, 20), new_cache(grouped, 2, 20)
    for each in (cache, other):
        read(grouped, each, prompts, [])
    steps, known = Steps(grouped), []

    def same(token):
        found = steps.read(cache, [token, token + 1], 99).clone()
        torch.testing.assert_close(found, read(grouped, other, [[token], [token + 1]], [0, 1]))
        assert steps.made
        known.append(steps.made[0])
        return found

    adapter = initial_adapter(grouped.config, r=3, alpha=6, targets=("q_proj", "up_proj"), seed=1)
    for _, b in adapter.tensors.values():
        b.normal_(generator=torch.Generator().manual_seed(2))
    try:
        same(3)
        same(5)
        adapter.attach(grouped)
        same(3)
        adapter.attach(grouped)  # the same numbers elsewhere
        same(5)
    finally:
        for _, linear, _ in grouped.linears():
            linear.pairs.clear()
    same(3)
    for each in (cache, other):
        each.keep([1, 0])
    same(5)
    same(7)
    assert [one is two for one, two in pairwise(known)] == [True, False, False, False, False, True]


def test_where_a_capture_fails_decoding_goes_on_without_and_says_so_once(
    grouped, used, monkeypatch, caplog
):
    tried = []

    def failing(step, other):
        tried.append(step)
        if len(tried) == 2:
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphed, "_REFUSED", WeakSet())
    monkeypatch.setattr(Step, "capture", failing)
    rows = rows_of(prompts_of(4, 6), 12, 12)
    expected = alone(grouped, rows)
    assert answers(grouped, rows) == expected
    again = rows_of(prompts_of(4, 6), 12, 12)
    assert answers(grouped, again) == expected
    assert len(tried) == 2
    (said,) = caplog.records
    assert said.levelno == logging.WARNING
    assert "without CUDA graphs: operation not permitted" in said.message


def test_a_decoder_whose_weights_are_cut_over_processes_is_not_captured(tmp_path):
    class OnGPU:
        is_cuda = True

    decoder = made(tmp_path, LlamaForCausalLM, LlamaConfig(**SHAPE | {"num_hidden_layers": 1}))
    del decoder.embedding
    decoder.embedding = OnGPU()
    assert graphed.possible(decoder)
    storage = next(decoder.linears())[1].base
    weight = storage.weight
    del storage.weight
    storage.register_parameter("weight", torch.nn.Parameter(weight, requires_grad=False))
    assert not graphed.possible(decoder)
