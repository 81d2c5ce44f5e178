"""Every way to name a model opens the right weights, and text arrives whole."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from suri.data.encode import encode_prompt
from suri.data.prompt import find_prompt
from suri.data.records import Record
from suri.errors import Corrupt, UsageError
from suri.infer.engines import open_model
from suri.model.adapter import initial_adapter
from suri.model.adapter_file import write_adapter
from suri.model.attention import PackedAttention
from suri.model.config import read_config
from suri.model.load import load_decoder
from suri.model.weights import base_identity
from suri.recipe import GREEDY, Decoding

SHORT = replace(GREEDY, max_new_tokens=8)
RECORDS = [
    Record("Say something.", "", ""),
    Record("Sort the words.", "pear, apple", ""),
    Record("Count.", "", ""),
]


def make_adapter(folder: Path, base: Path, *, zero: bool = False, record: bool = True) -> Path:
    """An adapter of random pairs on q and down, written as training writes it."""
    identity = base_identity(base, "none") if record else {}
    adapter = initial_adapter(
        read_config(base), r=3, alpha=11.0, targets=("q_proj", "down_proj"), seed=4, base=identity
    )
    generator = torch.Generator().manual_seed(9)
    scale = 0.0 if zero else 1.0
    pairs = {
        name: (a, scale * torch.randn(b.shape, generator=generator))
        for name, (a, b) in adapter.tensors.items()
    }
    folder.mkdir(parents=True)
    write_adapter(folder, replace(adapter, tensors=pairs))
    return folder


@pytest.fixture
def lora(tmp_path, tiny):
    return make_adapter(tmp_path / "lora", tiny)


def ids_of(model, records=RECORDS):
    """Greedy tokens: unlike text they show every difference."""
    prompts = [encode_prompt(record, model.tokenizer, model.prompt) for record in records]
    return [answer.ids for answer in model.engine.generate(prompts, -1, SHORT)]


def test_a_model_folder_answers_as_transformers(tiny):
    model = open_model(f" {tiny} ")
    theirs = LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    for record, ids in zip(RECORDS, ids_of(model), strict=True):
        asked = encode_prompt(record, model.tokenizer, find_prompt("alpaca"))
        prompt = torch.from_numpy(asked).long().unsqueeze(0)
        with torch.no_grad():
            expected = theirs.generate(
                prompt, do_sample=False, max_new_tokens=8, eos_token_id=-1, pad_token_id=0
            )
        assert ids == expected[0, prompt.shape[1] :].tolist()
    assert str(tiny) in model.label


def test_answers_come_in_order_and_say_how_they_ended(tiny):
    model = open_model(str(tiny))
    answers = model.answer(RECORDS, SHORT)
    for record, answer in zip(RECORDS, answers, strict=True):
        assert model.answer([record], SHORT) == [answer]
        assert answer.tokens == len(answer.text) == 8  # one token for each letter
    assert len({answer.text for answer in answers}) > 1
    stop = Event()
    stop.set()
    assert [a.tokens for a in model.answer(RECORDS, SHORT, stop)] == [0, 0, 0]


def test_an_adapter_alone_brings_its_base(tiny, lora):
    alone, named = open_model(str(lora)), open_model(str(tiny), lora_weights=f"{lora} ")
    assert ids_of(alone) == ids_of(named)
    assert ids_of(alone) != ids_of(open_model(str(tiny)))
    assert "lora" in alone.label
    assert tiny.name in alone.label


def test_an_adapter_of_zeros_answers_as_the_base(tmp_path, tiny):
    folder = make_adapter(tmp_path / "zero", tiny, zero=True)
    assert ids_of(open_model(str(folder))) == ids_of(open_model(str(tiny)))


def test_the_saved_prompt_is_used(tmp_path, tiny, lora):
    template = {
        "prompt_input": "Q {instruction} ({input}) A",
        "prompt_no_input": "Q {instruction} A",
    }
    (lora / "prompt.json").write_text(json.dumps(template), encoding="utf-8")
    assert open_model(str(lora)).prompt.render(RECORDS[0]) == "Q Say something. A"
    assert open_model(str(tiny)).prompt == find_prompt("alpaca")


def test_an_adapter_trained_on_nf4_opens_on_nf4(tiny, lora):
    recorded = json.loads((lora / "base.json").read_text(encoding="utf-8"))
    (lora / "base.json").write_text(json.dumps(recorded | {"quantize": "nf4"}), encoding="utf-8")
    assert type(open_model(str(lora)).engine.decoder.layers[0].down.base).__name__ == "NF4"
    assert type(
        open_model(str(lora), quantize="none").engine.decoder.layers[0].down.base
    ).__name__ == ("Dense")


def test_load_8bit_stores_the_linears_as_int8(tiny, lora):
    model = open_model(str(tiny), lora_weights=str(lora), load_8bit=True)
    assert all(layer.qkv.base.weight.dtype == torch.int8 for layer in model.engine.decoder.layers)
    assert "int8" in model.label
    prompt = torch.from_numpy(encode_prompt(RECORDS[0], model.tokenizer, model.prompt)).long()
    exact = open_model(str(tiny), lora_weights=str(lora))
    with torch.no_grad():
        near, true = (
            m.engine.decoder.logits(
                m.engine.decoder(prompt, torch.arange(len(prompt)), PackedAttention([len(prompt)]))
            )
            for m in (model, exact)
        )
    assert 0 < (near - true).abs().mean() < 0.1 * true.std()


def test_a_base_without_a_tokenizer_takes_the_adapters(tmp_path, tiny):
    base = tmp_path / "base"
    shutil.copytree(tiny, base, ignore=shutil.ignore_patterns("tokenizer*"))
    folder = make_adapter(tmp_path / "with_tokenizer", base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder / name)
    assert ids_of(open_model(str(folder))) == ids_of(
        open_model(str(tiny), lora_weights=str(folder))
    )
    with pytest.raises(UsageError, match="no tokenizer"):
        open_model(str(base))


def test_wrong_folders_get_a_message(tmp_path, tiny, lora):
    with pytest.raises(UsageError, match="no such"):
        open_model(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="is not an adapter"):
        open_model(str(tiny), lora_weights=str(tmp_path / "nowhere"))
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.toml").write_text("", encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        open_model(str(tiny), lora_weights=str(tmp_path / "begun"))
    assert f"suri train --resume --output_dir {tmp_path / 'begun'}" in refused.value.do
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UsageError, match=r"neither a model nor an adapter(.|\n)*todo.txt"):
        open_model(str(tmp_path / "notes"))
    (lora / "adapter_model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(Corrupt, match="not a whole safetensors file"):
        open_model(str(lora))


def test_a_base_that_moved_away_is_named(tmp_path, tiny):
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    folder = make_adapter(tmp_path / "moved", base)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=f"is not here(.|\n)*{base}(.|\n)*--base_model"):
        open_model(str(folder))
    assert open_model(str(tmp_path / "elsewhere"), lora_weights=str(folder))
    nameless = make_adapter(tmp_path / "nameless", tiny, record=False)
    with pytest.raises(UsageError, match="the adapter names none"):
        open_model(str(nameless))


def test_an_adapter_for_another_base_is_refused_or_noted(tmp_path, tiny, lora, caplog):
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    weights = load_file(tiny / "model.safetensors")

    other = tmp_path / "other"
    other.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, other / name)
    (other / "config.json").write_text(
        json.dumps(config | {"num_hidden_layers": 2}), encoding="utf-8"
    )
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=f"does not fit this base(.|\n)*{tiny}"):
        open_model(str(other), lora_weights=str(lora))

    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert open_model(str(other), lora_weights=str(lora))
    assert not caplog.records  # a copy of the base
    save_file(
        weights | {"model.norm.weight": weights["model.norm.weight"] + 1},
        other / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert open_model(str(other), lora_weights=str(lora))
    assert "trained on other weights" in caplog.text


SPOKEN = "né 漢🦙!"


def test_characters_of_several_tokens_arrive_whole(tmp_path):
    model = open_model(str(make_speaker(tmp_path / "speaker", SPOKEN)))
    assert model.answer([RECORDS[0]], SHORT)[0].text.startswith("né")
    decoding = replace(SHORT, max_new_tokens=30)
    (answer,) = model.answer([RECORDS[0]], decoding)
    assert (answer.text, answer.tokens, answer.stopped) == (SPOKEN, len(SPOKEN.encode()), True)

    pieces = list(model.stream(RECORDS[0], decoding))
    assert "".join(pieces) == SPOKEN
    assert len(pieces) == answer.tokens
    assert [piece for piece in pieces if piece] == list(SPOKEN)

    cut = Decoding(temperature=0, max_new_tokens=5)  # ends inside the character 漢
    pieces = list(model.stream(RECORDS[0], cut))
    assert "".join(pieces) == model.answer([RECORDS[0]], cut)[0].text
    assert "".join(pieces[:4]) == "né "
    assert "".join(pieces).endswith("\ufffd")


def make_speaker(folder: Path, text: str) -> Path:
    """A model that says `text` after a prompt, byte by byte, and ends.

    Attention and MLP are zero, so the last token alone decides: the head sends each byte's token
    to the next one's. No byte may occur twice in `text`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"</s>": 0} | {letter: i + 1 for i, letter in enumerate(letters)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("</s>")])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "</s>", "add_bos_token": False}), encoding="utf-8"
    )
    size, hidden = len(vocab), len(vocab) + 3
    config = {
        "model_type": "llama", "vocab_size": size, "hidden_size": hidden, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 10,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    path = [*backend.encode("\n" + text, add_special_tokens=False).ids, 0]
    assert len(set(path)) == len(path)
    head = torch.zeros(size, hidden)
    head[path[1:], path[:-1]] = 1.0
    tensors = {
        f"model.layers.0.{name}.weight": torch.zeros(shape)
        for name, shape in read_config(folder).linear_shapes().items()
    } | {
        "model.embed_tokens.weight": torch.eye(size, hidden),
        "lm_head.weight": head,
        "model.norm.weight": torch.ones(hidden),
        "model.layers.0.input_layernorm.weight": torch.ones(hidden),
        "model.layers.0.post_attention_layernorm.weight": torch.ones(hidden),
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_decoder(folder).config.vocab_size == 257
    return folder
