"""The adapter in PEFT's format: peft loads ours, we load peft's, and nothing else gets in."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_decoder import packed_logits, reference, seeded

from suri.errors import Corrupt, UsageError
from suri.model.adapter import Adapter, initial_adapter
from suri.model.adapter_file import CONFIG_FILE, WEIGHTS_FILE, read_adapter, write_adapter
from suri.model.config import read_config
from suri.model.load import load_decoder
from suri.model.weights import base_identity, recorded_base

TARGETS = ("q_proj", "v_proj", "down_proj")


def random_adapter(folder: Path, r: int = 5, alpha: float = 12.0, rslora: bool = False) -> Adapter:
    """An adapter whose B is not zero, alpha != r, on three of the seven linears."""
    adapter = initial_adapter(
        read_config(folder), r=r, alpha=alpha, targets=TARGETS, seed=3,
        base=base_identity(folder, "none"), rslora=rslora,
    )  # fmt: skip
    generator = seeded(11)
    for _, b in adapter.tensors.values():
        b.normal_(generator=generator).mul_(0.05)
    return adapter


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_gives_our_logits(tiny: Path, tmp_path: Path, rslora: bool) -> None:
    from peft import PeftModel

    adapter = random_adapter(tiny, rslora=rslora)
    write_adapter(tmp_path, adapter)
    decoder = load_decoder(tiny, adapter=read_adapter(tmp_path))
    ids = torch.randint(0, 131, (37,), generator=seeded(1))
    ours = packed_logits(decoder, [ids])
    base = packed_logits(load_decoder(tiny), [ids])
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(reference(tiny, torch.float32), tmp_path)(ids[None])
    assert (ours - base).abs().max() > 0.05
    assert (ours - theirs.logits[0]).abs().max() <= 2e-4


@pytest.mark.parametrize("rslora", [False, True])
def test_we_read_what_peft_writes(tiny: Path, tmp_path: Path, rslora: bool) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        reference(tiny, torch.float32),
        LoraConfig(
            task_type="CAUSAL_LM",
            r=3,
            lora_alpha=7,
            target_modules=["k_proj", "up_proj"],
            use_rslora=rslora,
        ),
    )
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_(generator=seeded(2)).mul_(0.1)
    model.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    ids = torch.randint(0, 131, (19,), generator=seeded(5))
    with torch.no_grad():
        theirs = model(ids[None]).logits[0]
    assert (packed_logits(load_decoder(tiny, adapter=adapter), [ids]) - theirs).abs().max() <= 2e-4
    assert adapter.targets == ("k_proj", "up_proj")
    (scaling,) = {adapter.scaling_of(module) for module in adapter.tensors}
    assert scaling == pytest.approx(7 / 3**0.5 if rslora else 7 / 3)


OWN: dict[str, Any] = {
    "rank_pattern": {"k_proj": 2, r"layers\.1\.mlp\.(?:up|down)_proj": 7},
    "alpha_pattern": {"^model.layers.0.self_attn.k_proj": 5, "(up|q)_proj": 3.5},
}


def mixed_by_peft(tiny: Path, folder: Path, rslora: bool) -> Any:
    """A model of peft's making whose modules have ranks and alphas of their own, saved."""
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "up_proj", "down_proj"]
    model = get_peft_model(
        reference(tiny, torch.float32),
        LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=7, target_modules=targets,
                   use_rslora=rslora, **OWN),
    )  # fmt: skip
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_(generator=seeded(2)).mul_(0.1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("rslora", [False, True])
def test_modules_may_have_their_own_rank_and_alpha(
    tiny: Path, tmp_path: Path, rslora: bool
) -> None:
    model = mixed_by_peft(tiny, tmp_path, rslora)
    adapter = read_adapter(tmp_path)
    scaled = {
        name.removeprefix("base_model.model."): module.scaling["default"]
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    assert {name: adapter.scaling_of(name) for name in adapter.tensors} == pytest.approx(scaled)
    assert len({round(scaling, 6) for scaling in scaled.values()}) == 6
    ids = torch.randint(0, 131, (19,), generator=seeded(5))
    with torch.no_grad():
        theirs = model(ids[None]).logits[0]
    ours = packed_logits(load_decoder(tiny, adapter=adapter), [ids])
    assert (ours - theirs).abs().max() <= 2e-4


@pytest.mark.parametrize("rslora", [False, True])
def test_own_ranks_and_alphas_are_written_back(tiny: Path, tmp_path: Path, rslora: bool) -> None:
    from peft import PeftModel

    model = mixed_by_peft(tiny, tmp_path / "theirs", rslora)
    adapter = read_adapter(tmp_path / "theirs")
    write_adapter(tmp_path / "ours", adapter)
    again = read_adapter(tmp_path / "ours")
    assert {n: again.scaling_of(n) for n in again.tensors} == {
        n: adapter.scaling_of(n) for n in adapter.tensors
    }
    ids = torch.randint(0, 131, (1, 19), generator=seeded(5))
    with torch.no_grad():
        first = model(ids).logits
        second = PeftModel.from_pretrained(reference(tiny, torch.float32), tmp_path / "ours")(ids)
    assert torch.equal(first, second.logits)


def test_a_rank_that_its_pattern_does_not_say_is_corrupt(tiny: Path, tmp_path: Path) -> None:
    mixed_by_peft(tiny, tmp_path, rslora=False)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    for rank in ({"k_proj": 4}, {}):
        (tmp_path / CONFIG_FILE).write_text(json.dumps(config | {"rank_pattern": rank}))
        with pytest.raises(Corrupt, match="other ranks"):
            read_adapter(tmp_path)


def test_weight_delta_by_hand(tiny: Path) -> None:
    adapter = random_adapter(tiny)
    a, b = adapter.tensors["model.layers.1.mlp.down_proj"]
    by_hand = (12.0 / 5) * (b.double() @ a.double())
    delta = adapter.weight_delta("model.layers.1.mlp.down_proj", slice(7, 20))
    assert delta.shape == (13, 88)
    assert (delta - by_hand[7:20]).abs().max() < 1e-6


def test_a_zero_b_scores_exactly_as_the_base(tiny: Path) -> None:
    adapter = initial_adapter(read_config(tiny), r=4, alpha=9.0, targets=TARGETS, seed=0)
    ids = torch.randint(0, 131, (25,), generator=seeded(9))
    with_adapter = packed_logits(load_decoder(tiny, adapter=adapter), [ids])
    assert torch.equal(with_adapter, packed_logits(load_decoder(tiny), [ids]))


def test_the_same_seed_gives_the_same_adapter(tiny: Path) -> None:
    first, second, other = (
        initial_adapter(read_config(tiny), r=4, alpha=9.0, targets=TARGETS, seed=seed)
        for seed in (6, 6, 7)
    )
    name = "model.layers.2.self_attn.v_proj"
    assert torch.equal(first.tensors[name][0], second.tensors[name][0])
    assert not torch.equal(first.tensors[name][0], other.tensors[name][0])


def _change_tensors(folder: Path, change: str) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    name = next(key for key in tensors if key.endswith("lora_B.weight"))
    if change == "smuggled":
        tensors["base_model.model.lm_head.weight"] = torch.ones(131, 48)
    elif change == "not finite":
        tensors[name][2, 1] = float("nan")
    elif change == "half a pair":
        del tensors[name]
    elif change == "another rank":
        tensors[name] = tensors[name][:, :2].clone()
    save_file(tensors, folder / WEIGHTS_FILE)


@pytest.mark.parametrize("change", ["smuggled", "not finite", "half a pair", "another rank"])
def test_what_is_not_a_plain_adapter_is_refused(change: str, tiny: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path, random_adapter(tiny))
    read_adapter(tmp_path)
    _change_tensors(tmp_path, change)
    with pytest.raises(Corrupt):
        read_adapter(tmp_path)


def test_truncated_and_pickled_adapters_are_refused(tiny: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path, random_adapter(tiny))
    weights = tmp_path / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(Corrupt, match="not a whole safetensors file"):
        read_adapter(tmp_path)
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UsageError, match="pickled"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    "setting",
    [
        {"use_dora": True},
        {"alora_invocation_tokens": [5]},
        {"use_qalora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"peft_type": "LOHA"},
        {"megatron_config": {"x": 1}, "megatron_core": "antigravity"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "OLoRA"},
    ],
)
def test_other_kinds_of_adapter_are_named(tiny: Path, tmp_path: Path, setting: Any) -> None:
    write_adapter(tmp_path, random_adapter(tiny))
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config | setting))
    with pytest.raises(UsageError, match=next(iter(setting))):
        read_adapter(tmp_path)


def test_a_pair_on_top_of_another_base_is_refused(tiny: Path, tmp_path: Path) -> None:
    """peft's PiSSA, saved as it is, adds to what is left of the base and not to the base."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=7, target_modules=["q_proj"],
                          init_lora_weights="pissa")  # fmt: skip
    model = get_peft_model(reference(tiny, torch.float32), settings)
    model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="another base"):
        read_adapter(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config | {"init_lora_weights": True}))
    ids = torch.randint(0, 131, (1, 19), generator=seeded(5))
    with torch.no_grad():
        theirs = model(ids).logits[0]
    ours = packed_logits(load_decoder(tiny, adapter=read_adapter(tmp_path)), [ids[0]])
    assert (ours - theirs).abs().max() > 0.1


@pytest.mark.parametrize("number", ["01", "-1", "0" * 50, "9" * 5000])
def test_layers_have_plain_numbers(tiny: Path, tmp_path: Path, number: str) -> None:
    """`layers.01` would be no module of the decoder, and be left out without a word."""
    write_adapter(tmp_path, random_adapter(tiny))
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    changed = {k.replace("layers.1.", f"layers.{number}."): v for k, v in tensors.items()}
    save_file(changed, tmp_path / WEIGHTS_FILE)
    with pytest.raises(Corrupt, match="something else"):
        read_adapter(tmp_path)


@pytest.mark.slow
def test_an_adapter_for_another_base_names_the_right_one(tiny: Path, embedded: Path) -> None:
    with pytest.raises(UsageError, match="does not fit this base") as caught:
        load_decoder(embedded, adapter=random_adapter(tiny))
    assert str(tiny) in str(caught.value)


def test_the_embedded_base_is_found_wherever_it_lies(embedded: Path, tmp_path: Path) -> None:
    adapter = initial_adapter(read_config(embedded), r=2, alpha=5.0, targets=("k_proj",), seed=0)
    moved = {"name": "embedded", "path": str(tmp_path / "gone")}
    write_adapter(tmp_path, replace(adapter, base=moved))
    assert recorded_base(tmp_path) == embedded
    write_adapter(tmp_path, replace(adapter, base=moved | {"name": str(tmp_path / "gone")}))
    with pytest.raises(UsageError, match="is not here"):
        recorded_base(tmp_path)
