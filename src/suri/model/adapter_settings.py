"""Which of PEFT's settings mean W + scaling B A; adapters with others are refused by name."""

from pathlib import Path
from typing import Any

from suri.errors import Corrupt, UsageError

UNREAD = (
    "modules_to_save", "fan_in_fan_out", "layer_replication", "lora_bias", "target_parameters",
    "trainable_token_indices", "alora_invocation_tokens", "use_qalora", "use_bdlora",
    "arrow_config", "kasa_config", "velora_config", "monteclora_config",
    "megatron_config",
)  # fmt: skip
"""PEFT's settings under which W + scaling B A is not what is computed, or a module is imported."""

OF_ANOTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to start that take something out of the base; PEFT's record of one means it is missing."""

PLAUSIBLE = {"r": (1, 1e6), "lora_alpha": (1e-9, 1e6), "lora_dropout": (0, 1)}
"""Least and most of each number: no rank and no alpha is larger."""


def check_settings(folder: Path, config: dict[str, Any], dora: bool) -> None:
    """Raise UsageError for an adapter of another kind than is read (`dora`: or than DoRA)."""
    unsupported = [name for name in UNREAD if config.get(name)]
    if config.get("bias", "none") != "none":
        unsupported.append("bias")
    if config.get("peft_type") != "LORA":
        unsupported.append(f"peft_type {config.get('peft_type')}")
    if str(start := config.get("init_lora_weights")).lower().startswith(OF_ANOTHER_BASE):
        unsupported.append(f"init_lora_weights {start}, a pair on top of another base")
    if unsupported:
        raise UsageError(
            f"{folder} is an adapter of a kind that is not read here",
            found=", ".join(unsupported),
            do="plain LoRA adapters are; peft's merge_and_unload() makes a model of this one",
        )
    if config.get("use_dora") and not dora:
        raise UsageError(
            f"{folder} is a DoRA adapter, which is used merged",
            found="use_dora",
            do=f"`suri merge {folder} --to hf --output_dir OUT` makes a plain model of it, "
            "to chat with, compare or convert",
        )
    _check_numbers(folder, config)


def _check_numbers(folder: Path, config: dict[str, Any]) -> None:
    for name, (least, most) in PLAUSIBLE.items():
        value = config.get(name) or 0
        if type(value) not in (int, float) or not least <= value <= most:
            raise Corrupt(f"{folder}: {name} of the adapter is {config.get(name)!r:.80}")
    if not isinstance(config.get("use_rslora", False), bool | None):
        raise Corrupt(f"{folder}: use_rslora of the adapter is {config['use_rslora']!r:.80}")
