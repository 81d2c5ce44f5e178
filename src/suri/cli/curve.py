"""The losses of a run, or of two, as curves of characters for a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.console import Console

Points = Sequence[tuple[float, float]]
"""Step and loss of each point, in the order of the steps."""

FEWEST_STEPS = 8
"""A curve of fewer steps says no more than the figures beside it."""
ACROSS, DOWN = 2, 4
"""Dots of one braille character."""
COLOURS, MARKS = ("blue", "yellow", "bold"), ("*", "+", "#")
"""Of one run's dots, the other's, and where they meet; marks are for terminals of ASCII alone."""
BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of each dot above U+2800, by row and column."""


def loss_curve(
    metrics: Iterable[Mapping[str, Any]],
    *,
    width: int = 60,
    height: int = 10,
    ascii_only: bool = False,
) -> list[str]:
    """Lines that show smoothed training loss and held-out points of a run's metrics, with axes.

    `width` and `height` are the characters of the area between the axes. Gives no line where
    there are fewer than FEWEST_STEPS steps.
    """
    lines = list(metrics)
    training, held_out = _points(lines, "train/loss"), _points(lines, "eval/loss")
    if len(training) < FEWEST_STEPS:
        return []
    reach = len(training) // 15
    curve = smooth(training, reach)
    canvas = Canvas([*curve, *held_out], width, height)
    canvas.draw(curve)
    picture = _picture([canvas], ascii_only)
    for step, loss in held_out:
        row, column = canvas.cell(step, loss)
        picture[row][column] = "o"
    key = f"{MARKS[0] if ascii_only else '⠒'} training loss"
    key += f" (mean of {2 * reach + 1} steps)" if reach else ""
    key += "   o held-out loss" if held_out else ""
    return [*with_axes(picture, canvas, ascii_only), f"{'':9} {key}"]


def two_curves(
    one: Iterable[Mapping[str, Any]],
    other: Iterable[Mapping[str, Any]],
    *,
    width: int = 60,
    height: int = 12,
    ascii_only: bool = False,
) -> list[str]:
    """Smoothed training losses of two runs on the same axes, in the markup of rich.

    Gives no line where one of them has fewer than FEWEST_STEPS steps.
    """
    both = [_points(metrics, "train/loss") for metrics in (one, other)]
    if min(map(len, both)) < FEWEST_STEPS:
        return []
    curves = [smooth(points, len(points) // 15) for points in both]
    canvases = [Canvas([*curves[0], *curves[1]], width, height) for _ in both]
    for canvas, curve in zip(canvases, curves, strict=True):
        canvas.draw(curve)
    first, second = MARKS[:2] if ascii_only else ("⠒", "⠒")
    key = f"[{COLOURS[0]}]{first} first[/]   [{COLOURS[1]}]{second} second[/]   training loss"
    picture = _picture(canvases, ascii_only)
    return [*with_axes(picture, canvases[0], ascii_only), f"{'':9} {key}"]


def room_of(console: Console) -> dict[str, Any]:
    """How wide a curve may be on a console, and whether it shows ASCII alone."""
    options = console.options
    return {"width": min(60, console.width - 11), "ascii_only": options.ascii_only}


def _points(metrics: Iterable[Mapping[str, Any]], name: str) -> Points:
    return [(line["step"], line[name]) for line in metrics if name in line]


def _picture(canvases: Sequence["Canvas"], ascii_only: bool) -> list[list[str]]:
    """The characters of each row: one run's dots, or two runs' together in colours."""
    rows, columns = range(canvases[0].height), range(canvases[0].width)
    return [
        [_sign([each.bits(row, column) for each in canvases], ascii_only) for column in columns]
        for row in rows
    ]


def _sign(bits: list[int], ascii_only: bool) -> str:
    if not any(bits):
        return " "
    which = bits.index(max(bits)) if 0 in bits or len(bits) == 1 else 2
    sign = MARKS[which] if ascii_only else chr(0x2800 + (bits[0] | bits[-1]))
    return sign if len(bits) == 1 else f"[{COLOURS[which]}]{sign}[/]"


def smooth(points: Points, reach: int) -> Points:
    """Each loss becomes the mean of itself and up to `reach` neighbours on either side."""
    smoothed = []
    for place, (step, _) in enumerate(points):
        around = points[max(0, place - reach) : place + reach + 1]
        smoothed.append((step, sum(loss for _, loss in around) / len(around)))
    return smoothed


class Canvas:
    """A grid of dots, `ACROSS` by `DOWN` in each character, scaled so that all points fit."""

    def __init__(self, points: Points, width: int, height: int) -> None:
        steps, losses = [step for step, _ in points], [loss for _, loss in points]
        self.first, self.last = min(steps), max(steps)
        self.low, self.high = min(losses), max(losses)
        self.width, self.height = width, height
        self.dots: set[tuple[int, int]] = set()

    def dot(self, step: float, loss: float) -> tuple[int, int]:
        """The row (from the top) and column of a point's dot."""
        right = (step - self.first) / (self.last - self.first)
        below = (self.high - loss) / (self.high - self.low) if self.high > self.low else 0.5
        return (
            round(below * (DOWN * self.height - 1)),
            round(right * (ACROSS * self.width - 1)),
        )

    def cell(self, step: float, loss: float) -> tuple[int, int]:
        """The row and column of the character that holds a point."""
        row, column = self.dot(step, loss)
        return row // DOWN, column // ACROSS

    def draw(self, points: Points) -> None:
        """Set the dots of the points and of the straight lines between them."""
        for (row, column), (next_row, next_column) in pairwise(self.dot(*p) for p in points):
            count = max(abs(next_row - row), abs(next_column - column), 1)
            for part in range(count + 1):
                share = part / count
                self.dots.add(
                    (
                        round(row + share * (next_row - row)),
                        round(column + share * (next_column - column)),
                    )
                )

    def bits(self, row: int, column: int) -> int:
        """The dots of one character, as the bits of a braille sign."""
        return sum(
            bit
            for down, line in enumerate(BRAILLE)
            for across, bit in enumerate(line)
            if (row * DOWN + down, column * ACROSS + across) in self.dots
        )


def with_axes(picture: list[list[str]], canvas: Canvas, ascii_only: bool) -> list[str]:
    """The picture with losses on its left and steps below."""
    tick, side, corner, floor = "||+-" if ascii_only else "┤│└─"
    middle = canvas.height // 2
    per_row = (canvas.high - canvas.low) / max(1, canvas.height - 1)
    numbers = {
        0: f"{canvas.high:.3f}",
        middle: f"{canvas.high - middle * per_row:.3f}",
        canvas.height - 1: f"{canvas.low:.3f}",
    }
    lines = [
        f"{numbers.get(row, ''):>8} {tick if row in numbers else side}{''.join(signs).rstrip()}"
        for row, signs in enumerate(picture)
    ]
    first, halfway, last = (
        f"{step:g}" for step in (canvas.first, (canvas.first + canvas.last) // 2, canvas.last)
    )
    half = canvas.width // 2
    below = first.ljust(half - len(halfway) // 2) + halfway
    lines.append(f"{'':8} {corner}{floor * canvas.width}")
    return [*lines, f"{'step':>8}  {below.ljust(canvas.width - len(last))}{last}"]
