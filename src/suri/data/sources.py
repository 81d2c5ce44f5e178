"""Raw rows from files of every format, one at a time, whatever the size of the file."""

import codecs
import csv
import re
from collections.abc import Iterator
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from suri.data.findings import ROW, Findings
from suri.data.json_rows import LONGEST, Number, Rows, read_json_rows
from suri.errors import DataError, UsageError
from suri.reading import no_such

EXTRA = "pip install 'suri[data]'"
NOT_UTF8 = re.compile("[\udc80-\udcff]")
CsvLine = tuple[str, list[str]]
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt")
ARCHIVES = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zX": "xz"}


def read_rows(source: str, findings: Findings) -> Rows:
    """Yield the rows of a file, of a folder or of a data set on the hub.

    A file may be a JSON list, JSON lines, CSV, TSV or Parquet. Problems of the file are added to
    `findings`; where it can be read on it is. Memory does not grow with the file, but for a JSON
    record.

    Raises UsageError where there is no such thing, or the library that reads it is missing.
    """
    path = Path(source)
    if path.is_dir():
        return _data_set(source)
    is_file = path.exists() or path.parent.is_dir() or path.suffix in SUFFIXES
    if not is_file and HUB_ID.fullmatch(source):
        return _data_set(source)
    try:
        with path.open("rb") as stream:
            start = stream.read(64).lstrip(codecs.BOM_UTF8)
    except FileNotFoundError:
        raise no_such(path, "file") from None
    except OSError as problem:
        raise UsageError(f"{path} cannot be read", found=problem.strerror or "") from None
    for magic, name in ARCHIVES.items():
        if start.startswith(magic):
            findings.add("packed", found=name)
            return iter(())
    if start.startswith(b"PAR1") or path.suffix == ".parquet":
        return _parquet(path, findings)
    return _text_file(path, findings)


def _text_file(path: Path, findings: Findings) -> Rows:
    with path.open("rb") as stream:
        if stream.read(3) == codecs.BOM_UTF8:
            findings.add("bom")
        else:
            stream.seek(0)
        if path.suffix.lower() in (".csv", ".tsv"):
            yield from _csv(stream, findings)
        else:
            yield from read_json_rows(stream, findings)


def _csv(stream: BinaryIO, findings: Findings) -> Rows:
    """CSV or TSV with a header, RFC 4180; the separator is the one that the header has most of."""
    # Bytes that are no UTF-8 become single surrogates, which no valid text holds.
    with TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="") as text:
        names = next(text, "")
        separator = max(",;\t", key=names.count)
        header: list[str] = []
        for place, row in _csv_lines(chain([names], text), separator, findings):
            if any(NOT_UTF8.search(cell) for cell in row):
                findings.add("not-utf8", place)
            elif not header:
                header = [name.strip() for name in row]
            elif len(row) != len(header):
                findings.add("columns", place, found=f"{len(row)} instead of {len(header)}")
            else:
                yield place, dict(zip(header, row, strict=True))


def _csv_lines(lines: Iterator[str], separator: str, findings: Findings) -> Iterator[CsvLine]:
    """The fields of each record, with the line where it starts; blank lines are passed."""
    csv.field_size_limit(LONGEST)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as problem:
            findings.add("not-csv", place, found=str(problem))
            continue
        if row is None:
            return
        if row:
            yield place, row


def _parquet(path: Path, findings: Findings) -> Rows:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UsageError(f"reading {path} needs the package pyarrow", do=EXTRA) from None
    try:
        with ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=1000))
            for number, row in enumerate((row for batch in batches for row in batch), start=1):
                yield f"record {number}", _plain(row)
    except (pyarrow.ArrowException, OSError) as problem:
        findings.add("not-parquet", found=str(problem))


def _data_set(source: str) -> Rows:
    """A folder or a hub id through the `datasets` library; scripts in it are never run."""
    try:
        import datasets
    except ImportError:
        raise UsageError(f"reading {source} needs the package datasets", do=EXTRA) from None
    folder = Path(source)
    datasets.disable_progress_bars()
    try:
        if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(source)
        else:
            found = datasets.load_dataset(source)
    except Exception as problem:  # whatever the library meets: no network, no such name, a script
        raise UsageError(
            f"{source} could not be read as a data set",
            found=str(problem).partition("\n")[0][:200] or type(problem).__name__,
            do="check the name and the network, or give a file of rows",
        ) from None
    if isinstance(found, dict):
        if "train" not in found and len(found) != 1:
            raise DataError(f"{source} has no split `train`", found=", ".join(found), do=ROW)
        found = found.get("train") or next(iter(found.values()))
    return ((f"record {number}", _plain(row)) for number, row in enumerate(found, start=1))


def _plain(value: Any) -> Any:
    """Values as JSON would have given them."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Number(value)
    return value
