"""What the page shows besides its controls: its words in two languages, and HTML that is inert."""

import html
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from suri.errors import SuriError
from suri.wording import filled

TEXTS = tomllib.loads(Path(__file__).with_name("page_texts.toml").read_text(encoding="utf-8"))
CHINESE = {re.compile(english): chinese for english, chinese in TEXTS.pop("chinese").items()}
"""What other parts of Suri say: expressions that match a whole text, and how it is said."""
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Of events: none is an API of its own, or hides what it changes while it works."""
AT_ONCE: dict[str, Any] = QUIET | {"queue": False}
Points = Sequence[tuple[float, float]]


class Words:
    """Called with a text's name, and what fills it, gives it in a language: 0 English, 1 中文."""

    def __init__(self, language: int) -> None:
        self.language = language

    def __call__(self, name: str, /, **values: object) -> str:
        """Raises KeyError for a name that page_texts.toml does not have."""
        return filled(TEXTS[name][self.language], values)

    def again(self, text: str) -> str:
        """A name or text from another part of Suri, in this language where it is known."""
        if text in TEXTS:
            return self(text)
        tried = ((each.fullmatch(text), said) for each, said in CHINESE.items() if self.language)
        return next((match.expand(said) for match, said in tried if match), text)

    def mistake(self, problem: SuriError) -> str:
        """What a user got wrong, in one line."""
        return " ".join(self.again(each.strip()) for each in str(problem).splitlines())

    def told(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work, whose SuriErrors are shown as a message and change nothing on the page."""

        def tell(*given: Any) -> Any:
            try:
                return work(*given)
            except SuriError as problem:
                gr.Warning(html.escape(self.mistake(problem)), title="Suri")
                return gr.skip()

        return tell

    def value(self, name: str, value: object) -> str:
        """A setting's value as people read it, where there is more to say than the value."""
        text = f"{name}_{value}"
        return self(text) if text in TEXTS else str(value)

    def choices(self, name: str, values: Iterable[str]) -> list[tuple[str, str]]:
        """Values to choose from, each after what people read."""
        return [(self.value(name, value), value) for value in values]

    def box(self, name: str, kind: Callable[..., Any], *given: Any, **more: Any) -> Any:
        """A control called `name`, with its texts: `name`, and `name_info` where there is one."""
        if f"{name}_info" in TEXTS:
            more["info"] = self(f"{name}_info")
        return kind(*given, label=self(name), elem_id=name, **more)

    def table(self, heads: str, rows: Sequence[Sequence[object]]) -> str:
        """Rows of text under the heads of that name."""
        return table(self(heads).split("|"), rows)

    def button(self, name: str, **more: Any) -> gr.Button:
        """A button called `name`."""
        return gr.Button(self(name), elem_id=name, min_width=130, **more)


def line(text: str) -> str:
    """A line of HTML that shows the text and nothing else."""
    return f"<p>{html.escape(text)}</p>"


def block(text: str) -> str:
    """What a program printed."""
    return f"<pre>{html.escape(text)}</pre>" if text.strip() else ""


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows of text under their heads; "" where there are none.

    Each cell knows its head, which narrow screens show beside it.
    """
    heads = [html.escape(name) for name in head]
    shown = "".join(f"<th>{name}</th>" for name in heads)
    for row in rows:
        cells = zip(heads, (html.escape(str(cell)) for cell in row), strict=True)
        shown += "</tr><tr>" + "".join(f'<td data-head="{n}">{cell}</td>' for n, cell in cells)
    return f'<div class="wide"><table><tr>{shown}</tr></table></div>' if rows else ""


def curves(lines: Sequence[tuple[str, Points]]) -> str:
    """Lines of (step, loss) over each other as SVG, their names below; "" where there are none."""
    lines = [(name, line) for name, line in lines if line]
    points = [point for _, line in lines for point in line]
    if not points:
        return ""
    last, losses = max(step for step, _ in points) or 1, [loss for _, loss in points]
    low, high = min(losses), max(losses)
    drawn, names = "", ""
    for number, (name, line) in enumerate(lines):
        # The first point stands twice: so one alone is a dot.
        path = " ".join(f"{step:g},{high - loss:.6g}" for step, loss in [*line[:1], *line])
        drawn += f'<polyline class="line{number % 4}" points="{path}"/>'
        names += f'<span class="line{number % 4}">● {html.escape(name)}</span> '
    size = f'viewBox="0 0 {last:g} {high - low or 1:.6g}" data-points="{len(points)}"'
    return (
        f'<div class="curves"><i>{high:.2f}</i><i>{low:.2f}</i><i>0</i><i>{last:g}</i>'
        f'<svg {size} preserveAspectRatio="none">{drawn}</svg></div><p>{names}</p>'
    )
