"""What a study's or comparison's processes printed while they ran, as captures for its report."""

import hashlib
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from suri.reading import read_json_lines
from suri.study.blocks import Capture
from suri.study.language import TEMPLATES, tr
from suri.study.process import PROGRAM, RECORD

MOST_LINES = 48
"""Longer output is cut in its middle, and says so."""
COLUMNS = 100
WINDOW = TEMPLATES / "terminal.svg"
"""rich's drawing of a terminal, without the font that its own asks the internet for."""


def captures(folder: Path) -> list[Capture]:
    """All that is recorded and still there, in the order in which it ended; pictures last."""
    recorded = [
        entry | {"command": _typed(entry["command"])}
        for entry in read_json_lines(folder / RECORD)
        if (folder / entry["terminal"]).is_file()
    ]
    # The first of every kind of command, and whatever failed.
    verbs = [_verb(entry["command"].split()) for entry in recorded]
    texts = [
        _capture(folder, entry, verbs.index(verbs[place]) == place or entry["exit_code"] != 0)
        for place, entry in enumerate(recorded)
    ]
    pictures = sorted((folder / "captures").glob("*.png"))
    return texts + [
        Capture("", "", picture=path, caption=tr("Screenshot: {name}", name=path.stem))
        for path in pictures
    ]


def _typed(command: str) -> str:
    """A command as a person types it; what older versions recorded named a module alone."""
    return f"python -m {command}" if command.startswith(f"{PROGRAM}.") else command


def _verb(words: list[str]) -> list[str]:
    """The program and its verb or module: what tells one kind of process from another."""
    return words[:2] if words[0] == PROGRAM else words[:3]


def _capture(folder: Path, entry: Mapping[str, Any], is_open: bool) -> Capture:
    text = (folder / entry["terminal"]).read_text(encoding="utf-8", errors="replace")
    for place, shown in ((str(folder.absolute()), "."), (sys.prefix, "python")):
        text = text.replace(place, shown)
    # Colours where the environment forces them, as Jupyter's does; no XML may hold an escape.
    text = shortened(Text.from_ansi(text).plain)
    outcome = tr("{seconds} s, exit code {code}", seconds=entry["seconds"], code=entry["exit_code"])
    name = f"terminal-{Path(entry['terminal']).with_suffix('').as_posix().replace('/', '-')}"
    svg = terminal(f"$ {entry['command']}", text, name) if is_open else ""
    return Capture(entry["command"], outcome, text, name=name, svg=svg, is_open=is_open)


def terminal(command: str, text: str, name: str) -> str:
    """A terminal of COLUMNS characters with a command and what it printed, as SVG."""
    screen = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False)
    screen.print(Text(command, style="bold"), soft_wrap=False)
    screen.print(Text(text), soft_wrap=False)
    unique = "t" + hashlib.sha256(name.encode()).hexdigest()[:10]
    window = WINDOW.read_text(encoding="utf-8").strip()
    return screen.export_svg(title="", code_format=window, unique_id=unique)


def shortened(text: str) -> str:
    """At most MOST_LINES lines: the first and the last, and how many are left out between."""
    lines = [line.rstrip() for line in text.splitlines()]
    if len(lines) <= MOST_LINES:
        return "\n".join(lines)
    head, tail = MOST_LINES // 2, MOST_LINES // 2 - 1
    gap = tr("… {count} lines left out …", count=len(lines) - head - tail)
    return "\n".join([*lines[:head], gap, *lines[-tail:]])
