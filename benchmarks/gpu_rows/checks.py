"""The device's results against plain and more precise ways to the same."""

from collections.abc import Iterator

import torch
from torch import Tensor

from gpu_rows.bench import Bench
from gpu_rows.model import CHECKED_LAYERS, batches, make_decoder
from suri.model.attention import PackedAttention
from suri.model.decoder import Decoder
from suri.train.loss import summed_loss

BF16_BOUND = 2e-2
"""One product in bf16 is off by about 3e-3 of its size, a gradient through softmax by more."""


def attention(bench: Bench) -> None:
    """Packed attention with its gradients, with and without a shared prefix, and grouped heads."""
    longest = 40 if bench.tiny else 700
    lengths = [longest, 1, 17, longest // 2, 3, longest // 3]
    heads, size = (4, 16) if bench.tiny else (32, 128)
    path = "varlen" if bench.cuda else "the CPU's path as stand-in"
    for prefix, kv_heads in ((0, heads), (9, heads), (9, heads // 4)):
        case = f"prefix {prefix}, {kv_heads} of {heads} key heads, {path}"
        tokens = prefix + sum(lengths)
        inputs = [_drawn(bench, tokens, count, size) for count in (heads, kv_heads, kv_heads)]
        upstream = _drawn(bench, tokens, heads, size)
        packed = PackedAttention(lengths, None, prefix)
        found = _with_gradients(lambda q, k, v, p=packed: p(0, q, k, v), inputs, upstream)
        wide = [x.double() for x in inputs]
        wanted = _with_gradients(
            lambda q, k, v, p=prefix: plain_attention(lengths, p, q, k, v), wide, upstream.double()
        )
        for name, one, other in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
            bench.check(f"{name}: {case}", one, other, BF16_BOUND)


def _drawn(bench: Bench, *shape: int) -> Tensor:
    return torch.randn(shape, device=bench.device, dtype=torch.bfloat16)


def _with_gradients(work, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = work(*leaves)
    return [out, *torch.autograd.grad(out, leaves, upstream)]


def plain_attention(lengths: list[int], prefix: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax written out, one document after the other, each behind the prefix."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    parts = [_plain(q[:prefix], k[:prefix], v[:prefix])] if prefix else []
    start = prefix
    for length in lengths:
        seen = [*range(prefix), *range(start, start + length)]
        parts.append(_plain(q[start : start + length], k[seen], v[seen]))
        start += length
    return torch.cat(parts)


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The last tokens over all: q [n, heads, d], k and v [m, heads, d]."""
    scores = torch.einsum("nhd,mhd->hnm", q, k) / q.shape[-1] ** 0.5
    hidden = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device)
    hidden = hidden.triu(diagonal=len(k) - len(q) + 1)
    chances = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return torch.einsum("hnm,mhd->nhd", chances, v)


def gradients(bench: Bench) -> None:
    """Loss and gradients of two layers in bf16 on the device, against fp32 on the CPU."""
    (batch,) = batches(bench, 64 if bench.tiny else 768)
    cases = (
        make_decoder(bench, layers=CHECKED_LAYERS),
        make_decoder(bench, layers=CHECKED_LAYERS, dtype=torch.float32, device=torch.device("cpu")),
    )
    (loss, found), (wanted_loss, wanted) = (
        _loss_and_gradients(decoder, batch) for decoder in cases
    )
    bench.check("loss of two layers, bf16 and fp32", loss[None], wanted_loss[None], 1e-2)
    for letter, place in (("A", 0), ("B", 1)):
        one, other = (torch.cat([g.flatten().cpu() for g in x[place::2]]) for x in (found, wanted))
        bench.check(f"gradients of all {letter}, bf16 and fp32", one, other, 5e-2)


def _loss_and_gradients(decoder: Decoder, batch) -> tuple[Tensor, list[Tensor]]:
    parameters = list(_parameters(decoder))
    loss = summed_loss(decoder, batch) / batch.learned_tokens
    return loss, list(torch.autograd.grad(loss, parameters))


def _parameters(decoder: Decoder) -> Iterator[Tensor]:
    for pair in decoder.pairs().values():
        yield from (pair.a, pair.b)
