"""Every setting, declared once: its name, default, meaning and check."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from suri.errors import UsageError
from suri.reading import read_toml

EMBEDDED = "embedded"
BUNDLED = "bundled"

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
LINEARS = ATTENTION + MLP

LARGEST = 2**63
"""Seeds and other whole numbers are below it."""

Quantize = Literal["none", "int8", "fp8", "nf4"]
Engine = Literal["suri", "reference"]
Variant = Literal["lora", "dora", "pissa", "olora"]
Overlong = Literal["trim-input", "trim-response", "drop", "error"]
Schedule = Literal["linear", "cosine", "constant"]
Divergence = Literal["stop", "skip", "back"]
Tracker = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Fine-tune a model. Every setting has a default; names are alpaca-lora's where it has one.

    `--recipe FILE` takes settings from a TOML file; flags override them.
    """

    base_model: str = EMBEDDED
    """Model to fine-tune: a folder, a GGUF file or a hub id; `embedded` is the one installed."""
    data_path: str = BUNDLED
    """Rows: JSON, JSONL, CSV, Parquet, a folder or a hub id.
    `bundled`, bundled:ROWS or bundled:ROWS:zh: the set that comes with the installation."""
    columns: str = ""
    """Columns by other names, as instruction=question,output=answer."""
    output_dir: str = "./lora-alpaca"
    """Run folder: the adapter in PEFT's format, metrics, recipe."""
    start_from: str = ""
    """Adapter folder whose weights, and prompt where none is named, a new run begins with."""
    batch_size: int = 16
    """Rows per optimizer step. Never changed behind your back."""
    micro_batch_size: int = 0
    """Most rows in one forward pass (0: as many as fit). Changes memory, never the result."""
    num_epochs: float = 3.0
    """Passes over the training rows."""
    max_steps: int = 0
    """Stop after this many optimizer steps (0: when the epochs are done)."""
    learning_rate: float = 3e-4
    """Peak learning rate of AdamW. Higher learns faster, and diverges sooner."""
    loraplus_lr_ratio: float = 1.0
    """B's learning rate is this many times A's (LoRA+: 16, with a lower learning_rate)."""
    lr_schedule: Schedule = "linear"
    """How the learning rate falls after warm-up."""
    warmup_ratio: float = 0.03
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """AdamW's pull of the adapter towards zero."""
    max_grad_norm: float = 1.0
    """Longer gradients are scaled down to this length (0: never)."""
    cutoff_len: int = 512
    """Most tokens of one row."""
    overlong: Overlong = "trim-input"
    """Longer rows: shorten the input (then the response), cut the end of the response,
    drop the row, or stop with an error. All are counted."""
    val_set_size: float = 0.05
    """Rows held out for evaluation: a number of rows, or below 1 a share. 0 holds out none."""
    val_set_path: str = ""
    """File of rows to hold out instead, in the format of data_path."""
    lora_r: int = 8
    """Rank of the adapter. Higher learns more and costs more memory."""
    lora_alpha: float = 16.0
    """The adapter's product is scaled by lora_alpha / lora_r."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(lora_r) instead, so that high ranks learn as fast as low ones."""
    lora_variant: Variant = "lora"
    """lora; with --engine reference also dora, pissa or olora, by peft."""
    lora_dropout: float = 0.0
    """Share of the adapter's inputs dropped while training."""
    lora_target_modules: tuple[str, ...] = LINEARS
    """Linear layers that get an adapter."""
    train_on_inputs: bool = False
    """Learn the prompt's tokens too. Otherwise only the response is learned."""
    add_eos_token: bool = True
    """Kept for alpaca-lora's commands: the end-of-text token is always learned."""
    group_by_length: bool = False
    """Put rows of like length into the same step."""
    prompt_template_name: str = "alpaca"
    """The prompt that wraps instruction and input: alpaca, alpaca_short, alpaca_legacy, vigogne,
    chat (the base's own template), or the path of a JSON file."""
    quantize: Quantize = "none"
    """How the frozen base is stored: none (as given),
    int8 or fp8 (multiplied in 8 bits too; faster, int8 on CPUs, fp8 on GPUs of compute capability
    8.9 or more), or nf4 (4 bits, QLoRA)."""
    engine: Engine = "suri"
    """suri, or reference: a plain transformers + peft loop over the same rows."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where torch can use one."""
    gpus: int = 1
    """GPUs of this machine that share each step's rows (with --device cpu: processes).
    Changes time, never the result."""
    shard_base: bool = False
    """Keep a share of the base on each of these GPUs (by itself where it fits no other way)."""
    seed: int = 42
    """Seed of the adapter, the held-out rows and their order."""
    on_divergence: Divergence = "stop"
    """When a loss or gradient is no number: stop, skip the step (at most 10),
    or go back to the last saved state at half the learning rate.
    The weights are untouched in every case."""
    eval_steps: int = 0
    """Optimizer steps between two evaluations on the held-out rows (0: four in a run)."""
    early_stopping_patience: int = 0
    """Stop after this many evaluations without a lower held-out loss than the best (0: never)."""
    save_steps: int = 0
    """Optimizer steps between two saved states (0: at every evaluation)."""
    token_budget: int = 0
    """Most tokens in one forward pass (0: as the free memory allows).
    Changes memory and speed, never the result."""
    report_to: tuple[Tracker, ...] = ()
    """Dashboards that get the figures of metrics.jsonl. Nothing is sent anywhere otherwise."""
    wandb_project: str = ""
    """Project on the dashboard. Alone it means report_to wandb, as in alpaca-lora."""
    wandb_run_name: str = ""
    """The run's name there ("": that of output_dir)."""
    resume: bool = False
    """Go on with the unfinished run in output_dir, with its own settings."""
    resume_from_checkpoint: str = ""
    """As resume, naming the run folder or a checkpoint in it."""
    overwrite: bool = False
    """Replace a finished run in output_dir."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, str):  # './lora-alpaca ' is how commands are copied
                object.__setattr__(self, name, value.strip())
        problems = list(_problems(self))
        if problems:
            raise UsageError("these settings cannot work", found="; ".join(problems))


def _problems(recipe: Recipe) -> list[str]:
    """Every setting that cannot work, each as one clause."""
    at_least = {
        "batch_size": 1, "micro_batch_size": 0, "max_steps": 0, "cutoff_len": 8, "val_set_size": 0,
        "lora_r": 1, "eval_steps": 0, "save_steps": 0, "token_budget": 0, "weight_decay": 0,
        "max_grad_norm": 0, "warmup_ratio": 0, "seed": 0, "early_stopping_patience": 0, "gpus": 1,
    }  # fmt: skip
    problems = [
        f"{name} = {getattr(recipe, name)} must be at least {least}"
        for name, least in at_least.items()
        if not getattr(recipe, name) >= least
    ]
    problems += [
        f"{name} = {getattr(recipe, name)} must be above 0"
        for name in ("num_epochs", "learning_rate", "loraplus_lr_ratio", "lora_alpha")
        if not getattr(recipe, name) > 0
    ]
    problems += [
        f"{name} = {value} must be a number"
        for name, value in vars(recipe).items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    problems += [
        f"{name} = {getattr(recipe, name)} must be one of {', '.join(get_args(kind))}"
        for name, kind in get_type_hints(Recipe).items()
        if get_origin(kind) is Literal and getattr(recipe, name) not in get_args(kind)
    ]
    known = {"report_to": get_args(Tracker)}
    if recipe.engine == "suri":
        known["lora_target_modules"] = LINEARS
    problems += [
        f"{name}: {each} is not one of {', '.join(allowed)}"
        for name, allowed in known.items()
        for each in getattr(recipe, name)
        if each not in allowed
    ]
    variant = f"lora_variant = {recipe.lora_variant}"
    is_pefts = recipe.lora_variant in ("dora", "pissa", "olora")
    others = {
        f"lora_dropout = {recipe.lora_dropout} must be from 0 to below 1":
            not 0 <= recipe.lora_dropout < 1,
        "lora_target_modules names no layer": not recipe.lora_target_modules,
        f"{variant} changes the base: quantize must be none":
            recipe.lora_variant in ("pissa", "olora") and recipe.quantize == "nf4",
        f"{variant} is trained by peft alone: --engine reference":
            is_pefts and recipe.engine == "suri",
        f"{variant} cannot begin with the weights of start_from, a plain LoRA adapter":
            is_pefts and recipe.start_from != "",
        "shard_base is for --engine suri": recipe.shard_base and recipe.engine != "suri",
    }  # fmt: skip
    return problems + [problem for problem, is_there in others.items() if is_there]


ALPACA_LORA = {
    "batch_size": 128,
    "micro_batch_size": 4,
    "num_epochs": 3.0,
    "learning_rate": 3e-4,
    "cutoff_len": 256,
    "overlong": "trim-response",
    "val_set_size": 2000.0,
    "lora_r": 8,
    "lora_alpha": 16.0,
    "lora_dropout": 0.05,
    "lora_target_modules": ("q_proj", "v_proj"),
    "train_on_inputs": True,
    "add_eos_token": False,
}
"""The defaults of alpaca-lora's finetune.py, which the script of that name at the root keeps."""


def recipe_from_toml(path: Path, start: Recipe | None = None) -> Recipe:
    """Read settings from a TOML file, flat or under [recipe], over the values of `start`."""
    table = read_toml(path, "recipe", "recipe")
    return with_settings(start or Recipe(), table.get("recipe", table), str(path))


def with_settings(recipe: Recipe, settings: dict[str, Any], where: str) -> Recipe:
    """Replace settings by name; an unknown name or a wrong type is refused with what was meant."""
    known = {item.name: item for item in fields(Recipe)}
    values = {}
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"{where}: there is no setting {name}",
                do=f"did you mean {near[0]}?" if near else "see `suri train --help`",
            )
        default = getattr(Recipe(), name)
        if isinstance(default, tuple) and isinstance(value, list):
            value = tuple(value)
        if isinstance(default, float) and type(value) is int and abs(value) < LARGEST:
            value = float(value)
        if type(default) is not type(value) or not _is_plain(value):
            raise UsageError(f"{where}: {name} = {value!r:.80} is not of the form {default!r}")
        values[name] = value
    return replace(recipe, **values)


def _is_plain(value: Any) -> bool:
    """Whether a setting is text, a number or a flag that the rest of the program can hold."""
    if isinstance(value, tuple):
        return all(isinstance(part, str) and _is_plain(part) for part in value)
    return "\0" not in value if isinstance(value, str) else -LARGEST < value < LARGEST


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The settings as plain values that TOML and JSON can hold."""
    values = asdict(recipe).items()
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values}


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are chosen and when they end."""

    temperature: float = 0.1
    """0 takes the likeliest token; higher varies more."""
    top_p: float = 0.75
    """Choose among the likeliest tokens that together have this probability."""
    top_k: int = 40
    """Choose among this many likeliest tokens (0: all)."""
    num_beams: int = 1
    """Answers followed at once; the best is kept."""
    max_new_tokens: int = 128
    """Most tokens in an answer."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that were already used become less likely."""
    seed: int = 0
    """The same seed gives the same answer."""

    def __post_init__(self) -> None:
        limits = {
            "temperature": (0, 10), "top_p": (0, 1), "top_k": (0, 1_000_000), "num_beams": (1, 16),
            "max_new_tokens": (1, 100_000), "repetition_penalty": (0.1, 10),
        }  # fmt: skip
        refuse_outside(self, limits)


def refuse_outside(settings: object, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raise UsageError that names every setting outside its limits, the least and the most."""
    wrong = [
        f"{name} = {getattr(settings, name)} is not from {low} to {high}"
        for name, (low, high) in limits.items()
        if not low <= getattr(settings, name) <= high
    ]
    if wrong:
        raise UsageError("these settings cannot work", found="; ".join(wrong))


GREEDY = Decoding(temperature=0, top_p=1.0, top_k=0)
