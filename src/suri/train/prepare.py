"""What a training needs before its first step: the base, and rows as tokens."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from suri.data.cache import encode_table
from suri.data.encode import Rules, encode_records
from suri.data.examples import Encoded
from suri.data.prompt import PROMPT_FILE, Prompt, find_prompt, read_prompt
from suri.data.split import Rows, load_rows
from suri.errors import DataError, UsageError
from suri.model.adapter import Adapter, initial_adapter
from suri.model.adapter_file import read_adapter
from suri.model.config import ModelConfig, read_config
from suri.model.fp8 import CAPABILITY
from suri.model.load import choose_device
from suri.model.tokenizer import Tokenizer, read_tokenizer
from suri.model.weights import base_identity, find_base
from suri.recipe import Recipe
from suri.train.plan import Plan
from suri.train.run_folder import START, goes_on


@dataclass(frozen=True)
class Prepared:
    """A recipe's base and rows, found, checked and encoded."""

    recipe: Recipe
    device: str
    base: Path
    config: ModelConfig
    tokenizer: Tokenizer
    prompt: Prompt
    rows: Rows
    encoded: Encoded
    held_out: Encoded

    @property
    def plan(self) -> Plan:
        """Which rows each step learns."""
        return Plan(self.recipe, self.encoded.examples.lengths)

    def with_settings(self, **settings: Any) -> "Prepared":
        """The same with other settings, for which nothing need be prepared anew."""
        return replace(self, recipe=replace(self.recipe, **settings))


def prepare(recipe: Recipe, device: str = "") -> Prepared:
    """Find, check and encode; `device` where it is not this machine's.

    Raises UsageError and DataError for what cannot be trained.
    """
    here = not device
    device = device or choose_device(recipe.device)
    refuse_storage(recipe, device, here=here)
    base = find_base(recipe.base_model)
    config, tokenizer = read_config(base), read_tokenizer(base)
    prompt = _prompt(recipe, tokenizer)
    rows = load_rows(recipe)
    rules = Rules(recipe.cutoff_len, recipe.train_on_inputs, recipe.overlong)
    encoded = encode_table(rows.train, tokenizer, prompt, rules)
    held_out = encode_records(
        rows.held_out, tokenizer, prompt, replace(rules, train_on_inputs=False)
    )
    if not encoded.examples:
        raise DataError(
            f"no row of {recipe.data_path} has a response token within --cutoff_len "
            f"{recipe.cutoff_len}",
            do="raise --cutoff_len",
        )
    if recipe.early_stopping_patience and not held_out.examples:
        raise UsageError(
            "--early_stopping_patience needs held-out rows, and there are none",
            do="raise --val_set_size, or name a file with --val_set_path",
        )
    return Prepared(recipe, device, base, config, tokenizer, prompt, rows, encoded, held_out)


def refuse_storage(recipe: Recipe, device: str, *, here: bool) -> None:
    """Raise UsageError where a base so stored cannot be trained on `device`.

    `here`: the device is this machine's. Which GPU another one has is not known.
    """
    ours = recipe.engine == "suri"
    if recipe.quantize == "int8" and (device != "cpu" or not ours):
        raise UsageError(
            "--quantize int8 trains on CPUs with --engine suri",
            do="--device cpu, or --quantize nf4 or fp8",
        )
    if recipe.quantize != "fp8":
        return
    lacking = _lacks_fp8(device, here=here) if ours else f"--engine {recipe.engine}"
    if lacking:
        raise UsageError(
            "--quantize fp8 trains on GPUs of compute capability 8.9 or more with --engine suri",
            found=lacking,
            do="--quantize nf4, or int8 with --device cpu",
        )


def _lacks_fp8(device: str, *, here: bool) -> str:
    """The device, where it does not multiply in fp8."""
    if device == "cpu" or not here:
        return device if device == "cpu" else ""
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) >= CAPABILITY:
        return ""
    return f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"


def start_adapter(made: Prepared) -> Adapter:
    """The adapter before its first step: a new one, which changes nothing, or start_from's."""
    recipe = made.recipe
    fresh = initial_adapter(
        made.config,
        r=recipe.lora_r,
        alpha=recipe.lora_alpha,
        targets=recipe.lora_target_modules,
        seed=recipe.seed,
        dropout=recipe.lora_dropout,
        rslora=recipe.use_rslora,
        base=base_identity(made.base, recipe.quantize, recipe.base_model),
    )
    if not recipe.start_from:
        return fresh
    kept = Path(recipe.output_dir) / START  # a run that goes on needs no other folder
    place = kept if goes_on(recipe) and kept.is_dir() else Path(recipe.start_from)
    given = read_adapter(place)
    _check_alike(given, fresh, place)
    return replace(fresh, tensors=given.tensors)


def _check_alike(given: Adapter, fresh: Adapter, place: Path) -> None:
    """Raise UsageError naming everything in which a start differs from what the recipe asks."""
    pairs = {
        "lora_r": (_each(given, given.rank_of), _each(fresh, fresh.rank_of)),
        "the scaling": (_each(given, given.scaling_of), _each(fresh, fresh.scaling_of)),
        "lora_target_modules": (" ".join(given.targets), " ".join(sorted(fresh.targets))),
        "the number of pairs": (len(given.tensors), len(fresh.tensors)),
        "the base's fingerprint": (
            given.base.get("fingerprint", fresh.base["fingerprint"]),
            fresh.base["fingerprint"],
        ),
    }
    differing = [f"{name} is {a} there, {b} here" for name, (a, b) in pairs.items() if a != b]
    if differing:
        raise UsageError(
            f"the run cannot start from {place}",
            found="; ".join(differing),
            do=f"give this run the adapter's settings{_base_of(given, fresh)}",
        )


def _base_of(given: Adapter, fresh: Adapter) -> str:
    """The flag that names an adapter's base, where that is another one."""
    name = given.base.get("name", "")
    same = given.base.get("fingerprint") == fresh.base["fingerprint"]
    return f", --base_model {name} first of all" if name and not same else ""


def _each(adapter: Adapter, of: Callable[[str], float]) -> str:
    """The different numbers of an adapter's modules."""
    return " ".join(str(number) for number in sorted({of(name) for name in adapter.tensors}))


def _prompt(recipe: Recipe, tokenizer: Tokenizer) -> Prompt:
    """The prompt of the recipe, or of what is gone on with.

    A run that goes on keeps its own, whose file may have changed; one that begins with an adapter
    keeps that one's, unless another template than the default is named.
    """
    folders = [Path(recipe.output_dir)] if goes_on(recipe) else []
    if recipe.start_from and recipe.prompt_template_name == Recipe.prompt_template_name:
        folders.append(Path(recipe.start_from))
    for folder in folders:
        if (folder / PROMPT_FILE).is_file():
            return read_prompt(folder)
    return find_prompt(recipe.prompt_template_name, tokenizer)
