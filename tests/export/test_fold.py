"""Folding against peft's own merge, in fp32, and its refusals."""

from pathlib import Path

import pytest
import torch
from merges import (
    adapter,
    base,
    make_adapter,
    make_base,
    merged_by_peft,
    write_gguf,
    write_hf,
    write_meta,
)
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from conftest import write_tokenizer
from suri.errors import Corrupt, UsageError
from suri.export import fold as folding
from suri.export.fold import MergeBase, fold, open_merge
from suri.export.readers import read_tensors
from suri.files import write_json
from suri.model.adapter_file import read_adapter, write_adapter
from suri.model.weights import base_identity
from suri.reading import read_json

OWN = {
    "rank_pattern": {"k_proj": 2, r"layers\.1\.mlp\.down_proj": 7},
    "alpha_pattern": {"layers.0.self_attn.k_proj": 5, "(q|o)_proj": 3.5},
}


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True, "r": 3}, {"lora_alpha": 2.5}, OWN, OWN | {"use_rslora": True}],
)
def test_the_sum_is_pefts(base, tmp_path, settings):
    adapter = make_adapter(tmp_path, base, **settings)
    merge = open_merge(adapter)
    expected = merged_by_peft(base, adapter).state_dict()
    merged = dict(fold(merge.base, merge.adapter, merge.dtype))
    assert set(merged) == set(expected)
    for name, tensor in merged.items():
        assert torch.allclose(tensor, expected[name], rtol=0, atol=2e-6), name
    moved = "model.layers.1.mlp.down_proj.weight"
    assert (merged[moved] - merge.base[moved]).abs().max() > 0.1


def test_blocks_of_rows_change_nothing(base, adapter, monkeypatch):
    merge = open_merge(adapter)
    whole = dict(fold(merge.base, merge.adapter, merge.dtype))
    monkeypatch.setattr(folding, "BLOCK_BYTES", 5 * 48 * 4)
    for name, tensor in fold(merge.base, merge.adapter, merge.dtype):
        assert torch.allclose(tensor, whole[name], rtol=0, atol=1e-6), name


def test_the_sum_is_rounded_once(base, adapter):
    """W is rounded neither before the sum nor the delta: only their fp32 sum is."""
    merge = open_merge(adapter)
    name = "model.layers.2.self_attn.q_proj.weight"
    a, b = merge.adapter.tensors[name.removesuffix(".weight")]
    total = merge.base[name].double() + 12 / 5 * b.double() @ a.double()
    once = dict(fold(merge.base, merge.adapter, torch.bfloat16))[name]
    spacing = torch.exp2(total.abs().log2().floor() - 7)
    assert ((once.double() - total).abs() <= 0.5 * spacing + 1e-6).all()
    twice = merge.base[name].bfloat16() + (total - merge.base[name].double()).bfloat16()
    assert ((twice.double() - total).abs() > 0.5 * spacing + 1e-6).any()


def test_without_an_adapter_the_base_is_cast(base):
    weights = MergeBase(base)
    for name, tensor in fold(weights, None, torch.float16):
        assert torch.equal(tensor, weights[name].half())


def test_numbers_beyond_float16_are_refused(tmp_path, base, adapter):
    merge = open_merge(adapter)
    large = dict(merge.base) | {"model.norm.weight": torch.full((48,), 1e5)}
    with pytest.raises(Corrupt, match=r"model\.norm\.weight.*float16"):
        dict(fold(large, None, torch.float16))
    assert "model.norm.weight" in dict(fold(large, None, torch.bfloat16))


def test_an_adapter_of_nf4_gets_the_base_it_was_trained_on(base, adapter, tmp_path):
    recorded = read_adapter(adapter)
    identity = base_identity(base, "nf4")
    write_adapter(tmp_path, type(recorded)(**{**vars(recorded), "base": identity}))
    trained, original = open_merge(tmp_path), open_merge(tmp_path, merge_base="original")
    assert (trained.quantize, original.quantize) == ("nf4", "none")
    for name in trained.base:
        same = torch.equal(trained.base[name], original.base[name])
        assert same == ("_proj" not in name), name
    linear = "model.layers.0.mlp.up_proj.weight"
    values = trained.base[linear].flatten()[:64]
    assert len(values.unique()) <= 16 < len(original.base[linear].flatten()[:64].unique())


def test_a_base_of_another_shape_is_refused_with_its_modules(tmp_path, adapter):
    other = make_base(tmp_path, num_hidden_layers=2, intermediate_size=104)
    with pytest.raises(UsageError) as caught:
        open_merge(adapter, other)
    text = "\n".join(caught.value.lines())
    assert "mlp.down_proj: 48x88 for 48x104" in text
    assert "more" in text


def test_a_base_with_other_numbers_is_refused(tmp_path, base, adapter):
    recorded = read_adapter(adapter)
    identity = base_identity(base, "none")
    write_adapter(tmp_path / "adapter", type(recorded)(**{**vars(recorded), "base": identity}))
    other = make_base(tmp_path / "other")
    file = other / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    assert open_merge(tmp_path / "adapter").base.folder == base
    with pytest.raises(UsageError, match="not the base that this adapter was trained on"):
        open_merge(tmp_path / "adapter", other)


def test_missing_weights_are_all_named(tmp_path):
    base = make_base(tmp_path)
    file = base / "model.safetensors"
    lost = {"model.layers.0.self_attn.q_proj.weight", "model.layers.2.mlp.up_proj.weight"}
    kept = {name: tensor for name, tensor in load_file(file).items() if name not in lost}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(Corrupt) as caught:
        MergeBase(base)
    assert all(name in caught.value.found for name in lost)


def test_a_base_that_is_gone_says_how_to_give_one(tmp_path, adapter):
    config = read_json(adapter / "adapter_config.json")
    gone = tmp_path / "adapter"
    gone.mkdir()
    (gone / "adapter_model.safetensors").write_bytes(
        (adapter / "adapter_model.safetensors").read_bytes()
    )
    settings = config | {"base_model_name_or_path": str(tmp_path / "nowhere")}
    write_json(gone / "adapter_config.json", settings)
    with pytest.raises(UsageError, match="nowhere"):
        open_merge(gone)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["hf", "meta", "gguf"])
@pytest.mark.parametrize("tied", [False, True])
def test_words_that_only_the_tokenizer_has_get_rows(to, tied, tmp_path):
    """As the handout's `resize_token_embeddings`; each new row is the mean of the others."""
    size = Tokenizer.from_file(str(write_tokenizer(tmp_path) / "tokenizer.json")).get_vocab_size()
    base = make_base(tmp_path / "base", vocab_size=size, tie_word_embeddings=tied)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("[PAD]", special=True), "alpaca", "vicuna"])
    tokenizer.save(str(base / "tokenizer.json"))
    adapter = make_adapter(tmp_path / "adapter", base)
    model = merged_by_peft(base, adapter)
    model.resize_token_embeddings(size + 3, mean_resizing=False)
    write = {"hf": write_hf, "meta": write_meta, "gguf": write_gguf}[to]
    certificate = write(base, adapter, tmp_path / "out", "float32")
    assert certificate.record["added_words"] == 3
    assert "3 more words" in certificate.notes[-1]
    merge = open_merge(adapter)
    found = read_tensors(tmp_path / "out", to, merge.base)
    for name, tensor in found.items():
        expected = model.state_dict()[name]
        assert tensor.shape == expected.shape, name
        assert torch.allclose(tensor[:size], expected[:size], atol=2e-6), name
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in found:
            rows = found[name]
            assert torch.allclose(rows[size:], rows[:size].mean(0).expand(3, -1), atol=1e-7)
    if to == "hf":
        assert read_json(tmp_path / "out" / "config.json")["vocab_size"] == size + 3
