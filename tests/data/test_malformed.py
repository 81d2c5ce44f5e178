"""Files as they should not be: each gets the message that docs/data.md promises."""

import io
import json
import string
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suri.cli.main import main
from suri.data.check import check_rows
from suri.data.findings import KINDS
from suri.data.records import read_records
from suri.data.split import survey_of
from suri.errors import DataError

DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"
GOOD = {"instruction": "Add.", "input": "2 and 3", "output": "5"}


def rows(*changes: object) -> bytes:
    """A JSON list with a good row and one for each change of it."""
    made = [GOOD] + [GOOD | {"instruction": f"Add {i}."} | c for i, c in enumerate(changes)]  # type: ignore[operator]
    return json.dumps(made).encode()


def lines(*texts: str) -> bytes:
    return "\n".join([json.dumps(GOOD), *texts]).encode()


def talk(*turns: tuple[str, str]) -> bytes:
    messages = [{"role": role, "content": text} for role, text in turns]
    return json.dumps([{"messages": messages}]).encode()


def archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("rows.json", "[]")
    return stream.getvalue()


HELD = "held out"
CASES: list[tuple[str, str, bytes | Callable[[], bytes], str]] = [
    ("an empty file", "a.json", b"", "file: no rows in the file"),
    ("an empty list", "a.json", b"[]", "file: no rows in the file"),
    ("a zip archive", "a.json", archive, "file: an archive, not rows (zip)"),
    ("Latin-1 in a JSON list", "a.json", b'[\n{"instruction": "caf\xe9"}]',
     "line 2: not UTF-8 text (byte 0xe9; what follows was not read)"),
    ("UTF-16", "a.json", '[{"instruction": "a"}]'.encode("utf-16"),
     "line 1: not UTF-8 text (byte 0xff; what follows was not read)"),
    ("Latin-1 in JSON lines", "a.jsonl", lines("{}") + b'\n{"instruction": "caf\xe9"}',
     "line 3: not UTF-8 text (byte 0xe9)"),
    ("Latin-1 in CSV", "a.csv", b"instruction,output\na,caf\xe9\n", "line 2: not UTF-8 text"),
    ("a comma too few", "a.json", b'[{"instruction": "a"\n "output": "b"}]',
     "line 2, column 2: not JSON (Expecting ',' delimiter; what follows was not read)"),
    ("a list cut off", "a.json", rows()[:-9], "line 1, column 45: not JSON (Unterminated string"
     " starting at; what follows was not read)"),
    ("a line that is cut", "a.jsonl", lines('{"instruction": "a", "out'),
     "line 2: not JSON (Unterminated string starting at at column 22)"),
    ("one object", "a.json", b'{\n "rows": []\n}',
     "file: neither a JSON list nor JSON lines (an object at the top)"),
    ("a text", "a.json", b'"rows"',
     "file: neither a JSON list nor JSON lines (text at the top)"),
    ("lists in lists without end", "a.json", b"[" * 100_000,
     "record 1: nested too deeply to be a row"),
    ("one record of 11 MB", "a.jsonl", lambda: lines('{"output": "' + "x" * 11_000_000 + '"}'),
     "line 2: a record of more than 10 MB"),
    ("a list in place of a row", "a.json", b'[["Add.", "5"]]',
     "record 1: not an object (a list)"),
    ("null in place of a row", "a.json", b"[null]", "record 1: not an object (null)"),
    ("no instruction", "a.json", b'[{"output": "5"}]',
     "record 1, instruction: missing (the row has output)"),
    ("columns by other names", "a.json", b'[{"question": "Add.", "answer": "5"}]',
     "record 1, instruction: missing (the row has question, answer)"),
    ("a blank instruction", "a.json", rows({"instruction": " \n"}), "record 2, instruction: empty"),
    ("no output", "a.json", b'[{"instruction": "Add."}]',
     "record 1, output: no response (the row has instruction)"),
    ("output null", "a.json", rows({"output": None}),
     "record 2, output: no response (output is null)"),
    ("output a list", "a.json", rows({"output": ["5"]}), "record 2, output: not text (a list)"),
    ("instruction true", "a.json", rows({"instruction": True}),
     "record 2, instruction: not text (true)"),
    ("input an object", "a.json", rows({"input": {}}), "record 2, input: not text (an object)"),
    ("output NaN", "a.json", b'[{"instruction": "Add.", "output": NaN}]',
     "record 1, output: not text (a number)"),
    ("half a surrogate pair", "a.json", b'[{"instruction": "Add.", "output": "\\ud800"}]',
     "record 1, output: half of a surrogate pair, which is no text (\\ud800)"),
    ("a CSV line with a field too many", "a.csv", b"instruction,output\na,b\na,b,c\n",
     "line 3: another number of fields than the header (3 instead of 2)"),
    ("a quote in CSV that is never closed", "a.csv", b'instruction,output\na,"b\n',
     "line 2: not CSV (unexpected end of data)"),
    ("a file that is not Parquet", "a.parquet", b"PAR1 but not really PAR1",
     "file: not readable as Parquet"),
    ("a conversation that starts with an answer", "a.json", talk(("assistant", "5")),
     "record 1, messages: not a conversation (assistant)"),
    ("two questions in a row", "a.json", talk(("user", "a"), ("user", "b"), ("assistant", "5")),
     "record 1, messages: not a conversation (user user assistant)"),
    ("a message of a tool", "a.json", talk(("user", "a"), ("tool", "b")),
     "record 1, messages: not a conversation (a message of tool)"),
    ("a conversation without an answer", "a.json", talk(("user", "Add.")),
     "record 1, messages: no response"),
    ("an empty output", "a.json", rows({"output": ""}), "record 2, output: an empty response"),
    ("`<noinput>`", "a.json", rows({"input": "<noinput>"}),
     "record 2, input: a placeholder for no input (<noinput>)"),
    ("a control character", "a.json", rows({"output": "5\x00"}),
     "record 2, output: control characters (\\x00)"),
    ("a row twice", "a.json", json.dumps([GOOD, GOOD]).encode(),
     "record 2: the same as an earlier row"),
    ("a question twice", "a.json", json.dumps([GOOD, GOOD | {"output": "five"}]).encode(),
     "record 2: asked in an earlier row, answered otherwise"),
    ("a second instruction in an output", "a.json",
     rows({"output": "5\n##\n18. Instruction: Subtract."}),
     "record 2, output: another instruction inside the text (\\n##\\n18. Instruction:)"),
    ("input null", "a.json", rows({"input": None}),
     "record 2, input: null instead of an empty input"),
    ("output a number", "a.json", b'[{"instruction": "Add.", "output": 5.0}]',
     "record 1, output: a number, taken as text (5.0)"),
    ("a key twice", "a.json", b'[{"instruction": "Add.", "output": "5", "output": "6"}]',
     "record 1: a key that stands twice; the last one counts"),
    ("a conversation that ends with a question", "a.json",
     talk(("user", "Add."), ("assistant", "5"), ("user", "And?")),
     "record 1, messages: a last question without an answer, left out"),
    ("a byte order mark", "a.json", b"\xef\xbb\xbf" + rows(),
     "file: a byte order mark at the start"),
    ("Windows line ends", "a.jsonl", lines("").replace(b"\n", b"\r\n"),
     "line 1: Windows line ends"),
]  # fmt: skip


def write(folder: Path, name: str, content: bytes | Callable[[], bytes]) -> Path:
    path = folder / name
    path.write_bytes(content() if callable(content) else content)
    return path


def table_row(case: tuple[str, str, object, str]) -> str:
    what, _, _, message = case
    kind = next(k for k in KINDS.values() if f": {k.says}" in message)
    message = message.replace("|", "\\|")
    return f"| {what} | `{message}` | {'refused' if kind.fatal else 'counted'} |"


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_each_gets_its_message(case: tuple[str, str, bytes, str], tmp_path: Path) -> None:
    _, name, content, message = case
    path = write(tmp_path, name, content)
    findings = survey_of(str(path)).findings
    kind = next(k for k in KINDS.values() if f": {k.says}" in message)
    found = [str(each) for each in findings.first(fatal=kind.fatal)]
    assert any(each.startswith(message) for each in found), found
    assert (findings.fatal > 0) == kind.fatal
    if kind.fatal:
        with pytest.raises(DataError, match="problem"):
            read_records(path)
    else:
        assert read_records(path)


def test_the_document_has_the_same_table() -> None:
    assert len({case[0] for case in CASES}) == len(CASES) >= 30
    text = DOCUMENT.read_text(encoding="utf-8")
    expected = "\n".join(map(table_row, CASES))
    assert expected in text, f"docs/data.md should have this table:\n{expected}"


def test_every_kind_of_finding_but_the_held_out_one_has_a_case() -> None:
    shown = {k for k, v in KINDS.items() for case in CASES if f": {v.says}" in case[3]}
    assert set(KINDS) - shown == {"held-out-trains"}  # tests/data/test_split.py


def test_problems_after_a_broken_line_are_found_too(tmp_path: Path) -> None:
    content = lines("{", '{"output": "5"}', "[1]", json.dumps(GOOD | {"instruction": "b"}))
    survey = survey_of(str(write(tmp_path, "a.jsonl", content)))
    assert [str(each).partition(" (")[0] for each in survey.findings.kept] == [
        "line 2: not JSON", "line 3, instruction: missing", "line 4: not an object",
    ]  # fmt: skip
    assert (survey.rows, survey.findings.fatal) == (2, 3)


def test_a_syntax_error_far_into_a_list_is_placed(tmp_path: Path) -> None:
    row = json.dumps(GOOD | {"output": "x" * 1000})
    content = "[\n" + ",\n".join([row] * 3000) + ",\n{'no'}]"
    findings = survey_of(str(write(tmp_path, "a.json", content.encode()))).findings
    assert findings.rows == 3000
    assert "line 3002, column 2: not JSON" in str(findings.first(fatal=True)[0])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(["instruction", "input", "output", "history", "messages", "system", "x"])
ANY_ROWS = st.lists(st.dictionaries(KEYS, JSON, max_size=5) | JSON, max_size=5)
CONTENTS = (
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | ANY_ROWS.map(lambda value: json.dumps(value).encode())
    | ANY_ROWS.map(lambda value: "\n".join(map(json.dumps, value)).encode())
    | st.text(string.printable, max_size=200).map(
        lambda text: f"instruction,output\n{text}".encode()
    )
)


@pytest.mark.slow
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=CONTENTS, suffix=st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".parquet"]))
def test_no_content_ends_in_a_traceback(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = write(tmp_path, f"any{suffix}", content)
    report = check_rows(str(path), fix=tmp_path / "fixed.json")
    assert report.usable <= report.findings.rows
    if report.findings.fatal:
        with pytest.raises(DataError, match="problem"):
            read_records(path)
    else:
        assert len(read_records(path)) == report.usable
        # What was mended is in order, but for what it takes a person to decide.
        if report.fixed:
            again = survey_of(str(tmp_path / "fixed.json")).findings
            assert set(again.counts) <= {"asked-again", "duplicate"}


def test_the_command_tells_problems_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write(tmp_path, "bad.json", rows({"output": 5}, {"output": ["5"]}))
    with pytest.raises(SystemExit) as caught:
        main(
            ["data", "check", str(bad), "--base_model", "none", "--fix", str(tmp_path / "ok.json")]
        )
    assert caught.value.code == 3
    printed = capsys.readouterr().out
    assert "3 rows, 2 can be used" in printed
    assert "record 3, output: not text (a list)" in printed
    assert [each.output for each in read_records(tmp_path / "ok.json")] == ["5", "5"]
    changes = (tmp_path / "ok.json.changes.txt").read_text(encoding="utf-8")
    assert changes == "record 3: left out: record 3, output: not text (a list)\n"
    main(["data", "check", str(tmp_path / "ok.json"), "--base_model", "none", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["usable"], report["fatal"]) == (2, 2, 0)
