"""Answers equal those of transformers, and do not depend on what they are batched with."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from suri.data.encode import encode_prompt
from suri.data.prompt import find_prompt
from suri.data.records import read_records
from suri.errors import UsageError
from suri.infer import together as module
from suri.infer.engine import DecoderEngine, Generated
from suri.infer.together import Row, Together
from suri.model.load import load_decoder
from suri.model.tokenizer import read_tokenizer
from suri.recipe import Decoding

ROOT = Path(__file__).parents[2]
EOS = 46  # one that the random model says now and then
LONG = Decoding(temperature=0, top_p=1.0, top_k=0, max_new_tokens=20)
SAMPLED = Decoding(temperature=1.2, top_p=0.9, top_k=30, max_new_tokens=20, seed=8)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=96,
        initializer_range=0.3,
        tie_word_embeddings=False,
        eos_token_id=EOS,
        bos_token_id=1,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("small")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(small_folder):
    return LlamaForCausalLM.from_pretrained(small_folder).eval()


@pytest.fixture(scope="module")
def decoder(small_folder):
    return load_decoder(small_folder)


@pytest.fixture(scope="module")
def prompts():
    """Ten prompts of 1 to 30 tokens, none of which is the end-of-text token."""
    generator = torch.Generator().manual_seed(5)
    lengths = [9, 1, 30, 4, 17, 12, 2, 23, 6, 5]
    return [torch.randint(0, EOS, (n,), generator=generator).tolist() for n in lengths]


def reference(model, prompt, eos_id, **settings):
    """What transformers answers, as our Generated."""
    with torch.no_grad():
        ids = model.generate(
            torch.tensor([prompt]), do_sample=False, eos_token_id=eos_id, pad_token_id=0, **settings
        )
    ids = ids[0, len(prompt) :].tolist()  # one row, so no padding
    stopped = ids[-1] == eos_id
    return Generated(ids[:-1] if stopped else ids, stopped)


@pytest.mark.slow
def test_greedy_equals_transformers(decoder, model, prompts):
    expected = [reference(model, prompt, EOS, max_new_tokens=20) for prompt in prompts]
    assert DecoderEngine(decoder).generate(prompts, EOS, LONG) == expected
    assert {answer.stopped for answer in expected} == {True, False}
    assert len({tuple(answer.ids) for answer in expected}) > 5


@pytest.mark.slow
def test_repetition_penalty_equals_transformers(decoder, model, prompts):
    decoding = Decoding(temperature=0, max_new_tokens=20, repetition_penalty=1.4)
    expected = [
        reference(model, prompt, EOS, max_new_tokens=20, repetition_penalty=1.4)
        for prompt in prompts
    ]
    assert DecoderEngine(decoder).generate(prompts, EOS, decoding) == expected
    assert expected != DecoderEngine(decoder).generate(prompts, EOS, LONG)


@pytest.mark.slow
@pytest.mark.parametrize("beams, penalty", [(3, 1.0), (5, 1.0), (3, 1.3)])
def test_beams_equal_transformers(decoder, model, prompts, beams, penalty):
    decoding = Decoding(num_beams=beams, max_new_tokens=14, repetition_penalty=penalty)
    expected = [
        reference(
            model,
            prompt,
            EOS,
            max_new_tokens=14,
            num_beams=beams,
            repetition_penalty=penalty,
        )
        for prompt in prompts
    ]
    found = DecoderEngine(decoder).generate(prompts, EOS, decoding)
    assert found == expected
    greedy = Decoding(temperature=0, max_new_tokens=14, repetition_penalty=penalty)
    assert found != DecoderEngine(decoder).generate(prompts, EOS, greedy)
    assert {answer.stopped for answer in found} == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize("decoding", [LONG, SAMPLED], ids=["greedy", "sampled"])
def test_batched_equals_one_by_one(decoder, prompts, decoding, monkeypatch):
    alone = [DecoderEngine(decoder).generate([prompt], EOS, decoding)[0] for prompt in prompts]
    together = DecoderEngine(decoder).generate(prompts, EOS, decoding)
    assert together == alone
    monkeypatch.setattr(module, "CACHE_BYTES", 60 * 2 * 3 * 2 * 10 * 4)  # about 60 tokens
    assert DecoderEngine(decoder).generate(prompts, EOS, decoding) == alone


@pytest.mark.slow
def test_rows_that_come_and_go_are_what_they_are_alone(decoder, prompts, monkeypatch):
    """Rows of other lengths, seeds and settings join at any time; prompts are read in parts."""
    monkeypatch.setattr(module, "READ_TOKENS", 7)
    rows = [
        Row(list(p), replace((LONG, SAMPLED)[n % 2], seed=n % 3, max_new_tokens=4 + 2 * n), Event())
        for n, p in enumerate(prompts)
    ]
    alone = [
        list(DecoderEngine(decoder).stream(prompt, -1, row.decoding))
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    found = {row: [] for row in rows}
    together, waiting, most, passes = Together(decoder, -1), list(rows), 0, 0
    while waiting or together.rows:
        if waiting and passes % 2 == 0:
            together.join(waiting.pop(0))
        most, passes = max(most, len(together.rows)), passes + 1
        for row, token in together.step():
            found[row].append(token)
            if row is rows[5] and len(found[row]) == 2:
                row.stop.set()
    assert [*found.values()] == [ids[:2] if n == 5 else ids for n, ids in enumerate(alone)]
    assert 3 < most < len(rows)
    assert all(row.ended for row in rows)


def test_rows_fit_together_by_the_memory_of_all(decoder, monkeypatch):
    monkeypatch.setattr(module, "CACHE_BYTES", 60 * 2 * 3 * 2 * 10 * 4)  # about 60 tokens
    together = Together(decoder, -1)
    assert together.fits(90)  # alone it may be longer
    together.join(Row([3] * 10, LONG, Event()))
    assert together.fits(7)
    assert together.fits(30)
    assert not together.fits(31)


def test_a_large_gpu_holds_more_rows(decoder, monkeypatch):
    def tokens(memory):
        device = SimpleNamespace(total_memory=memory)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
        weights = SimpleNamespace(is_cuda=True, device="cuda", element_size=lambda: 4)
        return module.most_tokens(SimpleNamespace(config=decoder.config, embedding=weights))

    assert tokens(8 * 2**30) == tokens(16 * 2**30) == module.most_tokens(decoder)
    assert tokens(32 * 2**30) == 2**31 // (2 * 3 * 2 * 10 * 4)


@pytest.mark.slow
def test_a_common_start_is_read_once(decoder, prompts, monkeypatch):
    """The first row reads it, the others copy it, whatever becomes of the first."""
    monkeypatch.setattr(module, "READ_TOKENS", 25)
    start = prompts[2][:20]
    asked = [[*start, n, 7, n + 1] for n in range(5)] + [start, [*start[:9], 40]]
    alone = [DecoderEngine(decoder).generate([prompt], -1, LONG)[0].ids for prompt in asked]
    fed, read = [], module.read

    def counting(decoder, cache, parts, ready):
        fed.append(sum(len(part) for part in parts if len(part) > 1))
        return read(decoder, cache, parts, ready)

    monkeypatch.setattr(module, "read", counting)
    together = Together(decoder, -1)
    rows = [Row(list(prompt), LONG, Event()) for prompt in asked]
    together.join(rows[0])
    together.step()
    for row in rows[1:]:
        together.join(row)
    while together.rows:
        together.step()
    assert [row.ids[len(p) :] for row, p in zip(rows, asked, strict=True)] == alone
    # 23 tokens of the first, then what is new: three, or a single one that does not count here.
    assert sum(fed) == 23 + 4 * 3


def test_a_long_prompt_is_read_in_parts_while_others_go_on(decoder, prompts, monkeypatch):
    monkeypatch.setattr(module, "READ_TOKENS", 5)
    together = Together(decoder, -1)
    short, long = (Row(list(prompts[n]), LONG, Event()) for n in (1, 2))
    together.join(short)
    together.join(long)
    while not long.written:
        written = short.written
        together.step()
        assert short.written == written + 1
    assert short.written == len(prompts[2]) / 5


@pytest.mark.slow
@pytest.mark.parametrize("decoding", [LONG, SAMPLED, Decoding(num_beams=3, max_new_tokens=14)])
def test_stream_gives_the_tokens_of_generate(decoder, prompts, decoding):
    for prompt in prompts[:4]:
        expected = DecoderEngine(decoder).generate([prompt], EOS, decoding)[0].ids
        assert list(DecoderEngine(decoder).stream(prompt, EOS, decoding)) == expected


def test_the_seed_decides(decoder, prompts):
    def answers(seed):
        return DecoderEngine(decoder).generate(
            prompts[:3],
            EOS,
            Decoding(temperature=1.5, top_p=1, max_new_tokens=9, seed=seed),
        )

    assert answers(1) == answers(1)
    assert answers(1) != answers(2)


@pytest.mark.slow
def test_sampling_follows_the_probabilities(decoder, model, prompts):
    """First tokens over 300 seeds against transformers' softmax, within four standard errors."""
    with torch.no_grad():
        chances = model(torch.tensor([prompts[0]])).logits[0, -1].softmax(-1)
    count, likeliest = 300, int(chances.argmax())
    found = Counter(
        next(
            iter(
                DecoderEngine(decoder).stream(
                    prompts[0],
                    -1,
                    Decoding(temperature=1, top_p=1, top_k=0, max_new_tokens=1, seed=seed),
                )
            )
        )
        for seed in range(count)
    )
    p = float(chances[likeliest])
    assert 0.02 < p < 0.98
    assert abs(found[likeliest] / count - p) < 4 * (p * (1 - p) / count) ** 0.5


def test_stop_ends_within_one_token(decoder, prompts):
    stop = Event()
    seen = []
    for token in DecoderEngine(decoder).stream(prompts[0], -1, LONG, stop=stop):
        seen.append(token)
        if len(seen) == 3:
            stop.set()
    assert len(seen) == 3
    answers = DecoderEngine(decoder).generate(prompts, -1, LONG, stop=stop)
    assert answers == [Generated([], False)] * len(prompts)
    beams = Decoding(num_beams=3, max_new_tokens=14)
    assert len(list(DecoderEngine(decoder).stream(prompts[0], -1, beams, stop=stop))) == 1


def test_the_window_limits_the_answer(decoder):
    (answer,) = DecoderEngine(decoder).generate([[9] * 90], -1, LONG)
    assert len(answer.ids) == 6
    with pytest.raises(UsageError, match="96 tokens leaves no room"):
        DecoderEngine(decoder).generate([[9] * 96], -1, LONG)


def test_gradients_and_training_state_are_left_alone(decoder, prompts):
    DecoderEngine(decoder).generate(prompts[:2], EOS, LONG)
    assert torch.is_grad_enabled()
    pieces = DecoderEngine(decoder).stream(prompts[0], EOS, LONG)
    next(pieces)
    assert torch.is_grad_enabled()
    pieces.close()


@pytest.mark.slow
@pytest.mark.parametrize("count", [4, pytest.param(50, marks=pytest.mark.soak)])
def test_the_embedded_base_answers_as_in_transformers(embedded, count):
    """Greedy, in fp32, token for token; and each the same alone as among the others."""
    asked = read_records(ROOT / "mini_data.json")[:count]
    tokenizer, decoder = read_tokenizer(embedded), load_decoder(embedded)
    prompts = [encode_prompt(r, tokenizer, find_prompt("alpaca")).tolist() for r in asked]
    decoding = Decoding(temperature=0, max_new_tokens=12)
    found = DecoderEngine(decoder).generate(prompts, tokenizer.eos_id, decoding)
    theirs = LlamaForCausalLM.from_pretrained(embedded, dtype=torch.float32).eval()
    assert found == [reference(theirs, p, tokenizer.eos_id, max_new_tokens=12) for p in prompts]
    engine = DecoderEngine(decoder)
    assert found == [engine.generate([p], tokenizer.eos_id, decoding)[0] for p in prompts]
    assert len({tuple(answer.ids) for answer in found}) > 0.9 * count


@pytest.mark.slow
def test_int8_answers_differ_between_batches_at_ties_alone(shallow):
    tokenizer, decoder = read_tokenizer(shallow), load_decoder(shallow, quantize="int8-weight")
    asked = read_records(ROOT / "mini_data.json")[:10]
    prompts = [encode_prompt(r, tokenizer, find_prompt("alpaca")).tolist() for r in asked]
    decoding = Decoding(temperature=0, max_new_tokens=12)
    found, ties = DecoderEngine(decoder).generate(prompts, tokenizer.eos_id, decoding), 0
    for prompt, answer in zip(prompts, found, strict=True):
        alone = DecoderEngine(decoder).generate([prompt], tokenizer.eos_id, decoding)[0]
        if alone == answer:
            continue
        one, other = [*alone.ids, tokenizer.eos_id], [*answer.ids, tokenizer.eos_id]
        place = next(
            n for n, pair in enumerate(zip(one, other, strict=False)) if len(set(pair)) == 2
        )
        text = prompt + one[:place]
        (scores,) = DecoderEngine(decoder).log_probs([*text, 0], [len(text)])
        assert abs(scores[one[place]] - scores[other[place]]) < 0.002
        ties += 1
    assert ties <= 2
