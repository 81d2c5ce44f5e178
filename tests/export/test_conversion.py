"""Conversions: the same weights in another format, bit for bit, and there and back again."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from merges import (
    SCALED_ROPE,
    files_in,
    make_adapter,
    make_base,
    own_cache,
    reference_logits,
    write_gguf,
    write_hf,
    write_meta,
)
from meta_folders import cut, meta_state, write_folder
from safetensors.torch import load_file, save_file

from suri.data.prompt import TextPrompt
from suri.errors import Corrupt, UsageError
from suri.export import meta
from suri.export.meta_decoder import MetaDecoder
from suri.export.verify import verify
from suri.files import write_json
from suri.model import weights as weights_module
from suri.model.config import read_config
from suri.model.tensor_names import permute, unpermute
from suri.model.tokenizer import read_tokenizer
from suri.model.weights import find_base, open_weights
from suri.reading import read_json

WRITERS = {"hf": write_hf, "meta": write_meta, "gguf": write_gguf}
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32

# Each with the params.json that Meta would ship for it.
SHAPES = {
    "llama-1-7b": (
        {"num_attention_heads": 6, "num_key_value_heads": 6, "intermediate_size": 144,
         "rms_norm_eps": 1e-6},
        {"dim": 48, "multiple_of": 48, "n_heads": 6, "n_layers": 3, "norm_eps": 1e-06,
         "vocab_size": -1},
    ),
    "llama-2-70b": (
        {"hidden_size": 256, "num_attention_heads": 64, "num_key_value_heads": 8,
         "intermediate_size": 896, "num_hidden_layers": 2, "vocab_size": 160},
        {"dim": 256, "multiple_of": 128, "ffn_dim_multiplier": 1.3, "n_heads": 64,
         "n_kv_heads": 8, "n_layers": 2, "norm_eps": 1e-05, "vocab_size": -1},
    ),
    "llama-3.1-8b": (
        {"hidden_size": 256, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 896, "num_hidden_layers": 2, "vocab_size": 1008,
         "rope_parameters": SCALED_ROPE, "max_position_embeddings": 131072},
        {"dim": 256, "multiple_of": 64, "ffn_dim_multiplier": 1.3, "n_heads": 32,
         "n_kv_heads": 8, "n_layers": 2, "norm_eps": 1e-05, "vocab_size": 1008,
         "rope_theta": 500000.0, "use_scaled_rope": True},
    ),
    "12 heads on 2, tied": (
        {"num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 128,
         "tie_word_embeddings": True},
        {"dim": 48, "multiple_of": 32, "n_heads": 12, "n_kv_heads": 2, "n_layers": 3,
         "norm_eps": 1e-05, "vocab_size": 136},
    ),
    "6 heads on 3": (
        {"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 160},
        {"dim": 48, "multiple_of": 32, "ffn_dim_multiplier": 1.2, "n_heads": 6, "n_kv_heads": 3,
         "n_layers": 3, "norm_eps": 1e-05, "vocab_size": 136},
    ),
    "one head of keys": (
        {"num_attention_heads": 6, "num_key_value_heads": 1, "intermediate_size": 128},
        {"dim": 48, "multiple_of": 32, "n_heads": 6, "n_kv_heads": 1, "n_layers": 3,
         "norm_eps": 1e-05, "vocab_size": 136},
    ),
}  # fmt: skip


def make(folder: Path, dtype: torch.dtype = F32, **changes) -> Path:
    return make_base(folder, dtype=dtype, **{"vocab_size": 136} | changes)


def model_of(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=F32).eval()


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def meta_of(base: Path) -> dict[str, torch.Tensor]:
    """Meta's state dict of an HF folder, in its own dtype."""
    return meta_state(tensors_of(base), transformers.AutoConfig.from_pretrained(base))


def state_in(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "consolidated.00.pth", weights_only=True, mmap=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "dtype"), list(zip(SHAPES, [F32, BF16, F32, BF16, F16, F32], strict=True))
)
def test_from_hf_to_meta_and_back_no_bit_changes(shape, dtype, tmp_path):
    changes, params = SHAPES[shape]
    base = make(tmp_path / "base", dtype, **changes)
    assert write_meta(base, None, tmp_path / "meta").passed
    assert_same(state_in(tmp_path / "meta"), meta_of(base))
    written = read_json(tmp_path / "meta" / "params.json")
    for name in {"dim", "n_layers", "n_heads", "norm_eps"} | (set(params) - set_freely(params)):
        assert written[name] == params[name], name
    assert written["vocab_size"] == len(tensors_of(base)["model.embed_tokens.weight"])
    back = write_hf(tmp_path / "meta", None, tmp_path / "back")
    assert back.record["reader"].startswith("transformers")
    expected = tensors_of(base)
    expected.setdefault("lm_head.weight", expected["model.embed_tokens.weight"])
    assert_same(tensors_of(tmp_path / "back"), expected)
    was, now = read_config(base), read_config(tmp_path / "back")
    for name in ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size",
                 "norm_eps", "rope_theta", "vocab_size", "num_layers"):  # fmt: skip
        assert getattr(now, name) == getattr(was, name), name
    assert (now.rope_scaling or {}).get("factor") == (was.rope_scaling or {}).get("factor")
    logits = reference_logits(model_of(base))
    assert torch.equal(reference_logits(model_of(tmp_path / "back")), logits)
    assert logits.std() > 0.05


def set_freely(params: dict) -> set[str]:
    """Several multiples and factors give the same inner size; vocab_size is tested apart."""
    return {"multiple_of", "ffn_dim_multiplier", "vocab_size"} & set(params)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "parts", "llama3"),
    [
        ("llama-1-7b", 1, False), ("llama-1-7b", 2, False), ("llama-2-70b", 4, False),
        ("llama-3.1-8b", 2, True), ("llama-3.1-8b", 4, True), ("12 heads on 2, tied", 2, True),
        ("6 heads on 3", 4, False), ("one head of keys", 2, False),
    ],
)  # fmt: skip
def test_from_metas_parts_to_hf_and_back_no_bit_changes(shape, parts, llama3, tmp_path):
    changes, params = SHAPES[shape]
    base = make(tmp_path / "base", F16, **changes)
    state = meta_of(base)
    source = write_folder(tmp_path / "source", cut(state, parts, llama3=llama3), params)
    assert write_hf(source, None, tmp_path / "hf").passed
    expected = tensors_of(base)
    expected.setdefault("lm_head.weight", expected["model.embed_tokens.weight"])
    assert_same(tensors_of(tmp_path / "hf"), expected)
    logits = reference_logits(model_of(base))
    assert torch.equal(reference_logits(model_of(tmp_path / "hf")), logits)
    assert write_meta(tmp_path / "hf", None, tmp_path / "meta").passed
    assert_same(state_in(tmp_path / "meta"), state)
    assert write_meta(source, None, tmp_path / "whole").passed
    assert_same(state_in(tmp_path / "whole"), state)
    ids = [[5, 99, 7, 7, 23, 64, 128, 1, 40], [11, 3, 77, 2, 130, 58]]
    assert (MetaDecoder(tmp_path / "whole").logits(ids) - logits).abs().max() < 2e-5


@pytest.mark.slow
def test_eight_parts_as_of_llama_2_70b(tmp_path):
    changes, params = SHAPES["llama-2-70b"]
    base = make(tmp_path / "base", F16, **changes)
    source = write_folder(tmp_path / "70b", cut(meta_of(base), 8, llama3=False), params)
    certificate = write_hf(source, None, tmp_path / "hf")
    assert len([name for name in certificate.record["base"]["files"] if ".pth" in name]) == 8
    assert_same(tensors_of(tmp_path / "hf"), tensors_of(base))
    stored = open_weights(source).stored
    for name, tensor in tensors_of(base).items():
        assert stored(name).shape == tuple(tensor.shape)
        assert stored(name).dtype == F16
        for rows in (
            slice(None),
            slice(3, 40),
            slice(30, 34),
            slice(0, 0),
            slice(7, 10**6),
            [9, 31, 3, 9],
        ):
            assert torch.equal(stored(name).read(rows), tensor[rows]), (name, rows)


@pytest.mark.slow
def test_parts_in_the_wrong_order_fail_by_their_logits(tmp_path, monkeypatch):
    """Reader and checks agree on them; the decoder that shares no code does not."""
    changes, params = SHAPES["llama-1-7b"]
    base = make(tmp_path / "base", **changes)
    source = write_folder(tmp_path / "source", cut(meta_of(base), 2, llama3=False), params)
    right = weights_module.shard_files
    monkeypatch.setattr(weights_module, "shard_files", lambda folder: right(folder)[::-1])
    with pytest.raises(Corrupt, match="conversion to hf failed") as caught:
        write_hf(source, None, tmp_path / "hf")
    assert "largest difference of a logit" in caught.value.found
    assert "tensors" not in caught.value.found
    assert files_in(tmp_path) == {"base", "source"}


@pytest.mark.slow
@pytest.mark.parametrize("to", ["hf", "meta"])
def test_a_rotary_order_misread_or_miswritten_fails(tmp_path, monkeypatch, to):
    base = make(tmp_path / "base")
    write_meta(base, None, tmp_path / "meta")
    source = tmp_path / "meta" if to == "hf" else base
    monkeypatch.setattr(weights_module, "permute", unpermute)
    monkeypatch.setattr(meta, "unpermute", permute)
    with pytest.raises(Corrupt, match=f"conversion to {to} failed"):
        WRITERS[to](source, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


BIASED = {
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "llama": ("llama", {"attention_bias": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BIASED)
def test_biases_go_to_hf_and_not_to_meta(kind, tmp_path):
    model_type, changes = BIASED[kind]
    base = make_base(tmp_path / "base", model_type, **changes)
    with pytest.raises(UsageError, match="cannot hold") as caught:
        write_meta(base, None, tmp_path / "meta")
    assert "biases" in caught.value.found
    assert write_hf(base, None, tmp_path / "hf").passed
    assert_same(tensors_of(tmp_path / "hf"), tensors_of(base))
    assert "model.layers.0.self_attn.q_proj.bias" in tensors_of(tmp_path / "hf")
    logits = reference_logits(model_of(base))
    assert torch.equal(reference_logits(model_of(tmp_path / "hf")), logits)
    if kind == "qwen2":
        write_gguf(base, None, tmp_path / "gguf", "float32")
        write_hf(find_base(str(tmp_path / "gguf")), None, tmp_path / "back")
        assert_same(tensors_of(tmp_path / "back"), tensors_of(base))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ("llama-3.1-8b", "float32"), ("llama-3.1-8b", "float16"),
        ("12 heads on 2, tied", "bfloat16"),
    ],
)  # fmt: skip
def test_from_gguf_the_numbers_are_the_files(shape, dtype, tmp_path):
    """Matrices as stored, norms too: in fp32 all together where the file's norms need that."""
    base = make(tmp_path / "base", **SHAPES[shape][0])
    assert write_gguf(base, None, tmp_path / "gguf", dtype).passed
    certificate = write_hf(find_base(str(tmp_path / "gguf" / "model.gguf")), None, tmp_path / "hf")
    assert certificate.record["dtype"] == "float32"
    expected = {
        name: tensor if tensor.dim() == 1 else tensor.to(getattr(torch, dtype)).float()
        for name, tensor in tensors_of(base).items()
    }
    assert_same(tensors_of(tmp_path / "hf"), expected)
    assert_same(tensors_of(tmp_path / "hf"), by_transformers(tmp_path / "gguf", expected))


@pytest.mark.slow
def test_norms_that_fit_keep_the_files_own_numbers(tmp_path):
    base = make(tmp_path / "base", F16)
    write_gguf(base, None, tmp_path / "gguf")
    certificate = write_hf(find_base(str(tmp_path / "gguf")), None, tmp_path / "hf")
    assert certificate.record["dtype"] == "float16"
    assert_same(tensors_of(tmp_path / "hf"), tensors_of(base))


def by_transformers(folder: Path, names) -> dict[str, torch.Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="model.gguf", dtype=F32
    )
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_from_quantised_gguf_the_numbers_are_those_it_stands_for(kind, tmp_path):
    shape = {"hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 160}
    base = make(tmp_path / "base", num_key_value_heads=2, **shape)
    write_gguf(base, None, tmp_path / "plain", "float32")
    place = tmp_path / "quantised"
    place.mkdir()
    quantise(tmp_path / "plain" / "model.gguf", place / "model.gguf", kind)
    certificate = write_hf(find_base(str(place)), None, tmp_path / "hf")
    assert certificate.record["dtype"] == "float32"
    found = tensors_of(tmp_path / "hf")
    assert_same(found, by_transformers(place, found))
    moved = {name: (found[name] - tensor).abs().max() for name, tensor in tensors_of(base).items()}
    assert {name for name, by in moved.items() if by == 0} == {n for n in moved if "norm" in n}
    assert write_meta(find_base(str(place)), None, tmp_path / "meta").passed
    assert_same(state_in(tmp_path / "meta"), meta_of(tmp_path / "hf"))


def quantise(source: Path, target: Path, kind: str) -> None:
    """The same GGUF file with all matrices quantised by the gguf package."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import quantize

    reader, number = GGUFReader(str(source)), GGMLQuantizationType[kind]
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        values = np.array(tensor.data)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, quantize(values, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["shards", "bin"])
def test_from_other_hf_folders(form, tmp_path):
    base = make(tmp_path / "base", F16)
    tensors = tensors_of(base)
    source = shutil.copytree(base, tmp_path / "source")
    (source / "model.safetensors").unlink()
    names = sorted(tensors)
    stem, ending = ("model", "safetensors") if form == "shards" else ("pytorch_model", "bin")
    places = {name: f"{stem}-0000{1 + (n > 9)}.{ending}" for n, name in enumerate(names)}
    for file in sorted(set(places.values())):
        part = {name: tensors[name] for name in names if places[name] == file}
        (save_file if form == "shards" else torch.save)(part, source / file)
    write_json(source / f"{stem}.{ending}.index.json", {"weight_map": places})
    assert write_hf(source, None, tmp_path / "hf").passed
    assert_same(tensors_of(tmp_path / "hf"), tensors)


@pytest.fixture(scope="module")
def steady(tmp_path_factory) -> Path:
    """A model whose likeliest token bf16 does not change: the embedding decides it."""
    base = make(tmp_path_factory.mktemp("steady"), tie_word_embeddings=True)
    tensors = tensors_of(base)
    tensors["model.embed_tokens.weight"] *= 20
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    return base


@pytest.mark.slow
@pytest.mark.parametrize("to", WRITERS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_certificate_names_no_adapter_and_is_verified(steady, tmp_path, to, dtype):
    out = tmp_path / "out"
    assert WRITERS[to](steady, None, out, dtype).passed
    record = read_json(out / "certificate.json")
    assert record["adapter"] is None
    assert (record["passed"], record["to"], record["dtype"]) == (True, to, dtype)
    assert record["base"]["path"] == str(steady)
    count = len(tensors_of(steady)) + (to == "meta")
    assert record["checks"][0]["name"].startswith(f"{count} tensors")
    again, left_out = verify(out)
    assert again.passed
    assert again.checks
    assert not left_out
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"# {steady.name}, in another format" in card
    assert "tags: [converted]" in card
    assert "lora" not in card


@pytest.mark.slow
def test_q8_0_is_a_format_of_gguf_alone(steady, tmp_path):
    certificate = write_gguf(steady, None, tmp_path / "gguf", "q8_0")
    assert certificate.record["dtype"] == "q8_0"
    assert verify(tmp_path / "gguf")[0].passed
    write_hf(find_base(str(tmp_path / "gguf")), None, tmp_path / "hf")
    found = tensors_of(tmp_path / "hf")
    assert_same(found, by_transformers(tmp_path / "gguf", found))
    with pytest.raises(UsageError, match="q8_0 are not written"):
        write_hf(steady, None, tmp_path / "other", "q8_0")


def test_a_changed_number_fails_and_is_not_published(tmp_path, monkeypatch):
    from suri.export.fold import fold

    def touched(*arguments):
        for name, tensor in fold(*arguments):
            yield name, tensor * 1.001 if name == "model.layers.1.mlp.up_proj.weight" else tensor

    monkeypatch.setattr("suri.export.hf.fold", touched)
    with pytest.raises(Corrupt, match="conversion to hf failed its certificate") as caught:
        write_hf(make(tmp_path / "base"), None, tmp_path / "out")
    assert "FAIL 30 tensors" in caught.value.found
    assert files_in(tmp_path) == {"base"}


def test_a_source_that_changes_is_noticed(tmp_path):
    base = make(tmp_path / "base")
    write_meta(base, None, tmp_path / "meta")
    (base / "config.json").unlink()
    certificate, left_out = verify(tmp_path / "meta")
    assert certificate.checks == ()
    assert "config.json is missing" in left_out


@pytest.mark.slow
def test_a_prompt_comes_along_and_none_is_made_up(tmp_path):
    base = make(tmp_path / "base")
    write_hf(base, None, tmp_path / "without")
    assert not (tmp_path / "without" / "prompt.json").exists()
    TextPrompt("mine", "{instruction} on {input}:", "{instruction}:").save(base)
    write_gguf(base, None, tmp_path / "gguf")
    write_meta(find_base(str(tmp_path / "gguf")), None, tmp_path / "meta")
    for name in ("gguf", "meta"):
        assert read_json(tmp_path / name / "prompt.json") == read_json(base / "prompt.json")
    text = "One café: <s> is text."
    assert read_tokenizer(tmp_path / "meta").encode(text) == read_tokenizer(base).encode(text)


def test_an_adapter_is_no_model(tmp_path):
    base = make(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    with pytest.raises(UsageError, match="is an adapter") as caught:
        write_hf(adapter, None, tmp_path / "out")
    assert f"suri merge {adapter}" in caught.value.do
