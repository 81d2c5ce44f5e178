"""Rows as people write them, in any common form, become records; every problem has its place."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from suri.data.findings import Findings
from suri.data.json_rows import Doubled, Number, kind_of
from suri.data.sources import read_rows
from suri.errors import UsageError
from suri.files import replacing

TEXTS = ("instruction", "input", "output", "skill", "system")
CONVERSATIONS = ("messages", "conversations")
FIELDS = (*TEXTS, "history", *CONVERSATIONS)
ROLES = {
    "user": "user", "human": "user", "system": "system",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "bot": "assistant",
}  # fmt: skip
"""What ShareGPT's and the chat completion format's roles mean."""

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
NO_INPUT = re.compile(r"\s*[<(\[]?\s*no[\s_-]?input\s*[>)\]]?\.?\s*", re.IGNORECASE)
MERGED = re.compile(r"\n\s*#+\s*\d+\s*\.\s*Instruction\s*:", re.IGNORECASE)

Note = Callable[..., None]
"""Takes a kind of finding, the field and what was found in it."""


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

    @property
    def question(self) -> tuple[object, ...]:
        """All that is known before the answer."""
        return self.instruction, self.input, self.history, self.system


def read_columns(text: str) -> dict[str, str]:
    """Read `instruction=question,output=answer`: our name and the file's, of each column.

    Raises UsageError when a part is not of that form or names no field of a record.
    """
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    columns = {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
    for ours, theirs in columns.items():
        if ours not in FIELDS or not theirs:
            raise UsageError(
                f"--columns {text}: {ours!r} is not a column that is read",
                do=f"write OURS=THEIRS with one of {', '.join(FIELDS)} for OURS",
            )
    return columns


def stream_records(
    source: str, findings: Findings, *, columns: str = "", need_output: bool = True
) -> Iterator[tuple[str, Record]]:
    """Yield each row that can be used, with its place; the others are added to `findings`.

    A row is Alpaca's `instruction`, `input`, `output`, or a conversation: `messages` (role,
    content) or ShareGPT's `conversations` (from, value). `input` may be missing or null, `output`
    too unless `need_output`. Other keys are ignored.
    """
    names = {name: name for name in FIELDS} | read_columns(columns)
    for place, row in read_rows(source, findings):
        findings.rows += 1
        record = _record(row, names, need_output, partial(_add, findings, place))
        if record is not None:
            yield place, record
    if not findings.rows and not findings.fatal:
        findings.add("no-rows")


def read_records(
    source: str | Path, *, columns: str = "", need_output: bool = True
) -> list[Record]:
    """All records of a source that fit in memory; see `stream_records`.

    Raises UsageError when the source is not there or may not be read, and DataError when a row
    cannot be used: all problems are counted, the first 20 named.
    """
    findings = Findings()
    rows = stream_records(str(source), findings, columns=columns, need_output=need_output)
    records = [record for _, record in rows]
    findings.raise_if_fatal(str(source))
    return records


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a JSON list, or JSON lines if the name ends in .jsonl; empty extras are left out."""
    start, between, end = ("", "\n", "\n") if path.suffix == ".jsonl" else ("[\n", ",\n", "\n]\n")
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(start)
        for number, record in enumerate(records):
            stream.write(
                (between if number else "") + json.dumps(as_row(record), ensure_ascii=False)
            )
        stream.write(end)


def as_row(record: Record) -> dict[str, Any]:
    """The record as a row in Alpaca's format."""
    always = ("instruction", "input", "output")
    return {key: value for key, value in vars(record).items() if value or key in always}


def _add(findings: Findings, place: str, kind: str, field: str = "", found: str = "") -> None:
    findings.add(kind, place, field, found)


def _record(row: Any, names: dict[str, str], need_output: bool, note: Note) -> Record | None:
    """The record of a row, or None where the row cannot be used."""
    if not isinstance(row, dict):
        note("not-an-object", found=kind_of(row))
        return None
    if isinstance(row, Doubled):
        note("twice")
    talk = [names[name] for name in CONVERSATIONS if names[name] in row]
    if talk and names["instruction"] not in row:
        names = dict.fromkeys(FIELDS, talk[0])
        record = _conversation(row, talk[0], need_output, note)
    else:
        record = _alpaca(row, names, need_output, note)
    if record is None:
        return None
    if not record.instruction.strip():
        note("empty", names["instruction"])
        return None
    _warn(record, names, need_output, note)
    return record


def _alpaca(
    row: dict[str, Any], names: dict[str, str], need_output: bool, note: Note
) -> Record | None:
    """The record of a row in Alpaca's format."""
    required = {"instruction": "missing"} | ({"output": "no-response"} if need_output else {})
    texts = {}
    for field in TEXTS:
        value = _text(row.get(names[field]), names[field], required.get(field, ""), row, note)
        if value is None:
            return None
        texts[field] = value
    if row.get(names["input"], "") is None:
        note("null-input", names["input"])
    history = _history(row.get(names["history"]), names["history"], note)
    return None if history is None else Record(**texts, history=history)


def _text(value: Any, field: str, required: str, row: Mapping[str, Any], note: Note) -> str | None:
    """The text of a field, or None with a note; `required` is the kind of note when it is none."""
    if value is None:
        if not required:
            return ""
        keys = ", ".join(map(str, list(row)[:8]))
        note(
            required,
            field,
            f"{field} is null" if field in row else f"the row has {keys or 'no key'}",
        )
        return None
    if not isinstance(value, str):
        note("wrong-type", field, kind_of(value))
        return None
    if isinstance(value, Number):
        note("number", field, value)
        return str(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        note("not-text", field, value)
        return None
    return value


def _history(value: Any, field: str, note: Note) -> tuple[tuple[str, str], ...] | None:
    """Earlier turns as pairs of texts."""
    turns = []
    for turn in value or []:
        if not (isinstance(turn, list) and len(turn) == 2):
            note("turns", field, "history is a list of [question, answer]")
            return None
        question, answer = (_text(text, field, "missing", {}, note) for text in turn)
        if question is None or answer is None:
            return None
        turns.append((question, answer))
    return tuple(turns)


def _conversation(row: dict[str, Any], field: str, need_output: bool, note: Note) -> Record | None:
    """The record of a conversation; its last question is the instruction."""
    messages = _messages(row[field], field, note)
    if messages is None:
        return None
    system = messages.pop(0)[1] if messages[:1] and messages[0][0] == "system" else ""
    roles = [role for role, _ in messages]
    if roles != [("user", "assistant")[i % 2] for i in range(len(roles))] or not roles:
        note("turns", field, " ".join(roles) or "no message")
        return None
    if roles[-1] == "user" and need_output:
        messages.pop()
        if not messages:
            note("no-response", field)
            return None
        note("unanswered", field)
    texts = [text for _, text in messages]
    pairs = list(zip(texts[::2], texts[1::2] + [""] * (len(texts) % 2), strict=True))
    *history, (instruction, output) = pairs
    return Record(instruction, "", output, history=tuple(history), system=system)


def _messages(value: Any, field: str, note: Note) -> list[tuple[str, str]] | None:
    """(role, text) of each message in either format."""
    if not isinstance(value, list):
        note("wrong-type", field, kind_of(value))
        return None
    messages = []
    for message in value:
        message = message if isinstance(message, dict) else {}
        role = message.get("role", message.get("from"))
        if not isinstance(role, str) or role not in ROLES:
            note("turns", field, f"a message of {role if isinstance(role, str) else 'nobody'}")
            return None
        content = _joined(message.get("content", message.get("value")))
        text = _text(content, field, "missing", message, note)
        if text is None:
            return None
        messages.append((ROLES[role], text))
    return messages


def _joined(content: Any) -> Any:
    """The text of a content that is written in parts of text; anything else stays as it is."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    known = [text for text in texts if isinstance(text, str)]
    return "".join(known) if len(known) == len(content) else content


def _warn(record: Record, names: dict[str, str], need_output: bool, note: Note) -> None:
    """Note what can be trained on, and perhaps should not be."""
    if need_output and not record.output.strip():
        note("empty-output", names["output"])
    if record.input and NO_INPUT.fullmatch(record.input):
        note("noinput", names["input"], record.input)
    for field in ("instruction", "input", "output"):
        text = getattr(record, field)
        if found := CONTROL.search(text):
            note("control", names[field], found[0])
        if "\r" in text:
            note("crlf", names[field])
        if found := MERGED.search(text):
            note("merged", names[field], found[0])
