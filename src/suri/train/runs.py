"""Run folders below a place: what was trained, with what, and how it went."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suri.errors import SuriError, UsageError
from suri.reading import no_such, read_json_lines, read_object, read_toml, well_formed
from suri.recipe import Recipe, settings_of, with_settings
from suri.train.plan import Plan
from suri.wording import readable_bytes, readable_seconds

WHERE = ("output_dir", "overwrite", "resume", "resume_from_checkpoint", "wandb_run_name")
"""Settings that say where a run lies and not what it is."""
DEEPEST = 6
INSIDE = ("checkpoints", "best", "work")
"""Folders of a run or a comparison that hold no run."""


@dataclass(frozen=True)
class RunEntry:
    """One training: its folder, its settings, and as much of its results as there is."""

    folder: Path
    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    started: float
    """Seconds since 1970."""

    @property
    def state(self) -> str:
        """`finished`, or how far it came."""
        if self.result:
            return "finished"
        steps = [line["step"] for line in self.metrics]
        return f"step {max(steps)}, not finished" if steps else "not finished"

    @property
    def samples(self) -> list[dict[str, str]]:
        """The sample answers of the last evaluation."""
        return next((m["eval/samples"] for m in reversed(self.metrics) if "eval/samples" in m), [])

    def points(self, name: str) -> list[tuple[int, float]]:
        """The steps that have a figure, with it."""
        return [(line["step"], line[name]) for line in self.metrics if name in line]

    @property
    def figures(self) -> dict[str, float]:
        """Numbers to set beside another run's; of an unfinished one those of its metrics."""
        evaluated = [line["eval/loss"] for line in self.metrics if "eval/loss" in line]
        found = {
            "base_loss": evaluated[0] if evaluated else None,
            "held_out_loss": min(evaluated[1:], default=None),
            "steps": self._most("step"),
            "train_seconds": self._most("seconds"),
            "peak_memory_bytes": self._most("memory/peak_bytes"),
        } | dict(self.result)
        names = (
            "base_loss", "held_out_loss", "steps", "rows", "tokens", "train_seconds",
            "total_seconds", "tokens_per_second", "peak_memory_bytes",
        )  # fmt: skip
        return {name: value for name in names if (value := found.get(name)) is not None}

    def _most(self, name: str) -> float | None:
        """The largest of a figure of its steps."""
        return max((line[name] for line in self.metrics if name in line), default=None)


def read_run(folder: Path) -> RunEntry:
    """One run folder; raises UsageError where it is none."""
    recipe = folder / "recipe.toml"
    if not recipe.is_file() or not (folder / "environment.json").is_file():
        raise UsageError(f"{folder} is no run folder", do="`suri runs` lists those below here")
    settings = read_toml(recipe, "recipe")
    finished = folder / "result.json"
    found = RunEntry(
        folder,
        settings_of(Recipe()) | settings,
        read_object(finished) if finished.is_file() else {},
        read_json_lines(folder / "metrics.jsonl"),
        recipe.stat().st_mtime,
    )
    with well_formed(folder):
        numbers = [value for line in found.metrics for value in (line["step"], *losses_in(line))]
        if not all(type(value) in (int, float) for value in (*numbers, *found.figures.values())):
            raise ValueError("figures that are no numbers")
    return found


def steps_planned(run: RunEntry) -> int:
    """How many steps a run has from its beginning to its end."""
    rows = int(read_object(run.folder / "data.json")["train_rows"])
    recipe = with_settings(Recipe(), dict(run.settings), str(run.folder))
    return Plan(recipe, range(max(1, rows))).steps


def losses_in(line: Mapping[str, Any]) -> list[Any]:
    """The losses of a line of metrics."""
    return [line[name] for name in ("train/loss", "eval/loss") if name in line]


def find_runs(place: Path, where: Sequence[str] = ()) -> list[RunEntry]:
    """All runs below a folder that have the settings `name=value` in `where`, oldest first.

    Folders that cannot be read as runs are passed over. Raises UsageError for no such folder and
    for a condition without `=`.
    """
    if not place.is_dir():
        raise no_such(place, "folder")
    wanted = [_condition(text) for text in where]
    runs = []
    for folder, _ in folders_below(place, DEEPEST):
        try:
            run = read_run(folder)
        except SuriError:
            continue
        if all(str(run.settings.get(name, "")) == value for name, value in wanted):
            runs.append(run)
    return sorted(runs, key=lambda run: run.started)


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or name not in settings_of(Recipe()):
        raise UsageError(f"--where {text}", do="write it as a setting=value, quantize=nf4 say")
    return name, value


def folders_below(place: Path, deepest: int) -> Iterator[tuple[Path, list[str]]]:
    """A folder and those below it, each with its files' names; none hidden, none inside a run."""
    for name, below, files in os.walk(place):
        folder = Path(name)
        deep = len(folder.relative_to(place).parts) >= deepest
        below[:] = sorted(n for n in below if not (deep or n.startswith(".") or n in INSIDE))
        yield folder, files


def differing(one: RunEntry, other: RunEntry) -> list[tuple[str, Any, Any]]:
    """The settings in which two runs differ: name, one's, the other's."""
    names = dict.fromkeys([*one.settings, *other.settings])
    return [
        (name, one.settings.get(name), other.settings.get(name))
        for name in names
        if name not in WHERE and one.settings.get(name) != other.settings.get(name)
    ]


def readable_figure(name: str, value: float | None) -> str:
    """One of a run's figures as a person would write it; – where there is none."""
    if value is None:
        return "–"
    if name.endswith("_bytes"):
        return readable_bytes(value)
    if name.endswith("_seconds"):
        return f"{value:.1f} s" if value < 90 else f"{value:.0f} s ({readable_seconds(value)})"
    return f"{value:,.4f}" if name.endswith("_loss") else f"{value:,.0f}"
