"""`suri data make`: the file it writes, and what it refuses."""

from pathlib import Path

import pytest

from suri.cli.data import run
from suri.cli.main import main
from suri.data.records import read_records
from suri.data.skills import make_rows
from suri.errors import UsageError


def test_the_rows_are_written_as_they_are_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", "make", str(tmp_path / "new" / "rows.json"), "--rows", "30", "--seed=7"])
    assert read_records(tmp_path / "new" / "rows.json") == make_rows(30, 7)
    skills = len({record.skill for record in make_rows(30, 7)})
    assert f"30 rows of {skills} skills, licence CC0-1.0" in capsys.readouterr().out
    main(["data", "make", str(tmp_path / "held.jsonl"), "--rows", "12", "--held-out"])
    assert read_records(tmp_path / "held.jsonl") == make_rows(12, 42, held_out=True)


def test_a_file_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="exists already"):
        run(["make", str(path)])
    assert path.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    "args, expected",
    [
        (["bake", "x.json"], "suri data cannot bake"),
        (["make", "x.json", "--rows", "0"], "is not from 1"),
        (["make", "x.json", "--rows", "1000001"], "is not from 1"),
        (["preview", "mini_data.json", "--row", "0"], "count from 1"),
        (["check", "none.json"], "no such file"),
        (["check", "mini_data.json", "--fix", "README.md"], "exists already"),
    ],
)
def test_a_wrong_use_is_explained(args: list[str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        run(args)


def test_a_file_whose_name_looks_like_markup_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows[red].json"
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(SystemExit):
        run(["check", str(path), "--base_model", "none"])
    assert str(path) in capsys.readouterr().out


def test_the_rows_at_the_root_are_made_by_this_program() -> None:
    path = Path(__file__).parents[2] / "mini_data.json"
    assert read_records(path) == make_rows(200, 42)
