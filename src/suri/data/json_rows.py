"""Rows of JSON files, a list or one on each line, parsed one at a time whatever the size."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from suri.data.findings import Findings

LONGEST = 10_000_000
"""Bytes of a line, or characters of a record of a list or of a CSV field."""
CHUNK = 1 << 20
NOT_BLANK = re.compile(r"[^ \t\r\n]")

Rows = Iterator[tuple[str, Any]]
"""Each row with its place in the file: `line 3`, or `record 3` where lines mean nothing."""


class Number(str):
    """A number as it was written."""


class Doubled(dict[str, Any]):
    """An object that has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    return row if len(row) == len(pairs) else Doubled(row)


REST = "what follows was not read"
"""Said where a list breaks: records after that place cannot be found safely."""
DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=Number, parse_float=Number)


def kind_of(value: Any) -> str:
    """What JSON calls the value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = ((dict, "an object"), (list, "a list"), (Number | float, "a number"), (str, "text"))
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)


def read_json_rows(stream: BinaryIO, findings: Findings) -> Rows:
    """Yield the rows of a list or of lines, whichever the content is; problems go to `findings`."""
    start = stream.tell()
    first = next((line for line in _lines(stream) if line.strip()), b"").strip()
    stream.seek(start)
    is_lines = first.startswith(b"{") and (first.endswith(b"}") or len(first) > LONGEST // 2)
    return _json_lines(stream, findings) if is_lines else _json_list(stream, findings)


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends; what is longer than a record may be is cut there."""
    # Only \n ends a line: the other separators of str.splitlines may stand inside a JSON string.
    while line := stream.readline(LONGEST):
        yield line
        while len(line) >= CHUNK and not line.endswith(b"\n") and line:
            line = stream.readline(CHUNK)


def _json_lines(stream: BinaryIO, findings: Findings) -> Rows:
    for number, line in enumerate(_lines(stream), start=1):
        place = f"line {number}"
        if line.endswith(b"\r\n"):
            findings.add("crlf", place)
        try:
            if len(line) == LONGEST:
                findings.add("too-long", place)
            elif line.strip():
                yield place, DECODER.decode(line.decode())
        except UnicodeDecodeError as problem:
            findings.add("not-utf8", place, found=f"byte 0x{line[problem.start]:02x}")
        except json.JSONDecodeError as problem:
            findings.add("not-json", place, found=f"{problem.msg} at column {problem.colno}")
        except RecursionError:
            findings.add("too-deep", place)


def _json_list(stream: BinaryIO, findings: Findings) -> Rows:
    text = _Text(stream)
    number = 0
    try:
        if text.peek() not in ("[", ""):
            findings.add("not-rows", found=f"{kind_of(text.value())} at the top")
            return
        for number, value in enumerate(text.values(), start=1):
            yield f"record {number}", value
    except json.JSONDecodeError as problem:
        findings.add("not-json", text.where(problem.pos), found=f"{problem.msg}; {REST}")
    except UnicodeDecodeError as problem:
        before = problem.object[: problem.start].count(b"\n")
        line = text.line + text.buffer.count("\n") + before
        byte = f"byte 0x{problem.object[problem.start]:02x}"
        findings.add("not-utf8", f"line {line}", found=f"{byte}; {REST}")
    except RecursionError:
        findings.add("too-deep", f"record {number + 1}", found=REST)
    except OverflowError:
        findings.add("too-long", f"record {number + 1}", found=REST)


class _Text:
    """The text of a stream, read on as it is needed; remembers the line it is in."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.decoder = stream, codecs.getincrementaldecoder("utf-8")()
        self.buffer, self.at, self.line, self.ended = "", 0, 1, False

    def values(self) -> Iterator[Any]:
        """The values of a list, one at a time; raises JSONDecodeError where it is none."""
        mark = self.mark("[", "") or "]"
        while mark != "]":
            if mark == "[" and self.peek() == "]":
                mark = self.mark("]")
                break
            self.peek()
            yield self.value()
            mark = self.mark(",", "]")
        if self.peek():
            raise json.JSONDecodeError("Extra data", self.buffer, self.at)

    def mark(self, *allowed: str) -> str:
        """Pass the next character, which must be one of `allowed`."""
        found = self.peek()
        if found not in allowed:
            raise json.JSONDecodeError(f"Expecting {allowed[0]!r}", self.buffer, self.at)
        self.at += len(found)
        return found

    def peek(self) -> str:
        """The next character that is not blank; "" at the end."""
        while not (found := NOT_BLANK.search(self.buffer, self.at)):
            self.at = len(self.buffer)
            if not self._more():
                return ""
        self.at = found.start()
        return found[0]

    def value(self) -> Any:
        """Parse one value, reading on while it may be cut; OverflowError when it is too long."""
        while True:
            wrong = None
            try:
                value, end = DECODER.raw_decode(self.buffer, self.at)
                if end < len(self.buffer) or self.ended:
                    self.at = end
                    return value
            except json.JSONDecodeError as problem:
                wrong = problem
            is_long = len(self.buffer) - self.at > LONGEST
            if wrong and (self.ended or (is_long and "Unterminated" not in wrong.msg)):
                raise wrong
            if is_long:
                raise OverflowError
            self._more()

    def where(self, offset: int) -> str:
        """Line and column of a place in the buffer."""
        line = self.line + self.buffer.count("\n", 0, offset)
        return f"line {line}, column {offset - self.buffer.rfind(chr(10), 0, offset)}"

    def _more(self) -> bool:
        """Read on and forget what was passed. False at the end of the file."""
        chunk = self.stream.read(CHUNK)
        self.line += self.buffer.count("\n", 0, self.at)
        self.buffer, self.at = self.buffer[self.at :], 0
        self.buffer += self.decoder.decode(chunk, final=not chunk)
        self.ended = not chunk
        return bool(chunk)
