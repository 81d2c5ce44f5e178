"""Each undocumented operator taken away: the plain way gives the same result."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_decoder import seeded

from conftest import make_model, need
from suri.model import attention, kernels
from suri.model.attention import PackedAttention
from suri.model.load import load_decoder


@pytest.mark.parametrize("onednn", [True, False])
def test_products_by_either_library_are_the_product(
    onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_onednn_multiplies", lambda: onednn)
    x, weight = torch.randn(33, 70, generator=seeded(1)), torch.randn(90, 70, generator=seeded(2))
    wanted = x.double() @ weight.double().t()
    assert torch.allclose(kernels.product(x, weight).double(), wanted, atol=1e-4)
    back = torch.randn(33, 90, generator=seeded(3))
    wanted = back.double() @ weight.double()
    assert torch.allclose(kernels.product(back, weight.t()).double(), wanted, atol=1e-4)


COMPILE = """
import numba
from suri.model import kernels
kernels.compile_few_rows()
print(sum(kernels._LOOP[0].stats.cache_hits.values()))
"""
COUNT_THREADS = """
import threading
import torch
torch.set_num_threads({threads})
{first}
from suri.model import kernels
kernels.compile_few_rows()
x, weight = torch.ones(1, 70), torch.ones(90, 70)
assert kernels.few_rows(x, weight) is not None
import numba
found = [torch.get_num_threads(), numba.get_num_threads()]
other = threading.Thread(target=lambda: found.append(numba.get_num_threads()))
other.start()
other.join()
print(*found)
"""


@pytest.mark.slow
def test_the_compiled_loop_is_kept_and_made_again_where_it_is_damaged(tmp_path: Path) -> None:
    need("numba")

    def hits() -> str:
        variables = os.environ | {"SURI_CACHE": str(tmp_path)}
        variables.pop("NUMBA_CACHE_DIR", None)
        done = subprocess.run(
            [sys.executable, "-c", COMPILE], env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert [hits(), hits()] == ["0", "1"]
    (index,) = tmp_path.rglob("*.nbi")
    index.write_bytes(index.read_bytes()[:20])
    assert hits() == "0"


@pytest.mark.slow
@pytest.mark.parametrize(("first", "others"), [("", "1"), ("import numba", "3")])
def test_the_compiled_loop_keeps_to_the_threads_that_torch_has(first: str, others: str) -> None:
    need("numba")
    variables = os.environ | {"OMP_NUM_THREADS": "3"}
    if first:  # loaded by somebody else with a number of its own, it keeps that in other threads
        variables["NUMBA_NUM_THREADS"] = others
    done = subprocess.run(
        [sys.executable, "-c", COUNT_THREADS.format(threads=1, first=first)],
        env=variables, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["1", "1", others], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 4, 8])
def test_few_rows_are_multiplied_by_the_compiled_loop(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("numba")
    monkeypatch.setattr(kernels, "_LOOP", [])
    x, weight = torch.randn(9, 70, generator=seeded(1)), torch.randn(90, 70, generator=seeded(2))
    assert kernels.few_rows(x[:rows], weight) is None  # nobody asked for it
    kernels.compile_few_rows()
    wanted = x.double() @ weight.double().t()
    found = kernels.few_rows(x[:rows], weight)
    assert found is not None
    assert torch.allclose(found.double(), wanted[:rows], atol=1e-4)
    scale = torch.rand(90, generator=seeded(3))
    packed = torch.randint(-127, 128, (90, 70), generator=seeded(4), dtype=torch.int8)
    scaled = kernels.few_rows(x[:rows], packed, scale)
    assert scaled is not None
    assert torch.allclose(
        scaled.double(), x[:rows].double() @ packed.double().t() * scale, 1e-5, 1e-3
    )
    for other in (x, x[:rows].double(), x[:rows].bfloat16()):
        assert kernels.few_rows(other, weight.to(other.dtype)) is None
    assert kernels.few_rows(x[:rows], weight[:70].t()) is None


def test_int8_products_are_exact() -> None:
    x = torch.randint(-127, 128, (17, 72), generator=seeded(1), dtype=torch.int8)
    weight = torch.randint(-127, 128, (72, 40), generator=seeded(2), dtype=torch.int8)
    found = kernels.int8_product(x, weight)
    assert torch.equal(found.long(), x.long() @ weight.long())
    other = kernels.int8_product(x, weight.t().contiguous().t())
    assert torch.equal(other, found)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("prefix", [0, 3])
def test_attention_without_the_flash_operator_is_the_same(
    kind: str, prefix: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"sliding_window": 7} if kind == "mistral" else {}
    decoder = load_decoder(make_model(tmp_path, kind, **changes))
    lengths = [9, 1, 14]
    ids = torch.randint(0, 131, (sum(lengths) + prefix,), generator=seeded(1))
    positions = torch.cat(
        [torch.arange(prefix), *(torch.arange(prefix, prefix + n) for n in lengths)]
    )
    x = torch.randn(len(ids), 48, generator=seeded(2))

    def found() -> tuple[torch.Tensor, torch.Tensor]:
        attend = PackedAttention(lengths, decoder.config.sliding_window, prefix)
        inputs = x.clone().requires_grad_()
        from suri.model.decoder import rotation_of

        rotation = rotation_of(positions, decoder.frequencies, x.dtype)
        out = decoder.layers[0](inputs, rotation, attend, decoder.config.head_dim)
        out.square().sum().backward()
        return out.detach(), inputs.grad

    by_operator = found()
    monkeypatch.setattr(attention, "has_flash", lambda: False)
    plain = found()
    assert torch.allclose(by_operator[0], plain[0], rtol=1e-4, atol=1e-4)
    assert torch.allclose(by_operator[1], plain[1], rtol=1e-3, atol=1e-3)


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        def __init__(self, name: object) -> None:
            pass

    monkeypatch.setattr(kernels.ctypes, "CDLL", Without)
    kernels.keep_memory.__wrapped__()
