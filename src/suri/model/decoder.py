"""The Llama-family decoder: one flat stream of tokens in, hidden states and logits out."""

import math
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suri.model.attention import Attend
from suri.model.config import ModelConfig
from suri.model.linear import Dropout, Linear, LowRank
from suri.model.vector_math import settle


class Norm(nn.Module):
    """Root-mean-square norm in fp32 (Zhang and Sennrich, 2019, arXiv:1910.07467)."""

    weight: Tensor

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] gives the same shape and dtype."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        normed: Tensor = self.weight * wide.to(x.dtype)
        return normed


class Layer(nn.Module):
    """Attention and gated MLP, each with its norm before and its residual around."""

    def __init__(self, number: int, linears: dict[str, Linear], norms: dict[str, Norm]) -> None:
        super().__init__()
        self.number = number
        self.qkv, self.o = linears["qkv"], linears["o"]
        self.gate_up, self.down = linears["gate_up"], linears["down"]
        self.input_norm, self.mlp_norm = norms["input_layernorm"], norms["post_attention_layernorm"]
        self.q_norm, self.k_norm = norms.get("self_attn.q_norm"), norms.get("self_attn.k_norm")

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        attend: Attend,
        dropout: Dropout | None,
        head_dim: int,
    ) -> Tensor:
        """x [T, hidden] gives [T, hidden]; `rotation` is (cos, sin), each [T, 1, head_dim]."""
        parts = self.qkv(self.input_norm(x), dropout)
        q, k, v = (part.unflatten(-1, (-1, head_dim)) for part in parts)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        mixed = attend(self.number, rotate(q, rotation), rotate(k, rotation), v)
        x = x + self.o(mixed.flatten(1), dropout)[0]
        gate, up = self.gate_up(self.mlp_norm(x), dropout)
        (down,) = self.down(F.silu(gate) * up, dropout)
        return x + cast(Tensor, down)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs (i, i + d/2) of x [T, heads, d] by their position's angles.

    Rotary embedding (Su et al., 2021, arXiv:2104.09864) in the half-split layout of HF weights.
    """
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Angle per position of each pair, fp32 [head_dim / 2], with linear or llama3 scaling.

    llama3 keeps short wavelengths, divides long ones by `factor` and blends in between
    (Llama 3.1, as in transformers' modeling_rope_utils).
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    factor = float(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return frequencies / factor
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    context = float(scaling["original_max_position_embeddings"])
    wavelengths = 2 * math.pi / frequencies
    smooth = ((context / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * frequencies / factor + smooth * frequencies


class Decoder(nn.Module):
    """The whole model, frozen but for the low-rank pairs in its linears."""

    embedding: Tensor
    head: Tensor
    frequencies: Tensor

    def __init__(
        self, config: ModelConfig, embedding: Tensor, layers: list[Layer], norm: Norm, head: Tensor
    ) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.register_buffer("embedding", embedding)
        self.register_buffer("head", head)
        settle()
        frequencies = rotary_frequencies(config).to(embedding.device)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(
        self, ids: Tensor, positions: Tensor, attend: Attend, dropout: Dropout | None = None
    ) -> Tensor:
        """Hidden states [T, hidden] before the last norm, of ids and positions int64 [T]."""
        x = F.embedding(ids, self.embedding)
        angles = positions.unsqueeze(-1).float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
        rotation = (angles.cos().to(x.dtype), angles.sin().to(x.dtype))
        for layer in self.layers:
            x = layer(x, rotation, attend, dropout, self.config.head_dim)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [N, vocab] of the next token, in fp32 at least, of hidden [N, hidden]."""
        scores = F.linear(self.norm(hidden), self.head)
        return scores if scores.dtype == torch.float64 else scores.float()

    def linears(self) -> Iterator[tuple[str, Linear, str]]:
        """Every linear of the base: (HF module name, the fused linear, its part's name)."""
        for number, layer in enumerate(cast("list[Layer]", self.layers)):
            for owner, fused in (
                ("self_attn", layer.qkv),
                ("self_attn", layer.o),
                ("mlp", layer.gate_up),
                ("mlp", layer.down),
            ):
                for part in fused.names:
                    yield f"model.layers.{number}.{owner}.{part}", fused, part

    def pairs(self) -> dict[str, LowRank]:
        """The low-rank pairs by HF module name."""
        return {
            name: cast(LowRank, fused.pairs[part])
            for name, fused, part in self.linears()
            if part in fused.pairs
        }
