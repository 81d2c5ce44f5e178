"""What the rooms that write and read GGUF share: tensor names, and how text is cut into words.

Names are those of llama.cpp's architectures llama, qwen2 and qwen3 (gguf-py, constants.py).
"""

import re

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""The model type of config.json and GGUF's general.architecture."""

ROPE_FACTORS = "rope_freqs.weight"
"""By what llama.cpp divides the frequency of each pair, fp32 [head_dim / 2]; HF has no such."""

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
    "model.layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
    "model.layers.{}.self_attn.q_proj": "blk.{}.attn_q",
    "model.layers.{}.self_attn.k_proj": "blk.{}.attn_k",
    "model.layers.{}.self_attn.v_proj": "blk.{}.attn_v",
    "model.layers.{}.self_attn.o_proj": "blk.{}.attn_output",
    "model.layers.{}.self_attn.q_norm": "blk.{}.attn_q_norm",
    "model.layers.{}.self_attn.k_norm": "blk.{}.attn_k_norm",
    "model.layers.{}.mlp.gate_proj": "blk.{}.ffn_gate",
    "model.layers.{}.mlp.up_proj": "blk.{}.ffn_up",
    "model.layers.{}.mlp.down_proj": "blk.{}.ffn_down",
}
"""HF pattern -> GGUF pattern, without `.weight` or `.bias`; {} is the layer's number."""

_HF_NAMES = {gguf: hf for hf, gguf in GGUF_NAMES.items()}
_NAME = re.compile(r"(?P<start>(model\.layers|blk)\.)(?P<layer>\d+)(?P<end>\..+)")

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "llama-bpe": rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_LETTERS}|\p{{N}}|{_REST}",
}
"""tokenizer.ggml.pre -> the pattern with which Llama 3 and Qwen cut text (their tokenizer.json)."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of a token in tokenizer.ggml.token_type (gguf-py, TokenType)."""


def to_gguf(name: str) -> str | None:
    """The GGUF name of an HF tensor; None for one that these architectures do not have."""
    return _translated(name, GGUF_NAMES)


def from_gguf(name: str) -> str | None:
    """The HF name of a GGUF tensor; None for one that these architectures do not have."""
    return _translated(name, _HF_NAMES)


def _translated(name: str, table: dict[str, str]) -> str | None:
    stem, _, kind = name.rpartition(".")
    found = _NAME.fullmatch(stem)
    pattern = f"{found['start']}{{}}{found['end']}" if found else stem
    if kind not in ("weight", "bias") or pattern not in table:
        return None
    number = int(found["layer"]) if found else 0
    return f"{table[pattern].format(number)}.{kind}"
