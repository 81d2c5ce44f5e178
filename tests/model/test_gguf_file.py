"""GGUF headers from outside: what is announced is never believed beyond the file's own size."""

import struct

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

from suri.errors import Corrupt, UsageError
from suri.files import write_json
from suri.model.config import ModelConfig, read_config
from suri.model.gguf_base import gguf_file
from suri.model.gguf_file import GgufFile
from suri.model.gguf_rope import llama3_scaling
from suri.model.weights import find_base


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SURI_CACHE", str(tmp_path / "cache"))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(tensors: int = 0, values: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + rest


HUGE = 2**62
BROKEN = {
    "nothing": b"",
    "another format": b"PK\x03\x04" + bytes(40),
    "an end too early": header()[:20],
    "more tensors than bytes": header(tensors=HUGE),
    "more values than bytes": header(values=HUGE),
    "a text without end": header(values=1, rest=struct.pack("<Q", HUGE)),
    "a list without end": header(
        values=1, rest=text("k") + struct.pack("<IIQ", 9, 0, HUGE) + bytes(64)
    ),
    "lists in lists": header(
        values=1, rest=text("k") + b"".join(struct.pack("<IQ", 9, 1) for _ in range(9)) + bytes(99)
    ),
    "a kind of value that is not there": header(values=1, rest=text("k") + struct.pack("<I", 77)),
    "a tensor past the end": header(
        tensors=1, rest=text("t") + struct.pack("<IQQIQ", 2, 2**20, 2**20, 0, 0) + bytes(64)
    ),
    "a tensor far away": header(
        tensors=1, rest=text("t") + struct.pack("<IQIQ", 1, 2, 0, HUGE) + bytes(64)
    ),
    "nine dimensions": header(
        tensors=1, rest=text("t") + struct.pack("<I9QIQ", 9, *[1] * 9, 0, 0) + bytes(64)
    ),
    "a type of tensor that is not there": header(
        tensors=1, rest=text("t") + struct.pack("<IQIQ", 1, 2, 999, 0) + bytes(64)
    ),
    "an alignment of one": header(
        tensors=1,
        values=1,
        rest=text("general.alignment")
        + struct.pack("<II", 4, 1)
        + text("t")
        + struct.pack("<IQIQ", 1, 2, 0, 0)
        + bytes(64),
    ),
    "a list as alignment": header(
        values=1, rest=text("general.alignment") + struct.pack("<IIQI", 9, 4, 1, 32)
    ),
    "a tensor that starts askew": header(
        tensors=1, rest=text("t") + struct.pack("<IQIQ", 1, 2, 0, 3) + bytes(64)
    ),
    "an empty tensor": header(
        tensors=1, rest=text("t") + struct.pack("<IQIQ", 1, 0, 0, 0) + bytes(64)
    ),
    "half a block": header(
        tensors=1, rest=text("t") + struct.pack("<IQIQ", 1, 33, 8, 0) + bytes(99)
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_header_is_one_message(tmp_path, what):
    file = tmp_path / "model.gguf"
    file.write_bytes(BROKEN[what])
    with pytest.raises(Corrupt, match="GGUF"):
        GgufFile(file)


def test_a_version_that_is_not_known_is_a_usage_error(tmp_path):
    (tmp_path / "model.gguf").write_bytes(header(version=1))
    with pytest.raises(UsageError, match="version 1"):
        GgufFile(tmp_path / "model.gguf")


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_tensors_are_what_the_gguf_package_reads(tmp_path, kind):
    quantized = GGMLQuantizationType[kind]
    values = np.random.default_rng(3).normal(size=(6, 64)).astype(np.float32)
    stored = quantize(values, quantized)
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("first.weight", np.arange(5, dtype=np.float32))
    writer.add_tensor("second.weight", stored, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "x.gguf")
    assert file.values == {"general.architecture": "llama"}
    assert file.tensor("first.weight").tolist() == [0, 1, 2, 3, 4]
    found = file.tensor("second.weight")
    assert found.shape == (6, 64)
    plain = {"F16": torch.float16, "BF16": torch.bfloat16}
    assert found.dtype == plain.get(kind, torch.float32)
    assert np.array_equal(found.float().numpy(), dequantize(stored, quantized))


def test_another_family_is_refused(tmp_path):
    writer = GGUFWriter(tmp_path / "x.gguf", "gemma2")
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UsageError, match="not a model of the Llama family") as caught:
        find_base(str(tmp_path))
    assert "gemma2" in caught.value.found


@pytest.mark.parametrize(
    ("key", "value"),
    [("head_count", 0), ("head_count", 3), ("head_count_kv", 0), ("key_length", 7), ("", 2**31)],
)
def test_a_header_that_does_not_fit_its_tensors_is_corrupt(tmp_path, key, value):
    settings = {"head_count": 4, "head_count_kv": 2, "key_length": 6}
    settings |= {key: value} if key else {}
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    for name, number in settings.items():
        writer.add_uint32(f"llama.attention.{name}", number)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_context_length(64)
    writer.add_embedding_length(20)
    writer.add_feed_forward_length(44)
    writer.add_block_count(1 if key else value)
    for name, rows in (("token_embd", 9), ("blk.0.attn_q", 24), ("blk.0.attn_k", 12)):
        writer.add_tensor(f"{name}.weight", np.zeros((rows, 20), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(Corrupt, match="header"):
        find_base(str(tmp_path / "x.gguf"))


@pytest.mark.parametrize("biased", [("q", "k", "v", "output"), ("q", "k", "v"), ()])
def test_biases_are_kept_or_refused(tmp_path, biased):
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(6)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_context_length(64)
    writer.add_embedding_length(20)
    writer.add_feed_forward_length(44)
    writer.add_block_count(1)
    shapes = {
        "attn_q": (24, 20), "attn_k": (12, 20), "attn_v": (12, 20), "attn_output": (20, 24),
        "ffn_gate": (44, 20), "ffn_up": (44, 20), "ffn_down": (20, 44),
    }  # fmt: skip
    writer.add_tensor("token_embd.weight", np.zeros((9, 20), dtype=np.float32))
    for part, shape in shapes.items():
        writer.add_tensor(f"blk.0.{part}.weight", np.zeros(shape, dtype=np.float32))
    for part in biased:
        bias = np.ones(shapes[f"attn_{part}"][0], dtype=np.float32)
        writer.add_tensor(f"blk.0.attn_{part}.bias", bias)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if len(biased) == 3:  # a config.json has no word for them
        with pytest.raises(UsageError, match="not a plain llama model"):
            find_base(str(tmp_path / "x.gguf"))
        return
    config = read_config(find_base(str(tmp_path / "x.gguf")))
    assert config.qkv_bias == config.o_bias == bool(biased)


def test_which_file_a_folder_means(tmp_path):
    assert gguf_file(tmp_path) is None
    (tmp_path / "a.gguf").write_bytes(b"")
    assert gguf_file(tmp_path) == gguf_file(tmp_path / "a.gguf") == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(UsageError, match="2 GGUF files"):
        gguf_file(tmp_path)
    write_json(tmp_path / "config.json", {})
    assert gguf_file(tmp_path) is None


def config(head_dim: int, theta: float) -> ModelConfig:
    return ModelConfig(
        model_type="llama", vocab_size=7, hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1,
        head_dim=head_dim, intermediate_size=9, norm_eps=1e-5, rope_theta=theta, max_positions=99,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("head_dim", "theta", "factor", "high", "context"),
    [
        (128, 5e5, 8.0, 4.0, 8192), (64, 5e5, 32.0, 4.0, 8192), (64, 1e4, 4.0, 4.0, 16),
        (8, 1e4, 4.0, 4.0, 16), (128, 1e6, 16.0, 6.5, 4096),
    ],
)  # fmt: skip
def test_scaling_is_found_again_in_its_factors(head_dim, theta, factor, high, context):
    from dataclasses import replace

    from suri.model.decoder import rotary_frequencies

    scaling = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": high, "original_max_position_embeddings": context,
    }  # fmt: skip
    plain = config(head_dim, theta)
    factors = rotary_frequencies(plain) / rotary_frequencies(replace(plain, rope_scaling=scaling))
    assert llama3_scaling(factors.tolist(), plain, "x") == scaling


@pytest.mark.parametrize(
    "factors", [[1.0, 2.0, 1.5, 7.0], [1.0, 1.0], [0.0] * 4, [float("nan")] * 4]
)
def test_other_factors_are_refused(factors):
    with pytest.raises(UsageError, match="not Llama 3's scaling"):
        llama3_scaling(factors, config(8, 1e4), "x")
