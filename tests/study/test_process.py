import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from results import write_comparison
from suri.reading import read_json_lines
from suri.recipe import Recipe
from suri.study.captures import captures, shortened
from suri.study.process import RECORD, Failed, run_module, train


def run(tmp_path, monkeypatch, text):
    (tmp_path / "program.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    terminal = tmp_path / "kept" / "terminal.txt"
    run_module("program", ["seven"], what="trial 7", terminal=terminal, results=tmp_path)


def test_what_a_process_prints_is_kept(tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, "import sys; print(sys.argv[1]); print('loud', file=sys.stderr)")
    assert set((tmp_path / "kept" / "terminal.txt").read_text().split()) == {"seven", "loud"}


def test_a_finished_training_is_not_started_again(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{}")
    place = tmp_path / "work"
    recipe = Recipe(base_model="nowhere", output_dir=str(tmp_path / "run"))
    train(recipe, place, what="the training", results=tmp_path)
    assert not place.exists()
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(Failed):  # of no such model: this time it was started
        train(recipe, place, what="the training", results=tmp_path)
    assert (place / "terminal-1.txt").is_file()


def test_that_it_ran_is_noted_with_its_command_time_and_exit_code(tmp_path, monkeypatch):
    with pytest.raises(Failed):
        run(tmp_path, monkeypatch, f"import sys; print({str(tmp_path)!r}); sys.exit(3)")
    (noted,) = read_json_lines(tmp_path / RECORD)
    assert noted.pop("seconds") >= 0
    assert noted == {
        "command": "python -m program seven", "terminal": "kept/terminal.txt", "exit_code": 3
    }  # fmt: skip
    (shown,) = captures(tmp_path)
    assert (shown.command, shown.text, shown.is_open) == ("python -m program seven", ".", True)
    assert shown.outcome.endswith("exit code 3")


def test_a_command_is_noted_as_a_person_types_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = Path("results")
    for module in ("json.tool", "suri"):
        with pytest.raises(Failed):
            run_module(
                module,
                ["results/kept/none", str(tmp_path / "results" / "a b"), "results2/x"],
                what="it", terminal=results / "terminal.txt", results=results,
            )  # fmt: skip
    assert [one["command"] for one in read_json_lines(results / RECORD)] == [
        "python -m json.tool ./kept/none './a b' results2/x",
        "suri ./kept/none './a b' results2/x",
    ]


def test_long_output_is_cut_in_its_middle_and_says_so():
    lines = shortened("\n".join(map(str, range(1, 201)))).splitlines()
    assert (lines[0], lines[-1]) == ("1", "200")
    assert lines[24] == "… 153 lines left out …"
    assert len(lines) == 48


def test_a_failure_carries_the_message_and_the_exit_code(tmp_path, monkeypatch):
    program = "import sys; print('step 1'); print('error: no such base\\n  do: x'); sys.exit(4)"
    with pytest.raises(Failed) as caught:
        run(tmp_path, monkeypatch, program)
    assert caught.value.exit_code == 4
    assert caught.value.what == "trial 7 failed"
    assert caught.value.found.startswith("error: no such base")
    assert "terminal.txt" in caught.value.do
    travelled = pickle.loads(pickle.dumps(caught.value))
    assert (travelled.lines(), travelled.exit_code) == (caught.value.lines(), 4)


def test_a_killed_process_says_so(tmp_path, monkeypatch):
    with pytest.raises(Failed, match="killed by signal 9") as caught:
        run(tmp_path, monkeypatch, "import os; os.kill(os.getpid(), 9)")
    assert caught.value.exit_code == 1


@pytest.mark.slow
def test_commands_and_reports_load_no_torch(tmp_path):
    write_comparison(tmp_path / "compare")
    program = (
        "import sys, pathlib; from suri.cli.study import run_report; run_report(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "compare")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "merged Meta" in done.stdout
    assert (tmp_path / "compare" / "report.html").is_file()
