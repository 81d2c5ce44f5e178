"""A sabotaged merge of an adapter after two real steps is caught, in fp32 and in bf16.

After two steps the delta is small against one rounding of bf16: a wrong delta changes few numbers,
or none. Each test first looks whether what would be written has other bits than the right merge.
If it has, the certificate must fail; if it has none, there is nothing to catch, and it passes.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from merges import files_in, make_base, write_hf, write_meta
from safetensors.torch import load_file, save_file
from torch import Tensor

from suri.data.records import Record, write_records
from suri.errors import Corrupt, UsageError
from suri.export import fold as folding
from suri.export import hf, meta
from suri.export.fold import MergeBase, fold, open_merge
from suri.export.meta import meta_tensors
from suri.files import write_json
from suri.model.adapter import Adapter
from suri.model.adapter_file import write_adapter
from suri.model.lora import low_rank
from suri.model.tensor_names import permute, unpermute
from suri.reading import read_json
from suri.recipe import Recipe
from suri.train.run import train

WRITERS = {"hf": write_hf, "meta": write_meta}
DTYPES = ("float32", "bfloat16")
LAYER = "model.layers.1."


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base with a head of its own, whose likeliest token bf16 does not change."""
    base = make_base(tmp_path_factory.mktemp("base"))
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"] *= 20
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    return base


@pytest.fixture(scope="module")
def run(tmp_path_factory, base) -> Path:
    return trained(tmp_path_factory.mktemp("run"), base)


@pytest.fixture(scope="module")
def half(tmp_path_factory, base) -> tuple[Path, Path]:
    """The same base in bf16, and an adapter of its own."""
    folder = make_base(tmp_path_factory.mktemp("half"), dtype=torch.bfloat16)
    tensors = {n: t.bfloat16() for n, t in load_file(base / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, trained(tmp_path_factory.mktemp("run"), folder)


def trained(folder: Path, base: Path) -> Path:
    """An adapter of two steps at the usual rate, on every linear, alpha != r."""
    random = np.random.default_rng(3)
    rows = [Record(f"say {n}", "", "y" * int(random.integers(1, 30))) for n in range(12)]
    write_records(folder / "rows.json", rows)
    recipe = Recipe(
        base_model=str(base), data_path=str(folder / "rows.json"), output_dir=str(folder / "run"),
        batch_size=4, max_steps=2, val_set_size=2, lora_r=3, lora_alpha=8.0, seed=5,
    )  # fmt: skip
    result = train(recipe, lambda *_: None, lambda decoder, prompts, *_: [[2] for _ in prompts])
    assert result["steps"] == 2
    return folder / "run"


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> MergeBase:
    """The same model from another seed."""
    folder = make_base(tmp_path_factory.mktemp("other"))
    file = folder / "model.safetensors"
    generator = torch.Generator().manual_seed(8)
    tensors = {
        name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    return MergeBase(folder)


Sum = Callable[[Tensor, Adapter, str, torch.dtype], Tensor]


def scaling_forgotten(weight: Tensor, adapter: Adapter, module: str, dtype: torch.dtype) -> Tensor:
    a, b = adapter.tensors[module]
    return (weight + b @ a).to(dtype)


def one_layer_skipped(weight: Tensor, adapter: Adapter, module: str, dtype: torch.dtype) -> Tensor:
    return (weight + adapter.weight_delta(module) * (LAYER not in module)).to(dtype)


def one_module_skipped(weight: Tensor, adapter: Adapter, module: str, dtype: torch.dtype) -> Tensor:
    skipped = module == f"{LAYER}mlp.gate_proj"
    return (weight + adapter.weight_delta(module) * (not skipped)).to(dtype)


def added_twice(weight: Tensor, adapter: Adapter, module: str, dtype: torch.dtype) -> Tensor:
    return (weight + 2 * adapter.weight_delta(module)).to(dtype)


def wrong_sign(weight: Tensor, adapter: Adapter, module: str, dtype: torch.dtype) -> Tensor:
    return (weight - adapter.weight_delta(module)).to(dtype)


def delta_rounded(weight: Tensor, adapter: Adapter, module: str, dtype: torch.dtype) -> Tensor:
    return (weight + adapter.weight_delta(module).bfloat16()).to(dtype)


def weight_rounded(weight: Tensor, adapter: Adapter, module: str, dtype: torch.dtype) -> Tensor:
    return (weight.bfloat16() + adapter.weight_delta(module)).to(dtype)


def _mate(module: str) -> str:
    """Another module of the same shape: gate and up change places, the others layers 0 and 1."""
    for one, two in (("gate_proj", "up_proj"), ("k_proj", "v_proj"), ("layers.0.", "layers.1.")):
        if one in module:
            return module.replace(one, two)
        if two in module:
            return module.replace(two, one)
    return module


def a_of_another(weight: Tensor, adapter: Adapter, module: str, dtype: torch.dtype) -> Tensor:
    a, (_, b) = adapter.tensors[_mate(module)][0], adapter.tensors[module]
    return (weight + low_rank(a.t(), b, adapter.scaling_of(module)).t()).to(dtype)


def b_of_another(weight: Tensor, adapter: Adapter, module: str, dtype: torch.dtype) -> Tensor:
    (a, _), b = adapter.tensors[module], adapter.tensors[_mate(module)][1]
    return (weight + low_rank(a.t(), b, adapter.scaling_of(module)).t()).to(dtype)


def pair_of_another(weight: Tensor, adapter: Adapter, module: str, dtype: torch.dtype) -> Tensor:
    return (weight + adapter.weight_delta(_mate(module))).to(dtype)


SUMS: list[Sum] = [
    scaling_forgotten, one_layer_skipped, one_module_skipped, added_twice, wrong_sign,
    delta_rounded, weight_rounded, a_of_another, b_of_another, pair_of_another,
]  # fmt: skip


def written(merge: folding.Merge, to: str) -> dict[str, Tensor]:
    """What the writer puts into its file, by the file's names."""
    if to == "meta":
        return dict(meta_tensors(merge))
    return dict(hf.fold(merge.base, merge.adapter, merge.dtype))


def numbers_that_differ(one: dict[str, Tensor], two: dict[str, Tensor]) -> int:
    assert one.keys() == two.keys()
    return sum(int((one[name] != two[name]).sum()) for name in one)


def caught_where_it_shows(
    base: Path, run: Path, out: Path, to: str, dtype: str, sabotage: Callable[[], Any]
) -> tuple[int, str]:
    """How many numbers the sabotage changes, and which checks it failed."""
    merge = replace(open_merge(run, base), dtype=folding.DTYPES[dtype])
    right = written(merge, to)
    sabotage()
    changed = numbers_that_differ(right, written(merge, to))
    write = partial(WRITERS[to], base, run, out / "merged", dtype)
    if not changed:
        assert write().passed
        return 0, ""
    with pytest.raises(Corrupt, match="failed its certificate") as caught:
        write()
    assert files_in(out) == set()
    return changed, caught.value.found


@pytest.mark.slow
@pytest.mark.parametrize("to", WRITERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_right_merge_passes(base, run, tmp_path, to, dtype):
    assert caught_where_it_shows(base, run, tmp_path, to, dtype, lambda: None) == (0, "")
    merge = replace(open_merge(run, base), dtype=folding.DTYPES[dtype])
    bare = {name: tensor.to(merge.dtype) for name, tensor in merge.base.items()}
    assert numbers_that_differ(bare, written(merge, "hf")) > 0


@pytest.mark.slow
@pytest.mark.parametrize("to", WRITERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong_sum", SUMS)
def test_a_wrong_sum_is_caught(base, run, tmp_path, monkeypatch, to, dtype, wrong_sum):
    def sabotage() -> None:
        monkeypatch.setattr(folding, "add_delta", wrong_sum)

    changed, found = caught_where_it_shows(base, run, tmp_path, to, dtype, sabotage)
    assert changed > 0
    assert "FAIL 21 targets" in found


@pytest.mark.slow
@pytest.mark.parametrize("wrong_sum", SUMS)
def test_from_bf16_to_bf16_it_is_caught_unless_no_bit_differs(
    half, tmp_path, monkeypatch, wrong_sum
):
    """The usual case, and the hardest: a small delta on a coarse base, rounded coarsely again."""

    def sabotage() -> None:
        monkeypatch.setattr(folding, "add_delta", wrong_sum)

    changed, found = caught_where_it_shows(*half, tmp_path, "hf", "bfloat16", sabotage)
    # A weight that is bf16 loses nothing when it is rounded to it; no other of these is in vain.
    assert (changed == 0) == (wrong_sum is weight_rounded)
    assert ("FAIL 21 targets" in found) == (changed > 0)


@pytest.mark.slow
def test_a_scaling_forgotten_where_it_is_one_changes_no_bit(base, run, tmp_path, monkeypatch):
    merge = open_merge(run, base)
    write_adapter(tmp_path / "one", replace(merge.adapter, alpha=float(merge.adapter.r)))

    def sabotage() -> None:
        monkeypatch.setattr(folding, "add_delta", scaling_forgotten)

    out = tmp_path / "out"
    out.mkdir()
    seen = caught_where_it_shows(base, tmp_path / "one", out, "hf", "bfloat16", sabotage)
    assert seen == (0, "")


Change = Callable[[Iterator[tuple[str, Tensor]]], Iterator[tuple[str, Tensor]]]


def _one_number(wanted: str) -> Change:
    """One number of a tensor becomes its neighbour in this format."""

    def change(stream: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in stream:
            if name == wanted:
                bits = torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32
                tensor = tensor.clone()
                tensor.view(bits).view(-1)[5] += 1
            yield name, tensor

    return change


def _swapped(one: str, two: str) -> Change:
    """Two tensors of the same shape lie under each other's name."""

    def change(stream: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        tensors = dict(stream)
        tensors[one], tensors[two] = tensors[two], tensors[one]
        yield from tensors.items()

    return change


def _transposed(name: str) -> Change:
    def change(stream: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for given, tensor in stream:
            yield given, tensor.t().contiguous() if given == name else tensor

    return change


CHANGES: dict[str, tuple[Change, str]] = {
    "last norm": (_one_number("model.norm.weight"), "other tensors"),
    "norm of a layer": (_one_number(f"{LAYER}post_attention_layernorm.weight"), "other tensors"),
    "head": (_one_number("lm_head.weight"), "other tensors"),
    "embedding": (_one_number("model.embed_tokens.weight"), "other tensors"),
    "two norms": (
        _swapped(f"{LAYER}input_layernorm.weight", f"{LAYER}post_attention_layernorm.weight"),
        "other tensors",
    ),
    "two targets": (
        _swapped(f"{LAYER}mlp.gate_proj.weight", f"{LAYER}mlp.up_proj.weight"), "targets",
    ),
    "two layers": (
        _swapped("model.layers.0.self_attn.v_proj.weight", f"{LAYER}self_attn.v_proj.weight"),
        "targets",
    ),
    "a square target transposed": (_transposed(f"{LAYER}self_attn.o_proj.weight"), "targets"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("to", WRITERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("what", CHANGES)
def test_what_is_written_wrong_is_caught(base, run, tmp_path, monkeypatch, to, dtype, what):
    change, check = CHANGES[what]

    def sabotage() -> None:
        monkeypatch.setattr(f"suri.export.{to}.fold", lambda *given: change(fold(*given)))

    changed, found = caught_where_it_shows(base, run, tmp_path, to, dtype, sabotage)
    assert changed > 0
    assert check in found


@pytest.mark.slow
@pytest.mark.parametrize("to", WRITERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_weights_of_another_base_are_caught(base, run, other, tmp_path, monkeypatch, to, dtype):
    def sabotage() -> None:
        monkeypatch.setattr(f"suri.export.{to}.fold", lambda _, *given: fold(other, *given))

    _, found = caught_where_it_shows(base, run, tmp_path, to, dtype, sabotage)
    assert "FAIL 21 targets" in found
    assert "other tensors: how many are not the base's: 9" in found


def test_another_base_is_refused_before_anything_is_written(run, other, tmp_path):
    with pytest.raises(UsageError, match="not the base that this adapter was trained on"):
        write_hf(other.folder, run, tmp_path / "merged")


WRONG_ORDERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "transposed": permute,
    "forgotten": lambda tensor, heads: tensor,
    "of twice the heads": lambda tensor, heads: unpermute(tensor, 2 * heads),
    "twice": lambda tensor, heads: unpermute(unpermute(tensor, heads), heads),
    "of one half the other way": lambda tensor, heads: unpermute(
        tensor.reshape(heads, 2, -1, tensor.shape[1]).flip(1).reshape(tensor.shape), heads
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", WRONG_ORDERS)
def test_a_wrong_rotary_order_is_caught(base, run, tmp_path, monkeypatch, dtype, order):
    def sabotage() -> None:
        monkeypatch.setattr(meta, "unpermute", WRONG_ORDERS[order])

    _, found = caught_where_it_shows(base, run, tmp_path, "meta", dtype, sabotage)
    assert "FAIL 21 targets" in found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", ["shard", "name", "lost"])
def test_an_index_that_leads_astray_is_caught(base, run, tmp_path, monkeypatch, dtype, wrong):
    """The tensors are right and only the table of them is not: readers by index lose some."""
    monkeypatch.setattr(hf, "SHARD_BYTES", 60_000)
    right = hf.write_weights

    def write(merge: folding.Merge, folder: Path, report: Any) -> None:
        right(merge, folder, report)
        file = folder / "model.safetensors.index.json"
        index = read_json(file)
        places = index["weight_map"]
        if wrong == "shard":
            places["model.norm.weight"] = places["model.embed_tokens.weight"]
        elif wrong == "name":
            places["model.norm.bias"] = places.pop("model.norm.weight")
        else:
            del places["model.norm.weight"]
        write_json(file, index)

    assert write_hf(base, run, tmp_path / "right", dtype).passed
    monkeypatch.setattr(hf, "write_weights", write)
    with pytest.raises(Corrupt, match="failed its certificate") as caught:
        write_hf(base, run, tmp_path / "wrong", dtype)
    assert "index" in caught.value.found
    assert files_in(tmp_path) == {"right"}
