"""Products in fp8 against fp64 and by hand: the stand-in that a CPU has, with a GPU's numbers."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_decoder import packed_logits, seeded

from suri.model import fp8
from suri.model.config import config_from_hf
from suri.model.fp8 import E4M3, LARGEST, Fp8, Scaled, eight_bits
from suri.model.load import load_decoder
from suri.model.storage import Dense


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def within(found: Scaled) -> torch.Tensor:
    """How far from its number each value may lie, [rows, n]: half a step of e4m3, in fp64.

    Four binary digits: a sixteenth at most; 2^-10 where they would need a smaller exponent.
    """
    sixteenth = found.values.double().abs().div(16).clamp(min=2**-10)
    return sixteenth * found.scale * (1 + 1e-6)  # the quotient was rounded to fp32 before


def test_rows_by_hand() -> None:
    found = eight_bits(torch.tensor([[448.0, -17.0, 0.3], [0.0, 0.0, 0.0], [1.0, -0.5, 1e-6]]))
    assert found.scale.squeeze(1).tolist() == pytest.approx([1, 1e-12 / LARGEST, 1 / LARGEST])
    # 17 lies between 16 and 18, whose mantissa is even at 16; 0.3 between 0.28125 and 0.3125.
    assert found.values.float().tolist() == [[448, -16, 0.3125], [0, 0, 0], [448, -224, 0]]
    assert found.dense(torch.float32)[0].tolist() == [448, -16, 0.3125]


def test_products_by_hand() -> None:
    """All factors but 17 are numbers of e4m3 times their row's scale; it becomes 16."""
    stored = Fp8([torch.tensor([[448.0, -16.0], [28.0, 0.0], [0.0, 0.0]])])
    found = stored.product(torch.tensor([[448.0, 17.0], [0.0, 896.0], [0.0, 0.0]]))
    by_hand = [[448 * 448 - 16 * 16, 448 * 28, 0], [-16 * 896, 0, 0], [0, 0, 0]]
    assert torch.allclose(found, torch.tensor(by_hand).float(), rtol=1e-6)
    # The columns of the weight are (448, 28, 0) and (-16, 0, 0).
    found = stored.pullback(torch.tensor([[448.0, 17.0, 5.0], [0.0, 0.0, 0.0]]))
    by_hand = [[448 * 448 + 16 * 28, -16 * 448], [0, 0]]
    assert torch.allclose(found, torch.tensor(by_hand).float(), rtol=1e-6)


@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (56, 24), (1, 7)])
def test_every_product_is_within_what_rounding_may_change(shape: tuple[int, int]) -> None:
    """Both ways, against the weight as it is, in fp64."""
    weight = random(*shape)
    stored = Fp8([weight])
    for used, product in ((weight, stored.product), (weight.t(), stored.pullback)):
        x = random(9, used.shape[1], seed=2)
        found = product(x)
        x8, w8 = eight_bits(x), eight_bits(used.contiguous())
        dx, dw = within(x8), within(w8)
        wanted = x.double() @ used.double().t()
        bound = dx @ used.double().abs().t() + x.double().abs() @ dw.t() + dx @ dw.t()
        assert ((found - wanted).abs() <= bound + 1e-5).all()
        exact = x8.dense(torch.float64) @ w8.dense(torch.float64).t()
        assert torch.allclose(found.double(), exact, rtol=1e-5, atol=1e-5)
        assert min(shape) == 1 or 0.01 < relative(found, wanted) < 0.05


def test_the_turned_copy_is_the_same_weight_and_fused_parts_are_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = [random(n, 48, seed=n) for n in (40, 24, 8)]
    weight = torch.cat(parts)
    stored = Fp8(parts)
    forth = Scaled(stored.weight.view(E4M3), stored.scale)
    back = Scaled(stored.weight_turned.view(E4M3), stored.scale_turned)
    assert (forth.values.shape, back.values.shape) == ((72, 48), (48, 72))
    assert ((forth.dense(torch.float64) - weight).abs() <= within(forth)).all()
    assert ((back.dense(torch.float64) - weight.t()).abs() <= within(back)).all()
    assert stored.weight.nbytes + stored.weight_turned.nbytes == 2 * weight.numel()
    monkeypatch.setattr(fp8, "BLOCK_NUMBERS", 500)  # several blocks, the last ones smaller
    for other in (Fp8([weight]), Fp8(parts)):
        for name, buffer in stored.named_buffers():
            assert torch.equal(buffer, other.get_buffer(name)), name


@pytest.mark.parametrize("where", ["weight", "inputs", "both"])
@pytest.mark.parametrize("times", [20, 60])
def test_planted_outliers_cost_the_other_columns_nothing(where: str, times: int) -> None:
    """One column of 1000 is many times larger, as in large models, and is rounded like the others.

    e4m3 has an exponent in each number; int8 has one step for the whole row.
    """
    weight, x, gradient = random(64, 1000), random(32, 1000, seed=2), random(32, 64, seed=3)
    plain = relative(Fp8([weight]).product(x), x.double() @ weight.double().t())
    if where != "inputs":
        weight[:, 77] *= times
    if where != "weight":
        x[:, 77] *= times
    stored = Fp8([weight])
    assert relative(stored.product(x), x.double() @ weight.double().t()) < 1.05 * plain
    assert relative(stored.pullback(gradient), gradient.double() @ weight.double()) < 1.05 * plain
    others = torch.arange(1000) != 77
    x8, w8 = (eight_bits(t).dense(torch.float64)[:, others] for t in (x, weight))
    wanted = x.double()[:, others] @ weight.double()[:, others].t()
    assert relative(x8 @ w8.t(), wanted) < 1.05 * plain


def test_a_model_in_fp8_is_near_the_exact_one_and_its_head_is_exact(tmp_path: Path) -> None:
    shape = {
        "model_type": "llama", "hidden_size": 96, "intermediate_size": 160, "vocab_size": 131,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    config = config_from_hf(shape)
    weights = {"model.norm.weight": torch.ones(96)}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = random(131, 96, seed=len(name))
    for number in range(2):
        prefix = f"model.layers.{number}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}{norm}.weight"] = torch.ones(96)
        for name, size in config.linear_shapes().items():
            weights[f"{prefix}{name}.weight"] = 0.1 * random(*size, seed=number + len(name))
    exact, decoder = (
        load_decoder(tmp_path, quantize=kind, weights=weights) for kind in ("none", "fp8")
    )
    assert isinstance(decoder.layers[1].qkv.base, Fp8)
    assert isinstance(decoder.scorer, Dense)
    ids = torch.randint(0, 131, (32,), generator=seeded(3))
    found, wanted = packed_logits(decoder, [ids]), packed_logits(exact, [ids])
    assert 1e-3 < relative(found, wanted.double()) < 0.1


class OnGpu(torch.Tensor):
    """A tensor of the CPU that says it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("out", "into", "dtype"), [(64, 56, torch.bfloat16), (56, 64, torch.bfloat16),
                               (64, 64, torch.float32)]
)  # fmt: skip
def test_what_a_gpu_does_not_multiply_is_made_dense(
    out: int, into: int, dtype: torch.dtype
) -> None:
    """Sides that are no multiples of 16, numbers that are not bf16: x is taken as it is."""
    stored = Fp8([random(out, into)])
    x, g = random(9, into, seed=2).to(dtype), random(9, out, seed=3).to(dtype)
    used = Scaled(stored.weight.view(E4M3), stored.scale).dense(dtype)
    turned = Scaled(stored.weight_turned.view(E4M3), stored.scale_turned).dense(dtype)
    for given, weight, product in ((x, used, stored.product), (g, turned, stored.pullback)):
        found = product(given.as_subclass(OnGpu))
        wanted = given.double() @ weight.double().t()
        near = 1e-2 if dtype == torch.bfloat16 else 1e-6
        assert relative(found.as_subclass(torch.Tensor), wanted) < near
        assert relative(product(given), wanted) > near


def test_a_gpu_rounds_by_the_kernel_where_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x = random(3, 16)
    one = torch.ones(3, 1)
    kernels = SimpleNamespace(quantise_rows=lambda x, dtype, _: (x.to(dtype), one))
    for found, scale in ((None, eight_bits(x).scale), (kernels, one)):
        monkeypatch.setattr(fp8, "on_gpu", lambda _, found=found: found)
        assert torch.equal(fp8.quantise(x).scale, scale)
