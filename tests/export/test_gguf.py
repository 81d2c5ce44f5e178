"""GGUF files as transformers and the gguf package read them, and as our own engine does."""

import shutil
from pathlib import Path

import blake3
import pytest
import torch
import transformers
from merges import (
    KINDS,
    adapter,
    base,
    files_in,
    make_adapter,
    make_base,
    merged_by_peft,
    own_cache,
    reference_logits,
    write_gguf,
    write_hf,
)
from safetensors.torch import load_file

from conftest import LLAMA3_ROPE
from suri.data.records import Record
from suri.errors import Corrupt, UsageError
from suri.export import gguf, readers
from suri.export.fold import MergeBase
from suri.export.gguf_reader import rows_of_halves
from suri.export.readers import read_logits
from suri.export.verify import verify
from suri.files import write_json
from suri.infer.engines import open_model
from suri.model.config import read_config
from suri.model.gguf_file import GgufFile
from suri.model.tensor_names import permute
from suri.model.tokenizer import read_tokenizer
from suri.model.weights import find_base, open_weights
from suri.reading import read_json
from suri.recipe import Decoding

ALL_KINDS = {kind: ("llama", changes) for kind, changes in KINDS.items()} | {
    "wide-heads": ("llama", {"head_dim": 10}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "linear-rope": (
        "llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}}
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen3-tied": ("qwen3", {"head_dim": 10, "tie_word_embeddings": True}),
}  # fmt: skip


def by_transformers(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="model.gguf", dtype=torch.float32
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_transformers_reads_the_tensors_of_the_hf_merge(base, adapter, tmp_path, dtype):
    write_gguf(base, adapter, tmp_path / "gguf", dtype)
    write_hf(base, adapter, tmp_path / "hf", "float32")
    found = by_transformers(tmp_path / "gguf").state_dict()
    expected = load_file(tmp_path / "hf" / "model.safetensors")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        if tensor.dim() > 1:
            tensor = tensor.to(getattr(torch, dtype)).float()
        assert torch.equal(found[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_kind_is_certified_and_reopened(kind, tmp_path):
    model_type, changes = ALL_KINDS[kind]
    base = make_base(tmp_path / "base", model_type, **changes)
    adapter = make_adapter(tmp_path / "adapter", base)
    certificate = write_gguf(base, adapter, tmp_path / "merged", "float32")
    assert certificate.passed
    assert certificate.record["reader"].startswith("transformers")
    assert verify(tmp_path / "merged")[0].passed
    expected = reference_logits(merged_by_peft(base, adapter))
    reopened = find_base(str(tmp_path / "merged"))
    was, now = read_config(base), read_config(reopened)
    for name in ("head_dim", "num_kv_heads", "tied_head", "rope_theta", "norm_eps", "qkv_bias"):
        assert getattr(now, name) == getattr(was, name), name
    found = reference_logits(
        transformers.AutoModelForCausalLM.from_pretrained(reopened, dtype=torch.float32)
    )
    assert (found - expected).abs().max() < 1e-3
    assert (expected - reference_logits(by_transformers_base(base))).abs().max() > 0.1


def by_transformers_base(base: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("rope", [LLAMA3_ROPE, KINDS["scaled-rope"]["rope_parameters"]])
def test_llama3_scaling_survives(rope, tmp_path):
    base = make_base(tmp_path / "base", rope_parameters=rope, num_key_value_heads=3, head_dim=32)
    write_gguf(base, make_adapter(tmp_path / "adapter", base), tmp_path / "merged", "float32")
    source = GgufFile(tmp_path / "merged" / "model.gguf")
    factors = source.tensor("rope_freqs.weight")
    assert factors.shape == (16,)
    assert 1 <= factors.min() < factors.max() == rope["factor"]
    assert read_config(find_base(str(tmp_path / "merged"))).rope_scaling == rope


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_reopened_folder_answers_as_the_hf_merge(base, adapter, tmp_path, dtype):
    write_gguf(base, adapter, tmp_path / "gguf", dtype)
    write_hf(base, adapter, tmp_path / "hf", dtype)
    records = [Record("Sort: b, a.", "", ""), Record("What is it?", "A river.", "")]
    decoding = Decoding(max_new_tokens=24)
    models = [open_model(str(tmp_path / name), dtype="float32") for name in ("hf", "gguf")]
    hf, ours = ([a.text for a in model.answer(records, decoding)] for model in models)
    assert ours == hf
    assert any(hf)
    assert models[1].prompt == models[0].prompt
    assert models[1].label == f"{tmp_path / 'gguf'}, cpu"


@pytest.mark.slow
def test_the_file_alone_is_a_base_with_its_own_tokenizer(base, adapter, tmp_path):
    write_gguf(base, adapter, tmp_path / "gguf", "float32")
    alone = tmp_path / "elsewhere" / "any name.gguf"
    alone.parent.mkdir()
    (tmp_path / "gguf" / "model.gguf").rename(alone)
    folder = find_base(str(alone))
    was, now = read_tokenizer(base), read_tokenizer(folder)
    for text in ("Sort: b, a.\n", "x </s> y", "1 + 22 = 23"):
        assert now.encode(text) == was.encode(text)
    assert (now.eos_id, now.bos_id, now.pad_id) == (was.eos_id, was.bos_id, was.pad_id)
    assert find_base(str(alone)) == folder
    again = make_adapter(tmp_path / "second", folder)
    assert write_gguf(folder, again, tmp_path / "twice").passed
    assert open_weights(folder).keys() == open_weights(base).keys()


@pytest.mark.slow
def test_norms_stay_in_fp32_and_the_settings_are_there(base, adapter, tmp_path):
    assert write_gguf(base, adapter, tmp_path / "merged").record["dtype"] == "float16"
    source = GgufFile(tmp_path / "merged" / "model.gguf")
    kinds = {name: entry.kind for name, entry in source.tensors.items()}
    assert {kinds[name] for name in kinds if "norm" in name} == {0}
    assert {kinds[name] for name in kinds if "norm" not in name} == {1}
    expected = {
        "general.architecture": "llama", "general.file_type": 1, "llama.block_count": 3,
        "llama.attention.head_count": 6, "llama.attention.head_count_kv": 2,
        "llama.embedding_length": 48, "llama.feed_forward_length": 88, "llama.vocab_size": 131,
        "llama.context_length": 256, "llama.rope.dimension_count": 8,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.eos_token_id": 1,
    }  # fmt: skip
    assert {key: source.values[key] for key in expected} == expected
    tokens, kinds = (source.values[f"tokenizer.ggml.{k}"] for k in ("tokens", "token_type"))
    assert len(tokens) == len(kinds) == 131
    assert (tokens[1], kinds[1], kinds[2], kinds[130]) == ("</s>", 3, 1, 5)
    assert {"model.gguf", "tokenizer.json", "prompt.json", "certificate.json"} <= files_in(
        tmp_path / "merged"
    )


@pytest.mark.slow
def test_a_permutation_left_out_fails(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "unpermute", lambda tensor, heads: tensor)
    with pytest.raises(Corrupt, match="failed its certificate") as caught:
        write_gguf(base, adapter, tmp_path / "merged")
    assert "FAIL 12 targets" in caught.value.found
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_a_permutation_left_out_on_both_sides_fails_by_its_logits(
    base, adapter, tmp_path, monkeypatch
):
    monkeypatch.setattr(gguf, "unpermute", lambda tensor, heads: tensor)
    monkeypatch.setattr(
        "suri.export.gguf_reader.rows_of_halves", lambda count, heads: torch.arange(count)
    )
    with pytest.raises(Corrupt) as caught:
        write_gguf(base, adapter, tmp_path / "merged")
    assert caught.value.found.startswith("FAIL KL divergence")


@pytest.mark.slow
def test_forgotten_rotary_factors_fail_by_their_logits(tmp_path, monkeypatch):
    base = make_base(tmp_path / "base", rope_parameters=LLAMA3_ROPE)
    adapter = make_adapter(tmp_path / "adapter", base)
    monkeypatch.setattr(gguf, "rope_factors", lambda config: None)
    with pytest.raises(Corrupt) as caught:
        write_gguf(base, adapter, tmp_path / "merged", "float32")
    assert caught.value.found.startswith("FAIL largest difference of a logit")


def test_the_certificates_order_of_rows_is_metas():
    rows = torch.arange(2 * 10 * 3).view(20, 3)
    assert torch.equal(rows[rows_of_halves(20, 2)], permute(rows, 2))


@pytest.mark.slow
@pytest.mark.parametrize("place", [-1, 2000, 5])
def test_one_byte_changed_is_found(base, adapter, tmp_path, place):
    write_gguf(base, adapter, tmp_path / "merged")
    file = tmp_path / "merged" / "model.gguf"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(Corrupt) as caught:
        verify(tmp_path / "merged")
    assert caught.value.found == "model.gguf has changed"


@pytest.mark.slow
def test_wrong_weights_under_a_forged_checksum_fail_by_their_logits(base, adapter, tmp_path):
    write_gguf(base, adapter, tmp_path / "merged", "float32")
    file = tmp_path / "merged" / "model.gguf"
    entry = GgufFile(file).tensors["blk.1.ffn_down.weight"]
    content = bytearray(file.read_bytes())
    content[entry.start : entry.start + entry.size] = bytes(entry.size)
    file.write_bytes(content)
    record = read_json(tmp_path / "merged" / "certificate.json")
    record["output"]["files"][file.name] = "blake3:" + blake3.blake3(content).hexdigest()
    write_json(tmp_path / "merged" / "certificate.json", record)
    assert not verify(tmp_path / "merged")[0].passed


@pytest.mark.slow
def test_without_transformers_suri_reads_it_back(base, adapter, tmp_path, monkeypatch):
    write_gguf(base, adapter, tmp_path / "merged", "float32")
    ids = [[5, 99, 7, 7, 23], [11, 3]]
    source = MergeBase(base)
    _, expected = read_logits(tmp_path / "merged", "gguf", ids, source)
    monkeypatch.setattr(readers.importlib.util, "find_spec", lambda name: None)
    reader, found = read_logits(tmp_path / "merged", "gguf", ids, source)
    assert reader == "suri"
    assert (found - expected).abs().max() < 1e-4
    monkeypatch.setattr(readers, "LARGE_BYTES", 1000)
    reader, found = read_logits(tmp_path / "merged", "gguf", ids, source)
    assert reader == "suri, one weight at a time"
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("model_type", "changes", "why"),
    [
        ("mistral", {"sliding_window": 7}, "ends after 7 tokens"),
        ("llama", {"attention_bias": True}, "have biases"),
        ("llama", {"mlp_bias": True}, "have biases"),
    ],
)
def test_what_llama_cpp_cannot_hold_is_refused(tmp_path, model_type, changes, why):
    base = make_base(tmp_path / "base", model_type, **changes)
    with pytest.raises(UsageError) as caught:
        write_gguf(base, make_adapter(tmp_path / "adapter", base), tmp_path / "merged")
    assert why in caught.value.found
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_a_sentencepiece_tokenizer_goes_in_with_its_scores(tmp_path):
    import sentencepiece

    rows = [f"The river {i} leaves café {i * 7}; {chr(97 + i % 26)} boils." for i in range(300)]
    (tmp_path / "rows.txt").write_text("\n".join(rows), encoding="utf-8")
    base = make_base(tmp_path / "base", vocab_size=411)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "rows.txt"), model_prefix=str(base / "tokenizer"), vocab_size=400,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    assert write_gguf(base, make_adapter(tmp_path / "adapter", base), tmp_path / "merged").passed
    values = GgufFile(tmp_path / "merged" / "model.gguf").values
    assert values["tokenizer.ggml.model"] == "llama"
    assert values["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    assert len(values["tokenizer.ggml.scores"]) == 411
    assert min(values["tokenizer.ggml.scores"][:400]) < -100
    alone = tmp_path / "alone.gguf"
    (tmp_path / "merged" / "model.gguf").rename(alone)
    was, now = read_tokenizer(base), read_tokenizer(find_base(str(alone)))
    for text in ("The river leaves  café. 你好 x", "\n  Sort: b </s>", "Water"):
        assert now.encode(text) == was.encode(text)
    assert (now.eos_id, now.bos_id, now.pad_id) == (was.eos_id, was.bos_id, was.pad_id)


@pytest.mark.slow
@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "smollm", "gpt-2"])
def test_the_way_of_cutting_words_comes_back(base, adapter, tmp_path, pre):
    from tokenizers import Regex, pre_tokenizers

    from suri.model.word_splits import SPLITS

    own = tmp_path / "base"
    shutil.copytree(base, own)
    tokenizer = read_tokenizer(own)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in SPLITS)
    first = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    if pre in SPLITS:
        first = [pre_tokenizers.Split(Regex(SPLITS[pre]), "isolated")]
    tokenizer.backend.pre_tokenizer = pre_tokenizers.Sequence([*first, level])
    tokenizer.save(own)
    write_gguf(own, adapter, tmp_path / "merged", "float32")
    alone = tmp_path / "alone.gguf"
    (tmp_path / "merged" / "model.gguf").rename(alone)
    assert GgufFile(alone).values["tokenizer.ggml.pre"] == pre
    was, now = (read_tokenizer(f).backend.pre_tokenizer for f in (own, find_base(str(alone))))
    for text in ("It's 12345 o'clock,  I'LL go\n\n now", "naïve 你好7"):
        assert now.pre_tokenize_str(text) == was.pre_tokenize_str(text)


@pytest.mark.slow
def test_the_embedded_base_comes_back_as_it_was(shallow, tmp_path):
    base = shallow
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["v_proj"], r=2)
    assert write_gguf(base, adapter, tmp_path / "gguf", "float32").passed
    write_hf(base, adapter, tmp_path / "hf", "float32")
    file = tmp_path / "alone.gguf"
    (tmp_path / "gguf" / "model.gguf").rename(file)
    assert GgufFile(file).values["tokenizer.ggml.pre"] == "smollm"
    was, now = read_tokenizer(base), read_tokenizer(find_base(str(file)))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    for text in ("In 2024, 3.5 % of\n\n  it's  fine…", "naïve 你好 🦙\t!", "### Response:\n"):
        assert now.encode(text) == was.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == was.encode(text)
    assert now.chat_template == read_tokenizer(tmp_path / "hf").chat_template
    records = [Record("Name three colours.", "", ""), Record("Add.", "3 and 4", "")]
    hf, ours = (
        [a.text for a in open_model(str(m)).answer(records, Decoding(max_new_tokens=24))]
        for m in (tmp_path / "hf", file)
    )
    assert ours == hf
    assert all(hf)
