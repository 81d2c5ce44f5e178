"""The report in three formats and two languages: complete, computed, nothing left in English."""

import ast
import json
import re
import shutil
import string
import subprocess
import tomllib
import zipfile
from pathlib import Path

import docx
import pytest

import suri.study
from conftest import missing
from results import write_comparison, write_study
from suri.errors import UsageError
from suri.study import language, pictures
from suri.study.blocks import Code, Document, Section, Table
from suri.study.language import LANGUAGES, speaking, texts, tr
from suri.study.listing import listing
from suri.study.process import RECORD
from suri.study.render_pdf import write_pdf
from suri.study.report import build, write_report

STUDY = Path(suri.study.__file__).parent
HEADINGS = {
    "en": ("Idea", "Code and explanation", "Runs and explanation", "Results", "Analysis"),
    "zh": ("实现思路", "实现代码及详细说明", "运行截图及详细说明", "实验结果", "结果分析"),
}
LAST = {"en": "Summary and reflections", "zh": "实验总结与感悟"}
CLAIM = {
    "en": "lower with LoRA on 192 rows than with LoRA on 96 rows",
    "zh": "LoRA（192 行）低于LoRA（96 行）",
}


def with_captures(folder):
    """Two processes that printed something while they ran."""
    for number in (1, 2):
        (folder / f"terminal-{number}.txt").write_text(f"step {number}/7 loss 0.5\n")
        entry = {
            "command": f"suri verb{number}",
            "terminal": f"terminal-{number}.txt",
            "seconds": 3.5,
            "exit_code": 0,
        }
        with (folder / RECORD).open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("reports")
    made = write_comparison(place / "compare"), write_study(place / "study")
    return [with_captures(folder) for folder in made]


@pytest.fixture(scope="module", params=LANGUAGES)
def reports(request, folders):
    """Both tasks in one report, in all formats: language, and the three files."""
    try:
        pictures.chinese_font()
    except UsageError:
        if request.param == "zh":
            missing("this machine has no Chinese font (apt-get install fonts-noto-cjk)")
    files = write_report(*folders, language=request.param, formats=("html", "docx", "pdf"))
    return request.param, *files


@pytest.mark.slow
def test_the_page_has_every_heading_twice_and_enough_to_look_at(reports):
    spoken, page, _, _ = reports
    text = page.read_text(encoding="utf-8")
    for heading in HEADINGS[spoken]:
        assert len(re.findall(f"<h3>{heading}</h3>", text)) == 2
    assert f"<h2>{LAST[spoken]}</h2>" in text
    for part in re.split("<h2>", text)[1:3]:
        assert part.count('class="capture"') >= 2
        assert part.count("<table") >= 2
        assert part.count("<svg") >= 2
        assert part.count('class="code"') >= 4
    assert CLAIM[spoken] in text
    assert page.stat().st_size < 2_000_000


@pytest.mark.slow
def test_the_word_file_has_real_headings_tables_pictures_and_captions(reports):
    spoken, _, word, _ = reports
    made = docx.Document(str(word))
    headings = [one.text for one in made.paragraphs if one.style.name.startswith("Heading")]
    for heading in HEADINGS[spoken]:
        assert headings.count(heading) == 2
    assert headings.count(LAST[spoken]) == 1
    captions = [one.text for one in made.paragraphs if one.style.name == "Caption"]
    kinds = {"en": ("Figure", "Table"), "zh": ("图", "表")}[spoken]
    for kind in kinds:
        assert sum(caption.startswith(f"{kind} ") for caption in captions) >= 4
    assert len(made.inline_shapes) >= 4
    assert sum("suri verb" in caption for caption in captions) == 4, "every capture of both tasks"
    assert CLAIM[spoken] in "\n".join(one.text for one in made.paragraphs)
    with zipfile.ZipFile(word) as archive:
        assert 'TOC \\o "1-3"' in archive.read("word/document.xml").decode()
    assert word.stat().st_size < 2_000_000


def test_the_pdf_holds_the_same(reports):
    spoken, _, _, pdf = reports
    assert pdf.read_bytes().startswith(b"%PDF-")
    assert pdf.stat().st_size < 2_000_000
    if not shutil.which("pdftotext"):
        missing("pdftotext is not installed (apt-get install poppler-utils)")
    done = subprocess.run(["pdftotext", "-raw", str(pdf), "-"], capture_output=True, text=True)
    text = re.sub(r"\s+", "", done.stdout)
    for heading in (*HEADINGS[spoken], LAST[spoken], CLAIM[spoken], "loss 0.5"):
        assert "".join(heading.split()) in text


def test_an_interval_too_wide_for_its_column_goes_on_below_it(tmp_path):
    if not shutil.which("pdftotext"):
        missing("pdftotext is not installed (apt-get install poppler-utils)")
    cells = ("31,234.56\n30,234.57\u00a0to\u00a0133,212.11",) * 8
    table = Table(("Way", *"ABCDEFGH"), [("adapter", *cells)])
    write_pdf(Document("Report", "en", [], [Section("Results", [table])]), tmp_path / "r.pdf")
    command = ["pdftotext", "-bbox", str(tmp_path / "r.pdf"), "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.findall(r'xMin="([\d.]+)" .*>(30,234.57|133,212.11)<', done.stdout)
    lows, highs = (
        [x for x, number in found if number == end] for end in ("30,234.57", "133,212.11")
    )
    assert len(lows) == 8
    assert lows == highs


@pytest.mark.slow
def test_a_changed_number_changes_the_statement(tmp_path):
    folder = write_study(tmp_path / "study")
    summary = json.loads((folder / "summary.json").read_text())
    before = write_report(folder)[0].read_text()
    assert "1.43 times as fast with LoRA in int8 as with LoRA" in before
    found = summary["methods"][0]["speed_up"]
    found.update(value=0.61, low=0.59, high=0.63)
    (folder / "summary.json").write_text(json.dumps(summary))
    after = write_report(folder)[0].read_text()
    assert "At 96 rows a step is 0.61 times as fast with LoRA in int8 as with LoRA" in after
    assert "At 96 rows a step is 1.43" not in after
    found.update(value=1.0, low=0.9, high=1.2)
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "At 96 rows a step shows no difference" in write_report(folder)[0].read_text()


@pytest.mark.slow
def test_what_only_the_author_knows_is_blank(folders):
    with speaking("zh"):
        document = build(folders, "zh")
    assert [field.label for field in document.author] == ["姓名", "学号", "日期"]
    assert document.parts[-1].blocks[-1].label == "感悟（由作者填写）"


def literals(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    return literals(node.body) + literals(node.orelse) if isinstance(node, ast.IfExp) else []


def test_every_text_in_the_code_has_its_two_languages():
    spoken = set(re.findall(r'tr\("([^"]+)"', (STUDY / "templates" / "report.html").read_text()))
    for file in STUDY.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "tr":
                spoken.update(literals(node.args[0]))
    assert len(spoken) > 90
    assert sorted(text for text in spoken if text not in texts()) == []


def test_no_name_of_a_text_stands_twice():
    tables = tomllib.loads((STUDY / "templates" / "texts.toml").read_text(encoding="utf-8"))
    names = [name for table in tables.values() for name in table]
    assert len(names) == len(set(names)) == len(texts()) + len(tables[language.ELSEWHERE])


@pytest.mark.slow
def test_no_text_of_a_whole_chinese_report_was_left_in_english(folders, monkeypatch):
    missed, say = set(), language._from_elsewhere

    def watching(text):
        said = say(text)
        if said == text:
            missed.add(text)
        return said

    monkeypatch.setattr(language, "_from_elsewhere", watching)
    with speaking("zh"):
        build(folders, "zh")
    # Numbers and names of the recipe are the same in every language.
    assert {text for text in missed if re.search("[A-Za-z]", text)} == set()


def test_chinese_keeps_every_name_that_is_filled_in():
    for english, chinese in texts().values():
        names = [
            {name for _, name, _, _ in string.Formatter().parse(one) if name}
            for one in (english, chinese)
        ]
        assert names[0] == names[1], english


def test_values_are_put_in_as_they_are_and_unknown_languages_are_refused():
    with speaking("zh"):
        assert tr("{method} on {rows:row|rows}", method="{x}", rows=3) == "{x}（3 行）"
    assert tr("{method} on {rows:row|rows}", method="{x}", rows=3) == "{x} on 3 rows"
    with pytest.raises(UsageError, match="no such language"), speaking("fr"):
        pass


def test_one_of_a_kind_is_told_in_the_singular():
    assert tr("{method} on {rows:row|rows}", method="LoRA", rows="1") == "LoRA on 1 row"
    assert tr("{method} on {rows:row|rows}", method="LoRA", rows="1,024") == "LoRA on 1,024 rows"
    one = tr("too_few_rows", measure="Loss", rows=1, ours="a", theirs="b")
    assert one == "Loss: 1 row is too few to tell a from b."
    for english, _ in texts().values():
        counts = re.findall(r"\{\w+\} (?:[\w-]+ )?(?:rows|seeds|tokens|cores|steps)\b", english)
        assert counts == [], english


@pytest.mark.parametrize("kind", ["compare", "study"])
def test_the_code_shown_is_the_code_installed(kind):
    shown = listing(kind)
    assert len(shown) >= 4
    for code in shown:
        assert isinstance(code, Code)
        lines = (STUDY.parents[1] / code.place).read_text(encoding="utf-8").splitlines()
        first = lines[code.first_line - 1].strip()
        assert first == code.source.splitlines()[0]
        assert code.name.split(".")[-1] in first
        assert code.explanation


@pytest.mark.slow
def test_without_a_chinese_font_the_package_is_named(folders, monkeypatch):
    monkeypatch.setattr(pictures, "CHINESE_FONTS", ("No Such Font",))
    for name in ("pdf", "docx"):
        with pytest.raises(UsageError, match="no font with Chinese") as caught:
            write_report(folders[0], language="zh", formats=(name,))
        assert "fonts-noto-cjk" in caught.value.do


def test_an_unknown_format_is_refused(folders):
    with pytest.raises(UsageError, match="choose from html,docx,pdf"):
        write_report(folders[0], formats=("rtf",))
