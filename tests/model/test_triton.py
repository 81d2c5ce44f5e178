"""The GPU's elementwise kernels, run by Triton's interpreter, against the plain maths.

The interpreter has to be asked for before anything imports Triton: the numbers come from a process
of their own, this file run as a program.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from suri.model import elementwise, fp8, kv_cache
from suri.model.elementwise import Norm, SwiGLU, rotate

BOUND = {"float32": 2e-6, "float16": 2e-3}
E4M3_BOUND = 5e-3
"""Halves may go to either neighbour. Numbers that are rounded up to the next power of two are left
out: the interpreter, no GPU, loses their carry into the exponent."""
CASES = ["norm", "norm, gradient", "norm of heads", "norm of heads, gradient", "SwiGLU",
         "SwiGLU, gradient", "rotation", "rotation of a part", "rows of e4m3", "their scales",
         "placed keys"]  # fmt: skip


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    """Relative errors by dtype and case."""
    from conftest import need

    need("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, str(Path(__file__))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("case", CASES)
def test_a_kernel_computes_what_the_plain_maths_does(
    case: str, dtype: str, errors: dict[str, dict[str, float]]
) -> None:
    assert set(errors[dtype]) == set(CASES)
    bound = E4M3_BOUND if case == "rows of e4m3" else BOUND[dtype]
    assert 0 <= errors[dtype][case] < bound


@pytest.mark.slow
def test_the_kernels_ran_and_not_the_plain_maths_twice(errors: dict[str, dict[str, float]]) -> None:
    """They sum in another order."""
    assert sum(errors[dtype][case] > 0 for dtype in BOUND for case in CASES) > len(CASES)


def main() -> None:
    """Print the errors."""
    from suri.model import triton_kernels

    found = {}
    for name in BOUND:
        works = dict(cases(getattr(torch, name)))
        wanted = {case: work() for case, work in works.items()}
        for module in (elementwise, fp8, kv_cache):
            module.on_gpu = lambda _: triton_kernels
        got = {case: work() for case, work in works.items()}
        for module in (elementwise, fp8, kv_cache):
            module.on_gpu = lambda _: None
        found[name] = {case: error(got[case], wanted[case]) for case in works}
    print(json.dumps(found))


def cases(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Sizes that fill no block; one of two blocks."""
    for name, shape in {"norm": (5, 72), "norm of heads": (3, 4, 24)}.items():
        norm = Norm(1 + 0.3 * drawn(shape[-1], seed=1, dtype=dtype), 1e-5)
        x, gradient = 3 * drawn(*shape, seed=2, dtype=dtype), drawn(*shape, seed=3, dtype=dtype)
        yield name, lambda n=norm, x=x: n.value(x)
        yield f"{name}, gradient", lambda n=norm, x=x, g=gradient: n.pullback(x, g)
    wide, narrow = drawn(5, 2 * 1100, seed=4, dtype=dtype), drawn(5, 1100, seed=5, dtype=dtype)
    yield "SwiGLU", lambda: SwiGLU().value(wide)
    yield "SwiGLU, gradient", lambda: SwiGLU().pullback(wide, narrow)
    angles = 6 * torch.rand(7, 1, 5, generator=torch.Generator().manual_seed(7))
    turn = angles.cos().to(dtype), angles.sin().to(dtype)
    heads = drawn(7, 6 * 10, seed=6, dtype=dtype)
    yield "rotation", lambda: rotate(heads.clone(), turn, 6)
    yield "rotation of a part", lambda: rotate(heads.clone(), turn, 4)
    rows = drawn(3, 2100, seed=8, dtype=dtype)
    rows[1] = 0
    plain = fp8.eight_bits(rows)
    rounded, exact = plain.values.float(), rows.float() / plain.scale
    carried = (rounded.abs() > exact.abs()) & (rounded.abs().frexp().mantissa == 0.5)
    yield "rows of e4m3", lambda: fp8.quantise(rows).values.float().masked_fill(carried, 0)
    yield "their scales", lambda: fp8.quantise(rows).scale
    yield "placed keys", lambda: placed(heads.view(7, 6, 10))


def placed(x: Tensor) -> Tensor:
    """Of seven rows with two key heads each: the keys and values, and what is mixed of them."""
    keys, values = (drawn(3, 7, 2, 5, 10, seed=seed, dtype=x.dtype) for seed in (9, 10))
    positions = torch.tensor([0, 4, 2, 1, 3, 3, 0])
    q, k, v = x.split([2, 2, 2], dim=1)
    mixed = kv_cache.FixedEach(keys, values, positions, None)(1, q, k, v)
    return torch.cat([keys.flatten(), values.flatten(), mixed.flatten()])


def drawn(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Normally distributed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|; infinite where they are of different kinds."""
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return float("inf")
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


if __name__ == "__main__":
    main()
