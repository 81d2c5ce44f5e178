"""What a report is made of, and the sections that every report has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from suri.recipe import Recipe, settings_of
from suri.study.figures import Line, line_figure
from suri.study.statements import Statement

SHOWN = 6
"""Answers in sight; the others are folded away."""


@dataclass(frozen=True)
class Figure:
    """A drawing and what it shows; `name` is its file's."""

    name: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row. Without a head it holds names and values."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Tile:
    """One number to see first."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Verdict:
    """An answer and, where it can be checked, whether it is right."""

    way: str
    text: str
    correct: bool | None


@dataclass(frozen=True)
class Sample:
    """One held-out row and what each way answered."""

    instruction: str
    input: str
    expected: str
    verdicts: Sequence[Verdict]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order."""

    title: str
    text: str = ""
    tiles: Sequence[Tile] = ()
    statements: Sequence[Statement] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    points: Sequence[str] = ()
    samples: Sequence[Sample] = ()
    more_samples: Sequence[Sample] = ()


def settings_section(recipe: Mapping[str, Any], environments: Mapping[str, Any]) -> Section:
    """The recipe, and the environments and other settings that belong to the numbers."""
    defaults = settings_of(Recipe())
    changed = [name for name in recipe if recipe[name] != defaults.get(name)]
    rows = [(name, plain(recipe[name]), plain(defaults.get(name))) for name in changed]
    tables = [Table(("Setting", "Here", "Default"), rows, "Recipe: settings that were changed")]
    for title, values in environments.items():
        tables.append(Table((), [(name, plain(value)) for name, value in _flat(values)], title))
    unchanged = ", ".join(
        f"{name} {plain(value)}" for name, value in recipe.items() if name not in changed
    )
    return Section(
        "Recipe and environment", f"Settings left as they are: {unchanged}.", tables=tables
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested values as dotted names, for a table of two columns."""
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs


def plain(value: Any) -> str:
    """A setting or a measured value, as a person would write it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(part) for part in value)
    return "–" if value == "" or value is None else str(value)


def training_section(summary: Mapping[str, Any], training: Sequence[dict[str, Any]]) -> Section:
    """How the adapter came about: losses over the steps, and result.json."""
    steps = [one for one in training if "train/loss" in one]
    evaluations = [one for one in training if "eval/loss" in one]
    lines = [
        Line("training", *_points(steps, "train/loss"), series=0, faint=True),
        Line("held out", *_points(evaluations, "eval/loss"), series=1),
    ]
    result = [(name, plain(value)) for name, value in summary["result"].items()]
    return Section(
        "The training run",
        figures=[
            Figure(
                "training",
                line_figure("training", [x for x in lines if x.xs], "step", "nats per token"),
                "Loss per learned token; step 0 is the base.",
            )
        ]
        if steps or evaluations
        else [],
        tables=[Table((), result, "result.json")],
    )


def _points(entries: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    return [one["step"] for one in entries], [one[name] for one in entries]


def samples_section(summary: Mapping[str, Any], entries: Sequence[dict[str, Any]]) -> Section:
    """The first answers in full, the others folded away."""
    samples = [
        Sample(entry["instruction"], entry["input"], entry["expected"], _verdicts(summary, entry))
        for entry in entries
    ]
    text = (
        "The first held-out rows, in their order: not chosen by how they turned out. Ways that "
        "gave the same answer stand in one line."
    )
    return Section(
        "Answers side by side", text, samples=samples[:SHOWN], more_samples=samples[SHOWN:]
    )


def _verdicts(summary: Mapping[str, Any], entry: dict[str, Any]) -> list[Verdict]:
    """The different answers to one row, each with the ways that gave it."""
    ways: dict[str, list[str]] = {}
    for name, answer in entry["answers"].items():
        ways.setdefault(answer["text"], []).append(name)
    return [
        Verdict(
            ", ".join(summary["ways"][name]["label"] for name in names),
            text,
            entry["answers"][names[0]]["correct"],
        )
        for text, names in ways.items()
    ]
