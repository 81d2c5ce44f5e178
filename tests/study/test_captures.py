"""What processes printed, as it stands in a report."""

import json
from pathlib import Path
from xml.etree import ElementTree

from suri.study.captures import captures
from suri.study.process import RECORD


def test_forced_colours_leave_well_formed_pictures(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("\x1b[1;32mdone\x1b[0m in 3 s\n", encoding="utf-8")
    entry = {"command": "suri train", "terminal": "out.txt", "seconds": 3.0, "exit_code": 0}
    (tmp_path / RECORD).write_text(json.dumps(entry) + "\n", encoding="utf-8")
    (capture,) = captures(tmp_path)
    assert capture.text == "done in 3 s"
    ElementTree.fromstring(capture.svg)


def test_a_module_that_was_recorded_by_its_name_is_shown_as_a_command(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("load_seconds: 1.2\n", encoding="utf-8")
    commands = ["suri.study.measure ./a.json ./b.json", "python -m suri.study.measure ./c.json"]
    for command in [*commands, "suri train", "python -m suri.study.preflight ./d.json"]:
        entry = {"command": command, "terminal": "out.txt", "seconds": 3.0, "exit_code": 0}
        with (tmp_path / RECORD).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
    old, new, train, preflight = captures(tmp_path)
    assert old.command == "python -m suri.study.measure ./a.json ./b.json"
    assert train.command == "suri train"
    # The first of each kind is open.
    assert [one.is_open for one in (old, new, train, preflight)] == [True, False, True, True]
