"""Tensors inside weight files, each read when asked for and by rows where only some are needed.

Plain reads, no memory maps: the pages of a map stay counted as the process's memory, and a model
of 13 GB would seem to need them all.
"""

import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from suri.errors import Corrupt

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
"""Names of number formats in safetensors' headers."""
Rows = slice | list[int]
ALL = slice(None)


class Stored(Protocol):
    """One tensor on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Its number format."""
        ...

    def read(self, rows: Rows = ALL) -> Tensor:
        """A new tensor with these rows."""
        ...


@dataclass(frozen=True)
class SafeTensor:
    """A tensor of a safetensors file, whose bytes start at `place`."""

    file: Path
    place: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, rows: Rows = ALL) -> Tensor:
        """As in Stored."""
        if isinstance(rows, list):
            return torch.cat([self.read(slice(row, row + 1)) for row in rows])
        shape, place = self.shape, self.place
        if shape:
            start, stop, _ = rows.indices(shape[0])
            place += start * math.prod(shape[1:]) * self.dtype.itemsize
            shape = (max(0, stop - start), *shape[1:])
        count = math.prod(shape) * self.dtype.itemsize
        content = np.fromfile(self.file, np.uint8, count, offset=place)
        if len(content) != count:
            raise Corrupt(f"{self.file} has become shorter while it was read")
        return torch.from_numpy(content).view(self.dtype).reshape(shape)


@dataclass(frozen=True)
class TorchTensor:
    """A tensor of a `.bin` or `.pth` file, which is mapped for each reading and let go after it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, rows: Rows = ALL) -> Tensor:
        """As in Stored."""
        tensor = load_torch_file(self.file)[self.name]
        return (tensor[rows] if tensor.dim() else tensor).clone()


def safetensors_in(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file; raises Corrupt where it is not a whole one.

    Header: 8 bytes with its length, little endian, then JSON. Source:
    github.com/huggingface/safetensors, Format; the library itself checks it first.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as checked:
            names = list(checked.offset_keys())
    except (SafetensorError, OSError) as problem:
        raise Corrupt(f"{file} is not a whole safetensors file", found=str(problem)) from None
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    found: dict[str, Stored] = {}
    for name in names:
        entry = header[name]
        if entry["dtype"] not in DTYPES:
            raise Corrupt(f"{file}: {name} holds numbers of an unknown kind", found=entry["dtype"])
        place = 8 + length + entry["data_offsets"][0]
        found[name] = SafeTensor(file, place, tuple(entry["shape"]), DTYPES[entry["dtype"]])
    return found


def write_safetensors(
    file: Path,
    entries: Sequence[tuple[str, tuple[int, ...], torch.dtype]],
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    """Write tensors of these names, shapes and formats, in this order, one in memory at a time.

    After the header, padded to a multiple of 8, come the bytes of the tensors.
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape, dtype in entries:
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": codes[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for entry, (name, tensor) in zip(entries, tensors, strict=True):
            assert entry == (name, tuple(tensor.shape), tensor.dtype)
            stream.write(tensor.contiguous().view(torch.uint8).numpy().data)


def torch_tensors_in(file: Path) -> dict[str, Stored]:
    """The tensors of a `.bin` or `.pth` file; raises Corrupt where it holds anything else."""
    return {
        name: TorchTensor(file, name, tuple(tensor.shape), tensor.dtype)
        for name, tensor in load_torch_file(file).items()
    }


def load_torch_file(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin` or `.pth` file, memory mapped; nothing in it is executed."""
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as problem:  # torch raises many kinds for a broken archive
        raise Corrupt(
            f"{file} is not a file of plain tensors",
            found=str(problem).splitlines()[0][:200],
            do="get the file again; a file in the format before torch 1.6 must be saved anew",
        ) from None
    if not isinstance(content, dict):
        raise Corrupt(f"{file} holds no table of tensors", found=type(content).__name__)
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}
