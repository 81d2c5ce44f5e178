"""DoRA adapters: merged by peft, certified by a formula and by the model that was not merged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from merges import (
    files_in,
    make_adapter,
    make_base,
    merged_by_peft,
    peft_model,
    reference_logits,
    write_gguf,
    write_hf,
    write_meta,
)
from safetensors.torch import load_file, save_file

from conftest import LLAMA3_ROPE
from suri.cli.main import main
from suri.errors import Corrupt, UsageError
from suri.export import peft_merge
from suri.export.certify import check_targets
from suri.export.fold import MergeBase, open_merge
from suri.export.peft_merge import merged_weights, unmerged_logits
from suri.export.verify import verify
from suri.files import write_json
from suri.model.adapter_file import WEIGHTS_FILE, read_adapter, write_adapter
from suri.model.load import layered_logits, load_decoder
from suri.model.weights import base_identity
from suri.reading import read_json

PLAIN = {"use_dora": True}
MIXED = PLAIN | {
    "use_rslora": True,
    "rank_pattern": {"k_proj": 2, r"layers\.1\.mlp\.down_proj": 7},
    "alpha_pattern": {"q_proj": 3.5},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Its likeliest token is the embedding's, which bf16 does not change."""
    base = make_base(tmp_path_factory.mktemp("base"), tie_word_embeddings=True)
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"] *= 20
    save_file(tensors, file, metadata={"format": "pt"})
    return base


def make_dora(folder: Path, base: Path, **settings: object) -> Path:
    """As an adapter after training: its magnitudes are no longer the rows' lengths."""
    make_adapter(folder, base, **PLAIN | settings)
    tensors = load_file(folder / WEIGHTS_FILE)
    generator = torch.Generator().manual_seed(4)
    for name, tensor in tensors.items():
        if "magnitude" in name:
            tensor *= 1 + 0.2 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base) -> Path:
    return make_dora(tmp_path_factory.mktemp("adapter"), base)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("settings", [PLAIN, MIXED], ids=["plain", "mixed"])
def test_a_dora_merge_passes_and_can_be_verified(base, tmp_path, settings, dtype):
    adapter = make_dora(tmp_path / "adapter", base, **settings)
    certificate = write_hf(base, adapter, tmp_path / "merged", dtype)
    assert certificate.passed
    assert "12 targets: largest error of m (W + BA) / |W + BA|" in certificate.checks[0].name
    assert 0.1 < certificate.checks[0].figure <= 1
    again, left_out = verify(tmp_path / "merged")
    assert again.passed
    assert not left_out
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert "m (W + s B A) / |W + s B A|" in card


@pytest.mark.slow
@pytest.mark.parametrize("settings", [PLAIN, MIXED], ids=["plain", "mixed"])
def test_weights_and_logits_are_those_of_pefts_own_reading(base, tmp_path, settings):
    """peft reads the same folder by itself, from its own configuration."""
    import peft
    import transformers

    adapter = make_dora(tmp_path / "adapter", base, **settings)
    merge = open_merge(adapter, base, dora=True)
    expected = merged_by_peft(base, adapter).state_dict()
    for name, tensor in merged_weights(merge).items():
        assert torch.equal(tensor, expected[name]), name
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(plain, adapter).eval()
    ids = [[5, 99, 7, 23], [11, 3, 77]]
    assert torch.equal(unmerged_logits(merge, ids), reference_logits(model, ids))


def test_what_is_written_back_is_the_same_adapter(base, tmp_path):
    adapter = make_dora(tmp_path / "adapter", base, **MIXED)
    write_adapter(tmp_path / "again", read_adapter(adapter, dora=True))
    first, second = (merged_by_peft(base, tmp_path / name) for name in ("adapter", "again"))
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_formula_by_hand(base, adapter):
    merge = open_merge(adapter, base, dora=True)
    name = "model.layers.1.self_attn.k_proj"
    a, b = (tensor.double().numpy() for tensor in merge.adapter.tensors[name])
    whole = merge.base[f"{name}.weight"].double().numpy() + 12 / 5 * b @ a
    length = np.linalg.norm(whole, axis=1)[:, None]
    expected = merge.adapter.magnitudes[name].double().numpy()[:, None] * whole / length
    found = merged_weights(merge)[f"{name}.weight"].double().numpy()
    assert np.abs(found - expected).max() < 1e-6
    assert np.abs(found - whole).max() > 0.01


def magnitudes_forgotten(weights, merge):
    plain = {n: merge.base[n].float() for n in merge.base}
    for name, (a, b) in merge.adapter.tensors.items():
        plain[f"{name}.weight"] += merge.adapter.scaling_of(name) * b @ a
    return plain


def columns_for_rows(weights, merge):
    plain = magnitudes_forgotten(weights, merge)
    for name, magnitude in merge.adapter.magnitudes.items():
        whole = plain[f"{name}.weight"]
        plain[f"{name}.weight"] = magnitude[:, None] * whole / whole.norm(dim=0)
    return plain


def length_of_the_base(weights, merge):
    plain = magnitudes_forgotten(weights, merge)
    for name, magnitude in merge.adapter.magnitudes.items():
        length = merge.base[f"{name}.weight"].norm(dim=1)
        plain[f"{name}.weight"] *= (magnitude / length)[:, None]
    return plain


def one_layer_forgotten(weights, merge):
    name = "model.layers.2.self_attn.o_proj.weight"
    return dict(weights) | {name: merge.base[name]}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "wrong", [magnitudes_forgotten, columns_for_rows, length_of_the_base, one_layer_forgotten]
)
def test_a_wrong_merge_fails_and_nothing_is_published(
    base, adapter, tmp_path, monkeypatch, wrong, dtype
):
    right = merged_weights
    monkeypatch.setattr("suri.export.hf.merged_weights", lambda merge: wrong(right(merge), merge))
    with pytest.raises(Corrupt, match="failed its certificate") as caught:
        write_hf(base, adapter, tmp_path / "merged", dtype)
    assert "FAIL 12 targets" in caught.value.found
    assert files_in(tmp_path) == set()


def test_one_magnitude_off_by_a_thousandth_is_found(base, adapter):
    merge = open_merge(adapter, base, dora=True)
    output = dict(merged_weights(merge))
    assert check_targets(merge, output).passed
    output["model.layers.0.mlp.down_proj.weight"][3] *= 1.001
    assert check_targets(merge, output).figure > 100


@pytest.mark.parametrize("write", [write_meta, write_gguf])
def test_to_other_formats_the_way_is_named(base, adapter, tmp_path, write):
    with pytest.raises(UsageError, match="DoRA") as caught:
        write(base, adapter, tmp_path / "merged")
    assert "--to hf" in caught.value.do
    with pytest.raises(AssertionError):
        load_decoder(base, adapter=read_adapter(adapter, dora=True))


@pytest.mark.parametrize("change", ["lost", "shape", "nan", "extra"])
def test_magnitudes_that_do_not_fit_are_refused(base, adapter, tmp_path, change):
    own = make_dora(tmp_path / "adapter", base)
    tensors = load_file(own / WEIGHTS_FILE)
    name = next(key for key in tensors if "magnitude" in key)
    if change == "lost":
        del tensors[name]
    elif change == "shape":
        tensors[name] = tensors[name][:-1].clone()
    elif change == "nan":
        tensors[name][1] = float("nan")
    else:
        tensors["base_model.model.lm_head.lora_magnitude_vector"] = torch.ones(131)
    save_file(tensors, own / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(Corrupt, match="magnitudes"):
        write_hf(base, own, tmp_path / "merged")


def test_a_tensor_that_transformers_does_not_know_is_named(tmp_path):
    base = make_base(tmp_path / "base")
    adapter = make_dora(tmp_path / "adapter", base)
    file = base / "model.safetensors"
    strange = load_file(file) | {"model.vision.weight": torch.ones(3)}
    save_file(strange, file, metadata={"format": "pt"})
    with pytest.raises(Corrupt, match="does not take the weights") as caught:
        write_hf(base, adapter, tmp_path / "merged")
    assert "model.vision.weight" in caught.value.found


def test_without_peft_the_package_is_named(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UsageError, match="needs the package peft"):
        write_hf(base, adapter, tmp_path / "merged")
    assert files_in(tmp_path) == set()


@pytest.mark.slow
def test_a_base_in_metas_format_serves_too(tmp_path):
    """What peft gets is built from the weights that were read, whatever file they lie in."""
    base = make_base(tmp_path / "base", num_attention_heads=12, num_key_value_heads=2)
    write_meta(base, None, tmp_path / "meta")
    write_hf(base, None, tmp_path / "hf")
    adapter = make_dora(tmp_path / "adapter", tmp_path / "hf")
    first = write_hf(tmp_path / "meta", adapter, tmp_path / "one")
    second = write_hf(tmp_path / "hf", adapter, tmp_path / "two")
    assert first.passed
    assert second.passed
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in two)


BASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "theta-of-2024": ("llama", {}, {"rope_theta": 70_000.0}),
    "scaled-of-2024": ("llama", {}, {"rope_theta": 10_000.0, "rope_scaling": LLAMA3_ROPE}),
    "mistral": ("mistral", {"sliding_window": 7}, {}),
    "qwen2": ("qwen2", {"use_sliding_window": False}, {}),
    "qwen3-tied": ("qwen3", {"head_dim": 10, "tie_word_embeddings": True}, {}),
}
"""Model type, what transformers saves, and what older versions of it wrote into config.json."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", BASES)
def test_pefts_model_is_the_base_that_our_decoder_reads(kind, tmp_path):
    """With B zero and the rows' own lengths DoRA changes nothing: both give the same logits."""
    model_type, changes, older = BASES[kind]
    base = make_base(tmp_path / "base", model_type, **changes)
    if older:
        config = read_json(base / "config.json")
        del config["rope_parameters"]
        write_json(base / "config.json", config | older)
    weights = MergeBase(base)
    merge = open_merge(make_adapter(tmp_path / "adapter", base, use_dora=True), base, dora=True)
    pairs = {name: (a, torch.zeros_like(b)) for name, (a, b) in merge.adapter.tensors.items()}
    lengths = {name: weights[f"{name}.weight"].norm(dim=1) for name in pairs}
    neutral = replace(merge, adapter=replace(merge.adapter, tensors=pairs, magnitudes=lengths))
    ids = torch.randint(0, 131, (2, 40), generator=torch.Generator().manual_seed(6)).tolist()
    theirs, ours = unmerged_logits(neutral, ids), layered_logits(base, ids)
    assert (theirs - ours).abs().max() <= 2e-4
    assert write_hf(base, tmp_path / "adapter", tmp_path / "merged").passed


@pytest.mark.slow
def test_a_dora_adapter_of_nf4_gets_the_base_it_was_trained_on(base, adapter, tmp_path):
    recorded = replace(read_adapter(adapter, dora=True), base=base_identity(base, "nf4"))
    write_adapter(tmp_path / "adapter", recorded)
    certificate = write_hf(None, tmp_path / "adapter", tmp_path / "merged")
    assert certificate.passed
    assert certificate.record["base"]["quantize"] == "nf4"
    write_hf(None, tmp_path / "adapter", tmp_path / "original", merge_base="original")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "original"))
    for name in one:
        assert torch.equal(one[name], two[name]) == ("_proj" not in name), name


@pytest.mark.slow
def test_the_command(base, adapter, tmp_path, capsys):
    main(["merge", str(adapter), "--to", "hf", "--base_model", str(base), "--output_dir",
          str(tmp_path / "merged")])  # fmt: skip
    assert f"PASS hf {tmp_path / 'merged'}" in capsys.readouterr().out


def test_peft_is_given_nothing_of_the_adapters_configuration(base, adapter, monkeypatch):
    """A name of a module to import in it, for one, has no effect."""
    merge = open_merge(adapter, base, dora=True)
    settings = peft_merge._settings(merge.adapter)
    assert settings.megatron_config is None
    assert settings.target_modules == set(merge.adapter.tensors)
    assert peft_model(base, use_dora=True).peft_config["default"].use_dora
