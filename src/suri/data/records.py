"""Rows as people write them: Alpaca records read from and written to JSON or JSON lines."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from suri.errors import DataError, UsageError
from suri.files import write_json, write_text

SHOWN_PROBLEMS = 20
EXPECTED = 'one record is {"instruction": "...", "input": "...", "output": "..."}'


@dataclass(frozen=True)
class Record:
    """One instruction with its answer; `skill` names the rule that checks the answer, if any.

    `history` holds the (question, answer) turns of a conversation before the instruction, `system`
    the text that a conversation opens with.
    """

    instruction: str
    input: str
    output: str
    skill: str = ""
    history: tuple[tuple[str, str], ...] = ()
    system: str = ""


def read_records(path: Path, *, need_output: bool = True) -> list[Record]:
    """Read a JSON list or JSON lines, whichever the content is.

    `input` may be missing or null, `output` too unless `need_output`; a number is taken as it is
    written. Keys other than the record's own are ignored.

    Raises UsageError when the file is not there or may not be read, and DataError when its content
    is not Alpaca rows: every problem is counted, the first 20 are named.
    """
    rows = _parse(_read_text(path), path)
    if not rows:
        raise DataError(f"{path} holds no rows", do=f"write at least one; {EXPECTED}")
    required = ("instruction", "output") if need_output else ("instruction",)
    problems = [
        f"{where}: {problem}" for where, row in rows for problem in _row_problems(row, required)
    ]
    if problems:
        shown = problems[:SHOWN_PROBLEMS]
        hidden = len(problems) - len(shown)
        raise DataError(
            f"{path}: {len(problems)} problem{'s' * (len(problems) > 1)} in {len(rows)} rows",
            found="\n         ".join([*shown, f"and {hidden} more"] if hidden else shown),
            do=EXPECTED,
        )
    return [_record(row) for _, row in rows]


def write_records(path: Path, records: list[Record]) -> None:
    """Write a JSON list, or JSON lines if the name ends in .jsonl; an empty skill is left out."""
    rows = [{k: v for k, v in asdict(r).items() if v or k != "skill"} for r in records]
    if path.suffix == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        write_json(path, rows)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file", do="check the path of the data") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, and a file of rows is needed") from None
    except OSError as problem:
        raise UsageError(f"{path} cannot be read", found=problem.strerror or "") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise DataError(
            f"{path} is not UTF-8 text",
            found=f"byte 0x{data[problem.start]:02x} in line {line}",
            do="save the file as UTF-8",
        ) from None


def _parse(text: str, path: Path) -> list[tuple[str, Any]]:
    """The rows, each with the name of its place: a line of JSON lines or a record of a list."""
    # Only \n ends a line: the other separators of str.splitlines may stand inside a JSON string.
    lines = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if lines and _is_object(lines[0][1]):
        return [(f"line {i}", _load(line, path, line=i)) for i, line in lines]
    value = _load(text, path) if lines else []
    if not isinstance(value, list):
        raise DataError(
            f"{path} is neither a JSON list nor JSON lines",
            found=f"{_kind(value)} at the top",
            do=f"put the records in a list, or one on each line; {EXPECTED}",
        )
    return [(f"record {i}", row) for i, row in enumerate(value, start=1)]


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _load(text: str, path: Path, line: int = 1) -> Any:
    """Parse JSON that starts in `line`; numbers stay the text that was written."""
    try:
        return json.loads(text, parse_int=str, parse_float=str)
    except json.JSONDecodeError as problem:
        raise DataError(
            f"{path}: not JSON at line {line + problem.lineno - 1}, column {problem.colno}",
            found=problem.msg,
            do="mend that place, or write the file with a JSON library",
        ) from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply to be rows", do=EXPECTED) from None


def _row_problems(row: Any, required: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(row, dict):
        yield f"{_kind(row)} instead of an object"
        return
    for key in ("instruction", "input", "output", "skill"):
        value = row.get(key)
        if value is None:
            if key in required:
                yield f"{key} is {'null' if key in row else 'missing'}"
        elif not isinstance(value, str):
            yield f"{key} is {_kind(value)} instead of text"
        elif key == "instruction" and not value.strip():
            yield "instruction is empty"
        elif not _is_unicode(value):
            yield f"{key} holds half of a surrogate pair, which is not text"


def _record(row: dict[str, Any]) -> Record:
    instruction, given, output, skill = (
        row.get(key) or "" for key in ("instruction", "input", "output", "skill")
    )
    return Record(instruction, given, output, skill)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    """What JSON calls the value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {dict: "an object", list: "a list", str: "text", float: "a number"}
    return names[type(value)]
