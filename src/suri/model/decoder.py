"""The Llama-family decoder: one flat stream of tokens in, hidden states and logits out."""

import math
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suri.model.attention import Attend
from suri.model.config import ModelConfig
from suri.model.elementwise import Norm, SwiGLU, rotate
from suri.model.kernels import keep_memory
from suri.model.linear import Dropout, Linear, LowRank
from suri.model.storage import Dense, Storage
from suri.model.vector_math import settle

SWIGLU = SwiGLU()


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
        head_dim: int,
        dropout: Dropout | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """x [T, hidden] gives [T, hidden]; `rotation` is (cos, sin), each [T, 1, head_dim / 2].

        With `kept`, indices [N], only those tokens' results are made, [N, hidden].
        """
        qkv = self._turned_heads(x, rotation, head_dim, dropout)
        q, k, v = qkv.split([size // head_dim for size in self.qkv.sizes], dim=1)
        mixed = attend(self.number, q, k, v).flatten(1)
        if kept is not None:
            x, mixed = x[kept], mixed[kept]
        x = x + self.o(mixed, dropout=dropout)
        gate_up = self.gate_up(x, self.mlp_norm, dropout)
        return cast(Tensor, x + self.down(gate_up, SWIGLU, dropout))

    def linears(self) -> Iterator[tuple[str, Linear, str]]:
        """Its linears: (HF module name, the fused linear, its part's name)."""
        fused = {"self_attn": (self.qkv, self.o), "mlp": (self.gate_up, self.down)}
        for owner, linears in fused.items():
            for linear in linears:
                for part in linear.names:
                    yield f"model.layers.{self.number}.{owner}.{part}", linear, part

    def _turned_heads(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], head_dim: int, dropout: Dropout | None
    ) -> Tensor:
        """The heads of q, k and v side by side, [T, all heads, d]; those of q and k are turned."""
        qkv = self.qkv(x, self.input_norm, dropout)
        heads, kv_heads, _ = (size // head_dim for size in self.qkv.sizes)
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = qkv.split(self.qkv.sizes, dim=1)
            q, k = (x.view(len(x), -1, head_dim) for x in (q, k))
            qkv = torch.cat([self.q_norm(q).flatten(1), self.k_norm(k).flatten(1), v], dim=1)
        return rotate(qkv, rotation, heads + kv_heads).view(len(qkv), -1, head_dim)


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


def rotation_of(
    positions: Tensor, frequencies: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each token's angles, each [T, 1, head_dim / 2]."""
    angles = (positions.unsqueeze(-1).float() * frequencies).unsqueeze(1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


class Decoder(nn.Module):
    """The whole model, frozen but for the low-rank pairs in its linears."""

    embedding: Tensor
    head: Tensor
    frequencies: Tensor

    def __init__(
        self,
        config: ModelConfig,
        embedding: Tensor,
        layers: list[Layer],
        norm: Norm,
        head: Tensor,
        scorer: Storage | None = None,
    ) -> None:
        """`scorer`: the head as another storage, for the scores alone (their gradient is exact)."""
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.register_buffer("embedding", embedding)
        self.register_buffer("head", head)
        self.scorer: Storage = scorer or Dense([head])
        settle()
        keep_memory()
        frequencies = rotary_frequencies(config).to(embedding.device)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        attend: Attend,
        dropout: Dropout | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [T, hidden] before the last norm, of ids and positions int64 [T].

        With `kept`, indices [N], those of these tokens alone, [N, hidden]: the last layer then
        leaves out what only the others need (not with dropout, which is drawn for whole rows).
        """
        x = F.embedding(ids, self.embedding)
        rotation = rotation_of(positions, self.frequencies, x.dtype)
        *layers, last = self.layers
        for layer in layers:
            x = layer(x, rotation, attend, self.config.head_dim, dropout)
        if kept is None or dropout is None:
            return cast(Tensor, last(x, rotation, attend, self.config.head_dim, dropout, kept))
        return cast(Tensor, last(x, rotation, attend, self.config.head_dim, dropout))[kept]

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [N, vocab] of the next token, in fp32 at least, of hidden [N, hidden]."""
        scores = self.scorer.product(self.norm(hidden))
        return scores if scores.dtype == torch.float64 else scores.float()

    def linears(self) -> Iterator[tuple[str, Linear, str]]:
        """Every linear of the base: (HF module name, the fused linear, its part's name)."""
        for layer in cast("list[Layer]", self.layers):
            yield from layer.linears()

    def pairs(self) -> dict[str, LowRank]:
        """The low-rank pairs by HF module name."""
        return {
            name: cast(LowRank, fused.pairs[part])
            for name, fused, part in self.linears()
            if part in fused.pairs
        }
