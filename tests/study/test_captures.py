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
