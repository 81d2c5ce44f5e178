"""Tensor names and the order of rotary rows in Hugging Face's layout, Meta's and GGUF's.

Meta's names are those of `llama/model.py` in github.com/meta-llama/llama (and llama3), GGUF's those
of llama.cpp's architectures llama, qwen2 and qwen3 (gguf-py, constants.py).
"""

import re

from torch import Tensor

from suri.errors import Corrupt
from suri.model.config import ModelConfig

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""The model type of config.json and GGUF's general.architecture."""

ROPE_FACTORS = "rope_freqs.weight"
"""By what llama.cpp divides the frequency of each pair, fp32 [head_dim / 2]; HF has no such."""

NAMES = (
    ("model.embed_tokens", "tok_embeddings", "token_embd"),
    ("model.norm", "norm", "output_norm"),
    ("lm_head", "output", "output"),
    ("model.layers.{}.input_layernorm", "layers.{}.attention_norm", "blk.{}.attn_norm"),
    ("model.layers.{}.post_attention_layernorm", "layers.{}.ffn_norm", "blk.{}.ffn_norm"),
    ("model.layers.{}.self_attn.q_proj", "layers.{}.attention.wq", "blk.{}.attn_q"),
    ("model.layers.{}.self_attn.k_proj", "layers.{}.attention.wk", "blk.{}.attn_k"),
    ("model.layers.{}.self_attn.v_proj", "layers.{}.attention.wv", "blk.{}.attn_v"),
    ("model.layers.{}.self_attn.o_proj", "layers.{}.attention.wo", "blk.{}.attn_output"),
    ("model.layers.{}.self_attn.q_norm", None, "blk.{}.attn_q_norm"),
    ("model.layers.{}.self_attn.k_norm", None, "blk.{}.attn_k_norm"),
    ("model.layers.{}.mlp.gate_proj", "layers.{}.feed_forward.w1", "blk.{}.ffn_gate"),
    ("model.layers.{}.mlp.up_proj", "layers.{}.feed_forward.w3", "blk.{}.ffn_up"),
    ("model.layers.{}.mlp.down_proj", "layers.{}.feed_forward.w2", "blk.{}.ffn_down"),
)
"""HF's pattern, Meta's and GGUF's, without `.weight` or `.bias`; {} is the layer's number."""

_HF, _META, _GGUF = range(3)
_NAME = re.compile(r"(?P<start>(model\.layers|layers|blk)\.)(?P<layer>\d+)(?P<end>\..+)")


def to_meta(name: str) -> str:
    """The Meta name of an HF tensor; raises Corrupt for a tensor that Meta's format cannot hold."""
    found = _translated(name, _HF, _META)
    if found is None or name.endswith(".bias"):
        raise Corrupt(f"Meta's format has no place for {name}", do="--to hf and --to gguf have one")
    return found


def from_meta(name: str) -> str:
    """The HF name of a Meta tensor; raises Corrupt for a name that Meta's Llama does not have."""
    found = _translated(name, _META, _HF)
    if found is None or name.endswith(".bias"):
        raise Corrupt(f"not a tensor of Meta's Llama: {name}")
    return found


def to_gguf(name: str) -> str | None:
    """The GGUF name of an HF tensor; None for one that these architectures do not have."""
    return _translated(name, _HF, _GGUF)


def from_gguf(name: str) -> str | None:
    """The HF name of a GGUF tensor; None for one that these architectures do not have."""
    return _translated(name, _GGUF, _HF)


def _translated(name: str, source: int, target: int) -> str | None:
    stem, _, kind = name.rpartition(".")
    layer = _NAME.fullmatch(stem)
    pattern = f"{layer['start']}{{}}{layer['end']}" if layer else stem
    found = next((names[target] for names in NAMES if names[source] == pattern), None)
    if kind not in ("weight", "bias") or found is None or "{}" in stem:
        return None
    return f"{found.format(int(layer['layer']) if layer else 0)}.{kind}"


def rotary_heads(name: str, config: ModelConfig) -> int:
    """The heads of a tensor by HF name whose rows are turned by position; 0 for all others."""
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
    return heads.get(name.split(".")[-2], 0)


def permute(w: Tensor, heads: int) -> Tensor:
    """Reorder rotary rows from Meta's order to HF's: [heads * d, in] or a bias [heads * d].

    Meta rotates the neighbours (2i, 2i + 1) of each head, HF the halves (i, i + d/2), so
    `hf[h, j, i] = meta[h, i, j]` with rows seen as [heads, 2, d/2] and [heads, d/2, 2].
    Source: `permute` in transformers' convert_llama_weights_to_hf.py.
    """
    if w.shape[0] % (2 * heads):
        raise Corrupt(f"{w.shape[0]} rotary rows are not {heads} heads of pairs")
    head_dim = w.shape[0] // heads
    return w.reshape(heads, head_dim // 2, 2, *w.shape[1:]).transpose(1, 2).reshape(w.shape)


def unpermute(w: Tensor, heads: int) -> Tensor:
    """Reorder rotary rows from HF's order to Meta's, the inverse of `permute`; same shapes."""
    head_dim = w.shape[0] // heads
    return w.reshape(heads, 2, head_dim // 2, *w.shape[1:]).transpose(1, 2).reshape(w.shape)
