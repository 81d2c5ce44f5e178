"""What the page shows besides its controls: its words in two languages, and HTML that is inert."""

import html
import tomllib
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from suri.errors import SuriError

TEXTS = tomllib.loads(Path(__file__).with_name("page_texts.toml").read_text(encoding="utf-8"))
WIDE, HIGH, LEFT, TOP = 640, 260, 44, 10
Points = Sequence[tuple[float, float]]


class Words:
    """Called with a text's name, and what fills it, gives it in a language: 0 English, 1 中文."""

    def __init__(self, language: int) -> None:
        self.language = language

    def __call__(self, name: str, /, **values: object) -> str:
        """Raises KeyError for a name that page_texts.toml does not have."""
        return str(TEXTS[name][self.language]).format(**values)


def line(text: str) -> str:
    """A line of HTML that shows the text and nothing else."""
    return f"<p>{html.escape(text)}</p>"


def block(text: str) -> str:
    """What a program printed."""
    return f"<pre>{html.escape(text)}</pre>" if text.strip() else ""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows of text under their heads."""
    cells = [f"<tr>{_cells('th', head)}</tr>", *(f"<tr>{_cells('td', row)}</tr>" for row in rows)]
    return f'<div class="wide"><table>{"".join(cells)}</table></div>'


def _cells(kind: str, texts: Iterable[object]) -> str:
    return "".join(f"<{kind}>{html.escape(str(text))}</{kind}>" for text in texts)


def message(problem: SuriError) -> str:
    """A mistake as one line."""
    return " ".join(part.strip() for part in problem.lines())


def told(work: Callable[..., Any]) -> Callable[..., Any]:
    """The same work, whose SuriErrors are shown as a message and change nothing on the page."""

    @wraps(work)
    def tell(*given: Any) -> Any:
        try:
            return work(*given)
        except SuriError as problem:
            gr.Warning(html.escape(message(problem)), title="Suri")
            return gr.skip()

    return tell


def curves(lines: Sequence[tuple[str, Points]]) -> str:
    """Lines of (step, loss) over each other as SVG, their names below; "" where there are none."""
    points = [point for _, line in lines for point in line]
    if not points:
        return ""
    last = max(*(step for step, _ in points), 1)
    losses = [loss for _, loss in points]
    low, high = min(losses), max(*losses, min(losses) + 1e-6)

    def place(step: float, loss: float) -> tuple[float, float]:
        x = LEFT + (WIDE - LEFT - 10) * step / last
        return x, TOP + (HIGH - TOP - 24) * (high - loss) / (high - low)

    drawn = []
    for number, (_, line) in enumerate(lines):
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in line)
        dots = "".join('<circle cx="{:.1f}" cy="{:.1f}" r="3"/>'.format(*place(*p)) for p in line)
        dots = dots if len(line) < 60 else ""
        drawn.append(f'<g class="line{number % 4}"><polyline points="{path}"/>{dots}</g>')
    marks = [(2, TOP + 10, f"{high:.2f}"), (2, HIGH - 26, f"{low:.2f}"), (LEFT, HIGH - 6, "0"),
             (WIDE - 40, HIGH - 6, f"{last:g}")]  # fmt: skip
    texts = "".join(f'<text x="{x}" y="{y}">{text}</text>' for x, y, text in marks)
    names = "".join(f'<span class="line{i % 4}">● {html.escape(name)}</span> '
                    for i, (name, _) in enumerate(lines))  # fmt: skip
    size = f'viewBox="0 0 {WIDE} {HIGH}" data-points="{len(points)}"'
    return f'<svg class="curves" {size}>{"".join(drawn)}{texts}</svg><p>{names}</p>'
