"""The run folder: what a training writes beside its adapter, and whose folder it is."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from suri.errors import UsageError
from suri.files import LOCK, make_folder, need_space, sweep, write_json, write_text
from suri.manifest import MANIFEST, write_manifest
from suri.model.adapter_file import is_adapter
from suri.reading import read_json_lines, read_object, well_formed
from suri.recipe import Recipe, recipe_from_toml, settings_of
from suri.train.machine import environment
from suri.wording import counted

RECIPE, RESULT, METRICS, BASE = "recipe.toml", "result.json", "metrics.jsonl", "base.json"
START = "start"
"""Folder of the adapter that a run with start_from began with."""
OURS = (
    "adapter_config.json", "adapter_model.safetensors", "base.json", "prompt.json", "README.md",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", RECIPE, "data.json",
    "held_out.jsonl", "environment.json", METRICS, RESULT, "manifest.json",
)  # fmt: skip
SPACE_BYTES = 200_000_000
"""Free space asked for before a run, beside six times the adapter (two checkpoints and moments)."""


def goes_on(recipe: Recipe) -> bool:
    """Whether a run that was stopped is to go on."""
    return recipe.resume or bool(recipe.resume_from_checkpoint)


def run_folder_of(recipe: Recipe) -> Path:
    """The folder of a run: output_dir, or the one around the checkpoint that a resume names."""
    named = Path(recipe.resume_from_checkpoint)
    if not recipe.resume_from_checkpoint:
        return Path(recipe.output_dir)
    return named.parent.parent if named.parent.name == "checkpoints" else named


def open_run(recipe: Recipe, adapter_bytes: int) -> Path:
    """Make or take over output_dir; raises UsageError where it is somebody else's or finished."""
    folder = Path(recipe.output_dir)
    make_folder(folder)
    need_space(folder, 6 * adapter_bytes + SPACE_BYTES, "the run")
    if goes_on(recipe):
        for place in (folder, folder / "best", folder / "checkpoints"):
            sweep(place)
        return folder
    if any(path.name != LOCK for path in folder.iterdir()):
        _clear(folder, recipe.overwrite)
    import tomli_w

    write_text(folder / RECIPE, tomli_w.dumps(settings_of(recipe)))
    write_json(folder / "environment.json", environment(recipe.device))
    return folder


def _clear(folder: Path, overwrite: bool) -> None:
    """Remove our own files of an earlier run, where that was asked for."""
    if not (folder / RECIPE).is_file():
        raise UsageError(
            f"{folder} exists and holds something else",
            found=", ".join(sorted(p.name for p in folder.iterdir() if p.name != LOCK)[:5]),
            do="choose another --output_dir",
        )
    if not overwrite:
        finished = (folder / RESULT).is_file()
        further = (
            f"--start_from {folder} with another --output_dir trains its adapter further"
            if finished
            else f"`suri train --resume --output_dir {folder}` goes on"
        )
        raise UsageError(
            f"{folder} holds a run that is {'finished' if finished else 'not finished'}",
            do=f"--overwrite starts anew; {further}",
        )
    for name in OURS:
        (folder / name).unlink(missing_ok=True)
    for name in ("checkpoints", "best", START, "tensorboard", "wandb"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _is_finished(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (RESULT, MANIFEST))  # the last two written


def can_go_on(folder: Path) -> bool:
    """Whether a folder holds an unfinished run of ours with a saved state."""
    begun = (folder / RECIPE).is_file() and not _is_finished(folder)
    return begun and any((folder / "checkpoints").glob("step-*/manifest.json"))


def after_restart(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe of processes that were started again after one of them failed.

    It goes on with what they saved. Before that there is nothing of theirs to lose: it begins anew.
    """
    if can_go_on(folder):
        return dataclasses.replace(recipe, resume=True)
    begun = (folder / RECIPE).is_file() and not _is_finished(folder)
    same = begun and recipe_from_toml(folder / RECIPE) == recipe
    return dataclasses.replace(recipe, overwrite=True) if same else recipe


def recorded_recipe(folder: Path, asked: Recipe) -> Recipe:
    """The settings an unfinished run was started with; other ones in `asked` are refused."""
    if not (folder / RECIPE).is_file():
        raise UsageError(
            f"{folder} holds no run to go on with",
            do=f"--start_from {folder} starts a new run with the weights of its adapter alone"
            if is_adapter(folder)
            else "",
        )
    if _is_finished(folder):
        raise UsageError(f"the run in {folder} is finished", do="--overwrite starts anew")
    recorded = recipe_from_toml(folder / RECIPE)
    default = Recipe()
    free = ("output_dir", "resume", "resume_from_checkpoint", "overwrite", "gpus", "shard_base")
    differing = [
        f"{item.name} is {getattr(recorded, item.name)}, asked for {getattr(asked, item.name)}"
        for item in dataclasses.fields(Recipe)
        if item.name not in free
        and getattr(asked, item.name)
        not in (getattr(recorded, item.name), getattr(default, item.name))
    ]
    if differing:
        raise UsageError(
            f"the run in {folder} was started with other settings",
            found="; ".join(differing),
            do="leave them out to go on, or start anew with --overwrite",
        )
    return dataclasses.replace(recorded, **{name: getattr(asked, name) for name in free})


def refuse_other_inputs(folder: Path, data: dict[str, Any], base: dict[str, Any]) -> None:
    """Raise UsageError where a run that goes on would meet other rows or another base.

    `data` is what data.json would hold now, `base` the identity of the base.
    """
    recorded = read_object(folder / "data.json") if (folder / "data.json").is_file() else {}
    names = ("sha256", "held_out_sha256", "train_rows", "held_out_rows", "encoded")
    differing = [
        f"{name} is {data.get(name)}, was {recorded[name]}"
        for name in names
        if name in recorded and recorded[name] != data.get(name)
    ]
    started = read_object(folder / BASE) if (folder / BASE).is_file() else base
    differing += [
        f"the base's {name} is {base.get(name)}, was {started.get(name)}"
        for name in ("fingerprint", "quantize")
        if started.get(name) != base.get(name)
    ]
    if differing:
        raise UsageError(
            f"the run in {folder} was started with other rows or another base",
            found="; ".join(differing),
            do="bring them back to go on, or start anew with --overwrite",
        )


def forget_after(metrics: Path, step: int) -> None:
    """Drop figures of steps that will be done again, so that each step stands there once."""
    lines = read_json_lines(metrics)
    with well_formed(metrics):
        kept = [json.dumps(line, ensure_ascii=False) for line in lines if line["step"] <= step]
    write_text(metrics, "".join(f"{line}\n" for line in kept))


def finish_run(folder: Path, recipe: Recipe, result: dict[str, Any]) -> None:
    """Write result, model card and manifest; after this the run counts as finished."""
    write_text(folder / "README.md", model_card(recipe, result, read_object(folder / "data.json")))
    write_json(folder / RESULT, result)
    write_manifest(folder)


def _use(recipe: Recipe) -> str:
    if recipe.lora_variant == "dora":
        return (
            "Merge: `suri merge DIR --to hf --output_dir OUT`. Then chat: `suri chat OUT`.\n"
            "Beside its base: peft's `PeftModel.from_pretrained(base, DIR)`."
        )
    return "Chat: `suri chat DIR`. Merge: `suri merge DIR --to hf --output_dir OUT`."


def model_card(recipe: Recipe, result: dict[str, Any], data: dict[str, Any]) -> str:
    """What somebody who finds the adapter alone needs to know, as Markdown."""
    loss = result["held_out_loss"]
    losses = (
        f"Held-out loss {result['base_loss']:.3f} before and {loss:.3f} after training."
        if loss is not None
        else "No rows were held out, so its quality was not measured."
    )
    rows, steps = counted(result["rows"], "row|rows"), counted(result["steps"], "step|steps")
    licence = data.get("licence") or "not recorded; see the source of the data"
    return f"""---
library_name: peft
pipeline_tag: text-generation
base_model: {recipe.base_model}
tags: [lora, alpaca, suri]
---
# LoRA adapter

Trained by Suri from `{recipe.base_model}` on {rows} of `{recipe.data_path}`
({steps} of {counted(recipe.batch_size, "row|rows")}, rank {recipe.lora_r}, alpha
{recipe.lora_alpha:g}, base stored as {"given" if recipe.quantize == "none" else recipe.quantize}).
{losses} The files here are the {result["weights"]}.

- Prompt: `prompt.json`. Settings: `recipe.toml`. Losses over time: `metrics.jsonl`.
- Data: sha256 `{data.get("sha256", "")}`. Licence of the data: {licence}.
- {_use(recipe)}
"""
