"""What `suri chat` and `suri generate` make of their words."""

import json
import socket
import subprocess
import sys

import pytest

from faults.children import start, wait
from suri.cli.generate import File, _key, run_generate
from suri.cli.main import tidy
from suri.cli.serve import Chat, model_names, run_chat
from suri.errors import DataError, UsageError
from suri.infer.engines import open_model
from suri.recipe import Decoding


@pytest.mark.parametrize(
    "words, expected",
    [
        ({}, ("embedded", "")),
        ({"model": "run"}, ("run", "")),
        ({"base_model": "base"}, ("base", "")),
        ({"lora_weights": "run"}, ("run", "")),
        ({"base_model": "base", "lora_weights": "./lora-alpaca"}, ("base", "./lora-alpaca")),
        ({"model": "base", "lora_weights": "run"}, ("base", "run")),
        ({"model": "run", "base_model": "base"}, ("base", "run")),
    ],
)
def test_models_are_named_in_every_customary_way(words, expected):
    assert model_names(Chat(**words)) == expected


def test_three_models_are_one_too_many():
    with pytest.raises(UsageError, match="three models"):
        model_names(Chat(model="a", base_model="b", lora_weights="c"))


@pytest.mark.parametrize(
    "words",
    [
        ["--server_name", "0.0.0.0"],
        ["--server_name", "192.168.1.5"],
        ["--server_name", "my-machine"],
        ["--share_gradio"],
        ["--share_gradio", "True", "--server_name", "127.0.0.1"],
    ],
)
def test_an_open_page_needs_a_password(words):
    with pytest.raises(UsageError, match="add --password"):
        run_chat(tidy(words))


@pytest.mark.parametrize("port", ["70000", "-1"])
def test_a_port_that_cannot_be_is_told_before_a_model_is_opened(port):
    with pytest.raises(UsageError, match=f"port = {port} is not from 0 to 65535"):
        run_chat(tidy(["nowhere", "--port", port]))


@pytest.mark.parametrize("words", [[], ["--server_name", "localhost"], ["--server_name", "::1"]])
def test_the_handouts_command_reaches_the_model(words, tmp_path):
    """A page for this machine goes on to open the model, which is not there."""
    handout = ["--load_8bit", "--base_model", str(tmp_path / "llama"), "--lora_weights", "./lora "]
    with pytest.raises(UsageError, match="llama: no such model folder"):
        run_chat(tidy(handout + words))


@pytest.mark.slow
def test_a_port_in_use_gets_a_message(tiny):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = [sys.executable, "-m", "suri", "chat", str(tiny), "--port", str(port)]
        ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 2
    assert f"error: the page cannot be served on 127.0.0.1:{port}" in ended.stderr
    assert f"--port {port + 1}" in ended.stderr
    assert "GRADIO" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_file_of_instructions_is_answered(tmp_path, tiny, capsys):
    rows = [
        {"instruction": f"Say {number} things.", "input": "é" * (number % 3)}
        for number in range(20)
    ]
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run_generate([str(asked), "--model", f"{tiny} ", "--max_new_tokens", "6", "--temperature", "0"])

    lines = (tmp_path / "asked.answers.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert [{key: row[key] for key in ("instruction", "input")} for row in found] == rows
    model = open_model(str(tiny))
    from suri.data.records import Record

    records = [Record(row["instruction"], row["input"], "") for row in rows]
    expected = model.answer(records, Decoding(temperature=0, max_new_tokens=6))
    assert [row["answer"] for row in found] == [answer.text for answer in expected]
    printed = capsys.readouterr().out
    assert "16/20 rows" in printed
    assert "20/20 rows" in printed

    with pytest.raises(UsageError, match="exists already"):
        run_generate([str(asked), "--model", str(tiny)])


@pytest.mark.slow
@pytest.mark.parametrize("place", ["*7", "*16", "*19", "*39"])
def test_a_file_of_instructions_goes_on_where_it_was_killed(tmp_path, tiny, capsys, place):
    """Sampled answers, and a kill in or behind a batch: they end as if there had been none."""
    rows = [{"instruction": f"Say {number} things.", "input": ""} for number in range(40)]
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = [str(asked), "--model", str(tiny), "--max_new_tokens", "5", "--temperature", "1"]
    run_generate([*words, "--output_path", str(tmp_path / "whole.jsonl")])
    mine = [*words, "--output_path", str(tmp_path / "mine.jsonl")]
    assert wait(start(lambda: run_generate(mine), f"append{place}=kill")) == -9
    assert not (tmp_path / "mine.jsonl").exists()
    other = [*mine, "--seed", "5"]
    assert wait(start(lambda: run_generate(other), "append*20=kill")) == -9, "others begin anew"
    assert wait(start(lambda: run_generate(mine), f"append{place}=kill")) == -9
    capsys.readouterr()
    run_generate(mine)
    before = int(place[1:]) // 16 * 16
    assert (f"there already: {before} answer" in capsys.readouterr().out) == (before > 0)
    assert (tmp_path / "mine.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert not (tmp_path / "mine.jsonl.partial").exists()


def test_answers_of_a_model_that_has_changed_are_no_beginning(tmp_path, monkeypatch):
    """Also where its folder is named by the user's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    asked, weights = tmp_path / "asked.json", tmp_path / "model" / "weights"
    weights.parent.mkdir()
    asked.write_text("[]", encoding="utf-8")
    keys = []
    for text in ("one", "another", "another"):
        if not weights.exists() or weights.read_text(encoding="utf-8") != text:
            weights.write_text(text, encoding="utf-8")
        keys.append(_key(File(file=asked, model="~/model")))
    assert keys[0] != keys[1] == keys[2]


def test_a_broken_file_is_refused_before_a_model_is_opened(tmp_path):
    asked = tmp_path / "asked.json"
    asked.write_text('[{"input": "no instruction"}]', encoding="utf-8")
    with pytest.raises(DataError, match="record 1, instruction: missing"):
        run_generate([str(asked), "--model", str(tmp_path / "nowhere")])
    assert list(tmp_path.iterdir()) == [asked]


@pytest.mark.parametrize("verb", ["chat", "generate"])
def test_help_needs_neither_torch_nor_gradio(verb):
    code = (
        "import sys\n"
        f"from suri.cli.main import main\n"
        f"try: main([{verb!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "print('loaded:', sorted({'torch', 'gradio', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "loaded: []" in out.stdout
    assert "--load_8bit" in out.stdout
