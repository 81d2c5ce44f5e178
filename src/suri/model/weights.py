"""Finding a base and opening its weights, whatever their format, as a lazy mapping."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suri.errors import Corrupt, UsageError
from suri.model.adapter_file import base_of
from suri.model.config import ModelConfig, read_config
from suri.model.embedded import embedded_base
from suri.model.gguf_base import gguf_base, gguf_file
from suri.model.meta_shards import FIRST, joined_tensors, shard_files
from suri.model.tensor_files import ALL, Rows, Stored, safetensors_in, torch_tensors_in
from suri.model.tensor_names import from_meta, permute, rotary_heads
from suri.reading import is_file, read_object, well_formed
from suri.recipe import EMBEDDED

IGNORED = "rotary_emb.inv_freq"
"""Buffers that folders of 2023 carry beside the weights; they follow from the configuration."""


class Weights(Mapping[str, Tensor]):
    """The tensors of a base by HF name; each is read when it is asked for."""

    def __init__(self, stored: dict[str, Stored], files: list[Path]) -> None:
        self._stored = {name: one for name, one in stored.items() if not name.endswith(IGNORED)}
        self.files = files

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def stored(self, name: str) -> Stored:
        """A tensor's shape and number format, and its rows, without reading the rest."""
        return self._stored[name]


LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILES = ("*.json", "*.jinja", "tokenizer.model")


def find_base(name: str) -> Path:
    """The folder of a base: `embedded`, a path, or a hub id; spaces around it are ignored.

    A GGUF file, or a folder with one, gives the folder that was made of it.
    """
    if name.strip() == EMBEDDED:
        return embedded_base()
    folder = _place(name)
    if gguf_file(folder):
        return gguf_base(folder)
    if folder.is_dir():
        return folder
    if HUB_ID.fullmatch(name.strip()):
        return _from_hub(name.strip())
    raise UsageError(
        f"{folder}: no such model folder",
        do="give a folder with config.json and weights, a GGUF file, a hub id, or `embedded`",
    )


def _place(name: str) -> Path:
    """The path that a name means; raises UsageError for one that no file can have."""
    try:
        place = Path(name.strip()).expanduser()
        place.is_dir()
    except (RuntimeError, OSError, ValueError) as problem:
        raise UsageError(f"{name[:80]!r} is no path here", found=str(problem)[:80]) from None
    return place


def _from_hub(name: str) -> Path:
    """The snapshot of a hub id, from the local cache or downloaded; no code of it is fetched."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(
                snapshot_download(name, allow_patterns=[*HUB_FILES, "pytorch_model*.bin"])
            )
    except Exception as problem:  # network, names, rights: the library has an error for each
        raise UsageError(
            f"{name}: no such folder here, and it could not be had from the hub",
            found=str(problem).splitlines()[0][:200],
            do="check the name and the network, or give the folder of a model",
        ) from None
    return folder


def recorded_base(adapter_folder: Path) -> Path:
    """The base that an adapter names; the embedded one is found wherever it lies now."""
    recorded = base_of(adapter_folder)
    path = str(recorded.get("path") or "")
    if path and _place(path).is_dir():
        return _place(path)
    if EMBEDDED in (path, recorded.get("name")):
        return embedded_base()
    if (name := str(recorded.get("name") or "")) and gguf_file(_place(name)):
        return gguf_base(_place(name))
    raise UsageError(
        f"the base of the adapter {adapter_folder} is not here",
        found=f"recorded as {path}" if path else "the adapter names none",
        do="name its folder with --base_model (to chat, add --lora_weights for the adapter)",
    )


def base_identity(folder: Path, quantize: str, name: str = "") -> dict[str, Any]:
    """What an adapter records of its base: name, where it was, what it is, how it was stored.

    The fingerprint is the sha256 of every tensor's name and shape, and of the bytes of the last
    norm and of eight rows of the first q_proj; it is the same in every file format.
    """
    weights = open_weights(folder)
    digest = hashlib.sha256()
    for tensor in sorted(weights):
        digest.update(f"{tensor} {list(weights.stored(tensor).shape)}\n".encode())
    for tensor, rows in (
        ("model.norm.weight", None),
        ("model.layers.0.self_attn.q_proj.weight", 8),
    ):
        if tensor in weights:
            sample = weights.stored(tensor).read(slice(rows)).contiguous()
            digest.update(sample.view(torch.uint8).numpy().tobytes())
    return {
        "name": name,
        "path": str(folder.resolve()),
        "fingerprint": digest.hexdigest(),
        "quantize": quantize,
    }


def open_weights(folder: Path) -> Weights:
    """Map a base's tensors by HF name, from safetensors, `.bin` shards or Meta's `.pth`."""
    for stem, ending, tensors_in in (
        ("model", "safetensors", safetensors_in),
        ("pytorch_model", "bin", torch_tensors_in),
    ):
        if files := _shards(folder, stem, ending):
            found = {name: one for file in files for name, one in tensors_in(file).items()}
            return Weights(found, files)
    if (folder / FIRST).is_file():
        return _open_meta(folder)
    raise UsageError(
        f"{folder} holds no weights",
        found=", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "an empty folder",
        do="it needs model*.safetensors, pytorch_model*.bin or consolidated.00.pth",
    )


def check_layers(weights: Iterable[str], config: ModelConfig, folder: Path) -> None:
    """Raise Corrupt for layers beyond those of the configuration: a model without them is cut."""
    numbers = {int(found[1]) for name in weights if (found := LAYER.match(name))}
    if max(numbers, default=0) >= config.num_layers:
        raise Corrupt(
            f"{folder}: the weights have more layers than the configuration",
            found=f"{max(numbers) + 1} where it says {config.num_layers}",
        )


def _shards(folder: Path, stem: str, ending: str) -> list[Path]:
    """The files that an index names, or the single file, or nothing."""
    index = folder / f"{stem}.{ending}.index.json"
    if not index.is_file():
        single = folder / f"{stem}.{ending}"
        return [single] if single.is_file() else []
    with well_formed(index):
        names = sorted(set(read_object(index)["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    missing = [name for name in names if not is_file(folder / name)]
    if outside or missing:
        raise Corrupt(
            f"{index} names files that are not in its folder", found=", ".join(outside or missing)
        )
    return [folder / name for name in names]


@dataclass(frozen=True)
class _Turned:
    """A q or k of Meta's, whose rows are given in HF's order."""

    stored: Stored
    heads: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.stored.dtype

    def read(self, rows: Rows = ALL) -> Tensor:
        return permute(self.stored.read(), self.heads)[rows]


def _open_meta(folder: Path) -> Weights:
    """Meta's names and rotary order, given as HF's."""
    config = read_config(folder)
    files = shard_files(folder)
    found: dict[str, Stored] = {}
    for meta_name, stored in joined_tensors(files, partial(_meta_shape, config)).items():
        name = from_meta(meta_name)
        heads = rotary_heads(name, config)
        found[name] = _Turned(stored, heads) if heads else stored
    return Weights(found, files)


def _meta_shape(config: ModelConfig, meta_name: str) -> tuple[int, ...]:
    """The shape that a tensor of Meta's has in the whole model."""
    name = from_meta(meta_name).removesuffix(".weight")
    if name in ("model.embed_tokens", "lm_head"):
        return config.vocab_size, config.hidden_size
    module = ".".join(name.split(".")[3:])
    return config.linear_shapes().get(module, (config.hidden_size,))
