"""Writing a merge as Meta's `consolidated.00.pth` and `params.json`, tensor after tensor.

A `.pth` file is a ZIP archive without compression: `archive/data.pkl` is a table of tensors that
points at `archive/data/0`, `1`, ... with their bytes. Source: torch/serialization.py, `_save`.
"""

import io
import math
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suri.errors import UsageError
from suri.export.fold import Merge, Report, fold, silent
from suri.files import write_json
from suri.model.config import SCALED_ROPE, ModelConfig, meta_inner_size
from suri.model.tensor_names import rotary_heads, to_meta, unpermute

STORAGES = {
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}
ALIGNMENT = 64
"""Bytes at whose multiples torch starts each tensor, so that a memory map can be used as it is."""


def write_meta(merge: Merge, folder: Path, report: Report = silent) -> None:
    """Write both files; raises UsageError for a model that Meta's format cannot hold."""
    write_json(folder / "params.json", meta_params(merge.base.config))
    write_archive(folder / "consolidated.00.pth", meta_tensors(merge, report))


def meta_params(config: ModelConfig) -> dict[str, Any]:
    """params.json as Meta's ModelArgs; what equals that loader's default is left out.

    Raises UsageError listing all that Meta's format has no place for.
    """
    if problems := list(_unknown_to_meta(config)):
        raise UsageError(
            "Meta's format cannot hold this model", found="; ".join(problems), do="use --to hf"
        )
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "vocab_size": config.vocab_size,
        "norm_eps": config.norm_eps,
        **_inner_size(config.hidden_size, config.intermediate_size),
    }
    if config.num_kv_heads != config.num_heads:
        params["n_kv_heads"] = config.num_kv_heads
    if config.rope_theta != 10000.0:
        params["rope_theta"] = config.rope_theta
    if config.rope_scaling:
        params["use_scaled_rope"] = True
    return params


def _unknown_to_meta(config: ModelConfig) -> Iterator[str]:
    if config.qkv_bias or config.o_bias or config.mlp_bias:
        yield "its linears have biases"
    if config.qk_norm:
        yield "its queries and keys have norms"
    if config.head_dim * config.num_heads != config.hidden_size:
        yield f"{config.num_heads} heads of {config.head_dim} are not {config.hidden_size} wide"
    if config.sliding_window is not None:
        yield f"its attention ends after {config.sliding_window} tokens"
    scaling = config.rope_scaling
    if scaling and {name: scaling.get(name) for name in SCALED_ROPE} != SCALED_ROPE:
        yield f"its rotary scaling {scaling} is not Llama 3.1's"


def _inner_size(dim: int, inner: int) -> dict[str, float]:
    """multiple_of, and ffn_dim_multiplier where needed, that give `inner` under Meta's formula."""
    multiple = math.gcd(inner, 256)
    if meta_inner_size(dim, multiple, None) == inner:
        return {"multiple_of": multiple}
    # Every product from inner - multiple + 1 to below inner + 1 is rounded to inner: aim between.
    middle = (inner + 1 - multiple / 2) / int(8 * dim / 3)
    multipliers = (round(middle, digits) for digits in range(1, 18))
    multiplier = next(m for m in multipliers if meta_inner_size(dim, multiple, m) == inner)
    return {"multiple_of": multiple, "ffn_dim_multiplier": multiplier}


def meta_tensors(merge: Merge, report: Report = silent) -> Iterator[tuple[str, Tensor]]:
    """Meta's names with merged tensors, rotary rows in Meta's order, a tied head written out."""
    config = merge.base.config
    for done, (name, tensor) in enumerate(fold(merge.base, merge.adapter, merge.dtype), 1):
        report("folding", done, len(merge.base))
        heads = rotary_heads(name, config)
        yield to_meta(name), unpermute(tensor, heads) if heads else tensor
        if config.tied_head and name == "model.embed_tokens.weight":
            yield "output.weight", tensor


def write_archive(file: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write what `torch.save(dict(tensors), file)` would, holding one tensor at a time."""
    table = {}
    with file.open("wb") as stream, zipfile.ZipFile(stream, "w") as archive:
        for number, (name, tensor) in enumerate(tensors):
            table[name] = _Pickled(
                _Storage(str(number), tensor.dtype, tensor.numel()), tensor.shape
            )
            content = tensor.contiguous().view(torch.uint8).numpy()
            _add_record(archive, stream.tell(), f"data/{number}", content.data)
        _add_record(archive, stream.tell(), "data.pkl", _pickle(table))
        _add_record(archive, stream.tell(), "byteorder", sys.byteorder.encode())
        _add_record(archive, stream.tell(), "version", b"3\n")


def _add_record(
    archive: zipfile.ZipFile, place: int, name: str, content: bytes | memoryview
) -> None:
    """Append one stored file whose bytes start at a multiple of ALIGNMENT."""
    entry = zipfile.ZipInfo(f"archive/{name}")
    # Local header 30 bytes, the name, 20 bytes for sizes of 64 bits, 4 that open the padding.
    header = 30 + len(entry.filename) + 20 + 4
    padding = -(place + header) % ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    with archive.open(entry, "w", force_zip64=True) as record:
        record.write(content)


@dataclass(frozen=True)
class _Storage:
    """Stands in the pickle for the bytes of record `key`."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class _Pickled:
    """Pickles as torch pickles a contiguous tensor, without its bytes."""

    storage: _Storage
    shape: tuple[int, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        strides = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        hooks: OrderedDict[str, Any] = OrderedDict()
        arguments = (self.storage, 0, tuple(self.shape), tuple(strides), False, hooks)
        return torch._utils._rebuild_tensor_v2, arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return "storage", STORAGES[obj.dtype], obj.key, "cpu", obj.numel
        return None


def _pickle(table: dict[str, _Pickled]) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, protocol=2).dump(table)
    return stream.getvalue()
