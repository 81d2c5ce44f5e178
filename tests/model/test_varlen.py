"""The GPU's way of packed attention, with torch's kernel replaced by a plain one."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from suri.model import kernels
from suri.model.attention import PackedAttention, Varlen

LENGTHS = [5, 1, 9, 3]


def documents(q: Tensor, k: Tensor, v: Tensor, ends: list[Tensor], *, shares: bool) -> Tensor:
    """What torch's kernel promises: causal, aligned at the last tokens, in each document."""
    assert shares or q.shape[1] == k.shape[1]
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    assert ends[0].dtype == ends[1].dtype == torch.int32
    parts = []
    for number in range(len(ends[0]) - 1):
        own, seen = (slice(int(end[number]), int(end[number + 1])) for end in ends)
        scores = torch.einsum("nhd,mhd->hnm", q[own], k[seen]) / q.shape[-1] ** 0.5
        later = torch.ones_like(scores[0]).triu(scores.shape[2] - scores.shape[1] + 1).bool()
        chances = scores.masked_fill(later, float("-inf")).softmax(-1)
        parts.append(torch.einsum("hnm,mhd->nhd", chances, v[seen]))
    assert sum(map(len, parts)) == len(q)
    return torch.cat(parts)


def with_window(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    assert window_size == (-1, 0)
    return documents(q, k, v, [cu_seq_q, cu_seq_k], shares=False)


def with_groups(
    q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False
):
    assert window_size == (-1, 0)
    assert (max_q, max_k) == (longest(cu_seq_q), longest(cu_seq_k))
    return documents(q, k, v, [cu_seq_q, cu_seq_k], shares=enable_gqa)


def with_flag(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert is_causal
    return documents(q, k, v, [cu_seq_q, cu_seq_k], shares=False)


def longest(ends: Tensor) -> int:
    return int(ends.diff().max())


@pytest.fixture(params=[with_flag, with_window, with_groups])
def kernel(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Tensor]]:
    """torch's function as several versions of torch have it."""
    from torch.nn.attention import varlen

    monkeypatch.setattr(varlen, "varlen_attn", request.param)
    kernels.varlen_options.cache_clear()
    yield request.param
    kernels.varlen_options.cache_clear()


@pytest.mark.parametrize("prefix", [0, 4])
def test_all_documents_in_one_call_give_what_one_after_the_other_gives(
    kernel: Callable[..., Tensor], prefix: int
) -> None:
    tokens = prefix + sum(LENGTHS)
    torch.manual_seed(1)
    sizes = (6, 2, 2)
    inputs = [torch.randn(tokens, n, 8, dtype=torch.float64) for n in sizes]
    upstream = torch.randn(tokens, 6, 8, dtype=torch.float64)
    results = []
    for attend in (
        Varlen(LENGTHS, prefix, torch.device("cpu")),
        lambda *qkv: PackedAttention(LENGTHS, None, prefix)(0, *qkv),
    ):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = attend(*leaves)
        results.append([out, *torch.autograd.grad(out, leaves, upstream)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)
