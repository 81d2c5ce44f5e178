"""The adapter as PEFT's folder format, checked before a byte of it is used."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from suri.errors import Corrupt, UsageError
from suri.files import write_bytes, write_json
from suri.manifest import MANIFEST, check_manifest
from suri.model.adapter import Adapter
from suri.model.patterns import by_module
from suri.reading import read_object
from suri.recipe import Quantize

CONFIG_FILE, WEIGHTS_FILE, BASE_FILE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "base.json",
)

KEY = re.compile(
    r"base_model\.model\.(model\.layers\.(?:0|[1-9]\d{0,4})\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj))"
    r"\.lora_([AB])\.weight"
)

PREFIX, MAGNITUDE = "base_model.model.", ".lora_magnitude_vector"

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


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Write PEFT's two files, and base.json with the identity of the base."""
    from safetensors.torch import save

    tensors = {
        key: tensor.detach().to("cpu", torch.float32).contiguous()
        for key, tensor in peft_tensors(adapter).items()
    }
    ranks = {name: adapter.rank_of(name) for name in adapter.tensors}
    own = {
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != adapter.r},
        "alpha_pattern": dict(adapter.alphas),
    }
    write_bytes(folder / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
    write_json(folder / BASE_FILE, adapter.base)
    write_json(
        folder / CONFIG_FILE,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": adapter.base.get("path"),
            "r": adapter.r,
            "lora_alpha": adapter.alpha,
            "lora_dropout": adapter.dropout,
            "target_modules": list(adapter.targets),
            "use_rslora": adapter.rslora,
            "bias": "none",
            "fan_in_fan_out": False,
            "modules_to_save": None,
            "inference_mode": True,
        }
        | {name: pattern for name, pattern in own.items() if pattern}
        | ({"use_dora": True} if adapter.magnitudes else {}),
    )


def peft_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """The adapter's tensors by PEFT's names."""
    tensors = {f"{PREFIX}{name}{MAGNITUDE}": m for name, m in adapter.magnitudes.items()}
    for name, (a, b) in adapter.tensors.items():
        tensors |= {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
    return tensors


def read_adapter(folder: Path, *, dora: bool = False) -> Adapter:
    """Read a PEFT adapter folder; only low-rank pairs with known names are accepted.

    With `dora` a DoRA adapter's magnitudes are read too: to train on, or to merge by peft. Where
    a run of ours recorded checksums, they are checked: another scaling would go unnoticed.
    """
    if (folder / MANIFEST).is_file() and (folder / BASE_FILE).is_file():
        check_manifest(folder, CONFIG_FILE, WEIGHTS_FILE, BASE_FILE)
    if not is_adapter(folder):
        raise UsageError(
            f"{folder} is not an adapter",
            found=f"no {CONFIG_FILE} in it" if folder.is_dir() else "no such folder",
            do=f"suri train --resume --output_dir {folder} finishes the training in it"
            if (folder / "recipe.toml").is_file()
            else "give the output_dir of a finished training",
        )
    config = read_object(folder / CONFIG_FILE)
    _check_settings(folder, config, dora)
    _check_plausible(folder, config)
    tensors, magnitudes = _read_tensors(folder / WEIGHTS_FILE, bool(config.get("use_dora")))
    file = folder / CONFIG_FILE
    own = by_module(config.get("rank_pattern"), tensors, f"{file}: rank_pattern")
    wrong = [
        f"{name} has rank {len(a)}, not {own.get(name, config['r']):g}"
        for name, (a, _) in tensors.items()
        if len(a) != own.get(name, config["r"])
    ]
    if wrong:
        raise Corrupt(f"{folder}: the pairs have other ranks than {file.name} says", found=wrong[0])
    return Adapter(
        r=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        targets=tuple(sorted({name.rpartition(".")[2] for name in tensors})),
        tensors=tensors,
        dropout=float(config.get("lora_dropout") or 0),
        rslora=bool(config.get("use_rslora")),
        base=base_of(folder),
        magnitudes=magnitudes,
        alphas=by_module(config.get("alpha_pattern"), tensors, f"{file}: alpha_pattern"),
    )


def base_of(folder: Path) -> dict[str, Any]:
    """What the adapter says of its base: path, fingerprint and quantize where recorded."""
    file = folder / BASE_FILE
    if file.is_file():
        base = read_object(file)
    else:
        file = folder / CONFIG_FILE
        base = {"path": read_object(file).get("base_model_name_or_path") or ""}
    names = [base.get(name) or "" for name in ("path", "name", "fingerprint", "quantize")]
    if not all(isinstance(name, str) for name in names) or names[3] not in (
        "",
        *get_args(Quantize),
    ):
        raise Corrupt(f"{file} does not name a base", found=repr(names)[:200])
    return base


def is_adapter(folder: Path) -> bool:
    """Whether a folder says that it is an adapter."""
    return (folder / CONFIG_FILE).is_file()


def _read_tensors(
    file: Path, dora: bool
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Pairs and magnitudes by module; anything but whole, finite, matching ones raises Corrupt."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise UsageError(
            f"{file.parent} has no {WEIGHTS_FILE}",
            do="a pickled adapter_model.bin is not read: open it once with the peft that wrote it "
            "and save it again",
        )
    try:
        loaded = load_file(file)
    except (SafetensorError, OSError) as problem:
        raise Corrupt(f"{file} is not a whole safetensors file", found=str(problem)) from None
    magnitudes = {
        key.removeprefix(PREFIX).removesuffix(MAGNITUDE): loaded.pop(key).float()
        for key in list(loaded)
        if dora and key.endswith(MAGNITUDE)
    }
    _check_numbers(file, loaded | magnitudes)
    halves: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in loaded.items():
        if match := KEY.fullmatch(key):
            halves.setdefault(match[1], {})[match[2]] = tensor.float()
        else:
            unknown.append(key)
    if unknown or not loaded:
        raise Corrupt(
            f"{file} holds something else than low-rank pairs",
            found=", ".join(unknown[:4]) or "nothing",
        )
    pairs = {name: _checked_pair(file, name, pair) for name, pair in halves.items()}
    if dora:
        rows = {name: b.shape[:1] for name, (_, b) in pairs.items()}
        found = {name: magnitude.shape for name, magnitude in magnitudes.items()}
        if wrong := dict(rows.items() ^ found.items()):
            raise Corrupt(f"{file}: magnitudes do not fit their pairs", found=min(wrong))
    return pairs, magnitudes


def _checked_pair(file: Path, name: str, pair: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    problem = ""
    if set(pair) != {"A", "B"}:
        problem = f"only {', '.join(pair)} of A and B"
    elif pair["A"].dim() != 2 or pair["B"].dim() != 2 or pair["A"].shape[0] != pair["B"].shape[1]:
        problem = f"A {list(pair['A'].shape)} and B {list(pair['B'].shape)} do not multiply"
    if problem:
        raise Corrupt(f"{file}: {name} cannot be used", found=problem)
    return pair["A"], pair["B"]


def _check_numbers(file: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor.float()).all()):
            found = f"numbers that are not finite, or not of floating point: {tensor.dtype}"
            raise Corrupt(f"{file}: {name} cannot be used", found=found)


def _check_settings(folder: Path, config: dict[str, Any], dora: bool) -> None:
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


def _check_plausible(folder: Path, config: dict[str, Any]) -> None:
    for name, (least, most) in PLAUSIBLE.items():
        value = config.get(name) or 0
        if type(value) not in (int, float) or not least <= value <= most:
            raise Corrupt(f"{folder}: {name} of the adapter is {config.get(name)!r:.80}")
    if not isinstance(config.get("use_rslora", False), bool | None):
        raise Corrupt(f"{folder}: use_rslora of the adapter is {config['use_rslora']!r:.80}")
