"""GGUF in q8_0: what is quantised, and that a certificate finds every wrong scale and integer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from merges import make_adapter, make_base, own_cache, write_gguf, write_hf, write_meta
from safetensors.torch import load_file, save_file

from suri.errors import UsageError
from suri.export.certify import check_others, check_targets
from suri.export.checks import block_error
from suri.export.fold import open_merge
from suri.export.gguf_reader import GgufTensors
from suri.export.verify import verify
from suri.model.gguf_file import GgufFile
from suri.model.weights import find_base, open_weights
from suri.reading import read_json

WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8}
"""Rows of whole blocks throughout."""


def steady_base(folder: Path, model_type: str = "llama", **changes: object) -> Path:
    """A base whose embedding decides the likeliest token: in a random one any rounding does."""
    base = make_base(folder, model_type, tie_word_embeddings=True, **changes)
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"] *= 10
    for name in tensors:
        if "o_proj.weight" in name or "down_proj" in name:
            tensors[name] *= 0.05
    save_file(tensors, file, metadata={"format": "pt"})
    return base


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return steady_base(tmp_path_factory.mktemp("base"), **WIDE)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), base, lora_alpha=0.3)


@pytest.fixture
def merged(base, adapter, tmp_path) -> Path:
    write_gguf(base, adapter, tmp_path / "merged", "q8_0")
    return tmp_path / "merged"


def checks(base: Path, adapter: Path, folder: Path) -> list[float]:
    """The figures of the weights, read from the folder as it is now."""
    merge = open_merge(adapter, base, dtype="q8_0", to="gguf")
    output = GgufTensors(folder, merge.base.config, list(merge.base))
    return [c.figure for c in (check_targets(merge, output), check_others(merge, output, "gguf"))]


@pytest.mark.slow
def test_matrices_are_quantised_and_norms_are_not(base, adapter, merged):
    record = read_json(merged / "certificate.json")
    assert (record["passed"], record["dtype"]) == (True, "q8_0")
    source = GgufFile(merged / "model.gguf")
    assert source.values["general.file_type"] == 7
    kinds = {name: entry.kind for name, entry in source.tensors.items()}
    assert {kinds[name] for name in kinds if "norm" in name} == {0}
    assert {kinds[name] for name in kinds if "norm" not in name} == {8}
    assert verify(merged)[0].passed
    targets, others = checks(base, adapter, merged)
    assert 0.9 < targets <= 1
    assert others == 0


@pytest.mark.slow
def test_it_is_the_sum_that_is_quantised(base, adapter, merged, tmp_path):
    write_hf(base, adapter, tmp_path / "hf", "float32")
    exact, found = open_weights(tmp_path / "hf"), open_weights(find_base(str(merged)))
    for name, weight in exact.items():
        if weight.dim() == 1:
            assert torch.equal(found[name], weight), name
            continue
        blocks = weight.reshape(len(weight), -1, 32)
        step = blocks.abs().amax(-1, keepdim=True) / 127
        error = (found[name].reshape(blocks.shape) - blocks).abs() / step
        assert 0.4 < error.max() < 0.6, name  # half a step, and the scale's own rounding


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "qwen3"])
def test_other_architectures_are_certified(model_type, tmp_path):
    changes = WIDE | ({"sliding_window": None} if model_type == "mistral" else {})
    base = steady_base(tmp_path / "base", model_type, **changes)
    adapter = make_adapter(tmp_path / "adapter", base, lora_alpha=0.3)
    assert write_gguf(base, adapter, tmp_path / "merged", "q8_0").passed


@pytest.mark.slow
def test_rows_that_make_no_whole_blocks_stay_in_fp16(tmp_path, caplog):
    base = steady_base(tmp_path / "base", intermediate_size=96)  # hidden size 48
    adapter = make_adapter(tmp_path / "adapter", base, lora_alpha=0.3)
    assert write_gguf(base, adapter, tmp_path / "merged", "q8_0").passed
    tensors = GgufFile(tmp_path / "merged" / "model.gguf").tensors
    kinds = {name: entry.kind for name, entry in tensors.items()}
    assert {kinds[name] for name in kinds if "ffn_down" in name} == {8}
    others = [name for name in kinds if "ffn_down" not in name and "norm" not in name]
    assert {kinds[name] for name in others} == {1}
    assert f"{len(others)} tensors stay in float16" in caplog.text


@pytest.mark.parametrize("write", [write_hf, write_meta])
def test_other_formats_do_not_know_it(write, base, adapter, tmp_path):
    with pytest.raises(UsageError, match="q8_0 are not written") as caught:
        write(base, adapter, tmp_path / "merged", "q8_0")
    assert "q8_0 with --to gguf" in caught.value.do


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blk.1.attn_q.weight", "blk.2.ffn_down.weight"])
def test_a_wrong_integer_of_a_target_is_found(base, adapter, merged, name):
    change(merged, name, byte=34 * 5 + 2 + 9, by=2)
    targets, others = checks(base, adapter, merged)
    assert targets > 1
    assert others == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["token_embd.weight", "blk.0.ffn_up.weight"])
def test_a_wrong_integer_of_another_tensor_is_found(base, adapter, merged, name):
    change(merged, name, byte=-3, by=2)
    assert checks(base, adapter, merged)[1] == 1


@pytest.mark.slow
@pytest.mark.parametrize("by", [-2, 2])
def test_a_wrong_scale_is_found(base, adapter, merged, by):
    change(merged, "blk.0.attn_k.weight", byte=34 * 7, by=by)
    assert checks(base, adapter, merged)[0] > 1


@pytest.mark.slow
def test_a_scale_that_is_no_number_is_found(base, adapter, merged):
    file = merged / "model.gguf"
    content = bytearray(file.read_bytes())
    start = GgufFile(file).tensors["blk.0.attn_k.weight"].start
    content[start : start + 2] = np.array(np.nan, np.float16).tobytes()
    file.write_bytes(content)
    assert not checks(base, adapter, merged)[0] <= 1


@pytest.mark.slow
def test_a_forgotten_adapter_is_found(base, adapter, tmp_path):
    zeros = make_adapter(tmp_path / "zeros", base, init_lora_weights=True, lora_alpha=1e-9)
    write_gguf(base, zeros, tmp_path / "merged", "q8_0")
    assert checks(base, adapter, tmp_path / "merged")[0] > 1


def change(folder: Path, name: str, byte: int, by: int) -> None:
    file = folder / "model.gguf"
    entry = GgufFile(file).tensors[name]
    content = bytearray(file.read_bytes())
    place = entry.start + byte % entry.size
    content[place] = (content[place] + by) % 256
    file.write_bytes(content)


class TestBlockError:
    """By hand: one block whose scale is exactly 0.5."""

    exact = np.zeros((1, 32))
    exact[0, :4] = 63.5, 0.25, -10.0, 3.3
    scales = np.array([[0.5]])
    integers = np.zeros((1, 1, 32))
    integers[0, 0, :4] = 127, 0, -20, 7
    none = np.zeros((1, 32))

    def test_half_a_step_is_one(self):
        assert block_error(self.exact, self.none, self.scales, self.integers) == pytest.approx(
            1, abs=1e-3
        )

    def test_at_a_half_either_neighbour_is_right(self):
        other = self.integers.copy()
        other[0, 0, 1] = 1
        assert block_error(self.exact, self.none, self.scales, other) <= 1

    @pytest.mark.parametrize(("place", "value"), [(0, 126), (1, 2), (2, 20), (3, 6), (9, 1)])
    def test_another_integer_is_more(self, place, value):
        other = self.integers.copy()
        other[0, 0, place] = value
        assert block_error(self.exact, self.none, self.scales, other) > 1.1

    def test_a_scale_may_be_one_spacing_off(self):
        spacing = 2.0**-11  # of fp16 from 0.5 on
        for steps, allowed in ((1, True), (2, False)):
            error = block_error(self.exact, self.none, self.scales + steps * spacing, self.integers)
            assert (error <= 1) == allowed

    def test_a_block_of_zeros_is_zeros(self):
        zeros = np.zeros((1, 32))
        assert block_error(zeros, zeros, np.zeros((1, 1)), np.zeros((1, 1, 32))) == 0
        assert block_error(zeros, zeros, np.zeros((1, 1)), np.ones((1, 1, 32))) > 1
