"""The sections that every report has: idea, code, captures, analysis, settings, reflections."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suri.recipe import Recipe, settings_of
from suri.study.blocks import (
    Block,
    Field,
    Figure,
    Points,
    Sample,
    Samples,
    Section,
    Statements,
    Table,
    Text,
    Verdict,
)
from suri.study.captures import captures
from suri.study.figures import Line, line_figure
from suri.study.language import tr
from suri.study.listing import listing
from suri.study.measures import way_label
from suri.study.statements import Statement

SHOWN = 6
"""Answers in sight; the others are folded away."""
IDEAS = {
    "compare": (
        "LoRA leaves the weights W of the model as they are and learns a product of two thin "
        "matrices beside them: W + scaling · B A. Merging adds that product to W, so that the "
        "model needs neither adapter nor library any more. In exact arithmetic nothing changes; "
        "what rounding, another order of rows or another format changes is measured here.",
        "Every form of the weights answers the same held-out prompts in the same engine and number "
        "format, each in a process of its own and in turns. Quality: loss and perplexity of the "
        "expected answers, exact match where a rule can check it, ROUGE-L, chrF, BLEU. Agreement: "
        "answers token by token, and the divergence of the next-token distributions. Performance: "
        "loading, first token, reading and writing speed, memory, disk.",
        "Both merges carry a certificate: rows of every weight are computed again from the "
        "adapter's file in fp64 by separate code, and the logits of what lies on disk are held "
        "against base and adapter.",
    ),
    "study": (
        "LoRA trains the same few numbers whatever the frozen weights are stored in. QLoRA stores "
        "them in 4 bits (NF4 with double quantisation), the 8-bit method multiplies in 8-bit "
        "integers: less memory, other speed, and possibly other quality.",
        "A comparison is fair only if nothing else differs. Methods of one size and seed learn the "
        "same rows in the same order in as many steps, cut into the same micro-batches, from the "
        "same initial adapter in fp32; each trial records this, and where it does not hold nothing "
        "is compared. Smaller sets are the start of larger ones; all are judged on the same "
        "held-out rows.",
        "A speed-up is the mean ratio of the times of paired steps, with its 95 % interval over "
        "steps and seeds; memory is the peak of the whole process.",
    ),
}


def idea_section(kind: str) -> Section:
    """How the task is gone about."""
    return Section(tr("Idea"), [Text(tr(text)) for text in IDEAS[kind]])


def code_section(kind: str) -> Section:
    """The functions that do it."""
    intro = tr("The functions that decide, as they are installed, with their line numbers.")
    return Section(tr("Code and explanation"), [Text(intro), *listing(kind)])


def captures_section(folder: Path) -> Section:
    """What the processes printed."""
    shown = captures(folder)
    intro = tr(
        "Recorded while the processes ran, in the order in which they ended; nothing was run again "
        "for this report. Output of more than {lines} lines is cut in its middle.",
        lines=48,
    )
    return Section(tr("Runs and explanation"), [Text(intro), *shown])


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


def author_fields() -> list[Field]:
    """Blank fields at the head of the report."""
    return [Field(tr(name)) for name in ("Name", "Student number", "Date")]


def settings_section(recipe: Mapping[str, Any], environments: Mapping[str, Any]) -> Section:
    """The recipe, and the environments and other settings that belong to the numbers."""
    defaults = settings_of(Recipe())
    changed = [name for name in recipe if recipe[name] != defaults.get(name)]
    rows = [(name, plain(recipe[name]), plain(defaults.get(name))) for name in changed]
    head = (tr("Setting"), tr("Here"), tr("Default"))
    tables = [Table(head, rows, tr("Recipe: settings that were changed"))]
    for title, values in environments.items():
        tables.append(Table((), [(name, plain(value)) for name, value in _flat(values)], title))
    unchanged = ", ".join(
        f"{name} {plain(value)}" for name, value in recipe.items() if name not in changed
    )
    left = tr("Settings left as they are: {settings}.", settings=unchanged)
    return Section(tr("Recipe and environment"), [Text(left), *tables])


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
        Line(tr("training"), *_points(steps, "train/loss"), series=0, faint=True),
        Line(tr("held out"), *_points(evaluations, "eval/loss"), series=1),
    ]
    shown = [line for line in lines if line.xs]
    blocks: list[Block] = []
    if shown:
        drawing = line_figure("training", shown, tr("step"), tr("nats per token"))
        caption = tr("Loss per learned token; step 0 is the base.")
        blocks.append(Figure("training", drawing, caption))
    result = [(name, plain(value)) for name, value in _flat(summary["result"])]
    return Section(tr("The training run"), [*blocks, Table((), result, "result.json")])


def _points(entries: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    return [one["step"] for one in entries], [one[name] for one in entries]


def samples_section(summary: Mapping[str, Any], entries: Sequence[dict[str, Any]]) -> Section:
    """The first answers in full, the others folded away."""
    samples = [
        Sample(entry["instruction"], entry["input"], entry["expected"], _verdicts(summary, entry))
        for entry in entries
    ]
    text = tr(
        "The first held-out rows, in their order: not chosen by how they turned out. Ways that "
        "gave the same answer stand in one line."
    )
    return Section(tr("Answers side by side"), [Text(text), Samples(samples, SHOWN)])


def _verdicts(summary: Mapping[str, Any], entry: dict[str, Any]) -> list[Verdict]:
    """The different answers to one row, each with the ways that gave it."""
    ways: dict[str, list[str]] = {}
    for name, answer in entry["answers"].items():
        ways.setdefault(answer["text"], []).append(name)
    return [
        Verdict(
            "; ".join(way_label(summary["ways"][name]) for name in names),
            text,
            entry["answers"][names[0]]["correct"],
        )
        for text, names in ways.items()
    ]
