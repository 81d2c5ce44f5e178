"""The linear's hand-written gradient against autograd over the plain formula."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_decoder import seeded

from suri.model.elementwise import Before, Norm, SwiGLU, Unchanged, rotate
from suri.model.linear import Dropout, Linear, LowRank

SIZES = {"q_proj": 20, "k_proj": 8, "v_proj": 12}


def norm() -> Norm:
    return Norm(torch.randn(24, generator=seeded(5)), 1e-5)


def plain_norm(x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, (24,), norm().weight, 1e-5)


def plain_swiglu(x: torch.Tensor) -> torch.Tensor:
    return F.silu(x[:, :24]) * x[:, 24:]


BEFORE: dict[str, tuple[Before, Callable[[torch.Tensor], torch.Tensor], int]] = {
    "unchanged": (Unchanged(), lambda x: x, 24),
    "norm": (norm(), plain_norm, 24),
    "swiglu": (SwiGLU(), plain_swiglu, 48),
}


def fused(adapted: tuple[str, ...], bias: bool) -> Linear:
    weights = [torch.randn(size, 24, generator=seeded(size)) for size in SIZES.values()]
    offset = torch.randn(sum(SIZES.values()), generator=seeded(9)) if bias else None
    layer = Linear(tuple(SIZES), weights, offset, "none")
    for number, name in enumerate(adapted):
        a = torch.randn(3, 24, generator=seeded(20 + number))
        b = torch.randn(SIZES[name], 3, generator=seeded(30 + number))
        layer.pairs[name] = LowRank(a, b, 1.7, number)
    return layer


def by_formula(
    layer: Linear,
    h: torch.Tensor,
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]],
    dropout: Dropout | None,
) -> torch.Tensor:
    """W h + s B A h for each part, as the paper writes it."""
    parts = []
    for name, weight in zip(SIZES, layer.base.weight.split(list(SIZES.values())), strict=True):
        part = h @ weight.t()
        if name in factors:
            a, b = factors[name]
            dropped = h if dropout is None else dropout(h, layer.pairs[name].number)
            part = part + 1.7 * (dropped @ a.t() @ b.t())
        parts.append(part)
    whole = torch.cat(parts, dim=1)
    return whole if layer.bias is None else whole + layer.bias


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("adapted", [("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj"), ()])
@pytest.mark.parametrize("dropped", [False, True])
def test_gradients_are_those_of_the_plain_formula(
    before: str, adapted: tuple[str, ...], dropped: bool
) -> None:
    stands, plain, width = BEFORE[before]
    layer = fused(adapted, bias=before == "norm")
    dropout = Dropout(0.3, 1, 2, rows=(4, 8), lengths=(10, 7)) if dropped else None
    x = torch.randn(17, width, generator=seeded(1), requires_grad=True)
    upstream = torch.randn(17, 40, generator=seeded(2))
    y = layer(x, stands, dropout)
    y.backward(upstream)

    twin = x.detach().clone().requires_grad_()
    factors = {
        name: (pair.a.detach().clone().requires_grad_(), pair.b.detach().clone().requires_grad_())
        for name, pair in layer.pairs.items()
    }
    wanted = by_formula(layer, plain(twin), factors, dropout)
    wanted.backward(upstream)
    assert torch.allclose(y, wanted, rtol=1e-4, atol=1e-4)
    assert torch.allclose(x.grad, twin.grad, rtol=1e-3, atol=2e-4)
    for name, (a, b) in factors.items():
        assert torch.allclose(layer.pairs[name].a.grad, a.grad, rtol=1e-3, atol=1e-3)
        assert torch.allclose(layer.pairs[name].b.grad, b.grad, rtol=1e-3, atol=1e-3)


def test_an_input_that_needs_no_gradient_gets_none() -> None:
    """The first adapted layer: its factors learn, nothing is computed for what lies below."""
    layer = fused(("v_proj",), bias=False)
    layer.base.pullback = None  # calling it would fail
    layer(torch.randn(5, 24, generator=seeded(1))).square().sum().backward()
    assert layer.pairs["v_proj"].b.grad.abs().max() > 0


def test_norm_alone_has_autograd_s_gradient() -> None:
    x = torch.randn(7, 24, generator=seeded(1), requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    norm()(x).square().sum().backward()
    plain_norm(twin).square().sum().backward()
    assert torch.allclose(x.grad, twin.grad, rtol=1e-4, atol=1e-4)


def test_rotation_turns_complex_numbers_and_its_gradient_turns_them_back() -> None:
    x = torch.randn(7, 40, generator=seeded(2), requires_grad=True)
    twin = x.detach().view(7, 4, 10).clone().requires_grad_()
    angles = torch.arange(7.0)[:, None, None] * torch.tensor([1.0, 0.5, 0.2, 0.1, 0.03])
    upstream = torch.randn(7, 40, generator=seeded(3))
    turned = rotate(x * 1.0, (angles.cos(), angles.sin()), 3)
    kept = upstream.clone()
    turned.backward(upstream)
    assert torch.equal(upstream, kept)  # it is the caller's

    pairs = torch.complex(twin[:, :3, :5], twin[:, :3, 5:])
    pairs = pairs * torch.polar(torch.ones(()), angles)
    wanted = torch.cat([torch.cat([pairs.real, pairs.imag], dim=-1), twin[:, 3:]], dim=1)
    wanted.backward(upstream.view(7, 4, 10))
    assert torch.allclose(turned, wanted.flatten(1), rtol=1e-5, atol=1e-6)
    assert torch.allclose(x.grad, twin.grad.flatten(1), rtol=1e-5, atol=1e-6)


def test_dropout_keeps_the_mean_and_is_a_function_of_the_row() -> None:
    x = torch.ones(50, 400)
    one = Dropout(0.25, 1, 2, rows=(7, 9), lengths=(20, 30))(x, module=5)
    other = Dropout(0.25, 1, 2, rows=(9,), lengths=(30,))(x[:30], module=5)
    assert torch.equal(one[20:], other)
    assert float(one.mean()) == pytest.approx(1.0, abs=0.02)
    assert one.unique().tolist() == pytest.approx([0.0, 4 / 3])
