"""The page in a browser: nothing of a table is cut off, on a screen or on paper."""

import re
import shutil
import subprocess

import pytest

from conftest import missing
from suri.study.blocks import Document, Section, Table
from suri.study.render_html import write_html

WIDEST = Table(
    ("Way", *(f"A measure {place}, nats/token" for place in range(8))),
    [
        (
            "merged Meta, transformers, bfloat16",
            *("0.835\n0.679\u00a0to\u00a00.965",) * 7,
            "7\n1 to LAST",
        )
    ]
    * 3,
    "Mean over the rows and its 95 % interval",
)
TOLD = (
    "<script>const box = document.querySelector('.scroll'); "
    "document.title = box.scrollWidth + ' in ' + box.clientWidth;</script>"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_html(Document("Report", "en", [], [Section("Results", [WIDEST])]), path)
    return path


def browse(*flags):
    """What a browser without a window prints."""
    if not shutil.which("chromium"):
        missing("the page needs chromium")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_widest_table_fits_a_common_screen(page, tmp_path):
    told = tmp_path / "told.html"
    told.write_text(page.read_text(encoding="utf-8") + TOLD, encoding="utf-8")
    shown = browse("--window-size=1280,900", "--dump-dom", told.as_uri())
    needed, there = map(int, re.search(r"<title>(\d+) in (\d+)</title>", shown).groups())
    assert needed <= there


def test_the_widest_table_is_whole_on_paper(page, tmp_path):
    if not shutil.which("pdftotext"):
        missing("pdftotext is not installed (apt-get install poppler-utils)")
    pdf = tmp_path / "report.pdf"
    browse(f"--print-to-pdf={pdf}", page.as_uri())
    done = subprocess.run(["pdftotext", "-raw", str(pdf), "-"], capture_output=True, text=True)
    assert done.stdout.count("LAST") == 3
