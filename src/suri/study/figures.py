"""Figures as SVG that takes its colours from the page: one drawing for light, dark and paper."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from suri.study.language import TEMPLATES
from suri.study.packages import package

PAINTS = {
    "ink": ("#010101", "#1b1f24"),
    "line": ("#020202", "#d5d9de"),
    "c0": ("#0a0000", "#7d8590"),
    "c1": ("#0b0000", "#0072b2"),
    "c2": ("#0c0000", "#d55e00"),
    "c3": ("#0d0000", "#009e73"),
    "c4": ("#0e0000", "#cc79a7"),
    "c5": ("#0f0000", "#b8860b"),
    "c6": ("#100000", "#56a5d9"),
    "c7": ("#110000", "#6a51a3"),
}
"""Paint: the colour that stands for it while drawing, and the one it has on paper.

The last eight are told apart with any colour vision (after Okabe and Ito 2008, and a grey); lines
differ in marker and dash too, bars stand beside their names.
"""
THIN = 1e-9
"""A narrower interval is none: one number, or numbers that are all alike."""
INK, LINE = PAINTS["ink"][0], PAINTS["line"][0]
SERIES = tuple(name for name in PAINTS if name.startswith("c"))
STYLE = TEMPLATES / "figures.mplstyle"
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", "-", "--", "-.", ":")
COLOURS = {
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "grid.color": LINE,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
}


@dataclass(frozen=True)
class Bar:
    """One number with the ends of its interval or range, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Panel:
    """Bars of one unit, one for each row of the figure."""

    title: str
    bars: Sequence[Bar | None]
    digits: int = 1


@dataclass(frozen=True)
class Line:
    """Points joined in order; `lows` and `highs` are the ends of their intervals."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    series: int
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()
    faint: bool = False
    marked: bool = True


def bar_figure(name: str, rows: Sequence[tuple[str, int]], panels: Sequence[Panel]) -> str:
    """Panels side by side that share their rows; a row is its label and its series."""
    with _drawing(name, 9.2, 0.75 + 0.38 * len(rows)) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, panel in zip(axes, panels, strict=True):
            _draw_bars(axis, rows, panel)
        axes[0].set_yticks(range(len(rows)), [label for label, _ in rows])
        axes[0].invert_yaxis()
        return _svg(figure)


def _draw_bars(axis: Any, rows: Sequence[tuple[str, int]], panel: Panel) -> None:
    axis.set_title(panel.title)
    axis.tick_params(length=0)
    axis.spines["bottom"].set_visible(False)
    axis.set_xticks([])
    ends = [max(bar.value, bar.high or bar.value, 0.0) for bar in panel.bars if bar]
    most = max(ends, default=0.0) or 1.0
    least = min((min(bar.value, bar.low or 0.0) for bar in panel.bars if bar), default=0.0)
    axis.set_xlim(min(0.0, least * 1.2), most * 1.35)
    for place, ((_, series), bar) in enumerate(zip(rows, panel.bars, strict=True)):
        if not bar:
            continue
        axis.barh(place, bar.value, height=0.55, color=PAINTS[SERIES[series]][0])
        end = bar.value
        if bar.low is not None and bar.high is not None and bar.high - bar.low > THIN * most:
            reach = [[bar.value - bar.low], [bar.high - bar.value]]
            axis.errorbar(bar.value, place, xerr=reach, color=INK, linewidth=1.2, capsize=2.5)
            end = max(bar.high, end, 0.0)
        text = f"{bar.value:,.{panel.digits}f}"
        axis.text(end + most * 0.03, place, text, va="center", fontsize=9)


def line_figure(
    name: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    x_names: Sequence[str] = (),
    from_zero: bool = False,
) -> str:
    """Lines over one pair of axes, told apart by colour, dash and marker.

    With `x_names` the points stand at 0, 1, ... under these names, a little apart from each other.
    """
    with _drawing(name, 9.2, 3.4) as figure:
        axis = figure.subplots()
        axis.grid(visible=True, axis="y")
        axis.tick_params(length=0)
        for place, line in enumerate(lines):
            _draw_line(axis, line, 0.02 * (place - (len(lines) - 1) / 2) if x_names else 0.0)
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        axis.margins(x=0.03, y=0.1)
        if from_zero:
            axis.set_ylim(bottom=0)
        if x_names:
            axis.set_xticks(range(len(x_names)), x_names)
            axis.set_xlim(-0.3, len(x_names) - 0.7)
        axis.legend()
        return _svg(figure)


def _draw_line(axis: Any, line: Line, aside: float) -> None:
    paint = PAINTS[SERIES[line.series]][0]
    xs = [x + aside for x in line.xs]
    look = {"color": paint, "linestyle": DASHES[line.series], "label": line.label}
    if line.faint:
        axis.plot(xs, line.ys, **look | {"linestyle": "-", "linewidth": 1, "alpha": 0.55})
        return
    marker = {"marker": MARKERS[line.series], "markersize": 5} if line.marked else {}
    axis.plot(xs, line.ys, linewidth=2, **look, **marker)
    if line.lows:
        axis.fill_between(xs, line.lows, line.highs, color=paint, alpha=0.13, linewidth=0)
        axis.vlines(xs, line.lows, line.highs, color=paint, linewidth=1)


def heat_figure(name: str, names: Sequence[str], shares: Sequence[Sequence[float]]) -> str:
    """Shares from 0 to 1 of every two of the names, as a square of percentages."""
    with _drawing(name, 9.2, 1.6 + 0.4 * len(names)) as figure:
        from matplotlib.patches import Rectangle

        axis = figure.subplots()
        for row, line in enumerate(shares):
            for column, share in enumerate(line):
                square = Rectangle((column - 0.5, row - 0.5), 1, 1)
                square.set(facecolor=PAINTS["c1"][0], alpha=0.08 + 0.55 * share, linewidth=0)
                axis.add_patch(square)
                text = f"{100 * share:.0f}"
                axis.text(column, row, text, ha="center", va="center", fontsize=9)
        axis.set_xlim(-0.5, len(names) - 0.5)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.tick_params(length=0)
        axis.set_yticks(range(len(names)), names)
        axis.set_xticks(range(len(names)), names, rotation=35, ha="right")
        axis.spines[:].set_visible(False)
        return _svg(figure)


def for_paper(svg: str) -> str:
    """The same figure with the colours of paper, as a file of its own."""
    for name, (_, colour) in PAINTS.items():
        svg = svg.replace(f"var(--{name})", colour)
    return svg


def _svg(figure: Any) -> str:
    """The drawing as one <svg> element: paints become the page's variables, ids are dropped."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        # Text stays text: whoever shows the drawing brings the Chinese font that this lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # These ids are numbered from 1 in every figure, and a page holds several.
    svg = re.sub(r' id="[A-Za-z0-9.]+_[0-9]+"', "", svg)
    for name, (stand_in, _) in PAINTS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return svg


@contextmanager
def _drawing(name: str, width: float, height: float) -> Iterator[Any]:
    """An empty figure of that size in inches, in our style; the name makes its ids."""
    style = package("matplotlib.style", "figures need", "matplotlib")
    from matplotlib.figure import Figure

    with style.context([STYLE, COLOURS | {"svg.hashsalt": name}]):
        yield Figure(figsize=(width, height), layout="constrained")
