"""Numbers with their units and intervals, as people read them."""

from collections.abc import Mapping
from typing import Any

from suri.study.intervals import Interval, interval_of
from suri.study.language import tr
from suri.study.measures import Measure


def number(value: float, digits: int) -> str:
    """A number with that many decimals, or in powers of ten where these would show only zeros."""
    is_tiny = value and not round(abs(value), digits)
    text = f"{value:.1e}" if is_tiny else f"{value:,.{digits}f}"
    return f"−{text[1:]}" if text.startswith("-") else text


def quantity(measure: Measure, value: float) -> str:
    """A number with its unit, as tables show it."""
    return f"{number(value * measure.scale, measure.digits)} {tr(measure.unit)}".rstrip()


def with_interval(measure: Measure, summary: Mapping[str, Any]) -> str:
    """A number and below it its 95 % interval; the unit is left to the head of the column."""
    value, low, high = ends_of(measure, interval_of(summary))
    return f"{value}\n{low}\u00a0{tr('to')}\u00a0{high}"


def headed(measure: Measure) -> str:
    """What stands at the head of a column: the name and its unit."""
    return f"{tr(measure.label)}, {tr(measure.unit)}" if measure.unit else tr(measure.label)


def ends_of(measure: Measure, found: Interval) -> tuple[str, str, str]:
    """Value, low and high as people read them."""
    value, low, high = (
        number(end * measure.scale, measure.digits) for end in (found.value, found.low, found.high)
    )
    return value, low, high


def size_of(found: Interval) -> str:
    """What an interval rests on."""
    if found.rows == 1:
        return tr("n = {seeds} seeds", seeds=found.seeds)
    if found.seeds == 1:
        return f"n = {found.rows}"
    return tr("n = {rows} rows, {seeds} seeds", rows=found.rows, seeds=found.seeds)
