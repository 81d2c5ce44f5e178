"""What a study's or comparison's processes printed while they ran, as captures for its report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suri.study.blocks import Capture
from suri.study.language import tr
from suri.study.process import RECORD, read_lines

MOST_LINES = 48
"""Longer output is cut in its middle, and says so."""


def captures(folder: Path) -> list[Capture]:
    """All that is recorded and still there, in the order in which it ended; pictures last."""
    recorded = [
        entry for entry in read_lines(folder / RECORD) if (folder / entry["terminal"]).is_file()
    ]
    # The first of every kind of command, and whatever failed.
    verbs = [entry["command"].split()[:2] for entry in recorded]
    texts = [
        _capture(folder, entry, verbs.index(verbs[place]) == place or entry["exit_code"] != 0)
        for place, entry in enumerate(recorded)
    ]
    pictures = sorted((folder / "captures").glob("*.png"))
    return texts + [
        Capture("", "", picture=path, caption=tr("Screenshot: {name}", name=path.stem))
        for path in pictures
    ]


def _capture(folder: Path, entry: Mapping[str, Any], is_open: bool) -> Capture:
    text = (folder / entry["terminal"]).read_text(encoding="utf-8", errors="replace")
    text = text.replace(str(folder.absolute()), ".")
    outcome = tr("{seconds} s, exit code {code}", seconds=entry["seconds"], code=entry["exit_code"])
    return Capture(entry["command"], outcome, shortened(text), is_open=is_open)


def shortened(text: str) -> str:
    """At most MOST_LINES lines: the first and the last, and how many are left out between."""
    lines = [line.rstrip() for line in text.splitlines()]
    if len(lines) <= MOST_LINES:
        return "\n".join(lines)
    head, tail = MOST_LINES // 2, MOST_LINES // 2 - 1
    gap = tr("… {count} lines left out …", count=len(lines) - head - tail)
    return "\n".join([*lines[:head], gap, *lines[-tail:]])
