"""What the page says, in both languages: choices, figures and what other programs print."""

import base64
import json
import re
import shutil
from pathlib import Path
from typing import get_args

import pytest

from suri.cli import fit, study
from suri.errors import SuriError, UsageError
from suri.infer.served import open_served
from suri.recipe import Quantize
from suri.train.jobs import Runs
from suri.train.runs import read_run
from suri.web.page_results import FORMS, Results
from suri.web.page_train import METHODS, Trainer
from suri.web.page_words import TEXTS, Words, table

CHINESE = re.compile("[一-鿿]")
STEP = {"step": 1, "train/loss": 1.5, "seconds": 40.0, "train/tokens_per_second": 9.0,
        "memory/peak_bytes": 10**9}  # fmt: skip
STUDY = Path(__file__).parents[2] / "docs/results/task2/summary.json"


@pytest.fixture
def asked(monkeypatch, capsys):
    """Commands that only look run in this process; gives those that ran."""
    done = []

    def ask(_, words):
        done.append(words)
        try:
            {"fit": fit.run, "report": study.run_report}[words[0]](list(words[1:]))
        except SuriError as problem:
            raise UsageError("\n".join(problem.lines())) from None
        return capsys.readouterr().out

    monkeypatch.setattr(Runs, "ask", ask)
    return done


@pytest.fixture
def trainer_of(tiny, tmp_path):
    """A trainer in a language over three rows, and what its controls hold."""
    rows = [{"instruction": f"Say {n}.", "output": n} for n in "abc"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))

    def make(language):
        trainer = Trainer(open_served(str(tiny)), Runs(tmp_path), Words(language))
        base = trainer.choices()[0]["value"]
        return trainer, (base, "rows.json", "none", 0, 1, 3e-4, 512, 8)

    return make


def test_whether_it_fits_is_said_in_the_page_s_language(trainer_of, asked):
    trainer, given = trainer_of(1)
    shown = trainer.fit(*given)
    cells = re.findall(r"<td[^>]*>([^<]+)</td>", shown)
    sizes = [cell for cell in cells if re.fullmatch(r"[\d.]+ (GB|MB|kB|bytes)", cell)]
    assert len(sizes) == len(fit.MEANING) + 2
    said = [*(cell for cell in cells if cell not in sizes), *re.findall(r"<p>(.+?)</p>", shown)]
    assert len(said) > 2 * len(fit.MEANING)
    assert all(CHINESE.search(text) for text in said), said
    english, given = trainer_of(0)
    for says in (*fit.MEANING, "in all", "micro-batches of up to"):
        assert says in english.fit(*given)


@pytest.mark.parametrize("words", fit.MEANING.items())
def test_every_part_of_the_memory_has_chinese_words(words):
    assert all(CHINESE.search(Words(1).again(text)) for text in (*words, "on cuda"))
    assert all(Words(0).again(text) == text for text in words)


@pytest.mark.parametrize("others", [[], ["--quantize nf4", "--token_budget 64"]])
def test_that_it_does_not_fit_is_said_in_chinese(trainer_of, asked, monkeypatch, others):
    """With what would fit, and where nothing would."""
    monkeypatch.setattr("suri.train.fit.free_memory_bytes", lambda _: 10)
    monkeypatch.setattr("suri.train.budget.alternatives", lambda *_: others)
    trainer, given = trainer_of(1)
    with pytest.raises(UsageError) as told:
        trainer.fit(*given)
    said = trainer.say.mistake(told.value)
    assert said.startswith("本次训练需要 ")
    assert said.endswith("; ".join(others) or "。")
    assert not re.search("memory|found|do:", said)


MISTAKES = {
    "'a/b'：名称请只用字母、数字、- 和 _。": lambda page, given: page.start("a/b", *given),
    "run 已存在，请换一个名称。": lambda page, given: page.start("run", *given),
    "还没有选择。 请先从列表中选一项。": lambda page, given: page.runs.stop(""),
    "'../etc' 不在训练文件夹里。": lambda page, given: page.runs.place("../etc"),
    "这些设置行不通： lora_r = -2，至少应为 1。":
        lambda page, given: page.settings(*given[:-1], -2),
}  # fmt: skip


@pytest.mark.parametrize("said", MISTAKES)
def test_mistakes_are_told_in_the_page_s_language(trainer_of, tmp_path, said):
    trainer, given = trainer_of(1)
    (tmp_path / "run").mkdir()
    with pytest.raises(UsageError) as told:
        MISTAKES[said](trainer, given)
    assert Words(1).mistake(told.value) == said
    assert Words(0).mistake(told.value) == told.value.in_one_line


def test_a_chinese_page_draws_the_figures_that_a_study_has_in_english_alone(tmp_path, asked):
    folder = tmp_path / "study"
    shutil.copytree(STUDY.parent / "figures", folder / "figures")
    shutil.copyfile(STUDY, folder / "summary.json")
    results = Results(Runs(tmp_path), Words(1))
    assert pictures(results.report("study")[1]) == figures(folder / "figures")
    drawn = pictures(results.in_chinese("study"))
    assert len(drawn) == len(figures(folder / "figures"))
    assert not drawn & figures(folder / "figures")
    assert sorted(p.name for p in folder.iterdir()) == ["figures", "summary.json"]
    assert pictures(results.in_chinese("study")) == drawn
    assert len(asked) == 1  # they are kept

    shutil.copytree(folder / "figures", folder / "figures-zh")
    assert pictures(results.in_chinese("study")) == figures(folder / "figures")
    assert len(asked) == 1


def test_what_cannot_be_drawn_stays_as_it_is(tmp_path, asked):
    (tmp_path / "study" / "figures").mkdir(parents=True)
    (tmp_path / "study" / "figures" / "speed.svg").write_text("<svg/>")
    results = Results(Runs(tmp_path), Words(1))
    assert pictures(results.in_chinese("study")) == {b"<svg/>"}
    (tmp_path / "study" / "summary.json").write_text("{}")
    assert pictures(results.in_chinese("study")) == {b"<svg/>"}
    assert len(asked) == 1


def pictures(html):
    """The pictures that a page holds."""
    return {base64.b64decode(coded) for coded in re.findall(r"base64,([^\"]+)", html)}


def figures(folder):
    """The pictures of a folder."""
    return {file.read_bytes() for file in folder.iterdir()}


def test_figures_of_fewer_rows_come_first(tmp_path):
    (tmp_path / "study" / "figures").mkdir(parents=True)
    for rows in (1024, 256, 64):
        (tmp_path / "study" / "figures" / f"curve-{rows}.svg").write_text("<svg/>")
    _, shown = Results(Runs(tmp_path), Words(0)).report("study")
    assert re.findall(r'alt="[^"]*?(\d+)', shown) == ["64", "256", "1024"]


@pytest.mark.parametrize("language", [0, 1])
def test_choices_are_readable_and_stand_for_the_settings_values(language):
    say = Words(language)
    assert set(METHODS) < set(get_args(Quantize))
    for name, values in (("quantize", get_args(Quantize)), ("form", FORMS)):
        choices = say.choices(name, values)
        assert [value for _, value in choices] == list(values)
        assert all(label.startswith(f"{value} – ") for label, value in choices)
    assert say.value("lora_r", 8) == "8"


def write_run(folder, recipe, **held):
    """A run folder: its recipe, and of its JSON files what is given."""
    folder.mkdir()
    (folder / "recipe.toml").write_text(recipe)
    for name, content in ({"environment": {}} | held).items():
        suffix = "jsonl" if name == "metrics" else "json"
        (folder / f"{name}.{suffix}").write_text(json.dumps(content) + "\n")


def test_two_runs_are_set_beside_each_other_in_chinese(tmp_path):
    for name, stored, rows in (("one", "none", 64), ("two", "nf4", 256)):
        settings = f'quantize = "{stored}"\ndata_path = "bundled:{rows}"\n'
        write_run(tmp_path / name, settings, result={"rows": rows})
    shown = Results(Runs(tmp_path), Words(1)).beside("one", "two")
    rows = re.findall(r"<tr>(<td.*?)</tr>", shown)
    cells = {row[0]: row[1:] for each in rows if (row := re.findall(r">([^<]*)</td>", each))}
    assert cells == {
        TEXTS["data_path"][1]: ["bundled:64", "bundled:256"],
        TEXTS["quantize"][1]: [TEXTS["quantize_none"][1], TEXTS["quantize_nf4"][1]],
        "训练行数": ["64", "256"],
    }


@pytest.mark.parametrize("language, between", [(0, ". Step"), (1, "。第")])
def test_how_far_a_run_is_follows_its_state_as_the_language_writes_it(tmp_path, language, between):
    write_run(tmp_path / "one", "max_steps = 4", metrics=STEP, data={"train_rows": 8})
    assert between in Trainer(None, Runs(tmp_path), Words(language)).view("one")


def test_each_cell_knows_its_head():
    shown = table(["a", "<b>"], [[1, 2], [3, 4]])
    heads = re.findall(r'<td data-head="([^"]+)">(\d)</td>', shown)
    assert heads == [("a", "1"), ("&lt;b&gt;", "2"), ("a", "3"), ("&lt;b&gt;", "4")]


@pytest.mark.parametrize(("state", "left"), [("running", True), ("stopped", False)])
def test_only_of_a_run_under_way_time_is_left(trainer_of, tmp_path, state, left):
    trainer, _ = trainer_of(0)
    recipe = "batch_size = 8\nnum_epochs = 1.0"
    write_run(tmp_path / "run", recipe, metrics=STEP, data={"train_rows": 32})
    trainer.runs.state = lambda name: (state, read_run(tmp_path / name))
    shown = trainer.view("run")
    assert "Step 1 of 4, loss 1.500, 9 tokens/s, at most 1.0 GB of memory" in shown
    assert (", 2 minutes left." in shown) == left
