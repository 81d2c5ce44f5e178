"""The sections that the reports of both tasks have, and what their figures share."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from suri.recipe import Recipe, settings_of
from suri.study.blocks import Block, Field, Points, Section, Statements, Table, Text
from suri.study.captures import MOST_LINES, captures
from suri.study.figures import Bar, Panel
from suri.study.language import listed, names_in, tr
from suri.study.listing import listing
from suri.study.measures import Measure
from suri.study.statements import Statement
from suri.wording import readable_bytes

SETTLED = ("token_budget", "shard_base")
"""Settings that a run reckons by itself from the free memory; none changes its result."""


def task_section(
    title: str, kind: str, folder: Path, results: Sequence[Section], last: Sequence[Section]
) -> Section:
    """A whole task, in the order of the handout: how it is gone about, its results, the rest."""
    idea = Section(tr("Idea"), [Text(tr(name)) for name in names_in(f"idea_{kind}")])
    intro = Text(tr("code_as_installed"))
    code = Section(tr("Code and explanation"), [intro, *listing(kind)])
    intro = Text(tr("captures_as_recorded", lines=MOST_LINES))
    runs = Section(tr("Runs and explanation"), [intro, *captures(folder)])
    return Section(title, parts=[idea, code, runs, Section(tr("Results"), parts=results), *last])


def analysis_section(
    findings: Sequence[Statement], statements: Sequence[Statement], threats: Sequence[str]
) -> Section:
    """What can be said in the main, what could not be decided, why it may not hold elsewhere."""
    claims = [one for one in findings if one.is_claim]
    others = [one for one in statements if not one.is_claim]
    blocks: list[Block] = []
    if claims:
        blocks += [Text(tr("What the intervals carry:")), Statements(claims)]
    if others:
        blocks += [Text(tr("What was seen and is not decided:")), Statements(others)]
    return Section(
        tr("Analysis"), blocks, [Section(tr("What this does not show"), [Points(threats)])]
    )


def reflections(claims: Sequence[Statement]) -> Section:
    """What all tasks found, and what only the author can write."""
    found: list[Block] = [Text(tr("Nothing was decided by these results."))]
    if claims:
        found = [Text(tr("What was found, as far as the intervals carry it:")), Statements(claims)]
    return Section(
        tr("Summary and reflections"),
        [*found, Field(tr("Reflections (to be written by the author)"), lines=8)],
    )


def settings_section(recipe: Mapping[str, Any], environments: Mapping[str, Any]) -> Section:
    """The recipe, and the environments and other settings that belong to the numbers."""
    defaults = settings_of(Recipe())
    differing = [name for name in recipe if recipe[name] != defaults.get(name)]
    changed = [name for name in differing if name not in SETTLED]
    rows = [(name, plain(recipe[name]), plain(defaults.get(name))) for name in changed]
    head = (tr("Setting"), tr("Here"), tr("Default"))
    tables = [Table(head, rows, tr("Recipe: settings that were changed"))]
    tables += [_pairs_table(values, title) for title, values in environments.items()]
    unchanged = [name for name in recipe if name not in differing]
    settled = [name for name in differing if name in SETTLED]
    texts = {
        "Settings left as they are: {settings}.": unchanged,
        "settled_by_memory": settled,
    }
    told = [
        Text(tr(text, settings=listed(f"{name} {plain(recipe[name])}" for name in names)))
        for text, names in texts.items()
        if names
    ]
    return Section(tr("Recipe and environment"), [*told, *tables])


def _pairs_table(values: Mapping[str, Any], caption: str) -> Table:
    """Names and values; what is nested, such as the packages, each by its own name."""
    named = names_in("environment")
    rows = [
        (tr(name) if name in named else name, _of_machine(name, value))
        for name, value in _flat(values)
    ]
    return Table((), rows, caption)


def _of_machine(name: str, value: Any) -> str:
    return readable_bytes(value) if name.endswith("_bytes") and value else plain(value)


def _flat(values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, value


def plain(value: Any) -> str:
    """A setting or a measured value, as a person would write it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        value = ", ".join(str(part) for part in value)
    return "–" if value == "" or value is None else str(value)


def measured_rows(
    rows: Iterable[tuple[Sequence[str], Mapping[str, Any]]], measures: Mapping[str, Measure]
) -> list[list[str]]:
    """Rows of a table: the names that each begins with, and what was measured of it."""
    return [
        [*names, *(measure.cell(found.get(name)) for name, measure in measures.items())]
        for names, found in rows
    ]


def panel(measure: Measure, measured: Iterable[Mapping[str, Any] | None]) -> Panel:
    """A bar for each value with its interval, or median with its range, where it was measured."""
    bars = [_bar(found, measure.scale) if found else None for found in measured]
    return Panel(measure.head, bars, measure.digits)


def _bar(found: Mapping[str, Any], scale: float) -> Bar:
    value = found["median"] if "median" in found else found["value"]
    return Bar(value * scale, found["low"] * scale, found["high"] * scale)
