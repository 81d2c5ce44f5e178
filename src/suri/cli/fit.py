"""`suri fit`: whether a training fits into memory, here or elsewhere, and how long it takes."""

from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from suri.cli.flags import parse_recipe
from suri.recipe import Recipe
from suri.train.budget import (
    BUDGETS,
    HEADROOM,
    Estimate,
    Memory,
    estimate,
    fitting_budget,
    parse_memory,
    refuse_what_does_not_fit,
)
from suri.wording import readable_bytes

MEANING = {
    "process": "interpreter, libraries and rows",
    "base": "the frozen model, stored as --quantize says",
    "adapter": "the trained pairs, fp32",
    "optimizer": "gradients, AdamW's moments, saving",
    "activations": "what a micro-batch keeps for its backward pass",
    "working": "what comes and goes in a layer and in the head",
}


@dataclass(frozen=True, kw_only=True)
class Asked(Recipe):
    """Tell whether a training with these settings fits, and how long it takes on this machine.

    A folder with nothing but config.json is enough to ask about memory. `--recipe FILE` takes
    settings from a TOML file; flags override them.
    """

    memory: str = ""
    """Plan for a GPU with this much memory, as 40GB, instead of this machine.
    With --device cpu: for a computer with this much."""


def run(argv: list[str]) -> None:
    """Print the parts, the sum, and what is free; exit 4 where it does not fit."""
    asked = parse_recipe(Asked, argv, "suri fit")
    recipe = Recipe(**{item.name: getattr(asked, item.name) for item in fields(Recipe)})
    memory = parse_memory(asked.memory) if asked.memory else None
    console = Console(highlight=False)
    base = Path(recipe.base_model).expanduser()
    tokenizers = ("tokenizer.json", "tokenizer.model")
    if (base / "config.json").is_file() and not any((base / n).is_file() for n in tokenizers):
        _of_shape(console, recipe, base, memory)
    else:
        _of_run(console, recipe, memory)


def _device(recipe: Recipe, memory: int | None) -> str:
    """The device to plan for; memory alone means a GPU."""
    if memory is not None:
        return "cpu" if recipe.device == "cpu" else "cuda"
    from suri.model.load import choose_device

    return choose_device(recipe.device)


def _of_shape(console: Console, recipe: Recipe, base: Path, memory: int | None) -> None:
    """Memory alone: there are no weights to time and no tokenizer to count rows with."""
    from suri.model.config import read_config
    from suri.train.prepare import refuse_storage

    config, device = read_config(base), _device(recipe, memory)
    refuse_storage(recipe, device, here=memory is None)
    if memory is None:
        from suri.train.machine import free_memory_bytes

        memory = free_memory_bytes(device)
    there = Memory(device, memory)
    budget = recipe.token_budget or fitting_budget(config, recipe, there)
    tokens = max(budget or BUDGETS[-1], recipe.cutoff_len)
    found = estimate(config, recipe, tokens, there)
    _show(console, found, there)
    refuse_what_does_not_fit(found, config, recipe, there)


def _of_run(console: Console, recipe: Recipe, memory: int | None) -> None:
    """Memory by the recipe's own rows, and the time where the machine is this one."""
    from suri.train.fit import fit_here, time_here
    from suri.train.prepare import prepare

    made = prepare(recipe, "" if memory is None else _device(recipe, memory))
    found = fit_here(made, memory)
    _show(console, found.estimate, found.memory)
    console.print(f"micro-batches of up to {found.made.recipe.token_budget} tokens")
    if memory is None:
        console.print(time_here(found.made))


def _show(console: Console, found: Estimate, memory: Memory) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("part", "bytes", "what it is"):
        table.add_column(name, justify="right" if name == "bytes" else "left")
    for name, size in found.parts.items():
        table.add_row(name, readable_bytes(size), MEANING[name])
    if found.loading == found.total:
        table.add_row("", readable_bytes(found.loading), "most while the base is read")
    table.add_row(
        "[bold]in all[/]", f"[bold]{readable_bytes(found.total)}[/]", f"on {memory.device}"
    )
    if memory.free is not None:
        table.add_row(
            "to be had", readable_bytes(memory.free), f"{HEADROOM:.0%} of it is planned with"
        )
    console.print(table)
