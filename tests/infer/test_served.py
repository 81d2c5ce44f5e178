"""One base with adapters over it: names, storage, and answers as each gives them alone."""

from dataclasses import replace

import pytest
import torch

from suri.data.prompt import find_prompt
from suri.data.records import Record
from suri.errors import UsageError
from suri.infer.engines import Model, open_model
from suri.infer.served import Turns, open_served
from suri.model.adapter import initial_adapter
from suri.model.adapter_file import write_adapter
from suri.model.config import read_config
from suri.recipe import GREEDY

DECODING = replace(GREEDY, max_new_tokens=20)
RECORD = Record("Say it.", "", "")


@pytest.fixture
def adapters(tiny, tmp_path):
    """Makes adapter folders over `tiny`."""

    def make(name, targets=("q_proj", "down_proj"), /, **base):
        made = initial_adapter(
            read_config(tiny), r=len(name), alpha=6, targets=targets, seed=len(name),
            base={"path": str(tiny)} | base,
        )  # fmt: skip
        for _, b in made.tensors.values():
            b.normal_(generator=torch.Generator().manual_seed(len(name)))
        folder = tmp_path / name
        folder.mkdir()
        write_adapter(folder, made)
        return folder

    return make


def said(served, name):
    model = Model(Turns(served, name), served.tokenizer, served.voices[name].prompt, name)
    return model.answer([RECORD], DECODING)[0].text


def alone(*words, **more):
    return open_model(*map(str, words), **more).answer([RECORD], DECODING)[0].text


@pytest.mark.slow
def test_a_run_is_served_with_its_base_and_further_adapters(tiny, adapters):
    run, other = adapters("run"), adapters("other", ("v_proj", "gate_proj"))
    find_prompt("alpaca_short").save(other)
    served = open_served(str(run), adapters={"more": str(other)})
    assert list(served.voices) == [tiny.name, "run", "more"]
    assert served.default == "run"
    expected = {"run": alone(run), "more": alone(other), tiny.name: alone(tiny)}
    assert len(set(expected.values())) == 3
    for name in ("run", "more", "run", tiny.name, "more", tiny.name):
        assert said(served, name) == expected[name]
    assert not served.decoder.pairs()


def test_base_and_adapter_may_be_named_apart(tiny, adapters):
    run = adapters("run")
    served = open_served(str(tiny), lora_weights=str(run), prompt="vigogne")
    assert list(served.voices) == [tiny.name, "run"]
    assert {voice.prompt.name for voice in served.voices.values()} == {"vigogne"}


def test_the_base_is_called_as_the_adapter_recorded_it(adapters):
    assert list(open_served(str(adapters("run", name="small"))).voices) == ["small", "run"]
    assert list(open_served(str(adapters("same", name="same"))).voices) == ["same-base", "same"]


def test_two_of_a_name_are_refused(adapters):
    run = str(adapters("run"))
    with pytest.raises(UsageError, match="two adapters are called run"):
        open_served(run, adapters={"run": run})


@pytest.mark.slow
def test_bases_in_different_storage_are_refused(adapters):
    run, other = adapters("run"), adapters("other", quantize="nf4")
    with pytest.raises(UsageError, match="different storage"):
        open_served(str(run), adapters={"more": str(other)})
    served = open_served(str(run), adapters={"more": str(other)}, load_8bit=True)
    assert said(served, "run") == alone(run, load_8bit=True)


def test_an_adapter_of_another_shape_is_refused(tiny, adapters, tmp_path):
    from conftest import make_model

    wrong = adapters("wrong")
    other = make_model(tmp_path / "base", hidden_size=96, num_attention_heads=6)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((tiny / name).read_bytes())
    with pytest.raises(UsageError, match="does not fit this base"):
        open_served(str(other), adapters={"wrong": str(wrong)})
