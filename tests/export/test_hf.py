"""HF folders as transformers and safetensors read them."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from merges import (
    files_in,
    make_adapter,
    make_base,
    merged_by_peft,
    reference_logits,
    write_hf,
)
from safetensors.torch import load_file

from suri.data.prompt import TextPrompt, read_prompt
from suri.errors import UsageError
from suri.export import hf
from suri.export.hf import merged_config
from suri.files import write_json
from suri.model.config import read_config
from suri.model.tensor_files import write_safetensors
from suri.model.tokenizer import read_tokenizer
from suri.reading import read_json

KINDS = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen3-tied": ("qwen3", {"head_dim": 10, "tie_word_embeddings": True}),
}


def load(folder: Path) -> torch.nn.Module:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_logits_of_pefts_merge(kind, tmp_path):
    model_type, changes = KINDS[kind]
    base = make_base(tmp_path / "base", model_type, **changes)
    adapter = make_adapter(tmp_path / "adapter", base)
    certificate = write_hf(None, adapter, tmp_path / "merged")
    assert certificate.passed
    assert certificate.record["reader"].startswith("transformers")
    expected = reference_logits(merged_by_peft(base, adapter))
    found = reference_logits(load(tmp_path / "merged"))
    assert (found - expected).abs().max() < 1e-4
    assert (expected - reference_logits(load(base))).abs().max() > 0.1
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert ("lm_head.weight" in stored) == (not changes.get("tie_word_embeddings", False))
    assert read_json(tmp_path / "merged" / "config.json")["model_type"] == model_type


@pytest.mark.slow
def test_shards_have_an_index_that_transformers_follows(tmp_path, monkeypatch):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    write_hf(base, adapter, tmp_path / "whole")
    monkeypatch.setattr(hf, "SHARD_BYTES", 60_000)
    write_hf(base, adapter, tmp_path / "cut")
    index = read_json(tmp_path / "cut" / "model.safetensors.index.json")
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    sizes = [
        sum(t.nbytes for t in load_file(tmp_path / "cut" / shard).values()) for shard in shards
    ]
    assert max(sizes) <= 60_000
    assert index["metadata"]["total_size"] == sum(sizes)
    assert torch.equal(
        reference_logits(load(tmp_path / "cut")), reference_logits(load(tmp_path / "whole"))
    )


def test_all_that_belongs_to_a_model_lies_beside_the_weights(tmp_path):
    base = make_base(tmp_path / "base", dtype=torch.bfloat16)
    adapter = make_adapter(tmp_path / "adapter", base)
    prompt = TextPrompt("mine", "{instruction} on {input}:", "{instruction}:")
    prompt.save(adapter)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (adapter / "data.json").write_text('{"licence": "CC BY-NC 4.0"}')
    write_hf(base, adapter, tmp_path / "merged")
    out = tmp_path / "merged"
    assert files_in(out) == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", "prompt.json", "README.md",
        "certificate.json",
    }  # fmt: skip
    assert read_prompt(out) == prompt
    text = "One café: <s> is text."
    assert read_tokenizer(out).encode(text) == read_tokenizer(base).encode(text)
    assert read_json(out / "config.json")["dtype"] == "bfloat16"
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "W + 2.4 B A" in card
    assert "CC BY-NC 4.0" in card
    assert str(tmp_path) not in card


def test_transformers_reads_the_tokenizer(tmp_path):
    import transformers

    base = make_base(tmp_path / "base")
    write_hf(base, make_adapter(tmp_path / "adapter", base), tmp_path / "merged")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = read_tokenizer(base).encode("Sort: b, a.")
    assert theirs("Sort: b, a.", add_special_tokens=False)["input_ids"] == ids


def test_nothing_executable_or_stale_stays_in_the_configuration(tmp_path):
    base = make_base(tmp_path)
    raw = read_json(base / "config.json") | {
        "auto_map": {"AutoModelForCausalLM": "evil.Model"},
        "torch_dtype": "float64",
        "quantization_config": {"quant_method": "gptq"},
        "architectures": ["LLaMAForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 7,
        "pad_token_id": -1,
    }
    write_json(base / "config.json", raw)
    config = merged_config(read_config(base), "float16", read_tokenizer(base))
    assert not {"auto_map", "torch_dtype", "quantization_config"} & set(config)
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float16"
    assert config["eos_token_id"] == read_tokenizer(base).eos_id
    assert config["pad_token_id"] == read_tokenizer(base).pad_id
    assert config["bos_token_id"] == 0
    assert "pad_token_id" not in merged_config(read_config(base), "float16")


def test_several_ends_of_text_stay(tmp_path):
    base = make_base(tmp_path)
    tokenizer = read_tokenizer(base)
    raw = read_json(base / "config.json") | {"eos_token_id": [9, tokenizer.eos_id]}
    write_json(base / "config.json", raw)
    config = merged_config(read_config(base), "float32", tokenizer)
    assert config["eos_token_id"] == [9, tokenizer.eos_id]


def test_an_existing_folder_is_left_alone(tmp_path):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match="exists already"):
        write_hf(base, adapter, tmp_path / "merged")
    assert files_in(tmp_path / "merged") == {"mine.txt"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_file_is_what_safetensors_reads(tmp_path, dtype):
    tensors = {"a.weight": torch.randn(5, 7).to(dtype), "b": torch.randn(3).to(dtype)}
    tensors["c"] = torch.randn(4, 6).to(dtype).t()
    entries = [(name, tuple(tensor.shape), dtype) for name, tensor in tensors.items()]
    write_safetensors(tmp_path / "x.safetensors", entries, tensors.items())
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)
    start = int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little")
    assert start % 8 == 0
    header = json.loads((tmp_path / "x.safetensors").read_bytes()[8 : 8 + start])
    assert header["__metadata__"] == {"format": "pt"}


def test_one_tensor_is_held_at_a_time(tmp_path):
    alive: list[weakref.ref] = []
    most = 0

    def tensors():
        nonlocal most
        for number in range(12):
            tensor = torch.full((40, 50), float(number))
            alive.append(weakref.ref(tensor))
            most = max(most, sum(reference() is not None for reference in alive))
            yield f"t{number}", tensor

    entries = [(f"t{number}", (40, 50), torch.float32) for number in range(12)]
    write_safetensors(tmp_path / "x.safetensors", entries, tensors())
    assert most <= 2
    assert load_file(tmp_path / "x.safetensors")["t7"].mean() == 7
