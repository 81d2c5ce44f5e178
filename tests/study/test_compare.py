import json
import re

import pytest

from conftest import make_model, write_tokenizer
from suri.cli.main import main as suri
from suri.data.records import Record, write_records
from suri.data.skills import SKILLS
from suri.errors import UsageError
from suri.study.compare import Comparison, compare, judge
from suri.study.forms import ways_of
from suri.study.task import compare_plan

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


@pytest.fixture(autouse=True)
def _no_browser(monkeypatch):
    """Its picture of the page has tests of its own."""
    monkeypatch.setenv("PATH", "")


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
    assert first["base"]["ids"] == [5, 6, 7]
    assert second["adapter"]["chrf"] == pytest.approx(1.0)
    assert (first["base"]["learned_tokens"], second["base"]["learned_tokens"]) == (0, 5)
    assert second["base"]["loss_sum"] == 6.5
    assert entries[0]["expected"] == "apple, fig"


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": "base,mergd"}, "mergd"),
        ({"ways": ","}, "choose from base,adapter,hf,meta"),
        ({"engines": "vllm"}, "choose from suri,transformers"),
        ({"dtypes": "float8"}, "choose from float32"),
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


@pytest.mark.slow
def test_a_folder_of_something_else_is_left_alone(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something else"):
        compare(Comparison(run=run, output_dir=str(tmp_path)), print)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_a_run_in_nf4_is_merged_on_both_bases(run, tmp_path, capsys):
    places = {name: str(run.parent / name) for name in ("base", "rows.json", "held_out.json")}
    suri(
        ["train", "--base_model", places["base"], "--data_path", places["rows.json"],
         "--val_set_path", places["held_out.json"], "--output_dir", str(tmp_path / "run"),
         "--max_steps", "3", "--batch_size", "4", "--learning_rate", "2e-2", "--device", "cpu",
         "--lora_r", "3", "--lora_alpha", "7", "--quantize", "nf4"]
    )  # fmt: skip
    out = tmp_path / "out"
    suri(["compare", str(tmp_path / "run"), "--output_dir", str(out), "--device", "cpu",
          "--ways", "adapter,hf,hf-original", "--max_new_tokens", "6"])  # fmt: skip
    assert "base as given" in capsys.readouterr().out
    ways = json.loads((out / "compare.json").read_text())["ways"]
    exact, other = (ways[way]["agreement"]["probe"]["max_kl"] for way in ("hf", "hf-original"))
    assert exact < 1e-6 < other
    assert "hf-original" not in [way.name for way in ways_of("all", "suri", "float32", "none")]
    names = [way.name for way in ways_of("", "suri", "float32", "nf4")]
    assert names == ["base", "adapter", "hf", "meta", "int8"], "the adapter is on nf4 already"


PLAN = """
[recipe]
base_model = "{base}"
data_path = "{rows}"
val_set_path = "{held_out}"
max_steps = 3
batch_size = 4
learning_rate = 2e-2
lora_r = 3
lora_alpha = 7
device = "cpu"
[compare]
max_new_tokens = 6
engines = "suri,transformers"
"""


def write_plan(run, place, text=PLAN):
    places = {name: run.parent / name for name in ("base", "rows.json", "held_out.json")}
    plan = place / "task1.toml"
    plan.write_text(
        text.format(base=places["base"], rows=places["rows.json"], held_out=places["held_out.json"])
    )
    return plan


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("prompt = 3", "did you mean prompts"),
        ('prompts = "3"', "not of the form"),
        ('ways = "adaptor"', "adaptor"),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_is_trained(run, tmp_path, wrong, message):
    plan = write_plan(run, tmp_path, PLAN + wrong)
    with pytest.raises(UsageError, match=message):
        compare_plan(Comparison(run=plan, output_dir=str(tmp_path / "out")), print)
    assert not (tmp_path / "out" / "run").exists()


@pytest.mark.slow
def test_a_plan_trains_and_compares_every_way_and_a_second_run_goes_on(run, tmp_path, capsys):
    plan, out = write_plan(run, tmp_path), tmp_path / "task1"
    suri(["compare", str(plan), "--output_dir", str(out), "--device", "cpu"])
    shown = capsys.readouterr().out
    assert "merged Meta" in shown
    assert "report.html" in shown
    summary = json.loads((out / "compare.json").read_text())
    main = {name: way for name, way in summary["ways"].items() if way["is_main"]}
    assert list(main) == ["base", "adapter", "hf", "meta", "int8", "nf4"]
    others = set(summary["ways"]) - set(main)
    assert others == {"adapter-transformers-float32", "hf-transformers-float32"}
    for way in ("hf", "meta", "adapter-transformers-float32", "hf-transformers-float32"):
        agreement = summary["ways"][way]["agreement"]
        assert agreement["identical"] == agreement["rows"] == 2
        assert agreement["probe"]["max_kl"] < 1e-6
    for way in ("base", "int8", "nf4"):
        assert main[way]["agreement"]["probe"]["max_kl"] > 3e-6
    assert {way for way, found in summary["certificates"].items() if found["passed"]} == {
        "hf", "meta", "hf-transformers-float32"
    }  # fmt: skip
    result = json.loads((out / "run" / "result.json").read_text())
    losses = {way: found["quality"]["loss"]["value"] for way, found in summary["ways"].items()}
    assert losses["base"] == pytest.approx(result["base_loss"], rel=1e-5)
    assert losses["adapter"] == pytest.approx(result["held_out_loss"], rel=1e-5)
    assert losses["meta"] == pytest.approx(losses["adapter"], abs=1e-4)
    assert losses["hf-transformers-float32"] == pytest.approx(losses["adapter"], abs=1e-4)
    entries = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [entry["expected"] for entry in entries] == [record.output for record in RECORDS]

    made = (out / "merged-hf-float32" / "certificate.json").stat().st_mtime_ns
    (out / "run" / "result.json").unlink()  # as a stop before the last file leaves it
    command = ["compare", str(plan), "--output_dir", str(out), "--device", "cpu"]
    suri([*command, "--ways", "hf", "--engines", "suri", "--dtypes", "float32,bfloat16",
          "--repeats", "2"])  # fmt: skip
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(r"merged HF: .* is there already", shown)
    assert "going on after step" in (out / "work" / "terminal-2.txt").read_text()
    again = json.loads((out / "run" / "result.json").read_text())
    assert again["held_out_loss"] == result["held_out_loss"]
    assert (out / "merged-hf-float32" / "certificate.json").stat().st_mtime_ns == made
    summary = json.loads((out / "compare.json").read_text())
    assert summary["ways"]["hf"]["speed"]["tokens_per_second"]["repeats"] == 2
    assert summary["certificates"]["hf-suri-bfloat16"]["passed"]

    other = write_plan(run, tmp_path, PLAN.replace("lora_r = 3", "lora_r = 5"))
    with pytest.raises(UsageError, match="trained with other settings") as refused:
        compare_plan(Comparison(run=other, output_dir=str(out)), print)
    assert refused.value.found == "lora_r is 5 in the plan, was 3"
