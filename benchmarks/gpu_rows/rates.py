"""What the device's matrix units and memory reach: the ceilings of every other row."""

from collections.abc import Callable

import torch
from torch import Tensor

from gpu_rows.bench import Bench
from gpu_rows.model import shape_of
from suri.model.config import config_from_hf
from suri.model.fp8 import eight_bits, scaled_product

Products = dict[str, Callable[[], object]]
"""By what is multiplied."""


def shapes(bench: Bench) -> dict[str, tuple[int, int]]:
    """[out, in] of the fused products of a layer."""
    single = config_from_hf(shape_of(bench)).linear_shapes()
    size = {name.rpartition(".")[2]: shape for name, shape in single.items()}
    (q, hidden), (kv, _), (inner, _) = size["q_proj"], size["k_proj"], size["gate_proj"]
    return {
        "qkv": (q + 2 * kv, hidden),
        "o": (hidden, q),
        "gate_up": (2 * inner, hidden),
        "down": (hidden, inner),
    }


def tokens_of(bench: Bench) -> int:
    """Rows of the products."""
    return 64 if bench.tiny else 8192


def random(bench: Bench, *shape: int) -> Tensor:
    """Random numbers, never zeros: zeros multiply faster."""
    return torch.randn(shape, device=bench.device, dtype=torch.bfloat16)


def matmul_rate(bench: Bench) -> float:
    """FLOP per second of the products of a layer, forward and pullback, in bf16; measured once."""
    return bench.keep("rate of bf16", lambda: _bf16(bench))


def _bf16(bench: Bench) -> float:
    def make(out: int, into: int) -> Products:
        tokens = tokens_of(bench)
        x, g, w = random(bench, tokens, into), random(bench, tokens, out), random(bench, out, into)
        return {"x W^T": lambda: x @ w.t(), "g W": lambda: g @ w}

    return _rate(bench, "bf16", make, "")


def _rate(bench: Bench, kind: str, make: Callable[[int, int], Products], note: str) -> float:
    """Forward and pullback products of each shape, then all of them together."""
    flop = seconds = 0.0
    for name, (out, into) in shapes(bench).items():
        one = 2.0 * tokens_of(bench) * out * into
        for way, work in make(out, into).items():
            what = f"{kind} {name} {out} x {into}, {way}"
            try:
                found = bench.times(lambda work=work: [work() for _ in range(10)], warm_up=2)
            except RuntimeError as problem:
                bench.note(what, str(problem).splitlines()[0][:200])
                continue
            bench.figure(what, [10 * one / t / 1e12 for t in found], "TFLOP/s", note)
            flop, seconds = flop + one, seconds + sorted(found)[len(found) // 2] / 10
    if not flop:
        raise NotImplementedError(f"no product in {kind} here")
    bench.figure(f"{kind}, all of a layer", [flop / seconds / 1e12], "TFLOP/s", note)
    return flop / seconds


def copy_rate(bench: Bench) -> float:
    """Bytes read and written per second by a copy on the device; measured once."""
    return bench.keep("rate of copies", lambda: _copy(bench))


def _copy(bench: Bench) -> float:
    size = 1 << 20 if bench.tiny else 2 << 30
    source = torch.randint(0, 100, (size,), dtype=torch.int8, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.times(lambda: target.copy_(source), 10, warm_up=2)
    return 1e9 * bench.figure("copy", [2 * size / t / 1e9 for t in seconds], "GB/s")


def rates(bench: Bench) -> None:
    """bf16, then int8 and fp8, each at the products of the model; and a copy."""
    matmul_rate(bench)
    copy_rate(bench)
    for name, make, note in (
        ("int8", _int8, "torch._int_mm, without quantising"),
        ("fp8", _fp8, "torch._scaled_mm, scales by row, without quantising"),
    ):
        try:
            _rate(bench, name, lambda out, into, make=make: make(bench, out, into), note)
        except (RuntimeError, NotImplementedError, AttributeError) as problem:
            bench.note(f"{name}, all of a layer", str(problem).splitlines()[0][:200])


def _int8(bench: Bench, out: int, into: int) -> Products:
    def drawn(*shape: int) -> Tensor:
        return torch.randint(-127, 128, shape, dtype=torch.int8, device=bench.device)

    x, g, w = drawn(tokens_of(bench), into), drawn(tokens_of(bench), out), drawn(out, into)
    columns = w.t().contiguous().t()  # as cuBLAS wants it
    return {"x W^T": lambda: torch._int_mm(x, w.t()), "g W": lambda: torch._int_mm(g, columns)}


def _fp8(bench: Bench, out: int, into: int) -> Products:
    tokens = tokens_of(bench)
    x, w = eight_bits(random(bench, tokens, into)), eight_bits(random(bench, out, into))
    g, back = eight_bits(random(bench, tokens, out)), eight_bits(random(bench, into, out))
    return {
        "x W^T": lambda: scaled_product(x, w, torch.bfloat16),
        "g W": lambda: scaled_product(g, back, torch.bfloat16),
    }
