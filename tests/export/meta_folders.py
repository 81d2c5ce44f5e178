"""Meta folders made by hand out of transformers' state dicts, whole and cut as Meta cuts them."""

import json
from pathlib import Path

import torch
from torch import Tensor

LAYER = {
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
BY_COLUMNS = ("wo", "w2")
"""Row-parallel layers; tok_embeddings are cut by columns in Llama 1 and 2, by rows in Llama 3."""


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Row by row: what HF has at i and i + d/2 of a head, Meta has at 2i and 2i + 1."""
    rows = torch.empty_like(weight)
    for row in range(len(weight)):
        head, place = divmod(row, head_dim)
        half, pair = divmod(place, head_dim // 2)
        rows[head * head_dim + 2 * pair + half] = weight[row]
    return rows


def meta_state(hf: dict[str, Tensor], config) -> dict[str, Tensor]:
    """Meta's state dict of transformers' (its tied head written out)."""
    head_dim = config.hidden_size // config.num_attention_heads
    embedding = hf["model.embed_tokens.weight"]
    state = {
        "tok_embeddings.weight": embedding,
        "norm.weight": hf["model.norm.weight"],
        "output.weight": hf.get("lm_head.weight", embedding),
    }
    for n in range(config.num_hidden_layers):
        for theirs, metas in LAYER.items():
            state[f"layers.{n}.{metas}.weight"] = hf[f"model.layers.{n}.{theirs}.weight"]
        for letter in "qk":
            weight = hf[f"model.layers.{n}.self_attn.{letter}_proj.weight"]
            state[f"layers.{n}.attention.w{letter}.weight"] = interleaved(weight, head_dim)
    return state


def cut(state: dict[str, Tensor], count: int, *, llama3: bool) -> list[dict[str, Tensor]]:
    """The state dict of each of `count` model-parallel processes."""
    parts: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, tensor in state.items():
        layer = name.split(".")[-2]
        columns = layer in BY_COLUMNS or (layer == "tok_embeddings" and not llama3)
        for number, part in enumerate(parts):
            if tensor.dim() == 1:
                part[name] = tensor.clone()
            else:
                part[name] = tensor.chunk(count, dim=int(columns))[number].clone()
    return parts


def write_folder(folder: Path, parts: list[dict[str, Tensor]], params: dict) -> Path:
    """consolidated.00.pth and on, with the buffers that Llama 1 has beside its weights."""
    folder.mkdir(parents=True)
    for number, part in enumerate(parts):
        buffers = {
            "rope.freqs": torch.rand(3),
            "layers.0.attention.inner_attention.rope.freqs": torch.rand(3),
        }
        torch.save(part | buffers, folder / f"consolidated.{number:02}.pth")
    (folder / "params.json").write_text(json.dumps(params))
    return folder
