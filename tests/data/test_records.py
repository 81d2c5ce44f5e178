"""Rows of every format become the same records, and what is written is read back."""

import csv
import json
import os
from pathlib import Path

import pytest

from suri.data.findings import Findings
from suri.data.records import Record, read_records, stream_records, write_records
from suri.errors import DataError, SuriError, UsageError

ROW = {"instruction": "Add.", "input": "2 and 3", "output": "5"}
ROWS = [
    ROW,
    {"instruction": 'Say "a, b".', "input": "", "output": "a,\r\nb\u2028;\tc"},
    {"instruction": "说“你好”。", "input": "大声", "output": "你好！🙂"},
]
RECORDS = [Record(row["instruction"], row["input"], row["output"]) for row in ROWS]


def write(folder: Path, content: str | bytes, name: str = "rows.json") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def problem(path: Path, kind: type[SuriError] = DataError, **how: str) -> str:
    with pytest.raises(kind) as caught:
        read_records(path, **how)
    return str(caught.value)


def write_csv(path: Path, separator: str) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        table = csv.DictWriter(stream, ["output", "instruction", "input"], delimiter=separator)
        table.writeheader()
        table.writerows(ROWS)
    return path


def write_parquet(path: Path) -> Path:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2)
    return path


def test_every_format_gives_the_same_records(tmp_path: Path) -> None:
    lines = "\n \n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    files = [
        write(tmp_path, json.dumps(ROWS, indent=3), "a.json"),
        write(tmp_path, json.dumps(ROWS), "no-suffix"),
        write(tmp_path, lines, "b.jsonl"),
        write(tmp_path, b"\xef\xbb\xbf" + lines.encode(), "c.txt"),
        write_csv(tmp_path / "d.csv", ","),
        write_csv(tmp_path / "e.csv", ";"),
        write_csv(tmp_path / "f.tsv", "\t"),
        write_parquet(tmp_path / "g.parquet"),
    ]
    assert [read_records(file) for file in files] == [RECORDS] * len(files)


def test_a_folder_is_read_through_the_datasets_library(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "files").mkdir()
    write(tmp_path / "files", json.dumps(ROWS), "train.json")
    assert read_records(tmp_path / "files") == RECORDS
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert read_records(tmp_path / "saved") == RECORDS


def test_a_hub_id_that_cannot_be_had_is_explained() -> None:
    with pytest.raises(UsageError, match="could not be read as a data set") as caught:
        read_records("nobody/nothing-here")  # tests run offline
    assert "give a file" in str(caught.value)


@pytest.mark.parametrize("name", ["../secret/rows", "a/../b", "data/rows.json", "a/b/c"])
def test_a_path_that_is_not_there_is_no_hub_id(name: str) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_records(name)


CHAT = [("system", "Be brief."), ("user", "Add."), ("assistant", "5"), ("user", "And 2?"),
        ("assistant", "7")]  # fmt: skip
CHAT_RECORD = Record("And 2?", "", "7", history=(("Add.", "5"),), system="Be brief.")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": role, "content": text} for role, text in CHAT]},
        {"messages": [{"role": role, "content": [{"type": "text", "text": text}]}
                      for role, text in CHAT], "id": 7},
        {"conversations": [{"from": {"user": "human", "assistant": "gpt"}.get(role, role),
                            "value": text} for role, text in CHAT]},
        {"instruction": "And 2?", "output": "7", "history": [["Add.", "5"]], "system": "Be brief."},
    ],
)  # fmt: skip
def test_a_conversation_of_any_form_is_one_record(tmp_path: Path, row: dict[str, object]) -> None:
    assert read_records(write(tmp_path, json.dumps([row]))) == [CHAT_RECORD]
    write_records(tmp_path / "again.jsonl", [CHAT_RECORD])
    assert read_records(tmp_path / "again.jsonl") == [CHAT_RECORD]


def test_a_conversation_of_one_question_is_answered_later(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Name a sea."}]}
    path = write(tmp_path, json.dumps([row]))
    assert read_records(path, need_output=False) == [Record("Name a sea.", "", "")]


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path, '[{"question": "Add.", "answer": "5", "output": "no"}]')
    columns = "instruction=question, output=answer"
    assert read_records(path, columns=columns) == [Record("Add.", "", "5")]
    assert "record 1, answers: no response" in problem(
        path, columns="instruction=question,output=answers"
    )
    for wrong in ("question=instruction", "instruction", "instruction="):
        assert "is not a column that is read" in problem(path, UsageError, columns=wrong)
    talk = write(tmp_path, '[{"talk": [{"role": "user", "content": "a"}]}]', "talk.json")
    found = read_records(talk, columns="messages=talk", need_output=False)
    assert found == [Record("a", "", "")]


def test_null_numbers_and_other_keys_are_accepted(tmp_path: Path) -> None:
    text = '[{"instruction": 7, "input": null, "output": 1.50, "source": [1], "skill": "sum"}]'
    assert read_records(write(tmp_path, text)) == [Record("7", "", "1.50", "sum")]


def test_an_empty_output_is_a_row_and_a_missing_one_only_where_none_is_needed(
    tmp_path: Path,
) -> None:
    empty = write(tmp_path, json.dumps([ROW | {"output": ""}]))
    assert read_records(empty)[0].output == ""
    missing = write(tmp_path, json.dumps([{"instruction": "Name a sea."}]))
    assert "record 1, output: no response" in problem(missing)
    assert read_records(missing, need_output=False) == [Record("Name a sea.", "", "")]


def test_all_problems_are_counted_and_the_first_twenty_shown(tmp_path: Path) -> None:
    message = problem(write(tmp_path, json.dumps([{"output": 1.5}] * 23 + [ROW, []])))
    assert "24 problems in 25 rows" in message
    assert message.count("instruction: missing") == 20
    assert "and 4 more" in message


def test_places_that_cannot_be_read_are_explained(tmp_path: Path) -> None:
    assert "no such file" in problem(tmp_path / "none.json", UsageError)
    assert "could not be read as a data set" in problem(tmp_path, UsageError)
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


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    """The reader is ahead of its user by a chunk, not by the file."""
    row = json.dumps(ROW | {"output": "x" * 100_000})
    path = write(tmp_path, "[" + ",".join([row] * 200) + ", broken]")
    findings = Findings()
    stream = stream_records(str(path), findings)
    assert [next(stream)[0] for _ in range(50)][-1] == "record 50"
    assert not findings.fatal  # the end of the file has not been seen yet
    assert (len(list(stream)), findings.fatal) == (150, 1)


def test_real_rows_are_read_as_json_has_them(real_rows: Path) -> None:
    rows = json.loads(real_rows.read_text(encoding="utf-8"))
    assert read_records(real_rows) == [
        Record(row["instruction"], row["input"], row["output"]) for row in rows
    ]
