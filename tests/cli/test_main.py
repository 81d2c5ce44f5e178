"""The edge of the command line: flags in every spelling, verbs, exit codes, quick help."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from suri.cli.flags import parse
from suri.cli.main import VERBS, find_verb, main, tidy
from suri.cli.train import _short
from suri.errors import Corrupt, UsageError
from suri.recipe import ALPACA_LORA, Recipe, recipe_from_toml, with_settings


def call(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "suri", *words],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def test_every_spelling_of_a_flag_means_the_same() -> None:
    words = ["--load-8bit", "--lora_target_modules", "[q_proj,v_proj]", "--val-set-size=2", "x"]
    wanted = "--load_8bit True --lora_target_modules q_proj v_proj --val_set_size 2 x"
    assert tidy(words) == wanted.split()
    assert tidy(["--lora_target_modules=[q_proj, 'k_proj']"])[1:] == ["q_proj", "k_proj"]
    assert tidy([]) == []
    assert tidy(["--lora_weights", "./lora-alpaca ", "--base_model= base"]) == [
        "--lora_weights", "./lora-alpaca", "--base_model", "base"
    ]  # fmt: skip
    assert Recipe(output_dir=" ./lora-alpaca ").output_dir == "./lora-alpaca"
    assert tidy(["--train_on_inputs", "False", "--share"]) == [
        "--train_on_inputs", "False", "--share", "True"
    ]  # fmt: skip


def test_alpaca_loras_command_gives_its_settings() -> None:
    start = with_settings(Recipe(), ALPACA_LORA, "defaults")
    words = tidy(
        ["--base_model", "b", "--data_path", "d.json", "--output_dir", "./lora-alpaca",
         "--batch_size", "2", "--micro_batch_size", "1", "--val_set_size", "2",
         "--lora_target_modules", "[q_proj,k_proj,v_proj,o_proj]", "--group_by_length"]
    )  # fmt: skip
    recipe = parse(Recipe, words, "finetune.py", default=start)
    assert recipe.lora_target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert (recipe.batch_size, recipe.micro_batch_size, recipe.val_set_size) == (2, 1, 2)
    assert (recipe.lora_dropout, recipe.train_on_inputs, recipe.cutoff_len) == (0.05, True, 256)
    assert recipe.group_by_length
    assert parse(Recipe, [], "suri train") == Recipe()


@pytest.mark.slow
def test_help_loads_no_torch() -> None:
    code = (
        "import sys; from suri.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'gradio'} & set(sys.modules)"
    )
    for words in (["--help"], ["train", "--help"], ["merge", "--help"], ["compare", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "--help" in done.stdout


def test_what_a_model_wrote_cannot_speak_to_the_terminal() -> None:
    assert _short("one\n two", 60) == "one two"
    assert _short("a" * 9, 5) == "aaaa…"
    assert "\x1b" not in _short("\x1b]0;title\x07 [red]x", 60)
    assert _short("[red]x", 60) == r"\[red]x"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "--version", "train --help"])
def test_a_reader_that_stops_reading_is_no_error(words: str, unbuffered: str) -> None:
    """Neither while something is printed nor with what is still held when the program ends."""
    command = f"{sys.executable} -m suri {words} | true; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_there(verb: str) -> None:
    assert callable(find_verb(verb))


def test_an_unknown_verb_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["comparr"])
    assert ended.value.code == 2
    assert "did you mean compare?" in capsys.readouterr().err


def test_recipes_refuse_what_cannot_work(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(
        "[recipe]\nlora_r = 4\nlearning_rate = 1e-5\nlora_target_modules = ['k_proj']\n"
    )
    recipe = recipe_from_toml(file)
    assert (recipe.lora_r, recipe.learning_rate, recipe.lora_target_modules) == (
        4,
        1e-5,
        ("k_proj",),
    )
    for text, said in (
        ("batchsize = 3", "did you mean batch_size"),
        ("batch_size = 'many'", "batch_size = 'many' is not of the form"),
        ("batch_size = 0\nlora_r = 0", "batch_size = 0 must be at least 1; lora_r = 0"),
        ("lora_dropout = 1.5", "lora_dropout"),
        ("overlong = 'trim'", "overlong = trim must be one of trim-input, trim-response"),
        ("report_to = ['mlflow']", "report_to: mlflow is not one of tensorboard, wandb, trackio"),
        ("lora_target_modules = ['w_proj']", "w_proj is not one of"),
        ("= 3", "not a TOML file"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=said):
            recipe_from_toml(file)


GOOD = {"instruction": "say a", "input": "", "output": "a"}

BAD_DATA = {
    "no such file": (None, "no such file", (2, 3)),
    "not JSON": ("[{'a': 1}]", "line 1", (3,)),
    "not a list": ('"rows"', "list", (3,)),
    "no output": (json.dumps([GOOD, {"instruction": "x"}]), "output", (3,)),
    "no rows": ("[]", "no row", (3,)),
    "not text": (b"\xff\xfe\x00[]", "UTF-8", (3,)),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_gets_a_message(
    name: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, said, codes = BAD_DATA[name]
    file = tmp_path / "rows.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ["train", "--base_model", str(tiny), "--data_path", str(file)]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--output_dir", str(tmp_path / "run")])
    errors = capsys.readouterr().err
    assert ended.value.code in codes
    assert said.lower() in errors.lower()
    assert str(file) in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--base_model", "/nowhere/llama"], "/nowhere/llama: no such model folder"),
        (["--output_dir", "/proc/suri-run"], "cannot write in /proc/suri-run"),
        (["--prompt_template_name", "alpakka"], "alpakka"),
        (["--lora_r", "0"], "lora_r = 0 must be at least 1"),
    ],
)
def test_bad_settings_get_a_message(
    words: list[str], said: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([GOOD] * 3))
    start = ["--base_model", str(tiny), "--data_path", str(tmp_path / "rows.json")]
    start += ["--output_dir", str(tmp_path / "run")]
    given = {flag: value for flag, value in zip(start[::2], start[1::2], strict=True)}
    given |= {words[0]: words[1]}
    with pytest.raises(SystemExit) as ended:
        main(["train", *[word for pair in given.items() for word in pair]])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_path_that_leads_nowhere_says_from_where_it_was_followed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in (
        ["train", "--recipe", "my.toml"], ["study", "my.toml"], ["data", "check", "my.json"],
        ["runs", "my-runs"],
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            main(words)
        assert f"check the path; it means {tmp_path / words[-1]}" in capsys.readouterr().err


def test_a_damaged_file_says_what_to_do_unless_something_better_is_known():
    assert Corrupt("x is cut").do == "fetch it again from where it came, or make it again"
    assert Corrupt("x is cut", do="ask for it").lines()[-1] == "  do:    ask for it"
    assert UsageError("no").lines() == ["no"]


def test_too_little_space_is_said_before_the_run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    (tmp_path / "rows.json").write_text(json.dumps([GOOD] * 3))
    with pytest.raises(SystemExit) as ended:
        main(["train", "--base_model", str(tiny), "--data_path", str(tmp_path / "rows.json"),
              "--output_dir", str(tmp_path / "run")])  # fmt: skip
    assert ended.value.code == 4
    assert "1.0 MB free" in capsys.readouterr().err


@pytest.mark.slow
def test_a_disk_that_fills_up_during_the_run(tiny: Path, tmp_path: Path) -> None:
    """Files may not grow beyond 12 kB: the first saved adapter does not fit."""
    (tmp_path / "rows.json").write_text(json.dumps([GOOD] * 9))
    done = call(
        "train", "--base_model", str(tiny), "--data_path", str(tmp_path / "rows.json"),
        "--output_dir", str(tmp_path / "run"), "--val_set_size", "2",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "failed" in done.stderr
    assert "Traceback" not in done.stderr
    left = [
        p for p in (tmp_path / "run").rglob("*") if p.name.startswith(".") and p.name != ".lock"
    ]
    assert left == []
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()
