"""Meta's `consolidated.00.pth`, `01`, ...: tensors cut over several files, joined when asked for.

Which side a tensor was cut on follows from its shape and the whole's. Source: the column and row
parallel layers in `llama/model.py` of github.com/meta-llama/llama, and of llama3.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from suri.errors import Corrupt
from suri.model.tensor_files import ALL, Rows, Stored, torch_tensors_in

FIRST = "consolidated.00.pth"
NAME = re.compile(r"consolidated\.(\d\d)\.pth")
IGNORED = "rope.freqs"
"""Buffers of Llama 1, whose name ends so; they follow from params.json."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Joined:
    """A tensor out of the pieces in all files, one after the other along `axis`."""

    pieces: tuple[Stored, ...]
    axis: int
    shape: Shape

    @property
    def dtype(self) -> torch.dtype:
        """The number format of every piece."""
        return self.pieces[0].dtype

    def read(self, rows: Rows = ALL) -> Tensor:
        """As in Stored."""
        if self.axis:
            return torch.cat([piece.read(rows) for piece in self.pieces], self.axis)
        size = self.shape[0] // len(self.pieces)
        if isinstance(rows, list):
            return self._read_each(rows, size)
        start, stop, _ = rows.indices(self.shape[0])
        found = [
            piece.read(slice(max(start - first, 0), min(stop - first, size)))
            for piece, first in zip(self.pieces, range(0, self.shape[0], size), strict=True)
            if start < first + size and first < stop
        ]
        return torch.cat(found) if found else self.pieces[0].read(slice(0))

    def _read_each(self, rows: list[int], size: int) -> Tensor:
        """These rows, of pieces that are cut into so many."""
        found = torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        for number, piece in enumerate(self.pieces):
            if places := [place for place, row in enumerate(rows) if row // size == number]:
                found[places] = piece.read([rows[place] % size for place in places])
        return found


def shard_files(folder: Path) -> list[Path]:
    """consolidated.00.pth and those after it; raises Corrupt where one between them is missing."""
    found = {int(m[1]): p for p in folder.iterdir() if (m := NAME.fullmatch(p.name))}
    if missing := sorted(set(range(max(found, default=0) + 1)) - set(found)):
        raise Corrupt(
            f"{folder}: parts of the model are missing",
            found="no " + ", ".join(f"consolidated.{number:02}.pth" for number in missing),
            do="get all of its consolidated.*.pth",
        )
    return [found[number] for number in sorted(found)]


def joined_tensors(files: list[Path], shape_of: Callable[[str], Shape]) -> dict[str, Stored]:
    """The tensors of all files by Meta's name; `shape_of` gives the shape of the whole.

    A single file is taken as it is. Raises Corrupt for files that do not make one model.
    """
    tables = [torch_tensors_in(file) for file in files]
    for file, table in zip(files, tables, strict=True):
        if strange := set(table) ^ set(tables[0]):
            raise Corrupt(
                f"{file} is a part of another model than {files[0].name}",
                found=", ".join(sorted(strange)[:4]),
            )
    names = [name for name in tables[0] if not name.endswith(IGNORED)]
    if len(files) == 1:
        return {name: tables[0][name] for name in names}
    found: dict[str, Stored] = {}
    for name in names:
        pieces, whole = [table[name] for table in tables], shape_of(name)
        joined = _joined(pieces, whole)
        if joined is None:
            raise Corrupt(
                f"{files[0].parent}: {name} of {len(files)} parts does not make {list(whole)}",
                found=f"{list(pieces[0].shape)} in {files[0].name}",
                do="give the folder all parts of one model, and its own params.json",
            )
        found[name] = joined
    return found


def _joined(pieces: list[Stored], whole: Shape) -> Stored | None:
    """The tensor of that shape: one of its copies, or the pieces along the side that was cut."""
    shape = pieces[0].shape
    if len({(piece.shape, piece.dtype) for piece in pieces}) > 1 or len(shape) != len(whole):
        return None
    if shape == whole:
        return pieces[0]
    for axis in range(len(whole)):
        grown = (*shape[:axis], len(pieces) * shape[axis], *shape[axis + 1 :])
        if grown == whole:
            return Joined(tuple(pieces), axis, whole)
    return None


def embedding_rows(folder: Path, dim: int) -> int:
    """How many tokens the embedding has, for a params.json that does not say; 0 for unknown.

    Llama 1 and 2 cut its columns, Llama 3 its rows.
    """
    name = "tok_embeddings.weight"
    if not (folder / FIRST).is_file():
        return 0
    tables = [torch_tensors_in(file) for file in shard_files(folder)]
    shapes = [table[name].shape for table in tables if name in table]
    if not shapes or any(len(shape) != 2 for shape in shapes):
        return 0
    rows, columns = shapes[0]
    return sum(shape[0] for shape in shapes) if columns == dim else rows
