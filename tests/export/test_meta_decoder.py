"""The independent decoder against transformers' Llama, through a state dict made by hand."""

import json

import pytest
import torch
from merges import IDS, KINDS, make_base, reference_logits

from suri.export.meta_decoder import MetaDecoder

LAYER = {
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Row by row: what HF has at i and i + d/2 of a head, Meta has at 2i and 2i + 1."""
    rows = torch.empty_like(weight)
    for row in range(len(weight)):
        head, place = divmod(row, head_dim)
        half, pair = divmod(place, head_dim // 2)
        rows[head * head_dim + 2 * pair + half] = weight[row]
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind, tmp_path):
    import transformers

    base = make_base(tmp_path, **KINDS[kind])
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    config, hf = model.config, model.state_dict()
    head_dim = config.hidden_size // config.num_attention_heads
    state = {
        "tok_embeddings.weight": hf["model.embed_tokens.weight"],
        "norm.weight": hf["model.norm.weight"],
        "output.weight": hf["lm_head.weight"],
    }
    for n in range(config.num_hidden_layers):
        for theirs, metas in LAYER.items():
            state[f"layers.{n}.{metas}.weight"] = hf[f"model.layers.{n}.{theirs}.weight"]
        for letter in "qk":
            weight = hf[f"model.layers.{n}.self_attn.{letter}_proj.weight"]
            state[f"layers.{n}.attention.w{letter}.weight"] = interleaved(weight, head_dim)
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
        "use_scaled_rope": kind == "scaled-rope",
    }
    torch.save(state, tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text(json.dumps(params))
    texts = [*IDS, list(range(130))]
    expected = reference_logits(model, texts)
    found = MetaDecoder(tmp_path).logits(texts)
    assert found.dtype == torch.float32
    assert expected.std() > 0.05
    assert (found - expected).abs().max() < 2e-5


def test_it_shares_no_code_with_the_decoder():
    import ast
    from pathlib import Path

    from suri.export import meta_decoder

    tree = ast.parse(Path(meta_decoder.__file__).read_text(encoding="utf-8"))
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = [getattr(n, "module", None) or n.names[0].name for n in imports]
    assert names
    assert not [name for name in names if name.startswith("suri")]
