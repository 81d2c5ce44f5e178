"""The certificate: it passes what is right, and every kind of wrong merge fails it."""

import math
from dataclasses import replace
from pathlib import Path

import blake3
import pytest
import torch
from merges import adapter, files_in, make_adapter, make_base, write_gguf, write_hf, write_meta
from safetensors.torch import load_file, save_file
from torch import Tensor

from suri.errors import Corrupt, UsageError
from suri.export import fold as folding
from suri.export import meta
from suri.export.certify import check_others, check_targets
from suri.export.checks import Check, compare_logits
from suri.export.fold import fold, open_merge
from suri.export.probes import PROBES, probe_ids
from suri.export.verify import verify
from suri.files import write_json
from suri.model import weights as weights_module
from suri.model.adapter import Adapter
from suri.model.adapter_file import read_adapter, write_adapter
from suri.model.tensor_names import permute, unpermute
from suri.model.weights import base_identity, open_weights
from suri.reading import read_json

WRITERS = {"hf": write_hf, "meta": write_meta}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), tie_word_embeddings=True)


@pytest.fixture(scope="module")
def steady(tmp_path_factory) -> tuple[Path, Path]:
    """A base and adapter whose likeliest token bf16 does not change: the embedding decides it.

    In a random model all tokens are nearly as likely, and any rounding makes another the first.
    """
    base = make_base(tmp_path_factory.mktemp("base"), tie_word_embeddings=True)
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"] *= 20
    save_file(tensors, file, metadata={"format": "pt"})
    return base, make_adapter(tmp_path_factory.mktemp("adapter"), base)


@pytest.mark.slow
@pytest.mark.parametrize("to", WRITERS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_right_merge_passes_and_says_how_closely(steady, tmp_path, to, dtype):
    base, adapter = steady
    WRITERS[to](base, adapter, tmp_path / "merged", dtype)
    record = read_json(tmp_path / "merged" / "certificate.json")
    assert record["passed"] is True
    assert (record["to"], record["dtype"], record["probes"]) == (to, dtype, "texts")
    targets, others, *logits = record["checks"]
    assert targets["name"].startswith("12 targets")
    assert 0.1 < targets["figure"] <= 1
    assert others["name"].startswith(f"{29 - 12 + (to == 'meta')} other tensors")
    assert others["figure"] == 0
    assert len(logits) == (2 if dtype == "bfloat16" else 1)
    assert all(check["passed"] for check in record["checks"])
    assert logits[0]["figure"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("to", [*WRITERS, "gguf"])
def test_modules_with_their_own_rank_and_alpha_merge_into_every_format(
    steady, tmp_path, to, rslora
):
    base, _ = steady
    own = {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3.5}}
    adapter = make_adapter(tmp_path / "adapter", base, use_rslora=rslora, **own)
    write = WRITERS.get(to, write_gguf)
    assert write(base, adapter, tmp_path / "merged", "float32").passed
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert "(r 2 to 5, alpha 3.5 to 12, on" in card
    assert "W + s B A" in card
    config = read_json(adapter / "adapter_config.json")
    for forgotten in ({"alpha_pattern": {}}, {"alpha_pattern": {"q_proj": 3.5}}):
        write_json(adapter / "adapter_config.json", config)
        merge = open_merge(adapter, base)
        output = dict(fold(merge.base, merge.adapter, merge.dtype))
        assert check_targets(merge, output).passed
        write_json(adapter / "adapter_config.json", config | forgotten)
        assert not check_targets(merge, output).passed


def test_the_record_holds_the_checksum_of_everything(base, adapter, tmp_path):
    write_hf(base, adapter, tmp_path / "merged")
    record = read_json(tmp_path / "merged" / "certificate.json")
    for folder, part in ((base, "base"), (adapter, "adapter"), (tmp_path / "merged", "output")):
        for name, checksum in record[part]["files"].items():
            assert "blake3:" + blake3.blake3((folder / name).read_bytes()).hexdigest() == checksum
    assert {"model.safetensors", "config.json", "tokenizer.json"} == set(record["base"]["files"])
    assert set(record["adapter"]["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    written = files_in(tmp_path / "merged") - {"certificate.json", "README.md"}
    assert set(record["output"]["files"]) == written
    assert record["base"]["path"] == str(base)


def scaling_forgotten(weight: Tensor, adapter: Adapter, module: str, dtype: torch.dtype) -> Tensor:
    a, b = adapter.tensors[module]
    return (weight + b @ a).to(dtype)


def one_layer_skipped(weight: Tensor, adapter: Adapter, module: str, dtype: torch.dtype) -> Tensor:
    delta = adapter.weight_delta(module) * (".layers.2." not in module)
    return (weight + delta).to(dtype)


def added_twice(weight: Tensor, adapter: Adapter, module: str, dtype: torch.dtype) -> Tensor:
    return (weight + 2 * adapter.weight_delta(module)).to(dtype)


def rounded_on_the_way(weight: Tensor, adapter: Adapter, module: str, dtype: torch.dtype) -> Tensor:
    return (weight + adapter.weight_delta(module).bfloat16()).to(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("to", WRITERS)
@pytest.mark.parametrize(
    "wrong_sum", [scaling_forgotten, one_layer_skipped, added_twice, rounded_on_the_way]
)
def test_a_wrong_sum_fails_and_nothing_is_published(
    base, adapter, tmp_path, monkeypatch, to, wrong_sum
):
    monkeypatch.setattr(folding, "add_delta", wrong_sum)
    with pytest.raises(Corrupt, match="failed its certificate") as caught:
        WRITERS[to](base, adapter, tmp_path / "merged")
    assert "FAIL 12 targets" in caught.value.found
    assert caught.value.exit_code != 0
    assert files_in(tmp_path) == set()


def test_a_transposed_permutation_fails(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(meta, "unpermute", permute)
    with pytest.raises(Corrupt, match="failed its certificate"):
        write_meta(base, adapter, tmp_path / "merged")
    assert files_in(tmp_path) == set()


def test_a_permutation_wrong_both_ways_fails_by_its_logits_alone(
    base, adapter, tmp_path, monkeypatch
):
    """Writer and reader agree on the wrong order; only the independent decoder sees it."""
    monkeypatch.setattr(meta, "unpermute", permute)
    monkeypatch.setattr(weights_module, "permute", unpermute)
    with pytest.raises(Corrupt) as caught:
        write_meta(base, adapter, tmp_path / "merged")
    assert "targets" not in caught.value.found
    assert "other tensors" not in caught.value.found
    assert "FAIL largest difference of a logit" in caught.value.found


@pytest.mark.slow
@pytest.mark.parametrize("to", WRITERS)
def test_a_changed_bystander_fails(base, adapter, tmp_path, monkeypatch, to):
    def touched(weights, adapter, dtype, names=None):
        for name, tensor in fold(weights, adapter, dtype, names):
            if name == "model.layers.1.input_layernorm.weight":
                tensor = torch.nextafter(tensor, tensor + 1)
            yield name, tensor

    monkeypatch.setattr(f"suri.export.{to}.fold", touched)
    with pytest.raises(Corrupt, match="failed its certificate") as caught:
        WRITERS[to](base, adapter, tmp_path / "merged")
    assert "other tensors" in caught.value.found
    assert "targets" not in caught.value.found


def test_one_number_off_by_two_roundings_is_found(base, adapter):
    merge = replace(open_merge(adapter, base), dtype=torch.bfloat16)
    output = dict(fold(merge.base, merge.adapter, merge.dtype))
    assert check_targets(merge, output).passed
    off = output["model.layers.1.self_attn.k_proj.weight"]
    row = off[2]
    row[4] = row[4] * (1 + 2**-6)
    check = check_targets(merge, output)
    assert not check.passed
    assert check.figure > 2


def test_a_target_that_is_no_number_is_found(base, adapter):
    merge = open_merge(adapter, base)
    output = dict(fold(merge.base, merge.adapter, merge.dtype))
    output["model.layers.1.self_attn.k_proj.weight"][2, 4] = math.nan
    assert not check_targets(merge, output).passed


def test_missing_and_extra_tensors_are_counted(base, adapter):
    merge = open_merge(adapter, base)
    output = dict(fold(merge.base, merge.adapter, merge.dtype))
    assert check_others(merge, output, "hf").figure == 0
    del output["model.norm.weight"]
    output["model.layers.0.surprise"] = torch.ones(2)
    output["model.layers.0.mlp.up_proj.weight"] = output["model.layers.0.mlp.up_proj.weight"].half()
    assert check_others(merge, output, "hf").figure == 3
    tied = output["model.embed_tokens.weight"]
    assert check_others(merge, output | {"lm_head.weight": tied}, "hf").figure == 4
    assert check_others(merge, output | {"lm_head.weight": tied}, "meta").figure == 3


def test_figures_of_logits_computed_by_hand():
    """Two tokens, two words: p = (1/2, 1/2) and (4/5, 1/5) against q = (1/4, 3/4) and p itself."""
    p = torch.tensor([[0.5, 0.5], [0.8, 0.2]]).log()
    q = torch.tensor([[0.25, 0.75], [0.8, 0.2]]).log()
    divergence = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    kl, same = compare_logits(p, q, "bfloat16")
    assert math.isclose(kl.figure, divergence, rel_tol=1e-6)
    assert same.figure == 0.5
    assert not kl.passed
    assert not same.passed
    (kl,) = compare_logits(p, q, "float16")
    assert math.isclose(kl.figure, divergence, rel_tol=1e-6)
    (largest,) = compare_logits(p, q, "float32")
    assert math.isclose(largest.figure, math.log(2), rel_tol=1e-6)
    assert [c.limit for c in compare_logits(p, q, "bfloat16")] == [1e-3, 0.98]
    assert (kl.limit, largest.limit) == (1e-4, 1e-3)


@pytest.mark.parametrize("at_least", [False, True])
def test_not_a_number_never_passes(at_least):
    assert not Check("x", math.nan, 0.5, at_least).passed
    assert Check("x", 0.5, 0.5, at_least).passed


@pytest.mark.slow
def test_an_adapter_trained_on_nf4_equals_the_model_that_was_trained(base, adapter, tmp_path):
    recorded = replace(read_adapter(adapter), base=base_identity(base, "nf4"))
    write_adapter(tmp_path / "adapter", recorded)
    certificate = write_meta(None, tmp_path / "adapter", tmp_path / "merged")
    assert certificate.passed
    assert certificate.record["base"]["quantize"] == "nf4"
    original = write_hf(None, tmp_path / "adapter", tmp_path / "o", merge_base="original")
    assert original.record["base"]["quantize"] == "none"
    again, left_out = verify(tmp_path / "merged")
    assert again.passed
    assert not left_out
    weights = [open_weights(tmp_path / name) for name in ("merged", "o")]
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights[0][name], weights[1][name])


def test_a_base_without_a_tokenizer_is_probed_with_fixed_ids(base, adapter, tmp_path):
    bare = make_base(tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    own = make_adapter(tmp_path / "adapter", bare)
    certificate = write_hf(bare, own, tmp_path / "merged")
    assert certificate.record["probes"] == "token ids"
    assert not (tmp_path / "merged" / "tokenizer.json").exists()
    ids = probe_ids(open_merge(own, bare))
    assert ids == probe_ids(open_merge(own, bare))
    assert [len(row) for row in ids] == [64] * 4
    assert max(max(row) for row in ids) < 131


def test_probes_are_texts_of_the_base_with_its_first_token(base, adapter):
    merge = open_merge(adapter, base)
    ids = probe_ids(merge)
    assert merge.tokenizer is not None
    for row, text in zip(ids, PROBES, strict=True):
        assert len(row) == 64
        assert text.startswith(merge.tokenizer.decode(row))
    with_bos = replace(merge, tokenizer=replace(merge.tokenizer, bos_id=0))
    assert [row[1:] for row in probe_ids(with_bos)] == [row[:63] for row in ids]
    assert {row[0] for row in probe_ids(with_bos)} == {0}


class TestVerify:
    @pytest.fixture
    def merged(self, base, adapter, tmp_path) -> Path:
        folder = tmp_path / "adapter"
        write_adapter(folder, replace(read_adapter(adapter), base=base_identity(base, "none")))
        write_hf(base, folder, tmp_path / "merged")
        return tmp_path / "merged"

    def test_what_was_certified_passes_again(self, merged):
        certificate, left_out = verify(merged)
        assert certificate.passed
        assert not left_out
        assert [check.name for check in certificate.checks] == ["largest difference of a logit"]

    def test_a_changed_file_is_named(self, merged):
        file = merged / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        (merged / "prompt.json").unlink()
        with pytest.raises(Corrupt) as caught:
            verify(merged)
        assert caught.value.found == "model.safetensors has changed, prompt.json is missing"

    def test_wrong_weights_under_a_forged_checksum_fail_by_their_logits(self, merged):
        file = merged / "model.safetensors"
        tensors = load_file(file)
        tensors["model.layers.1.mlp.down_proj.weight"] *= 1.5
        save_file(tensors, file, metadata={"format": "pt"})
        record = read_json(merged / "certificate.json")
        record["output"]["files"][file.name] = (
            "blake3:" + blake3.blake3(file.read_bytes()).hexdigest()
        )
        write_json(merged / "certificate.json", record)
        certificate, _ = verify(merged)
        assert not certificate.passed

    def test_without_the_adapter_the_checksums_remain(self, merged):
        (merged.parent / "adapter" / "adapter_model.safetensors").unlink()
        certificate, left_out = verify(merged)
        assert certificate.passed
        assert certificate.checks == ()
        assert "adapter_model.safetensors is missing" in left_out

    def test_a_folder_without_a_certificate_is_a_usage_error(self, base):
        with pytest.raises(UsageError, match=r"has no certificate\.json(.|\n)*--adapter"):
            verify(base)

    @pytest.mark.parametrize("content", [[], {}, {"output": 3}, {"output": {"files": []}}])
    def test_something_else_under_that_name_is_corrupt(self, tmp_path, content):
        write_json(tmp_path / "certificate.json", content)
        with pytest.raises(Corrupt, match=r"not a certificate|one JSON object"):
            verify(tmp_path)
