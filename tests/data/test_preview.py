"""The tokens that are shown are those that training gets, and the page shows nothing else."""

import re
from html import unescape
from pathlib import Path

import pytest

from suri.cli.main import main
from suri.data.encode import Rules, encode_records
from suri.data.preview import pieces_of, write_page
from suri.data.prompt import find_prompt
from suri.data.records import Record, write_records
from suri.data.tokenizer import Tokenizer
from suri.model.tokenizer import read_tokenizer

RECORDS = [
    Record("Say <b>hi</b> & “bye”.", "<|im_end|>", "你好，世界 🙂\n\n<script>alert(1)</script>"),
    Record("And?", "", "x", history=(("Is it?", "It is."),)),
]


@pytest.fixture(scope="module")
def tokenizer(embedded: Path) -> Tokenizer:
    return read_tokenizer(embedded)


@pytest.mark.parametrize("name", ["alpaca", "chat"])
def test_pieces_are_the_row_and_learned_pieces_are_the_answers(
    name: str, tokenizer: Tokenizer
) -> None:
    prompt = find_prompt(name, tokenizer)
    for example, record in zip(
        encode_records(RECORDS, tokenizer, prompt, Rules(500)).examples, RECORDS, strict=True
    ):
        pieces = pieces_of(example, tokenizer)
        assert sum(piece.tokens for piece in pieces) == len(example.ids)
        text = "".join(piece.text for piece in pieces if not piece.special)
        assert text == tokenizer.decode(example.ids.tolist())
        learned = "".join(piece.text for piece in pieces if piece.learned)
        answers = [answer for _, answer in record.history] + [record.output]
        assert learned == "".join(f"{answer}<|im_end|>" for answer in answers)
        assert any(piece.tokens > 1 for piece in pieces) == ("🙂" in record.output)


def test_the_page_holds_every_character_and_runs_nothing(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    prompt = find_prompt("alpaca")
    examples = encode_records(RECORDS, tokenizer, prompt, Rules(500)).examples
    write_page(tmp_path / "page.html", "<i>", [(e.row, pieces_of(e, tokenizer)) for e in examples])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|<i>|https?:|src=|url\(", page)
    shown = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    for text, example in zip(shown, examples, strict=True):
        plain = unescape(re.sub("<[^>]+>", "", text)).replace("⏎\n", "\n")
        assert (
            plain
            == tokenizer.decode(example.ids.tolist()) + ("<|im_end|>" if example.row == 0 else "")
            or example.row == 1
        )
        learned = re.findall(r'class="learned[^"]*">(.*?)</span>', text, re.DOTALL)
        assert unescape("".join(learned)).replace("⏎\n", "\n").endswith("<|im_end|>")


@pytest.mark.slow
def test_the_commands_show_rows_by_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.json"
    write_records(
        rows, [*RECORDS, Record("Repeat. " * 50, "", "b"), Record("Long.", "", "c " * 90)]
    )
    main(["data", "preview", str(rows), "--row", "2", "--rows", "3", "--cutoff-len", "99"])
    printed = capsys.readouterr().out
    assert re.search(r"row 2: \d+ of \d+ tokens are learned", printed)
    assert "row 1:" not in printed
    assert "row 3 is left out" in printed
    assert "rows here that lose part of their end of the response to cutoff_len: 2" in printed
    main(["data", "preview", str(rows), "--html", str(tmp_path / "page.html")])
    assert "3 rows" in capsys.readouterr().out
    assert "<h2>Row 3</h2>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as caught:
        main(["data", "preview", str(rows), "--row", "9"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "has no row 9" in said
    assert "choose --row from 1 to " in said
