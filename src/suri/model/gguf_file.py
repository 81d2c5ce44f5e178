"""The header of a GGUF file, read within bounds, and its tensors without loading the others.

Counts and lengths of a file from outside decide nothing before they are held against its size.
Source: github.com/ggml-org/ggml, docs/gguf.md.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suri.errors import Corrupt, UsageError

MAGIC, VERSIONS = b"GGUF", (2, 3)
MOST_DIMENSIONS, MOST_DEPTH, MOST_ENTRIES = 4, 2, 2**24
STRING, ARRAY = 8, 9
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""GGUF's value types and how `struct` calls them, little endian."""
PLAIN = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
"""GGML's tensor types that torch has, too."""
SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
"""What special tokens are called in HF's files, and in GGUF's keys."""


@dataclass(frozen=True)
class Entry:
    """One tensor: GGML type, shape [out, in] as torch has it, and where its bytes lie."""

    kind: int
    shape: tuple[int, ...]
    start: int
    size: int


class GgufFile:
    """A GGUF file: `values` by key, `tensors` by name. Its tensors are read one by one.

    Raises Corrupt for a file that is not whole, UsageError for a version or tensor type that is
    not known here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as stream:
            start = stream.read(8)
            if len(start) < 8 or start[:4] != MAGIC:
                raise Corrupt(f"{path} is not a GGUF file", found=repr(start[:4]))
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        if (version := struct.unpack("<I", start[4:])[0]) not in VERSIONS:
            raise UsageError(f"{path}: GGUF of version {version}", do="versions 2 and 3 are read")
        try:
            self.values, self.tensors = _read_header(_Cursor(self._bytes, 8))
        except (struct.error, ValueError, TypeError, KeyError, OverflowError) as problem:
            raise Corrupt(f"{path} is not a whole GGUF file", found=str(problem)) from None

    def special_ids(self) -> dict[str, int]:
        """The ids of special tokens by HF's names (SPECIAL), of those that the file names."""
        found = {n: self.values.get(f"tokenizer.ggml.{key}_token_id") for n, key in SPECIAL.items()}
        return {name: i for name, i in found.items() if isinstance(i, int)}

    def tensor(self, name: str) -> Tensor:
        """A tensor as stored, a view of the file where torch has its type; else dequantised, fp32.

        Raises UsageError for a type that gguf's `dequantize` does not know.
        """
        entry = self.tensors[name]
        content = memoryview(self._bytes)[entry.start : entry.start + entry.size]
        if entry.kind in PLAIN:
            return _view(content, PLAIN[entry.kind]).view(entry.shape)
        import numpy as np
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType(entry.kind)
        try:
            with np.errstate(all="ignore"):  # what is not finite is found by who uses it
                values = dequantize(np.frombuffer(content, np.uint8), kind)
        except NotImplementedError:
            raise UsageError(
                f"{self.path}: {name} is stored as {kind.name}, which is not read here",
                do="give the model in F16, BF16, F32, Q8_0, Q4_K or another type that is",
            ) from None
        return torch.from_numpy(np.array(values, dtype=np.float32)).view(entry.shape)


def _view(content: memoryview, dtype: torch.dtype) -> Tensor:
    import warnings

    with warnings.catch_warnings():
        # torch warns that nobody may write into a mapped file, and nobody does.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(content, dtype=dtype)


class _Cursor:
    """Reads forward and never past the end."""

    def __init__(self, content: mmap.mmap, place: int) -> None:
        self.content, self.place = content, place

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self.content) - self.place:
            raise ValueError(f"it ends at byte {len(self.content)}, within its header")
        self.place += size
        return self.content[self.place - size : self.place]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, least: int) -> int:
        """How many things of `least` bytes or more follow; the rest of the file must have room."""
        count = int(self.number("Q"))
        if count > MOST_ENTRIES or count * least > len(self.content) - self.place:
            raise ValueError(f"it announces {count} entries, more than it has room for")
        return count

    def text(self) -> str:
        return self.take(self.count(1)).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(SCALARS[kind])
        if depth == MOST_DEPTH:
            raise ValueError("lists in lists in lists")
        inner = int(self.number("I"))
        if inner in SCALARS:
            count = self.count(struct.calcsize(f"<{SCALARS[inner]}"))
            size = struct.calcsize(f"<{count}{SCALARS[inner]}")
            return list(struct.unpack(f"<{count}{SCALARS[inner]}", self.take(size)))
        return [self.value(inner, depth + 1) for _ in range(self.count(8))]


def _read_header(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, Entry]]:
    tensor_count, value_count = cursor.count(1), cursor.count(1)
    values: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.text()
        if key in values:
            raise ValueError(f"{key} is there twice")
        values[key] = cursor.value(int(cursor.number("I")))
    described = [_tensor_entry(cursor) for _ in range(tensor_count)]
    alignment = int(values.get("general.alignment", 32))
    if alignment < 8 or alignment % 8:
        raise ValueError(f"its alignment is {alignment}")
    start = cursor.place + -cursor.place % alignment
    tensors: dict[str, Entry] = {}
    end = 0
    for name, kind, shape, offset in described:
        size = _stored_bytes(kind, shape)
        # One after the other, as llama.cpp has it too: elsewhere are other tensors' numbers.
        if name in tensors or offset != end or start + offset + size > len(cursor.content):
            raise ValueError(f"{name} is there twice, starts elsewhere or ends after the file")
        tensors[name] = Entry(kind, shape, start + offset, size)
        end += size + -size % alignment
    return values, tensors


def _tensor_entry(cursor: _Cursor) -> tuple[str, int, tuple[int, ...], int]:
    name, dimensions = cursor.text(), int(cursor.number("I"))
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise ValueError(f"{name} has {dimensions} dimensions")
    shape = tuple(int(cursor.number("Q")) for _ in range(dimensions))[::-1]
    if min(shape) < 1:
        raise ValueError(f"{name} is empty")
    return name, int(cursor.number("I")), shape, int(cursor.number("Q"))


def _stored_bytes(kind: int, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; quantised rows are whole blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = map(int, GGML_QUANT_SIZES[GGMLQuantizationType(kind)])
    if shape[-1] % block:
        raise ValueError(f"a row of {shape[-1]} numbers is not made of blocks of {block}")
    return math.prod(shape) // block * size
