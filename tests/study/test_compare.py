import json
import re

import pytest

from conftest import make_model, write_tokenizer
from suri.cli.main import main as suri
from suri.data.records import Record, write_records
from suri.data.skills import SKILLS
from suri.errors import UsageError
from suri.study.compare import Comparison, compare, judge

RECORDS = [
    Record("Sort alphabetically.", "fig, apple", "apple, fig", next(iter(SKILLS))),
    Record("Tell a story.", "", "Once upon a time."),
]


def found(texts, ids, losses):
    return {
        "answers": [
            {"text": text, "ids": one, "stopped": True}
            for text, one in zip(texts, ids, strict=True)
        ],
        "losses": losses,
    }


def test_answers_are_judged_row_by_row():
    losses = [{"row": 1, "loss_sum": 6.5, "learned_tokens": 5}]
    entries = judge(
        RECORDS,
        {
            "base": found(["fig, apple", "Once."], [[5, 6, 7], [8]], losses),
            "adapter": found(["apple, fig", "Once upon a time."], [[5, 9], [8]], losses),
        },
    )
    first, second = (entry["answers"] for entry in entries)
    assert (first["base"]["correct"], first["adapter"]["correct"]) == (False, True)
    assert (second["base"]["correct"], second["adapter"]["correct"]) == (None, None)
    assert first["base"]["rouge_l"] == pytest.approx(0.5)  # one word of two in order
    assert second["base"]["rouge_l"] == pytest.approx(2 * 1 * 0.25 / 1.25)
    assert first["base"]["shared_prefix"] == pytest.approx(1 / 3)
    assert not first["base"]["same_as_adapter"]
    assert second["base"]["same_as_adapter"]
    assert (first["base"]["learned_tokens"], second["base"]["learned_tokens"]) == (0, 5)
    assert second["base"]["loss_sum"] == 6.5
    assert entries[0]["expected"] == "apple, fig"


def test_without_the_adapter_nothing_is_held_against_it():
    answers = judge(RECORDS[:1], {"base": found(["x"], [[1]], [])})[0]["answers"]
    assert "same_as_adapter" not in answers["base"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training of a tiny model whose heads Meta's format can hold."""
    folder = tmp_path_factory.mktemp("compared")
    base = write_tokenizer(make_model(folder / "base"))
    write_records(folder / "rows.json", RECORDS * 4)
    write_records(folder / "held_out.json", RECORDS)
    suri(
        ["train", "--base_model", str(base), "--data_path", str(folder / "rows.json"),
         "--val_set_path", str(folder / "held_out.json"), "--output_dir", str(folder / "run"),
         "--max_steps", "3", "--batch_size", "4", "--learning_rate", "2e-2", "--device", "cpu",
         "--lora_r", "3", "--lora_alpha", "7"]
    )  # fmt: skip
    return folder / "run"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": "base,mergd"}, "mergd"),
        ({"ways": ""}, "choose from base,adapter,hf,meta"),
        ({"prompts": 0}, "1 or more"),
        ({"data_path": "nowhere.json"}, "holds no rows"),
        ({"merged_hf": "."}, "is not a merge of"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_measured(run, tmp_path, changes, message):
    settings = {"run": run, "output_dir": str(tmp_path / "out")} | changes
    with pytest.raises(UsageError, match=message):
        compare(Comparison(**settings), print)
    assert not (tmp_path / "out" / "compare.json").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not the folder of a finished run"):
        compare(Comparison(run=tmp_path), print)


def test_a_folder_of_something_else_is_left_alone(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something else"):
        compare(Comparison(run=run, output_dir=str(tmp_path)), print)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_four_ways_from_the_command_line(run, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["compare", str(run), "--output_dir", str(out), "--max_new_tokens", "6"]
    suri([*command, "--device", "cpu"])
    shown = capsys.readouterr().out
    assert "merged Meta" in shown
    assert "report.html" in shown
    summary = json.loads((out / "compare.json").read_text())
    assert list(summary["ways"]) == ["base", "adapter", "hf", "meta"]
    for way in ("hf", "meta"):
        agreement = summary["ways"][way]["agreement"]
        assert agreement["identical"] == agreement["rows"] == 2
        assert agreement["probe"]["max_kl"] < 1e-6
        assert summary["certificates"][way]["passed"]
    assert summary["ways"]["base"]["agreement"]["probe"]["max_kl"] > 1e-3
    result = json.loads((run / "result.json").read_text())
    losses = {way: found["quality"]["loss"]["value"] for way, found in summary["ways"].items()}
    assert losses["base"] == pytest.approx(result["base_loss"], rel=1e-5)
    assert losses["adapter"] == pytest.approx(result["held_out_loss"], rel=1e-5)
    assert losses["meta"] == pytest.approx(losses["adapter"], abs=1e-4)
    entries = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [entry["expected"] for entry in entries] == [record.output for record in RECORDS]

    made = (out / "merged-hf" / "certificate.json").stat().st_mtime_ns
    suri([*command, "--device", "cpu", "--ways", "adapter,hf", "--repeats", "3"])
    assert re.search(r"merged HF: .* is there already", " ".join(capsys.readouterr().out.split()))
    assert (out / "merged-hf" / "certificate.json").stat().st_mtime_ns == made
    speed = json.loads((out / "compare.json").read_text())["ways"]["hf"]["speed"]
    assert speed["tokens_per_second"]["repeats"] == 3
