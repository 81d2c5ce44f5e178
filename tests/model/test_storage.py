"""Quantised storage against bitsandbytes, hand calculation and exact products."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_decoder import packed_logits, seeded

from conftest import make_model, need
from suri.model import kernels
from suri.model.load import load_decoder
from suri.model.storage import (
    NF4,
    Deferred,
    Dense,
    Int8,
    Int8Weight,
    Unread,
    nf4_roundtrip,
    outliers,
    quantize_int8,
    two_digits,
)


def test_nf4_model_has_the_weights_of_transformers_with_bitsandbytes(tmp_path: Path) -> None:
    import transformers
    from bitsandbytes.functional import dequantize_4bit

    folder = make_model(tmp_path, hidden_size=192, intermediate_size=320, head_dim=64)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        device_map={"": "cpu"},
        quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    )
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    quantised = 0
    for name, module in theirs.named_modules():
        if hasattr(module, "weight") and hasattr(module.weight, "quant_state"):
            dense = dequantize_4bit(module.weight, module.weight.quant_state)
            plain.get_submodule(name).weight.data = dense.float()
            quantised += 1
    assert quantised == 3 * 7
    ids = torch.randint(0, 131, (29,), generator=seeded(3))
    with torch.no_grad():
        wanted = plain(ids[None]).logits[0]
    exact = packed_logits(load_decoder(folder), [ids])
    ours = packed_logits(load_decoder(folder, quantize="nf4"), [ids])
    assert (ours - exact).abs().max() > 0.05
    assert (ours - wanted).abs().max() <= 2e-4 * wanted.abs().max()


def test_nf4_fused_parts_keep_the_values_of_each_alone() -> None:
    parts = [torch.randn(n, 64, generator=seeded(n)) for n in (40, 24)]
    fused = NF4(parts).dense()
    assert torch.equal(fused, torch.cat([nf4_roundtrip(part) for part in parts]))
    error = (fused - torch.cat(parts)).abs().max()
    assert 0.01 < error < 0.6


def deferred(weights: list[torch.Tensor]) -> Deferred:
    return Deferred([Unread(len(weight), weight.clone) for weight in weights])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Dense, NF4, Int8Weight, deferred])
def test_pullback_is_the_product_with_the_weight_that_the_forward_used(kind: Any) -> None:
    stored = kind([torch.randn(n, 64, generator=seeded(n)) for n in (40, 24)])
    used = stored.product(torch.eye(64)).t()
    x, gradient = torch.randn(7, 64, generator=seeded(2)), torch.randn(7, 64, generator=seeded(3))
    # Int8Weight rounds x to half a unit; the others round nothing.
    bound = x.abs().amax(dim=1, keepdim=True) / 65024 * used.abs().sum(dim=1)
    close = (stored.product(x) - x @ used.t()).abs() <= (bound if kind is Int8Weight else 0) + 3e-5
    assert close.all()
    assert torch.allclose(stored.pullback(gradient), gradient @ used, rtol=1e-5, atol=1e-5)


def test_int8_weight_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.54, 0.5], [0.0, 0.1, -0.0254]])
    packed, scale = quantize_int8(weight)
    assert packed.tolist() == [[50, -127, 25], [0, 127, -32]]
    assert scale.squeeze(1).tolist() == pytest.approx([2.54 / 127, 0.1 / 127])
    x = torch.tensor([[1.0, 2.0, 3.0]])
    by_hand = [50 * 0.02 - 2 * 2.54 + 3 * 25 * 0.02, 0.2 - 3 * 32 * 0.1 / 127]
    assert Int8Weight([weight]).product(x)[0].tolist() == pytest.approx(by_hand, rel=1e-4)


def test_two_digits_by_hand() -> None:
    digits, unit = two_digits(torch.tensor([[-127.0, 1.0, 0.5, 0.001], [0.0, 0.0, 0.0, 0.0]]))
    assert unit.squeeze(1).tolist() == pytest.approx([127 / 32512, 1e-12 / 32512])
    # In units: -32512 = -127 * 256, 256, 128 = 256 - 128, 0.256 rounded to 0.
    assert digits.tolist() == [[0, 0, -128, 0], [0] * 4, [-127, 1, 1, 0], [0] * 4]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [True, False])
def test_int8_weight_multiplies_what_it_is_given(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against fp64, with an entry 300 times the others, a few rows and many."""
    monkeypatch.setattr(kernels, "_LOOP", [])
    if compiled:
        need("numba")
        kernels.compile_few_rows()
    weight = torch.randn(96, 500, generator=seeded(1))
    x = torch.randn(33, 500, generator=seeded(2))
    x[:, 77] *= 300
    stored = Int8Weight([weight[:40], weight[40:]])
    used = stored.weight.double() * stored.scale.double().unsqueeze(1)
    wanted = x.double() @ used.t()
    bound = 1.001 * x.abs().amax(dim=1, keepdim=True) / 65024 * used.abs().sum(dim=1)
    found = stored.product(x)
    assert ((found - wanted).abs() <= bound).all()
    for row in range(len(x)):
        alone = stored.product(x[row : row + 1])[0]
        if compiled:
            assert torch.allclose(alone.double(), wanted[row], rtol=1e-5, atol=1e-4)
        else:
            assert torch.equal(alone, found[row])


def test_int8_products_by_hand() -> None:
    """Both factors rounded: x to 127ths of 3, the gradient (times the weight's scale) likewise."""
    stored = Int8([torch.tensor([[1.0, -2.54, 0.5], [0.0, 0.1, -0.0254]])])
    assert len(stored.columns) == 0
    x8 = [42, 85, 127]  # of (1, 2, 3) * 127 / 3
    by_hand = [
        (50 * x8[0] - 127 * x8[1] + 25 * x8[2]) * (3 / 127) * (2.54 / 127),
        (127 * x8[1] - 32 * x8[2]) * (3 / 127) * (0.1 / 127),
    ]
    found = stored.product(torch.tensor([[1.0, 2.0, 3.0]]))[0].tolist()
    assert found == pytest.approx(by_hand, rel=1e-5)
    # (1, -4) times the scales is (0.02, -0.00315): in 127ths of 0.02, (127, -20).
    by_hand = [(127 * w0 - 20 * w1) * 0.02 / 127 for w0, w1 in ((50, 0), (-127, 127), (25, -32))]
    found = stored.pullback(torch.tensor([[1.0, -4.0]]))[0].tolist()
    assert found == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("where", ["weight", "inputs"])
def test_planted_outliers_are_survived(where: str) -> None:
    """One column of 500 is 40 times larger, as in large models; its neighbours keep digits."""
    weight = torch.randn(96, 500, generator=seeded(1))
    x = torch.randn(64, 500, generator=seeded(2))
    plain = Int8([weight.clone()])
    if where == "weight":
        weight[:, 77] *= 40
    else:
        x[:, 77] *= 40
    wanted = x @ weight.t()
    largest = x.abs().amax(dim=0)

    def error(stored: Int8, wanted: torch.Tensor) -> float:
        return float((stored.product(x) - wanted).norm() / wanted.norm())

    careful = Int8([weight], largest)
    assert careful.columns.tolist() == [77]
    assert error(careful, wanted) < 0.02
    careless = Int8([weight], largest)
    careless.columns = careless.columns[:0]
    careless.weight, careless.scale = (
        t.squeeze(1) if t.shape[1] == 1 else t for t in quantize_int8(weight)
    )
    others = torch.arange(500) != 77
    rest = x[:, others] @ weight[:, others].t()
    lost = float((careless.product(x) - wanted).norm() / rest.norm())
    kept = float((careful.product(x) - wanted).norm() / rest.norm())
    assert lost > 5 * kept
    gradient = torch.randn(64, 96, generator=seeded(3))
    pulled = gradient @ weight
    assert float((careful.pullback(gradient) - pulled).norm() / pulled.norm()) < 0.02
    assert len(plain.columns) == 0


def test_few_columns_stand_out_and_only_by_far() -> None:
    largest = torch.full((320,), 1.0)
    assert not outliers(largest).any()
    largest[5], largest[9], largest[11] = 7.9, 8.1, 300.0
    assert outliers(largest).nonzero().squeeze(1).tolist() == [9, 11]
    largest[:50] = torch.linspace(20, 69, 50)
    assert outliers(largest).nonzero().squeeze(1).tolist() == list(range(40, 50))


def test_int8_model_is_calibrated_on_what_flows_through_it(tmp_path: Path) -> None:
    """An input channel that a norm blows up stays exact in the linears after it, and only there."""
    from safetensors.torch import load_file, save_file

    folder = make_model(tmp_path, hidden_size=96, intermediate_size=160, head_dim=16)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("layers.1.input_layernorm.weight"):
            tensor[:] = 1.0
            tensor[33] = 60.0
        if name.endswith(
            (
                "layers.1.self_attn.q_proj.weight",
                "layers.1.self_attn.k_proj.weight",
                "layers.1.self_attn.v_proj.weight",
            )
        ):
            tensor[:, 33] /= 60.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ids = torch.randint(0, 131, (64,), generator=seeded(3))
    careful = load_decoder(folder, quantize="int8", probe=ids)
    assert 33 in careful.layers[1].qkv.base.columns.tolist()
    assert 33 not in careful.layers[0].qkv.base.columns.tolist()
    exact = packed_logits(load_decoder(folder), [ids])
    blind = packed_logits(load_decoder(folder, quantize="int8"), [ids])
    found = packed_logits(careful, [ids])
    assert (found - exact).norm() < 0.5 * (blind - exact).norm()
    assert (found - exact).norm() < 0.05 * exact.norm()
