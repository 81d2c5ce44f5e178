"""`suri generate`: a file of instructions answered, going on where it was stopped."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from suri.cli.flags import parse
from suri.data.records import Record, read_records
from suri.errors import Corrupt, UsageError
from suri.files import append_json_line, make_folder, write_text
from suri.manifest import sha256
from suri.reading import read_json_lines
from suri.recipe import EMBEDDED, Decoding
from suri.wording import counted

if TYPE_CHECKING:
    from suri.infer.engines import Model

AT_ONCE = 16
"""Rows answered between two lines of progress, and kept together when it is stopped."""


@dataclass(frozen=True, kw_only=True)
class File:
    """Answer a file of instructions."""

    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """File of rows in any format that training reads; `output` may be missing."""
    model: str = EMBEDDED
    """Run, adapter, model folder, GGUF file or hub id; with --lora_weights the base."""
    lora_weights: str = ""
    """Folder of the adapter."""
    load_8bit: bool = False
    """Store the linear layers as int8: less memory, a little less exact."""
    output_path: str = ""
    """File for the answers, one JSON object on each line ("": FILE.answers.jsonl)."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where torch can use one."""
    decoding: tyro.conf.OmitArgPrefixes[Decoding] = field(default_factory=Decoding)


def run_generate(argv: list[str]) -> None:
    """Parse `suri generate FILE` and write one line {instruction, input, answer} for each row.

    Answers stand in FILE.answers.jsonl.partial until all are there; the same command after a stop
    begins behind the last whole batch.
    """
    asked = parse(File, argv, "suri generate")
    records = read_records(asked.file, need_output=False)
    out = Path(asked.output_path or asked.file.with_suffix(".answers.jsonl"))
    if out.exists():
        raise UsageError(
            f"{out} exists already", do="choose another --output_path, or remove that file first"
        )
    make_folder(out.parent)
    partial, key = out.with_name(out.name + ".partial"), _key(asked)
    kept = _kept(partial, key)
    if kept:
        print(f"there already: {counted(len(kept), 'answer|answers')}")
    write_text(partial, _lines([{"of": key}, *kept]))
    model = _opened(asked)
    for row in _answers(model, records[len(kept) :], asked.decoding, len(kept)):
        append_json_line(partial, row)
        kept.append(row)
    write_text(out, _lines(kept))
    partial.unlink()
    print(f"{counted(len(kept), 'answer|answers')}: {out}")


def _opened(asked: File) -> "Model":
    from suri.infer.engines import open_model

    print(f"opening {asked.model}", flush=True)
    return open_model(
        asked.model,
        lora_weights=asked.lora_weights,
        load_8bit=asked.load_8bit,
        device=asked.device,
    )


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _key(asked: File) -> str:
    """What two calls must have alike for their answers to stand in one file."""
    names = [name for name in (asked.model, asked.lora_weights) if name]
    folders = [Path(name).expanduser() for name in names]
    files = [file for folder in folders for file in (*folder.glob("*"), folder) if file.is_file()]
    seen = sorted(f"{f.absolute()} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files)
    settings = asdict(asked.decoding) | {"load_8bit": asked.load_8bit, "device": asked.device}
    words = [sha256(asked.file), asked.model, asked.lora_weights, json.dumps(settings), *seen]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _kept(partial: Path, key: str) -> list[dict[str, Any]]:
    """The whole batches that a stopped call with the same key has answered."""
    try:
        first, *rows = read_json_lines(partial) or [{}]
    except Corrupt:
        return []
    return rows[: len(rows) // AT_ONCE * AT_ONCE] if first == {"of": key} else []


def _answers(
    model: "Model", records: Sequence[Record], decoding: Decoding, before: int
) -> Iterator[dict[str, Any]]:
    """Answer in the order of the file, and print how far it is; `before` were answered earlier."""
    began, tokens = time.perf_counter(), 0
    for start in range(0, len(records), AT_ONCE):
        batch = records[start : start + AT_ONCE]
        for record, answer in zip(batch, model.answer(batch, decoding), strict=True):
            tokens += answer.tokens
            row = {"instruction": record.instruction, "input": record.input}
            yield row | {"answer": answer.text}
        done, seconds = start + len(batch), time.perf_counter() - began
        left = seconds / done * (len(records) - done)
        speed = f"{tokens / seconds:.1f} tokens/s, {left:.0f} s left"
        print(f"{before + done}/{before + len(records)} rows, {speed}", flush=True)
