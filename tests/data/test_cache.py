"""Encoded rows on disk: the same as encoded anew, made again when spoilt, shared by processes."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from suri.data import cache
from suri.data.cache import encode_table
from suri.data.chat_template import chat_prompt
from suri.data.encode import Rules, encode_records
from suri.data.examples import Encoded
from suri.data.prompt import find_prompt
from suri.data.records import Record, write_records
from suri.data.split import Table, load_rows
from suri.errors import DataError
from suri.model.tokenizer import read_tokenizer
from suri.recipe import Recipe

RECORDS = [Record(f"Say {i}.", "loud " * (i % 7), f"{i} " * (i % 5)) for i in range(40)]
RULES = Rules(180)
ALPACA = find_prompt("alpaca")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SURI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rows"


def table(records: list[Record] = RECORDS, seen: list[int] | None = None) -> Table:
    def read():  # type: ignore[no-untyped-def]
        for pair in enumerate(records):
            if seen is not None:
                seen.append(pair[0])
            yield pair

    return Table(read, len(records), hashlib.sha256(repr(records).encode()).hexdigest())


def same(one: Encoded, other: Encoded) -> bool:
    arrays = ("ids", "learned", "lengths", "rows")
    return (one.counts, one.left_out) == (other.counts, other.left_out) and all(
        np.array_equal(getattr(one.examples, name), getattr(other.examples, name))
        for name in arrays
    )


def test_rows_are_encoded_once_and_then_mapped(tiny: Path, folder: Path) -> None:
    tokenizer = read_tokenizer(tiny)
    seen: list[int] = []
    first = encode_table(table(seen=seen), tokenizer, ALPACA, RULES)
    again = encode_table(table(seen=seen), tokenizer, ALPACA, RULES)
    assert seen == list(range(40))
    assert same(first, again)
    assert same(first, encode_records(RECORDS, tokenizer, ALPACA, RULES))
    assert isinstance(again.examples.ids, np.memmap)
    assert 0 < first.counts["trimmed_input"] < 40
    for mapped, made in zip(again.examples, first.examples, strict=True):
        assert mapped.labels.tolist() == made.labels.tolist()
    assert again.examples[-1].row == again.examples.rows[-1]
    with pytest.raises(IndexError):
        again.examples[len(again.examples)]


def test_whatever_decides_about_the_ids_decides_about_the_name(tiny: Path, folder: Path) -> None:
    tokenizer = read_tokenizer(tiny)
    other = replace(tokenizer, eos_id=5)
    changed = [*RECORDS[:-1], replace(RECORDS[-1], output="else")]
    cases = [
        (table(), tokenizer, ALPACA, RULES),
        (table(changed), tokenizer, ALPACA, RULES),
        (table(), other, ALPACA, RULES),
        (table(), tokenizer, find_prompt("alpaca_short"), RULES),
        (table(), tokenizer, ALPACA, replace(RULES, cutoff_len=181)),
        (table(), tokenizer, ALPACA, replace(RULES, train_on_inputs=True)),
        (table(), tokenizer, ALPACA, replace(RULES, overlong="drop")),
    ]
    for number, case in enumerate(cases, start=1):
        encode_table(*case)
        assert len(list(folder.iterdir())) == number


def test_two_chat_templates_are_two_prompts(embedded: Path, folder: Path) -> None:
    tokenizer = read_tokenizer(embedded)
    template = tokenizer.chat_template
    assert template is not None
    other = template.replace("system", "System")
    assert other != template
    ids = []
    for text in (template, other):
        encoded = encode_table(table(), tokenizer, chat_prompt(text, tokenizer), RULES)
        ids.append(encoded.examples[0].ids.tolist())
    assert len(list(folder.iterdir())) == 2
    assert ids[0] != ids[1]


@pytest.mark.parametrize("name", ["ids.bin", "counts.json", "manifest.json", "lengths.bin"])
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_spoilt_entry_is_made_again(tiny: Path, folder: Path, name: str, how: str) -> None:
    tokenizer = read_tokenizer(tiny)
    good = encode_table(table(), tokenizer, ALPACA, RULES)
    expected = [example.ids.tolist() for example in good.examples]
    (entry,) = folder.iterdir()
    content = (entry / name).read_bytes()
    middle = len(content) // 2
    if how == "changed":
        flipped = bytes([content[middle] ^ 1])
        (entry / name).write_bytes(content[:middle] + flipped + content[middle + 1 :])
    elif how == "cut":
        (entry / name).write_bytes(content[:middle])
    else:
        (entry / name).unlink()
    seen: list[int] = []
    again = encode_table(table(seen=seen), tokenizer, ALPACA, RULES)
    assert seen
    assert [example.ids.tolist() for example in again.examples] == expected
    assert list(folder.iterdir()) == [entry]


@pytest.mark.slow
def test_two_processes_may_make_the_same_entry_at_once(tiny: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    write_records(rows, RECORDS * 50)
    code = f"""
from pathlib import Path
from suri.data.cache import encode_table
from suri.data.encode import Rules
from suri.data.prompt import find_prompt
from suri.data.split import load_rows
from suri.model.tokenizer import read_tokenizer
from suri.recipe import Recipe
rows = load_rows(Recipe(data_path={str(rows)!r}, val_set_size=3)).train
encoded = encode_table(rows, read_tokenizer(Path({str(tiny)!r})), find_prompt("alpaca"), Rules(180))
print(encoded.counts, sum(int(example.ids.sum()) for example in encoded.examples))
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(said) == 1
    assert "'rows': 1997" in said.pop()


def test_only_the_sets_used_last_are_kept(
    tiny: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "KEPT", 2)
    tokenizer = read_tokenizer(tiny)
    for cutoff in (100, 101, 102):
        encode_table(table(), tokenizer, ALPACA, Rules(cutoff))
        encode_table(table(), tokenizer, ALPACA, Rules(100))  # used again
    assert len(list(folder.iterdir())) == 2
    seen: list[int] = []
    encode_table(table(seen=seen), tokenizer, ALPACA, Rules(100))
    assert not seen


def test_rows_that_are_refused_leave_nothing_behind(tiny: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="more than 180 tokens"):
        encode_table(table(), read_tokenizer(tiny), ALPACA, Rules(180, overlong="error"))
    assert list(folder.iterdir()) == []


def test_no_rows_at_all_are_a_table_too(tiny: Path) -> None:
    encoded = encode_table(table([]), read_tokenizer(tiny), ALPACA, RULES)
    assert (len(encoded.examples), encoded.counts["rows"]) == (0, 0)


def test_the_digest_of_a_table_is_of_its_content(tmp_path: Path) -> None:
    write_records(tmp_path / "a.json", RECORDS)
    write_records(tmp_path / "b.jsonl", RECORDS)
    digests = {
        load_rows(Recipe(data_path=str(tmp_path / name), val_set_size=4, seed=seed)).train.digest
        for name, seed in (("a.json", 1), ("b.jsonl", 1), ("a.json", 2))
    }
    assert len(digests) == 2  # the format does not matter, which rows are held out does
    rows = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert len(rows) == 40
