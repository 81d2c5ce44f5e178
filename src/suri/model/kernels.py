"""Operators that torch does not document or have, each with a plain way to the same result."""

import ctypes
import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from suri.files import cache_folder

LOG = logging.getLogger(__name__)
FEW_ROWS = 8
"""Up to so many rows, reading the weight takes longer than multiplying with it."""
_LOOP: list[Callable[..., None]] = []
_FORKED: list[bool] = []
NO_SCALES = np.empty(0, dtype=np.float32)
TURNED = 16
"""For so many rows oneDNN is asked for weight x^T, 1.2 times as fast: it copies its second factor
into blocks of 16 first, and x is the smaller one. Of more rows or fewer it gains nothing."""
MAPPED_BYTES, KEPT_BYTES = 8 << 20, 1 << 30
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's names in malloc.h."""


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, in] times weight [out, in] transposed gives [T, out]; either may be a view.

    In fp32 on processors that are not Intel's, oneDNN multiplies: MKL, torch's usual way, leaves
    their wide registers unused (on a Zen 5 with AVX-512 it reached 215 GFLOP/s, oneDNN 480).
    """
    if len(x) <= FEW_ROWS and not torch.is_grad_enabled():
        found = few_rows(x, weight)
        if found is not None:
            return found
    if x.dtype == torch.float32 and x.device.type == "cpu" and _onednn_multiplies():
        multiply = torch.ops.mkldnn._linear_pointwise
        if len(x) == TURNED:
            return cast(Tensor, multiply(weight, x, None, "none", [], "").t().contiguous())
        return cast(Tensor, multiply(x, weight, None, "none", [], ""))
    return F.linear(x, weight)


def on_gpu(x: Tensor) -> Any:
    """The module `triton_kernels` for a tensor on a GPU that can run them, else None."""
    return _triton_kernels() if x.is_cuda and x.dtype != torch.float64 else None


@functools.cache
def _triton_kernels() -> Any:
    try:
        from suri.model import triton_kernels

        one = torch.ones(1, 32, device="cuda")
        triton_kernels.norm(one, one[0], 1e-5)
    except Exception as problem:  # no Triton, no C compiler, a GPU that it does not know
        reason = str(problem).partition("\n")[0] or type(problem).__name__
        LOG.warning("Triton's kernels cannot be used (%s): steps take a third longer", reason)
        return None
    return triton_kernels


@functools.cache
def _onednn_multiplies() -> bool:
    if not (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text(
            encoding="ascii", errors="replace"
        )
    except OSError:
        return False


def int8_product(x: Tensor, weight: Tensor) -> Tensor:
    """x int8 [T, in] times weight int8 [in, out] gives int32 [T, out], exactly.

    Runs on the processor's dot products of bytes (VNNI) where it has them.
    """
    return torch._int_mm(x, weight)


def compile_few_rows() -> bool:
    """Have the loop of `few_rows` compiled, or taken from this machine's cache of an earlier time.

    Returns whether there is one: not where numba is not installed, or has no threads but its own,
    whose handing over takes longer than is gained.
    """
    if _LOOP or _FORKED:
        return bool(_LOOP)
    with suppress(ImportError):
        if "numba" not in sys.modules:  # all cores otherwise, whatever torch was allowed
            os.environ.setdefault("NUMBA_NUM_THREADS", str(torch.get_num_threads()))
        import numba

        numba.config.CACHE_DIR = numba.config.CACHE_DIR or str(cache_folder() / "numba")
        try:
            loop = _few_rows_loop(cache=True)
        except Exception as problem:  # a cache that is damaged, or that nobody may write to
            LOG.debug("the compiled loop is not cached: %s", problem)
            loop = _few_rows_loop(cache=False)
        if numba.threading_layer() != "workqueue":
            _LOOP.append(loop)
    return bool(_LOOP)


def _lose_threads() -> None:
    """OpenMP's threads do not outlive a fork: numba would end the child that uses them."""
    if "numba" in sys.modules:
        _LOOP.clear()
        _FORKED.append(True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lose_threads)


def few_rows(x: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor | None:
    """x fp32 [T, in] times fp32 or int8 [out, in], transposed, times scale [out]: fp32 [T, out].

    For up to FEW_ROWS rows on a CPU: each weight is read once, at the speed of memory. None where
    that is not so, or nobody asked for it by `compile_few_rows`.
    """
    fits = x.dtype == torch.float32 and weight.dtype in (torch.float32, torch.int8)
    if not (_LOOP and len(x) <= FEW_ROWS and fits and weight.is_cpu and weight.is_contiguous()):
        return None
    y = x.new_empty(len(x), len(weight))
    scales = NO_SCALES if scale is None else scale.numpy()
    _LOOP[0](weight.numpy(), scales, x.detach().contiguous().numpy(), y.numpy())
    return y


def _few_rows_loop(cache: bool) -> Callable[..., None]:
    """The loop, compiled; numba keeps it in its folder with `cache`, by version and processor."""
    import numba

    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(threads)  # numba's start sets OpenMP, and so torch, to its own number

    # fastmath: sums in any order, as in every other product. Four rows share what was read.
    @numba.njit(parallel=True, fastmath=True, cache=cache)  # type: ignore[untyped-decorator]
    def loop(weight: Any, scales: Any, x: Any, y: Any) -> None:
        rows, size = x.shape
        for out in numba.prange(weight.shape[0]):
            scale = scales[out] if scales.shape[0] else np.float32(1)
            for row in range(0, rows - 3, 4):
                a = b = c = d = np.float32(0)
                for i in range(size):
                    w = np.float32(weight[out, i])
                    a += w * x[row, i]
                    b += w * x[row + 1, i]
                    c += w * x[row + 2, i]
                    d += w * x[row + 3, i]
                y[row, out], y[row + 1, out] = a * scale, b * scale
                y[row + 2, out], y[row + 3, out] = c * scale, d * scale
            for row in range(rows // 4 * 4, rows):
                a = np.float32(0)
                for i in range(size):
                    a += np.float32(weight[out, i]) * x[row, i]
                y[row, out] = a * scale

    one = np.ones((1, 1), dtype=np.float32)
    loop(one, NO_SCALES, one, one.copy())
    return cast(Callable[..., None], loop)


def has_flash() -> bool:
    """Whether `flash` and `flash_pullback` exist; torch's public attention is the other way."""
    return hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward")


def flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention of q [1, heads, n, d] over k, v [1, kv_heads, m, d] on a CPU, causal without mask.

    Gives the mixed values and the logarithm of each row's sum, which `flash_pullback` needs.
    """
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mixed, log_sums = operator(q, k, v, 0.0, mask is None, attn_mask=mask)
    return mixed, log_sums


def flash_pullback(
    gradient: Tensor,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, Tensor],
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, given that of the mixed values; shapes as in `flash`."""
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    dq, dk, dv = operator(gradient, *inputs, *outputs, 0.0, mask is None, attn_mask=mask)
    return dq, dk, dv


def varlen(
    q: Tensor, k: Tensor, v: Tensor, ends: Sequence[Tensor], longest: tuple[int, int]
) -> Tensor:
    """Causal attention of documents laid end to end, on a GPU; with a gradient.

    q [T, heads, d]; k, v [S, kv_heads, d]; ends: int32 [documents + 1] of queries and of keys.
    Where a document has more keys than queries, its queries are the last ones. Keys and values
    are repeated where torch's kernel does not take fewer heads of them (before 2.12).
    """
    from torch.nn.attention.varlen import varlen_attn

    options = varlen_options()
    if "enable_gqa" not in options and q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    (for_queries, for_keys), (most_queries, most_keys) = ends, longest
    mixed = varlen_attn(q, k, v, for_queries, for_keys, most_queries, most_keys, **options)
    return cast(Tensor, mixed)


@functools.cache
def varlen_options() -> dict[str, Any]:
    """What makes torch's kernel causal, and share key heads, in the words of this version."""
    from torch.nn.attention.varlen import varlen_attn

    parameters = inspect.signature(varlen_attn).parameters
    causal = {"is_causal": True} if "is_causal" in parameters else {"window_size": (-1, 0)}
    return causal | ({"enable_gqa": True} if "enable_gqa" in parameters else {})


@functools.cache
def keep_memory() -> None:
    """Let the C library keep freed blocks of up to 8 MB instead of giving them back at once.

    Each step frees and asks for the same blocks, and touching fresh pages costs more than an
    elementwise pass. Larger ones are given back: kept, their holes would cost a third more memory
    in the end. Does nothing where the C library is not glibc.
    """
    _mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
    _mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


@contextmanager
def giving_memory_back() -> Iterator[None]:
    """Let the C library give back blocks from 1 MB on, and then again keep those up to 8 MB.

    For one pass over a model that is not held: the holes between activations, kept, add up to a
    gigabyte over 32 layers of a 7B model.
    """
    _mallopt(M_MMAP_THRESHOLD, 1_000_000)
    try:
        yield
    finally:
        _mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


def _mallopt(setting: int, value: int) -> None:
    try:
        ctypes.CDLL(None).mallopt(setting, value)
    except (OSError, AttributeError, TypeError):
        return
