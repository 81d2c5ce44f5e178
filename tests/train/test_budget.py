"""The memory model against what tensors really hold, and by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import make_model
from suri.data.batch import pack
from suri.data.examples import Example
from suri.errors import UsageError
from suri.model.adapter import initial_adapter
from suri.model.config import read_config
from suri.model.load import load_decoder
from suri.recipe import Recipe
from suri.train.budget import (
    BUDGETS,
    HEADROOM,
    Memory,
    adapter_numbers,
    alternatives,
    estimate,
    fitting_budget,
    kept_numbers,
    parse_memory,
    weight_bytes,
)
from suri.train.loss import MULTIPLE, summed_loss

SEVEN_B = Path(__file__).parents[2] / "recipes" / "shapes" / "llama-7b"


def stored_bytes(decoder: torch.nn.Module) -> int:
    """What the decoder's buffers hold, each storage once, and what bitsandbytes packed."""
    storages = {b.untyped_storage().data_ptr(): b.untyped_storage() for b in decoder.buffers()}
    packed = 0
    for module in decoder.modules():
        for weight, state in getattr(module, "packed", []):
            tables = (state.absmax, state.state2.absmax)
            packed += weight.nbytes + sum(table.nbytes for table in tables)
    return sum(storage.nbytes() for storage in storages.values()) + packed


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "int8", "fp8", "nf4"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_take_what_was_reckoned(tmp_path: Path, quantize: str, tied: bool) -> None:
    folder = make_model(
        tmp_path, hidden_size=192, intermediate_size=320, head_dim=64, tie_word_embeddings=tied
    )
    decoder = load_decoder(folder, quantize=quantize)
    found = weight_bytes(read_config(folder), quantize, 4)
    assert stored_bytes(decoder) == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("o_proj", "gate_proj", "down_proj")])
def test_a_micro_batch_keeps_what_was_reckoned(tmp_path: Path, targets: tuple[str, ...]) -> None:
    """Every tensor that autograd holds after a forward pass, each storage once."""
    config = read_config(make_model(tmp_path, num_hidden_layers=5, head_dim=10))
    recipe = Recipe(lora_r=3, lora_target_modules=targets)
    adapter = initial_adapter(config, r=3, alpha=8.0, targets=targets, seed=1)
    assert adapter_numbers(config, recipe) == sum(
        a.numel() + b.numel() for a, b in adapter.tensors.values()
    )
    decoder = load_decoder(tmp_path)
    adapter.attach(decoder, trainable=True)
    count = 8 * MULTIPLE
    ids = np.random.default_rng(2).integers(2, 131, count).astype(np.int32)
    batch = pack([Example(ids[:50], ids[:50], 0), Example(ids[50:], ids[50:], 1)])
    owned = {p.data_ptr() for p in [*decoder.parameters(), *decoder.buffers()]}
    held: dict[int, int] = {}

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        loss = summed_loss(decoder, batch)
    wanted = 4 * count * kept_numbers(config, recipe)
    assert sum(held.values()) == pytest.approx(wanted, rel=0.1)
    del loss


def test_a_7b_by_hand() -> None:
    config = read_config(SEVEN_B)
    recipe = Recipe(lora_r=16)
    # 32 layers of 4 x 4096^2 and 3 x 4096 x 11008, embedding and head of 32,000 x 4096, in bf16.
    linears = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert weight_bytes(config, "none", 2) == 2 * (linears + 2 * 32000 * 4096)
    # In fp8 a byte in each order, and a scale per row of q, k, v and so on, and per column of qkv,
    # o, gate_up and down; the head as it is.
    scales = 4 * 32 * (5 * 4096 + 2 * 11008 + 3 * 4096 + 11008)
    assert weight_bytes(config, "fp8", 2) == 2 * linears + scales + 2 * 2 * 32000 * 4096
    assert adapter_numbers(config, recipe) == 32 * 16 * (4 * 8192 + 3 * (4096 + 11008))
    found = estimate(config, recipe, 1000, Memory("cuda"))
    # 32 sums of the attention in fp32: two numbers each.
    per_token = 32 * (2 * 4096 + 3 * 4096 + 4096 + 2 * 32 + 2 * 11008 + 7 * 16) * 2
    assert found.parts["activations"] == 1000 * per_token


def test_fp8_works_with_the_gradient_of_gate_and_up_in_8_bits() -> None:
    config = read_config(SEVEN_B)
    plain, fp8 = (
        estimate(config, Recipe(quantize=kind), 8192, Memory("cuda")) for kind in ("none", "fp8")
    )
    more = fp8.parts["working"] - plain.parts["working"]
    assert more == pytest.approx(8192 * 2 * 11008, abs=2)


def test_the_budget_is_the_largest_that_fits() -> None:
    config, recipe = read_config(SEVEN_B), Recipe()
    for free in (18e9, 24e9, 40e9, 80e9):
        memory = Memory("cuda", int(free))
        budget = fitting_budget(config, recipe, memory)
        assert estimate(config, recipe, budget, memory).total <= HEADROOM * free
        larger = [b for b in BUDGETS if b > budget]
        if larger:
            next_one = estimate(config, recipe, min(larger), memory).total
            assert next_one > HEADROOM * free
    memory = Memory("cuda", int(12e9))
    assert fitting_budget(config, recipe, memory) == 0
    assert fitting_budget(config, replace(recipe, quantize="nf4"), memory)


def test_what_is_offered_instead_would_fit() -> None:
    config, recipe = read_config(SEVEN_B), Recipe(cutoff_len=512)
    offered = alternatives(config, recipe, 2048, Memory("cuda", int(12e9)))
    assert "--quantize nf4 --token_budget 128" in offered
    assert "--token_budget 128" not in offered
    assert alternatives(config, recipe, 2048, Memory("cuda", int(2e9))) == []
    # A base that is cut over 64 processes leaves room for another cutoff.
    assert alternatives(config, recipe, 2048, Memory("cuda", int(6e9), shards=64))


def test_sizes_as_people_write_them() -> None:
    assert parse_memory("40GB") == 40_000_000_000
    assert parse_memory(" 23.5 GiB ") == round(23.5 * 2**30)
    for wrong in ("40", "40 gigs", "-3GB", "", "GB", "nan", "1e999GB"):
        with pytest.raises(UsageError, match="is not a size"):
            parse_memory(wrong)
