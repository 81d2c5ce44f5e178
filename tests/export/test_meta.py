"""Meta folders: params.json, the archive as torch reads it, names and rotary order."""

import json
import math
import weakref
import zipfile
from pathlib import Path

import pytest
import torch
from merges import KINDS, files_in, make_adapter, make_base, merged_by_peft, write_meta

from suri.errors import UsageError
from suri.export.meta import meta_params, write_archive
from suri.model.config import ModelConfig, read_config
from suri.model.weights import open_weights


def config_of(dim: int, inner: int, heads: int, **changes) -> ModelConfig:
    values = {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": dim, "num_layers": 32,
        "num_heads": heads, "num_kv_heads": heads, "head_dim": dim // heads,
        "intermediate_size": inner, "norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_positions": 2048,
    }  # fmt: skip
    return ModelConfig(**values | changes)


def meta_hidden_size(dim: int, params: dict) -> int:
    """The formula of FeedForward.__init__ in Meta's model.py, written out again."""
    hidden_dim = 4 * dim
    hidden_dim = int(2 * hidden_dim / 3)
    if params.get("ffn_dim_multiplier") is not None:
        hidden_dim = int(params["ffn_dim_multiplier"] * hidden_dim)
    multiple_of = params["multiple_of"]
    return multiple_of * ((hidden_dim + multiple_of - 1) // multiple_of)


def test_params_of_llama_7b_are_those_of_the_release():
    assert meta_params(config_of(4096, 11008, 32)) == {
        "dim": 4096,
        "multiple_of": 256,
        "n_heads": 32,
        "n_layers": 32,
        "norm_eps": 1e-06,
        "vocab_size": 32000,
    }


def test_params_of_llama_31_8b():
    scaling = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = config_of(
        4096, 14336, 32, num_kv_heads=8, rope_theta=500000.0, rope_scaling=scaling, norm_eps=1e-5
    )
    params = meta_params(config)
    assert (params["n_kv_heads"], params["rope_theta"]) == (8, 500000.0)
    assert params["use_scaled_rope"] is True
    assert params["ffn_dim_multiplier"] == 1.3
    assert meta_hidden_size(4096, params) == 14336


@pytest.mark.parametrize(
    ("dim", "inner"),
    [(5120, 13824), (6656, 17920), (8192, 22016), (8192, 28672), (2048, 5632), (576, 1536),
     (960, 2560), (896, 4864), (48, 88), (48, 87), (80, 11), (64, 1), (4096, 11007)],
)  # fmt: skip
def test_any_inner_size_comes_out_of_metas_formula(dim, inner):
    params = meta_params(config_of(dim, inner, 8))
    assert meta_hidden_size(dim, params) == inner


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"qkv_bias": True}, "biases"),
        ({"mlp_bias": True}, "biases"),
        ({"qk_norm": True}, "norms"),
        ({"head_dim": 80}, "32 heads of 80 are not 4096 wide"),
        ({"sliding_window": 4096}, "4096 tokens"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 32.0}}, "32.0"),
    ],
)
def test_what_metas_format_cannot_hold_is_refused(changes, complaint):
    with pytest.raises(UsageError) as caught:
        meta_params(config_of(4096, 11008, 32, **changes))
    assert complaint in caught.value.found
    assert "--to hf" in caught.value.do


def test_nothing_is_written_for_a_refused_model(tmp_path):
    base = make_base(tmp_path / "base", "qwen2")
    adapter = make_adapter(tmp_path / "adapter", base)
    with pytest.raises(UsageError, match="cannot hold"):
        write_meta(base, adapter, tmp_path / "merged")
    assert files_in(tmp_path) == {"base", "adapter"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_holds_pefts_merge_in_metas_order(kind, tmp_path):
    base = make_base(tmp_path / "base", **KINDS[kind])
    adapter = make_adapter(tmp_path / "adapter", base)
    certificate = write_meta(base, adapter, tmp_path / "merged")
    assert certificate.passed
    merged = merged_by_peft(base, adapter)
    expected = merged.state_dict()
    config = merged.config
    state = torch.load(tmp_path / "merged" / "consolidated.00.pth", weights_only=True, mmap=True)

    def handout(w: torch.Tensor, heads: int) -> torch.Tensor:
        """`unpermute` of the published export script, for any number of heads."""
        return w.view(heads, 2, len(w) // heads // 2, -1).transpose(1, 2).reshape(w.shape)

    def same(found: torch.Tensor, name: str, heads: int = 0) -> bool:
        weight = expected[name]
        return torch.allclose(found, handout(weight, heads) if heads else weight, atol=2e-6)

    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    assert same(
        state["layers.1.attention.wq.weight"], "model.layers.1.self_attn.q_proj.weight", heads
    )
    assert same(state["layers.1.attention.wk.weight"], "model.layers.1.self_attn.k_proj.weight",
                kv_heads)  # fmt: skip
    assert same(state["layers.2.attention.wo.weight"], "model.layers.2.self_attn.o_proj.weight")
    assert same(state["layers.0.feed_forward.w2.weight"], "model.layers.0.mlp.down_proj.weight")
    assert same(state["layers.0.feed_forward.w3.weight"], "model.layers.0.mlp.up_proj.weight")
    assert same(state["output.weight"], "lm_head.weight")
    assert len(state) == 3 * 9 + 3
    assert (
        json.loads((tmp_path / "merged" / "params.json").read_text())["dim"] == config.hidden_size
    )


def test_read_as_hf_again_every_bit_of_the_base_is_back(tmp_path):
    """An adapter that adds nothing: HF -> Meta -> HF must be the identity."""
    base = make_base(tmp_path / "base", **KINDS["tied"])
    adapter = make_adapter(tmp_path / "adapter", base)
    _zero_b(adapter)
    write_meta(base, adapter, tmp_path / "merged")
    before, after = open_weights(base), open_weights(tmp_path / "merged")
    assert set(after) == set(before) | {"lm_head.weight"}
    for name in before:
        assert torch.equal(before[name], after[name]), name
    config, original = read_config(tmp_path / "merged"), read_config(base)
    for field in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
                  "intermediate_size", "norm_eps", "rope_theta", "vocab_size"):  # fmt: skip
        assert getattr(config, field) == getattr(original, field), field


@pytest.mark.slow
def test_a_meta_folder_is_a_base_like_any_other(tmp_path):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    write_meta(base, None, tmp_path / "meta", "float16")
    again = write_meta(tmp_path / "meta", adapter, tmp_path / "twice")
    assert again.passed
    assert again.record["dtype"] == "float16"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_archive_is_what_torch_itself_would_save(tmp_path, dtype):
    tensors = {"a.weight": torch.randn(5, 7).to(dtype), "b": torch.randn(3).to(dtype)}
    tensors["c"] = torch.randn(4, 6).to(dtype).t()
    write_archive(tmp_path / "ours.pth", tensors.items())
    torch.save(tensors, tmp_path / "torch.pth")
    for mmap in (False, True):
        ours = torch.load(tmp_path / "ours.pth", weights_only=True, mmap=mmap)
        theirs = torch.load(tmp_path / "torch.pth", weights_only=True, mmap=mmap)
        assert list(ours) == list(theirs)
        for name in ours:
            assert ours[name].dtype == dtype
            assert torch.equal(ours[name], theirs[name])
            assert ours[name].is_contiguous()


def test_the_archive_is_sound_and_aligned(tmp_path):
    write_archive(tmp_path / "a.pth", ((f"t{n}", torch.randn(n, 3)) for n in range(1, 9)))
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is None
    state = torch.load(tmp_path / "a.pth", weights_only=True, mmap=True)
    start = state["t1"].untyped_storage().data_ptr()
    assert all((t.untyped_storage().data_ptr() - start) % 64 == 0 for t in state.values())


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

    write_archive(tmp_path / "a.pth", tensors())
    assert most <= 2
    assert math.isclose(torch.load(tmp_path / "a.pth", weights_only=True)["t7"].mean(), 7)


def _zero_b(adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({n: t * (0 if "lora_B" in n else 1) for n, t in tensors.items()}, file)
