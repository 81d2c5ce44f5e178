"""The adapter as tensors and as PEFT's folder format, checked before a byte of it is used."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from suri.errors import Corrupt, UsageError
from suri.files import write_bytes, write_json
from suri.manifest import MANIFEST, check_manifest
from suri.model.adapter_settings import check_settings
from suri.model.config import ModelConfig
from suri.model.decoder import Decoder
from suri.model.linear import Linear, LowRank
from suri.model.lora import initial_pair, low_rank, scaling_of
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

MAGNITUDE = ".lora_magnitude_vector"


@dataclass(frozen=True)
class Adapter:
    """Low-rank pairs by HF module name: A [r, in] and B [out, r], fp32.

    `r` and `alpha` are those of most modules; a pair's own rank is its shape's, and `alphas` holds
    the modules with an alpha of their own. `magnitudes` are DoRA's (arXiv:2402.09353): the length
    [out] of every row of the result. Nothing here computes with them.
    """

    r: int
    alpha: float
    targets: tuple[str, ...]
    tensors: Mapping[str, tuple[Tensor, Tensor]]
    dropout: float = 0.0
    rslora: bool = False
    base: dict[str, Any] = field(default_factory=dict)
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    @property
    def scaling(self) -> float:
        """The scaling of the modules without a rank or alpha of their own."""
        return scaling_of(self.alpha, self.r, self.rslora)

    def scaling_of(self, module: str) -> float:
        """The scaling of one module, by its own rank and alpha."""
        return scaling_of(self.alpha_of(module), self.rank_of(module), self.rslora)

    def alpha_of(self, module: str) -> float:
        """The module's own alpha, or that of most."""
        return self.alphas.get(module, self.alpha)

    def rank_of(self, module: str) -> int:
        """The rank of a module's pair."""
        return len(self.tensors[module][0])

    def weight_delta(
        self, module: str, rows: slice = slice(None), onto: Tensor | None = None
    ) -> Tensor:
        """Scaling * B A for these rows of a module's weight, fp32 [rows, in]; added to `onto`."""
        assert not self.magnitudes, "a DoRA adapter is no sum"
        a, b = self.tensors[module]
        return low_rank(b[rows].float(), a.float().t(), self.scaling_of(module), onto)

    def attach(self, decoder: Decoder, *, trainable: bool = False) -> None:
        """Put the pairs into the decoder's linears; raises UsageError listing all misfits."""
        assert not self.magnitudes, "a DoRA adapter is no sum"
        self.check_fits(decoder.config)
        for number, (name, fused, part) in enumerate(decoder.linears()):
            if name in self.tensors:
                self.attach_to(name, fused, part, number).requires_grad_(trainable)

    def attach_to(self, name: str, fused: Linear, part: str, number: int = 0) -> LowRank:
        """Put a module's pair into that part of a linear; `number` marks its dropout."""
        a, b = (tensor.detach().clone().to(fused.device) for tensor in self.tensors[name])
        fused.pairs[part] = pair = LowRank(a, b, self.scaling_of(name), number)
        return pair

    def check_fits(self, config: ModelConfig) -> None:
        """Raise UsageError naming every pair whose module or shape the base does not have."""
        shapes = config.linear_shapes()
        wrong = []
        for name, (a, b) in self.tensors.items():
            number, _, module = name.removeprefix("model.layers.").partition(".")
            out_features, in_features = shapes[module]
            if int(number) >= config.num_layers:
                wrong.append(f"{name}: the base has {config.num_layers} layers")
            elif (b.shape[0], a.shape[1]) != (out_features, in_features):
                wrong.append(f"{name}: {b.shape[0]}x{a.shape[1]} for {out_features}x{in_features}")
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UsageError(
                "the adapter does not fit this base",
                found="; ".join(wrong[:3]) + more,
                do="give the base it was trained on"
                + (f": {self.base['path']}" if self.base.get("path") else ""),
            )


def initial_adapter(
    config: ModelConfig, *, r: int, alpha: float, targets: tuple[str, ...], seed: int,
    dropout: float = 0.0, rslora: bool = False, base: dict[str, Any] | None = None,
) -> Adapter:  # fmt: skip
    """A new adapter whose delta is zero; the same seed gives the same tensors everywhere."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"model.layers.{number}.{module}": initial_pair(shape, r, generator)
        for number in range(config.num_layers)
        for module, shape in config.linear_shapes().items()
        if module.rpartition(".")[2] in targets
    }
    return Adapter(r, alpha, targets, tensors, dropout, rslora, base or {})


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Write PEFT's two files, and base.json with the identity of the base."""
    from safetensors.torch import save

    tensors = {}
    for name, (a, b) in adapter.tensors.items():
        for letter, tensor in (("A", a), ("B", b)):
            key = f"base_model.model.{name}.lora_{letter}.weight"
            tensors[key] = tensor.detach().to("cpu", torch.float32).contiguous()
    ranks = {name: adapter.rank_of(name) for name in adapter.tensors}
    own = {
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != adapter.r},
        "alpha_pattern": dict(adapter.alphas),
    }
    for name, magnitude in adapter.magnitudes.items():
        tensors[f"base_model.model.{name}{MAGNITUDE}"] = magnitude.contiguous()
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


def read_adapter(folder: Path, *, dora: bool = False) -> Adapter:
    """Read a PEFT adapter folder; only low-rank pairs with known names are accepted.

    With `dora` a DoRA adapter's magnitudes are read too: to train on, or to merge by peft. Where
    a run of ours recorded checksums, they are checked: another scaling would go unnoticed.
    """
    if (folder / MANIFEST).is_file() and (folder / BASE_FILE).is_file():
        check_manifest(folder, CONFIG_FILE, WEIGHTS_FILE, BASE_FILE)
    config = _read_config(folder, dora)
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


def _read_config(folder: Path, dora: bool) -> dict[str, Any]:
    if not is_adapter(folder):
        raise UsageError(
            f"{folder} is not an adapter",
            found=f"no {CONFIG_FILE} in it" if folder.is_dir() else "no such folder",
            do="give the output_dir of a finished training",
        )
    config = read_object(folder / CONFIG_FILE)
    check_settings(folder, config, dora)
    return config


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
        key.removeprefix("base_model.model.").removesuffix(MAGNITUDE): loaded.pop(key).float()
        for key in list(loaded)
        if dora and key.endswith(MAGNITUDE)
    }
    _check_numbers(file, loaded | magnitudes)
    unknown = [key for key in loaded if not KEY.fullmatch(key)]
    if unknown or not loaded:
        raise Corrupt(
            f"{file} holds something else than low-rank pairs",
            found=", ".join(unknown[:4]) or "nothing",
        )
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in loaded.items():
        match = KEY.fullmatch(key)
        assert match is not None
        halves.setdefault(match[1], {})[match[2]] = tensor.float()
    pairs = {name: _checked_pair(file, name, pair) for name, pair in halves.items()}
    if dora:
        _check_magnitudes(file, pairs, magnitudes)
    return pairs, magnitudes


def _check_magnitudes(
    file: Path, pairs: dict[str, tuple[Tensor, Tensor]], magnitudes: dict[str, Tensor]
) -> None:
    """Raise Corrupt where not every pair has a finite length for each of its rows."""
    wrong = set(pairs) ^ set(magnitudes)
    for name in set(pairs) & set(magnitudes):
        found = magnitudes[name]
        if found.shape != pairs[name][1].shape[:1] or not bool(torch.isfinite(found).all()):
            wrong.add(name)
    if wrong:
        raise Corrupt(f"{file}: magnitudes do not fit their pairs", found=min(wrong))


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
