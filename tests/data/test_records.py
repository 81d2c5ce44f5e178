"""Alpaca rows from JSON and JSON lines, and a message for every way they can be wrong."""

import json
import os
from pathlib import Path

import pytest

from suri.data.records import Record, read_records, write_records
from suri.errors import DataError, SuriError, UsageError

ROW = {"instruction": "Add.", "input": "2 and 3", "output": "5"}


def write(folder: Path, content: str | bytes, name: str = "rows.json") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def problem(path: Path, kind: type[SuriError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        read_records(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_json_list_and_json_lines_give_the_same_records(tmp_path: Path) -> None:
    rows = [ROW, {"instruction": "Name a sea.", "output": "The North Sea\u2028\n"}]
    expected = [Record("Add.", "2 and 3", "5"), Record("Name a sea.", "", "The North Sea\u2028\n")]
    lines = "\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert read_records(write(tmp_path, json.dumps(rows, indent=3))) == expected
    assert read_records(write(tmp_path, lines)) == expected
    assert read_records(write(tmp_path, json.dumps(ROW))) == expected[:1]


def test_a_byte_order_mark_null_numbers_and_other_keys_are_accepted(tmp_path: Path) -> None:
    text = '[{"instruction": 7, "input": null, "output": 1.50, "source": [1], "skill": "sum"}]'
    path = write(tmp_path, b"\xef\xbb\xbf" + text.encode())
    assert read_records(path) == [Record("7", "", "1.50", "sum")]


def test_an_empty_output_is_a_row_and_a_missing_one_only_where_none_is_needed(
    tmp_path: Path,
) -> None:
    empty = write(tmp_path, json.dumps([ROW | {"output": ""}]))
    assert read_records(empty)[0].output == ""
    missing = write(tmp_path, json.dumps([{"instruction": "Name a sea."}]))
    assert "record 1: output is missing" in problem(missing)
    assert read_records(missing, need_output=False) == [Record("Name a sea.", "", "")]


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "holds no rows"),
        (b"[]", "holds no rows"),
        (b" \n\n", "holds no rows"),
        (b'[{"instruction": "a"\n "output": "b"}]', "line 2, column 2"),
        (b'{"instruction": "a", "output": "b"}\n{"instruction": }\n', "line 2, column 17"),
        (b'{\n  "rows": []\n}', "an object at the top"),
        (b'"text"', "text at the top"),
        (b"null", "null at the top"),
        (b"[" * 100_000, "nested too deeply"),
        (b'[{"instruction": "caf\xe9", "output": "b"}]', "byte 0xe9 in line 1"),
        ('[{"instruction": "a"}]'.encode("utf-16"), "not UTF-8"),
    ],
)
def test_a_file_that_holds_no_rows_is_explained(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    assert expected in problem(write(tmp_path, content))


@pytest.mark.parametrize(
    "row, expected",
    [
        ('["a"]', "a list instead of an object"),
        ("null", "null instead of an object"),
        ('{"output": "b"}', "instruction is missing"),
        ('{"instruction": " \\n", "output": "b"}', "instruction is empty"),
        ('{"instruction": "a", "output": null}', "output is null"),
        ('{"instruction": "a", "output": ["b"]}', "output is a list instead of text"),
        ('{"instruction": true, "output": "b"}', "instruction is true instead of text"),
        ('{"instruction": "a", "output": NaN}', "output is a number instead of text"),
        ('{"instruction": "a", "input": {}, "output": "b"}', "input is an object instead of text"),
        ('{"instruction": "a", "output": "\\ud800"}', "output holds half of a surrogate pair"),
    ],
)
def test_a_row_that_is_wrong_is_named_by_its_place(tmp_path: Path, row: str, expected: str) -> None:
    good = json.dumps(ROW)
    assert f"record 2: {expected}" in problem(write(tmp_path, f"[{good}, {row}]"))
    assert f"line 3: {expected}" in problem(write(tmp_path, f"{good}\n\n{row}"))


def test_all_problems_are_counted_and_the_first_twenty_shown(tmp_path: Path) -> None:
    message = problem(write(tmp_path, json.dumps([{"output": 1.5}] * 23 + [ROW, []])))
    assert "24 problems in 25 rows" in message
    assert message.count("instruction is missing") == 20
    assert "and 4 more" in message


def test_places_that_cannot_be_read_are_explained(tmp_path: Path) -> None:
    assert "no such file" in problem(tmp_path / "none.json", UsageError)
    assert "is a folder" in problem(tmp_path, UsageError)
    path = write(tmp_path, "[]")
    path.chmod(0)
    if not os.access(path, os.R_OK):  # an administrator may read everything
        assert "cannot be read" in problem(path, UsageError)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    records = [Record("Say {input}.", "", "é\u2028\n{}"), Record("a", "b", "", "sum")]
    write_records(tmp_path / name, records)
    assert read_records(tmp_path / name) == records
    text = (tmp_path / name).read_text(encoding="utf-8")
    assert text.count('"skill"') == 1
    assert text.startswith("[") == (name == "rows.json")


def test_real_rows_are_read_as_json_has_them(real_rows: Path) -> None:
    rows = json.loads(real_rows.read_text(encoding="utf-8"))
    assert read_records(real_rows) == [
        Record(row["instruction"], row["input"], row["output"]) for row in rows
    ]
