"""What a report is made of, and the sections that every report has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from suri.recipe import EMBEDDED, Recipe, settings_of
from suri.study.statements import Statement

BUSY = 1.5
"""Load per core above which times are called unreliable; our own process is about 1."""


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


def threats(recipe: Mapping[str, Any], rows: int, environment: Mapping[str, Any]) -> list[str]:
    """Why these numbers may not hold elsewhere, from what this run was."""
    found = [
        f"{rows} held-out rows: differences smaller than the intervals cannot be seen with them, "
        "and the intervals cover the choice of rows, not the choice of seed.",
    ]
    if recipe.get("base_model") == EMBEDDED:
        found.append(
            "The embedded base has been through 4 bits before (Q4_1), so it already lies near a "
            "4-bit grid: what nf4 costs it says little about what nf4 costs other models."
        )
    if str(environment.get("device", "")).startswith("cpu"):
        found.append(
            "Measured on a CPU: which way is faster, and by how much, can be the other way round "
            "on a GPU; other programs on the machine disturb the times."
        )
    if environment.get("load_average", 0) > BUSY * environment.get("cores", 1):
        found.append(
            f"The machine was busy with other work (load average {environment['load_average']} on "
            f"{environment['cores']} cores): its times are too long, and their ratios unreliable."
        )
    return found


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
