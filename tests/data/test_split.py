"""Held-out rows: how many, which, and what is recorded about them."""

import hashlib
from pathlib import Path

import pytest

from suri.data.records import Record, write_records
from suri.data.skills import make_rows
from suri.data.split import Rows
from suri.data.split import load_rows as load
from suri.errors import DataError, UsageError
from suri.recipe import Recipe


def load_rows(data_path: str, val_set_size: float, seed: int, val_set_path: str = "") -> Rows:
    recipe = Recipe(
        data_path=data_path, val_set_size=val_set_size, seed=seed, val_set_path=val_set_path
    )
    return load(recipe)


def trained(rows: Rows) -> list[Record]:
    return [record for _, record in rows.train]


def write(folder: Path, count: int) -> tuple[Path, list[Record]]:
    records = [Record(f"Say {i}.", "", str(i)) for i in range(count)]
    write_records(folder / "rows.json", records)
    return folder / "rows.json", records


@pytest.mark.parametrize(
    "rows, val_set_size, held_out",
    [(3, 2, 2), (3, 2000, 2), (1, 2, 0), (3, 0, 0), (3, 0.05, 1), (1, 0.5, 0), (40, 0.3, 12)],
)
def test_the_number_of_held_out_rows(
    tmp_path: Path, rows: int, val_set_size: float, held_out: int
) -> None:
    path, records = write(tmp_path, rows)
    split = load_rows(str(path), val_set_size, seed=1)
    assert (len(split.train), len(split.held_out)) == (rows - held_out, held_out)
    train = trained(split)
    assert train == trained(split)  # it can be read again
    assert sorted(train + split.held_out, key=records.index) == records
    assert [records[i] for i, _ in split.train] == train  # by its place in the file
    for part in (train, split.held_out):  # each keeps the file's order
        assert part == sorted(part, key=records.index)


def test_the_seed_decides_which_rows(tmp_path: Path) -> None:
    path, _ = write(tmp_path, 30)
    chosen = [load_rows(str(path), 5, seed).held_out for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_the_facts_say_where_rows_come_from_and_what_was_done(tmp_path: Path) -> None:
    path, _ = write(tmp_path, 3)
    facts = load_rows(str(path), 2000, seed=9).facts
    assert facts == {
        "source": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "rows": 3,
        "train_rows": 1,
        "held_out_rows": 2,
        "seed": 9,
        "split": "2 of 3 rows drawn with seed 9; 2000 were asked for, "
        "and at least one row must train",
        "warnings": {},
    }


@pytest.mark.parametrize(
    "name, val_set_size, train, held_out",
    [("bundled:60", 24, 60, 24), ("bundled:60", 0.05, 60, 3), ("bundled", 0, 400, 0)],
)
def test_bundled_rows_have_held_out_rows_of_their_own(
    name: str, val_set_size: float, train: int, held_out: int
) -> None:
    rows = load_rows(name, val_set_size, seed=4)
    assert trained(rows) == list(make_rows(train, 4))
    assert rows.held_out == list(make_rows(held_out, 4, held_out=True))
    assert rows.facts["licence"] == "CC0-1.0"
    assert rows.facts["source"] == f"bundled:{train}"
    assert (rows.facts["train_rows"], rows.facts["held_out_rows"]) == (train, held_out)
    other = load_rows(name, val_set_size, seed=5).facts["sha256"]
    assert rows.facts["sha256"] == load_rows(name, val_set_size, seed=4).facts["sha256"] != other


def test_held_out_rows_may_come_from_a_file_of_their_own(tmp_path: Path) -> None:
    path, records = write(tmp_path, 5)
    other = tmp_path / "other.jsonl"
    write_records(other, [Record("Ask.", "", "answer"), Record("Ask again.", "", "no")])
    rows = load_rows(str(path), 2000, seed=3, val_set_path=str(other))
    assert trained(rows) == records
    assert [record.output for record in rows.held_out] == ["answer", "no"]
    assert rows.facts["held_out_sha256"] == hashlib.sha256(other.read_bytes()).hexdigest()
    assert rows.facts["split"] == "all 2 rows of other.jsonl"
    with pytest.raises(UsageError, match="held-out rows of its own"):
        load_rows("bundled:9", 2, seed=3, val_set_path=str(other))


@pytest.mark.parametrize(
    "name",
    ["bundled:0", "bundled:-3", "bundled:many", "bundled:²", "bundled:9:fr", "bundled:1000001"],
)
def test_a_number_of_rows_that_is_none_is_explained(name: str) -> None:
    with pytest.raises(UsageError, match="bundled:400"):
        load_rows(name, 2, seed=1)


def test_a_file_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_rows(str(tmp_path / "none.json"), 2, seed=1)
    (tmp_path / "empty.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="no rows in the file"):
        load_rows(str(tmp_path / "empty.json"), 2, seed=1)


def test_bundled_rows_come_in_chinese_too() -> None:
    rows = load_rows("bundled:20:zh", 4, seed=4)
    assert trained(rows) == list(make_rows(20, 4, language="zh"))
    assert rows.held_out == list(make_rows(4, 4, held_out=True, language="zh"))
    assert rows.facts["source"] == "bundled:20:zh"


def test_questions_that_are_held_out_and_trained_on_are_counted(tmp_path: Path) -> None:
    path, records = write(tmp_path, 6)
    write_records(path, [*records, *records])  # every row twice, half of the rows held out
    rows = load_rows(str(path), 6, seed=3)
    train = {record.instruction for record in trained(rows)}
    both = sum(record.instruction in train for record in rows.held_out)
    assert rows.facts["warnings"] == {"duplicate": 6, "held-out-trains": both}
    other = tmp_path / "other.json"
    write_records(other, [records[2], Record("Another.", "", "2"), records[0]])
    warnings = load_rows(str(path), 6, seed=3, val_set_path=str(other)).facts["warnings"]
    assert warnings == {"duplicate": 6, "held-out-trains": 2}


@pytest.mark.parametrize(
    "name, licence",
    [("alpaca_data.json", "CC BY-NC 4.0"), ("alpaca_data_gpt4.json", "CC BY-NC 4.0")],
)
def test_the_licence_of_well_known_files_is_recorded(
    tmp_path: Path, name: str, licence: str
) -> None:
    write(tmp_path, 2)[0].rename(tmp_path / name)
    assert licence in load_rows(str(tmp_path / name), 0, seed=1).facts["licence"]
