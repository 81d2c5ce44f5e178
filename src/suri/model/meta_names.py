"""Tensor names and the order of rotary rows: Hugging Face's layout and Meta's, in both directions.

Meta's names are those of `llama/model.py` in github.com/meta-llama/llama (and llama3).
"""

import re

import torch

from suri.errors import Corrupt

META_NAMES = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.layers.{}.self_attn.q_proj.weight": "layers.{}.attention.wq.weight",
    "model.layers.{}.self_attn.k_proj.weight": "layers.{}.attention.wk.weight",
    "model.layers.{}.self_attn.v_proj.weight": "layers.{}.attention.wv.weight",
    "model.layers.{}.self_attn.o_proj.weight": "layers.{}.attention.wo.weight",
    "model.layers.{}.mlp.gate_proj.weight": "layers.{}.feed_forward.w1.weight",
    "model.layers.{}.mlp.down_proj.weight": "layers.{}.feed_forward.w2.weight",
    "model.layers.{}.mlp.up_proj.weight": "layers.{}.feed_forward.w3.weight",
    "model.layers.{}.input_layernorm.weight": "layers.{}.attention_norm.weight",
    "model.layers.{}.post_attention_layernorm.weight": "layers.{}.ffn_norm.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}
"""HF pattern -> Meta pattern; {} is the layer's number."""

_HF_NAMES = {meta: hf for hf, meta in META_NAMES.items()}
_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)")


def to_meta(name: str) -> str:
    """The Meta name of an HF tensor; raises Corrupt for a tensor that Meta's format cannot hold."""
    return _translated(name, META_NAMES, "Meta's format has no place for")


def to_hf(name: str) -> str:
    """The HF name of a Meta tensor; raises Corrupt for a name that Meta's Llama does not have."""
    return _translated(name, _HF_NAMES, "not a tensor of Meta's Llama:")


def permute(w: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder rotary rows from Meta's order to HF's: [heads * d, in] or a bias [heads * d].

    Meta rotates the neighbours (2i, 2i + 1) of each head, HF the halves (i, i + d/2), so
    `hf[h, j, i] = meta[h, i, j]` with rows seen as [heads, 2, d/2] and [heads, d/2, 2].
    Source: `permute` in transformers' convert_llama_weights_to_hf.py.
    """
    if w.shape[0] % (2 * heads):
        raise Corrupt(f"{w.shape[0]} rotary rows are not {heads} heads of pairs")
    head_dim = w.shape[0] // heads
    return w.reshape(heads, head_dim // 2, 2, *w.shape[1:]).transpose(1, 2).reshape(w.shape)


def unpermute(w: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder rotary rows from HF's order to Meta's, the inverse of `permute`; same shapes."""
    head_dim = w.shape[0] // heads
    return w.reshape(heads, 2, head_dim // 2, *w.shape[1:]).transpose(1, 2).reshape(w.shape)


def _translated(name: str, table: dict[str, str], complaint: str) -> str:
    layer = _LAYER.search(name)
    pattern = table.get(_LAYER.sub("{}", name))
    if pattern is None:
        raise Corrupt(f"{complaint} {name}")
    return pattern.format(layer.group()) if layer else pattern
