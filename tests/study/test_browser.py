"""The picture of the chat page: a real page, a real browser, or the reason why there is none."""

import shutil

import pytest

from conftest import make_model, missing, write_tokenizer
from suri.cli.main import main as suri
from suri.data.records import Record, write_records
from suri.study.browser import PICTURE, picture_of_chat

ROW = Record("Sort alphabetically.", "fig, apple", "apple, fig")


def need_browser():
    """Skip without one, or fail where tests run unattended and everything is there."""
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return
    missing("the picture needs chromium and chromedriver")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictured")
    base = write_tokenizer(make_model(folder / "base"))
    write_records(folder / "rows.json", [ROW] * 4)
    suri(
        ["train", "--base_model", str(base), "--data_path", str(folder / "rows.json"),
         "--val_set_size", "0", "--output_dir", str(folder / "run"), "--max_steps", "1",
         "--batch_size", "2", "--device", "cpu"]
    )  # fmt: skip
    return folder / "run"


def test_without_a_browser_the_reason_is_given(run, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert "no browser here" in picture_of_chat(run, ROW, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_page_is_asked_and_pictured(run, tmp_path):
    need_browser()
    assert picture_of_chat(run, ROW, tmp_path) == ""
    picture = (tmp_path / "captures" / PICTURE).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000, "an empty page is smaller"


@pytest.mark.slow
def test_a_page_that_does_not_start_costs_the_picture_alone(tmp_path):
    need_browser()
    assert picture_of_chat(tmp_path / "nowhere", ROW, tmp_path) == "the chat page did not start"
