import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from results import ATTACK, write_comparison, write_study
from suri.errors import UsageError
from suri.study.report import write_report


@pytest.fixture
def compare_folder(tmp_path):
    return write_comparison(tmp_path / "compare")


@pytest.fixture
def study_folder(tmp_path):
    return write_study(tmp_path / "study")


class Page(HTMLParser):
    """The tags of a page, and what a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.shown, self.hidden = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.hidden = tag in ("style", "script")

    def handle_endtag(self, tag):
        self.hidden = False

    def handle_data(self, data):
        if not self.hidden:
            self.shown.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.shown).split())


def page_of(folder):
    return Page(write_report(folder)[0].read_text(encoding="utf-8"))


def change(folder, name, edit):
    summary = json.loads((folder / name).read_text())
    edit(summary)
    (folder / name).write_text(json.dumps(summary))


@pytest.mark.slow
def test_the_report_shows_the_numbers_of_the_summary(compare_folder):
    text = page_of(compare_folder).text
    assert "Exact match: higher with adapter than with base (75.0 points" in text
    same = "Exact match, ROUGE-L, chrF, BLEU, Response loss"
    assert f"{same}: merged HF and adapter are equal on every row (n = 12)." in text
    assert "merged HF gives the adapter’s answer, token by token, on 12 of 12 rows" in text
    assert "21.9 tokens/s against 18.1 tokens/s, 1.21 times as much (measured 1 × each" in text
    assert "1,830 MB" in text


@pytest.mark.slow
def test_a_changed_number_changes_the_report(compare_folder):
    def edit(summary):
        summary["ways"]["hf"]["speed"]["tokens_per_second"]["median"] = 4321.9
        summary["ways"]["base"]["quality"]["rouge_l"]["value"] = 0.987

    assert "4,321.9" not in page_of(compare_folder).text
    change(compare_folder, "compare.json", edit)
    text = page_of(compare_folder).text
    assert "4,321.9 tokens/s" in text
    assert text.count("0.987") == 2, "the table and the figure show it"


@pytest.mark.slow
def test_what_a_model_wrote_is_text_and_never_a_tag(compare_folder):
    page = page_of(compare_folder)
    assert ATTACK in page.text
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe", "link")]


@pytest.mark.slow
def test_the_report_asks_for_nothing_from_outside(compare_folder, study_folder):
    for folder in (compare_folder, study_folder):
        page = page_of(folder)
        places = [
            value
            for _, attributes in page.tags
            for name, value in attributes.items()
            if name in ("src", "href", "xlink:href", "action", "data")
        ]
        assert places
        assert all(place.startswith("#") for place in places)
        styles = re.findall(r"url\(([^)]*)\)|@import", (folder / "report.html").read_text())
        assert all(place.startswith("#") for place in styles)


@pytest.mark.slow
def test_rows_that_no_rule_checks_leave_exact_match_out(compare_folder):
    def edit(summary):
        for way in summary["ways"].values():
            del way["quality"]["exact_match"]
        summary["differences"] = [
            found for found in summary["differences"] if found["measure"] != "exact_match"
        ]

    assert "Exact match" in page_of(compare_folder).text
    change(compare_folder, "compare.json", edit)
    text = page_of(compare_folder).text
    assert "Exact match" not in text
    assert "Response loss" in text


@pytest.mark.slow
def test_a_busy_machine_is_owned_up_to(compare_folder):
    def edit(summary):
        summary["measured_in"] |= {"load_average": 7.5, "cores": 2}

    assert "busy" not in page_of(compare_folder).text
    change(compare_folder, "compare.json", edit)
    assert "load average 7.5 on 2 cores" in page_of(compare_folder).text


@pytest.mark.slow
def test_figures_stand_alone_as_files_with_real_colours(compare_folder):
    write_report(compare_folder)
    files = sorted(path.name for path in (compare_folder / "figures").iterdir())
    assert files == [
        "agreement.svg",
        "prefixes.svg",
        "quality.svg",
        "size.svg",
        "speed.svg",
        "training.svg",
        "waiting.svg",
    ]
    for path in (compare_folder / "figures").iterdir():
        text = path.read_text()
        ElementTree.fromstring(text)
        assert "var(--" not in text


@pytest.mark.slow
def test_the_study_report_shows_numbers_and_the_failed_trial(study_folder):
    text = page_of(study_folder).text
    assert "At 96 rows a step is 0.67 times as fast with QLoRA as with LoRA" in text
    assert "33 paired steps, all alike, 3 runs each" in text
    assert "QLoRA peaks at 23 % less memory than LoRA (the same in every run, 3 runs" in text
    assert "Held-out loss: no difference found between LoRA on 96 rows and QLoRA on 96 rows" in text
    assert "Held-out loss: lower with LoRA on 192 rows than with LoRA on 96 rows" in text
    assert "optimizer steps 8 rows each, as many for every method" in text
    assert "needs 3.0 GB" in text
    assert "been through 4 bits before" in text

    def edit(summary):
        summary["methods"][1]["memory_saved"].update(value=-0.4, low=-0.5, high=-0.3)

    change(study_folder, "summary.json", edit)
    assert "QLoRA peaks at 40 % more memory than LoRA" in page_of(study_folder).text


def test_a_study_without_a_finished_trial_still_reports(study_folder):
    def edit(summary):
        summary["trials"] = summary["trials"][-1:]
        summary.update(groups=[], methods=[], sizes=[], settings=[])

    change(study_folder, "summary.json", edit)
    assert "needs 3.0 GB" in page_of(study_folder).text


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no results"):
        write_report(tmp_path)


@pytest.mark.slow
def test_other_number_formats_are_shown_where_the_adapter_was_not_measured(compare_folder):
    def without_agreement(summary):
        for way in summary["ways"].values():
            way["agreement"] = {}

    change(compare_folder, "compare.json", without_agreement)
    assert "Other engines and number formats" in page_of(compare_folder).text
