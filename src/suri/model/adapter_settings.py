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
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), int | float) or config[name] <= 0:
            raise Corrupt(f"{folder}: {name} of the adapter is {config.get(name)!r}")
