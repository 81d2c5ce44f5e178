"""Quantised storage against bitsandbytes under transformers, and against hand calculation."""

from pathlib import Path

import pytest
import torch
from test_decoder import packed_logits, seeded

from conftest import make_model
from suri.model.linear import NF4, Dropout, Int8, nf4_roundtrip, quantize_int8
from suri.model.load import load_decoder


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


def test_nf4_gradient_is_that_of_the_dequantised_weight() -> None:
    layer = NF4([torch.randn(24, 64, generator=seeded(1))])
    x = torch.randn(7, 64, generator=seeded(2), requires_grad=True)
    layer(x).pow(2).sum().backward()
    plain = x.detach().clone().requires_grad_()
    (plain @ layer.dense().t()).pow(2).sum().backward()
    assert torch.allclose(x.grad, plain.grad, rtol=1e-5, atol=1e-5)


def test_int8_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.54, 0.5], [0.0, 0.1, -0.0254]])
    packed, scale = quantize_int8(weight)
    assert packed.tolist() == [[50, -127, 25], [0, 127, -32]]
    assert scale.tolist() == pytest.approx([2.54 / 127, 0.1 / 127])
    x = torch.tensor([[1.0, 2.0, 3.0]])
    by_hand = [50 * 0.02 - 2 * 2.54 + 3 * 25 * 0.02, 0.2 - 3 * 32 * 0.1 / 127]
    assert Int8([weight])(x)[0].tolist() == pytest.approx(by_hand, rel=1e-5)


def test_dropout_keeps_the_mean_and_is_a_function_of_the_row() -> None:
    x = torch.ones(50, 400)
    one = Dropout(0.25, 1, 2, rows=(7, 9), lengths=(20, 30))(x, module=5)
    other = Dropout(0.25, 1, 2, rows=(9,), lengths=(30,))(x[:30], module=5)
    assert torch.equal(one[20:], other)
    assert float(one.mean()) == pytest.approx(1.0, abs=0.02)
    assert one.unique().tolist() == pytest.approx([0.0, 4 / 3])
