"""A second, independent decoder that reads Meta's state dict as Meta's own code would.

It shares no code with `suri.model`: Meta's names, neighbouring rotary pairs as complex numbers,
one weight in fp32 at a time. It certifies merges; its speed means nothing.
Written after `llama/model.py` of github.com/meta-llama/llama and of llama3, llama-models.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor


class MetaDecoder:
    """The model in `consolidated.00.pth`, mapped for each weight, with `params.json`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "consolidated.00.pth"
        params = json.loads((folder / "params.json").read_text(encoding="utf-8"))
        self.layers, self.eps = params["n_layers"], params["norm_eps"]
        self.heads = params["n_heads"]
        self.kv_heads = params.get("n_kv_heads") or self.heads
        self.frequencies = _frequencies(
            params["dim"] // self.heads,
            params.get("rope_theta", 10000.0),
            params.get("use_scaled_rope", False),
        )

    @torch.no_grad()
    def logits(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Give fp32 [T, vocab] for all token-id lists, one after the other, T tokens in all.

        Each weight is cast to fp32 once and serves all texts; no text sees another.
        """
        lengths = [len(ids) for ids in texts]
        x = self.weight("tok_embeddings")[torch.tensor([i for ids in texts for i in ids])]
        turns = torch.cat([_turns(self.frequencies, length) for length in lengths])
        for layer in range(self.layers):
            name = f"layers.{layer}"
            y = self.norm(f"{name}.attention_norm", x)
            x = x + self.attention(f"{name}.attention", y, turns, lengths)
            y = self.norm(f"{name}.ffn_norm", x)
            x = x + self.feed_forward(f"{name}.feed_forward", y)
        return self.linear("output", self.norm("norm", x))

    def weight(self, name: str) -> Tensor:
        """The tensor of that name in fp32."""
        # Opened anew for each: pages of a map that stays open count as this process's memory.
        state = torch.load(self.file, map_location="cpu", weights_only=True, mmap=True)
        weight: Tensor = state[f"{name}.weight"]
        return weight.float()

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Multiply: x [T, in] by the weight [out, in] gives [T, out]."""
        return x @ self.weight(name).T

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Divide x [T, dim] by its root mean square and scale by the weight [dim]."""
        mean_square = (x * x).mean(dim=-1, keepdim=True)
        return x / torch.sqrt(mean_square + self.eps) * self.weight(name)

    def attention(self, name: str, x: Tensor, turns: Tensor, lengths: list[int]) -> Tensor:
        """Mix x [T, dim] inside each text; query head h reads key head h // (heads / kv_heads)."""
        q = self.linear(f"{name}.wq", x).reshape(len(x), self.heads, -1)
        k = self.linear(f"{name}.wk", x).reshape(len(x), self.kv_heads, -1)
        v = self.linear(f"{name}.wv", x).reshape(len(x), self.kv_heads, -1)
        q, k = _turned(q, turns), _turned(k, turns)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        texts = zip(*(torch.split(part, lengths) for part in (q, k, v)), strict=True)
        return self.linear(f"{name}.wo", torch.cat([_mixed(*text) for text in texts]).flatten(1))

    def feed_forward(self, name: str, x: Tensor) -> Tensor:
        """w2(silu(w1 x) * w3 x), [T, dim] to [T, dim]."""
        gated = F.silu(self.linear(f"{name}.w1", x)) * self.linear(f"{name}.w3", x)
        return self.linear(f"{name}.w2", gated)


def _mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax(q k^T / sqrt(d)) v of one text; all [T, heads, d]."""
    scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    shares = torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
    return torch.einsum("hts,shd->thd", shares, v)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """Each pair (2i, 2i + 1) of x [T, heads, d] as one complex number times its turn [T, d/2]."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns.unsqueeze(1)).flatten(-2)


def _turns(frequencies: Tensor, length: int) -> Tensor:
    """e^(i * position * frequency) for positions 0, 1, ...: complex64 [length, d/2]."""
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def _frequencies(head_dim: int, theta: float, scaled: bool) -> Tensor:
    """Turn per position of each pair, theta^(-2i/d), fp64 [d/2]."""
    frequencies = [theta ** (-pair / head_dim) for pair in range(0, head_dim, 2)]
    if scaled:
        frequencies = [_scaled(frequency) for frequency in frequencies]
    return torch.tensor(frequencies, dtype=torch.float64)


def _scaled(frequency: float) -> float:
    """Llama 3.1's rule: waves up to 2048 positions stay, above 8192 they turn 8 times slower.

    In between the two blend. The numbers are built into Meta's `apply_scaling`.
    """
    slower, low, high, context = 8, 1, 4, 8192
    wave = 2 * math.pi / frequency
    if wave < context / high:
        return frequency
    if wave > context / low:
        return frequency / slower
    share = (context / wave - low) / (high - low)
    return (1 - share) * frequency / slower + share * frequency
