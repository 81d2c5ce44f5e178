"""The engine of transformers gives what ours gives: each is the other's referee."""

from dataclasses import replace
from threading import Event

import pytest
import torch
from test_engines import RECORDS, make_adapter

from suri.data.encode import encode_prompt
from suri.errors import UsageError
from suri.infer.engines import open_model
from suri.recipe import GREEDY

SHORT = replace(GREEDY, max_new_tokens=9)
NEVER = -1


@pytest.fixture
def lora(tmp_path, tiny):
    return make_adapter(tmp_path / "lora", tiny)


def both(tiny, **settings):
    return [open_model(str(tiny), engine=name, **settings) for name in ("suri", "transformers")]


def prompts_of(model):
    prompts = [encode_prompt(record, model.tokenizer, model.prompt) for record in RECORDS]
    assert len({len(prompt) for prompt in prompts}) > 1, "padding is part of the test"
    return prompts


@pytest.mark.slow
@pytest.mark.parametrize("with_adapter", [False, True])
def test_greedy_answers_and_log_probabilities_are_the_same(tiny, lora, with_adapter):
    ours, theirs = both(tiny, lora_weights=str(lora) if with_adapter else "")
    prompts = prompts_of(ours)
    found = [model.engine.generate(prompts, NEVER, SHORT) for model in (ours, theirs)]
    assert found[0] == found[1]
    assert all(len(answer.ids) == 9 for answer in found[0])
    text, places = prompts[1], [1, 5, len(prompts[1]) - 1]
    mine, other = (model.engine.log_probs(text, places) for model in (ours, theirs))
    assert mine.shape == other.shape == (3, 131)
    torch.testing.assert_close(mine, other, atol=2e-4, rtol=0)
    torch.testing.assert_close(mine.exp().sum(1), torch.ones(3))


@pytest.mark.slow
def test_the_adapter_is_really_there(tiny, lora):
    plain, tuned = (
        open_model(str(tiny), engine="transformers", lora_weights=weights).engine
        for weights in ("", str(lora))
    )
    prompts = prompts_of(open_model(str(tiny)))
    assert plain.generate(prompts, NEVER, SHORT) != tuned.generate(prompts, NEVER, SHORT)


def test_an_answer_ends_at_the_end_of_text_and_says_so(tiny):
    ours, theirs = both(tiny)
    prompts = prompts_of(ours)
    ends = ours.engine.generate(prompts, NEVER, SHORT)[1].ids[4]
    found = [model.engine.generate(prompts, ends, SHORT) for model in (ours, theirs)]
    assert found[0] == found[1]
    assert found[0][1].stopped
    assert len(found[0][1].ids) <= 4


def test_a_stream_is_the_answer_token_by_token(tiny):
    ours, theirs = both(tiny)
    prompt = prompts_of(ours)[1]
    whole = theirs.engine.generate([prompt], NEVER, SHORT)[0].ids
    assert list(theirs.engine.stream(prompt, NEVER, SHORT)) == whole
    assert list(ours.engine.stream(prompt, NEVER, SHORT)) == whole
    stop, taken = Event(), []
    for token in theirs.engine.stream(prompt, NEVER, replace(SHORT, max_new_tokens=60), stop=stop):
        taken.append(token)
        stop.set()
    assert len(taken) < 60


@pytest.mark.slow
def test_beams_and_sampling_work_there_too(tiny):
    ours, theirs = both(tiny)
    prompt = prompts_of(ours)[1]
    beams = replace(SHORT, num_beams=3)
    assert list(theirs.engine.stream(prompt, 1, beams)) == list(
        ours.engine.stream(prompt, 1, beams)
    )
    sampled = replace(SHORT, temperature=1.5, top_p=0.95, seed=5)
    first, again = (theirs.engine.generate([prompt], NEVER, sampled) for _ in range(2))
    assert first == again
    assert first != theirs.engine.generate([prompt], NEVER, replace(sampled, seed=6))


def test_a_problem_of_a_stream_comes_out_of_it(tiny):
    engine = open_model(str(tiny), engine="transformers").engine
    with pytest.raises(IndexError):
        list(engine.stream([99_999], NEVER, SHORT))


def test_what_it_does_not_read_is_refused(tmp_path, tiny):
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(UsageError, match="is not offered with a base in int8-weight"):
        open_model(str(tiny), engine="transformers", load_8bit=True)
