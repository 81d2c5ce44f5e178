import subprocess
import sys

import pytest

from results import write_comparison
from suri.study.process import Failed, run_module


def run(tmp_path, monkeypatch, text):
    (tmp_path / "program.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run_module("program", ["seven"], what="trial 7", terminal=tmp_path / "kept" / "terminal.txt")


def test_what_a_process_prints_is_kept(tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, "import sys; print(sys.argv[1]); print('loud', file=sys.stderr)")
    assert set((tmp_path / "kept" / "terminal.txt").read_text().split()) == {"seven", "loud"}


def test_a_failure_carries_the_message_and_the_exit_code(tmp_path, monkeypatch):
    program = "import sys; print('step 1'); print('error: no such base\\n  do: x'); sys.exit(4)"
    with pytest.raises(Failed) as caught:
        run(tmp_path, monkeypatch, program)
    assert caught.value.exit_code == 4
    assert caught.value.what == "trial 7 failed"
    assert caught.value.found.startswith("error: no such base")
    assert "terminal.txt" in caught.value.do


def test_a_killed_process_says_so(tmp_path, monkeypatch):
    with pytest.raises(Failed, match="killed by signal 9") as caught:
        run(tmp_path, monkeypatch, "import os; os.kill(os.getpid(), 9)")
    assert caught.value.exit_code == 1


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
