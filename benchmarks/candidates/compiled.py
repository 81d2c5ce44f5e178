"""torch.compile: of the functions between the products, or of one function for a whole layer.

A layer as plain torch, so that the compiler sees all of it and decides itself what is kept for the
backward pass. All layers share the one compiled function: they differ in their tensors only.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from suri.data.batch import Batch
from suri.model.attention import Varlen
from suri.model.decoder import Decoder, Layer, rotation_of
from suri.model.kernels import varlen_options
from suri.train.loss import head_loss, learned_rows


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm in fp32."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def norm_pullback(x: Tensor, gradient: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The gradient of x."""
    wide, weighted = x.float(), gradient.float() * weight.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normed = wide * inverse
    mean = (weighted * normed).mean(-1, keepdim=True)
    return ((weighted - normed * mean) * inverse).to(x.dtype)


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_pullback(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradients of gate and up, side by side."""
    gate, up, wide = (t.float() for t in (*x.chunk(2, dim=-1), gradient))
    chance = torch.sigmoid(gate)
    for_gate = wide * up * chance * (1 + gate * (1 - chance))
    return torch.cat([for_gate, wide * gate * chance], dim=-1).to(x.dtype)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs (i, i + d/2) of x [T, heads, d] turned."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def elementwise(backend: str) -> list[Callable]:
    """The five functions, each compiled for any number of tokens and for known widths."""
    functions = (norm, norm_pullback, swiglu, swiglu_pullback)
    return [*(_for_any_tokens(function, backend) for function in functions), _turn(backend)]


def _turn(backend: str) -> Callable:
    """As suri.model.elementwise wants it: the first heads of x turned in x itself."""

    def in_place(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x.copy_(turned(x, cos, sin))

    compiled = _for_any_tokens(in_place, backend)

    def call(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
        compiled(x.detach()[:, :heads], cos, sin)
        return x

    return call


def _for_any_tokens(function: Callable, backend: str) -> Callable:
    compiled = torch.compile(function, backend=backend)

    @torch.no_grad()
    def call(*inputs: Any) -> Tensor:
        # Whether an input wants a gradient is no difference here, but would be compiled for.
        plain = [i.detach() if isinstance(i, Tensor) else i for i in inputs]
        _let_vary(len(plain[0]), *plain)
        return compiled(*plain)

    return call


def _let_vary(tokens: int, *tensors: Any) -> None:
    """Tell the compiler that their first size is the number of tokens, if it is."""
    for tensor in tensors:
        if isinstance(tensor, Tensor) and len(tensor) == tokens and tensor.dim() > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)


class Weights(NamedTuple):
    """The tensors of one layer; pairs are (A, B) of q, k, v, o, gate, up and down."""

    input_norm: Tensor
    qkv: Tensor
    o: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor
    pairs: list[tuple[Tensor, Tensor]]


class Sizes(NamedTuple):
    """What does not change from layer to layer."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scaling: float


def weights_of(layer: Layer) -> Weights:
    """As `layer` wants them; every linear has its pair."""
    linears = (layer.qkv, layer.o, layer.gate_up, layer.down)
    pairs = [(p.a, p.b) for linear in linears for p in (linear.pairs[n] for n in linear.names)]
    return Weights(
        layer.input_norm.weight, layer.qkv.base.weight, layer.o.base.weight,
        layer.mlp_norm.weight, layer.gate_up.base.weight, layer.down.base.weight, pairs,
    )  # fmt: skip


def _adapted(
    x: Tensor, weight: Tensor, pairs: list[tuple[Tensor, Tensor]], scaling: float
) -> Tensor:
    deltas = [F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype)) * scaling for a, b in pairs]
    return F.linear(x, weight) + torch.cat(deltas, dim=-1)


def layer(
    x: Tensor,
    rotation: tuple[Tensor, Tensor],
    weights: Weights,
    sizes: Sizes,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """x [T, hidden] gives [T, hidden], as suri.model.decoder.Layer."""
    heads, kv_heads = sizes.heads, sizes.kv_heads
    normed = norm(x, weights.input_norm, sizes.eps)
    qkv = _adapted(normed, weights.qkv, weights.pairs[:3], sizes.scaling)
    qkv = qkv.unflatten(-1, (-1, sizes.head_dim))
    turning, v = qkv.split([heads + kv_heads, kv_heads], dim=1)
    q, k = turned(turning, *rotation).split([heads, kv_heads], dim=1)
    mixed = attend(q, k, v).flatten(1)
    x = x + _adapted(mixed, weights.o, weights.pairs[3:4], sizes.scaling)
    normed = norm(x, weights.mlp_norm, sizes.eps)
    gate_up = _adapted(normed, weights.gate_up, weights.pairs[4:6], sizes.scaling)
    return x + _adapted(swiglu(gate_up), weights.down, weights.pairs[6:], sizes.scaling)


def packed_layer() -> Callable:
    """A layer on a GPU, all documents in one call."""
    from torch.nn.attention.varlen import varlen_attn

    options = varlen_options()

    def function(
        x: Tensor, rotation: Any, weights: Weights, sizes: Sizes, ends: Any, longest: Any,
        places: Any,
    ) -> Tensor:  # fmt: skip
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if places is not None:
                k, v = k[places], v[places]
            return varlen_attn(q, k, v, *ends, *longest, **options)

        return layer(x, rotation, weights, sizes, attend)

    return function


def documents_layer(
    x: Tensor, rotation: Any, weights: Weights, sizes: Sizes, lengths: Any, prefix: int
) -> Tensor:
    """A layer on a CPU, one document after the other."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts, start = [_causal(*(t[:prefix] for t in (q, k, v)))], prefix
        for length in lengths:
            own = slice(start, start + length)
            keys, values = (torch.cat([t[:prefix], t[own]]) for t in (k, v))
            parts.append(_causal(q[own], keys, values))
            start += length
        return torch.cat(parts)

    return layer(x, rotation, weights, sizes, attend)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
    q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return mixed.squeeze(0).transpose(0, 1)


def layer_function(backend: str) -> Callable:
    """The compiled layer of this kind of device."""
    plain = packed_layer() if torch.cuda.is_available() else documents_layer
    compiled = torch.compile(plain, backend=backend)

    def call(x: Tensor, rotation: Any, weights: Weights, sizes: Sizes, *how: Any) -> Tensor:
        _let_vary(len(x), x, *rotation)
        return compiled(x, rotation, weights, sizes, *how)

    return call


def summed_loss(decoder: Decoder, batch: Batch, function: Callable) -> Tensor:
    """As suri.train.loss.summed_loss."""
    config, device = decoder.config, decoder.embedding.device
    learned, targets = learned_rows(batch, device)
    ids, positions = (torch.from_numpy(part).to(device) for part in (batch.ids, batch.positions))
    # With a gradient, so that the first layer is compiled with all the others.
    x = F.embedding(ids, decoder.embedding).requires_grad_()
    rotation = rotation_of(positions, decoder.frequencies, x.dtype)
    first = decoder.layers[0]
    scaling = first.o.pairs["o_proj"].scaling
    sizes = Sizes(config.num_heads, config.num_kv_heads, config.head_dim, config.norm_eps, scaling)
    if device.type == "cuda":
        packed = Varlen(batch.lengths, batch.prefix, device)
        for tensor in (*packed.ends, packed.places):
            if tensor is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        how: tuple = (tuple(packed.ends), packed.longest, packed.places)
    else:
        how = (batch.lengths, batch.prefix)
    for one in decoder.layers:
        x = function(x, rotation, weights_of(one), sizes, *how)
    return head_loss(decoder.norm(x[learned]), decoder.head, targets, decoder.scorer)
