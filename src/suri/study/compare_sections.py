"""The report on base, adapter and merged models, from compare.json and answers.jsonl."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from suri.study.figures import Bar, Line, Panel, bar_figure, line_figure
from suri.study.sections import (
    Figure,
    Sample,
    Section,
    Table,
    Tile,
    Verdict,
    plain,
    settings_section,
    threats,
)
from suri.study.statements import (
    agreement_statements,
    headed,
    number,
    quality_statements,
    quantity,
    speed_statements,
    with_interval,
)
from suri.study.summary import ADAPTER, BASE, MEASURES, SPEEDS, WAYS, Measure

TITLE = "Base, adapter and merged models compared"
SHOWN = 6
Summary = Mapping[str, Any]


def compare_sections(
    summary: dict[str, Any], entries: Sequence[dict[str, Any]], training: Sequence[dict[str, Any]]
) -> list[Section]:
    """All sections, in the order of the page."""
    return [
        _overview(summary),
        _quality(summary),
        _merging(summary),
        _speed(summary),
        _samples(summary, entries),
        _training(summary, training),
        Section(
            "What this does not show",
            points=[
                *threats(summary["recipe"], len(entries), summary["measured_in"]),
                "Answers are greedy; sampled answers vary more.",
            ],
        ),
        settings_section(
            summary["recipe"],
            {
                "Environment of the training": summary["environment"],
                "Environment of the measurements, where it differs": {
                    name: value
                    for name, value in summary["measured_in"].items()
                    if summary["environment"].get(name) != value
                },
                "Settings of the comparison": summary["settings"],
            },
        ),
    ]


STORED = {
    "nf4": " The adapter’s base is stored as nf4, as in its training.",
    "int8": " The adapter was trained with its base in int8 and is used with the base as given.",
}


def _overview(summary: dict[str, Any]) -> Section:
    settings = summary["settings"]
    text = (
        f"{summary['rows']} held-out rows, none of them trained on, were answered greedily with at "
        f"most {settings['max_new_tokens']} tokens: by the base, by base and adapter, and by the "
        f"adapter merged into the weights. Every way ran in a process of its own, in the same "
        f"engine at {settings['dtype']}, so that nothing but the weights differs."
    )
    text += STORED.get(summary["recipe"]["quantize"], "")
    ways, tiles = summary["ways"], []
    if BASE in ways and ADAPTER in ways:
        for name in ("exact_match", "loss"):
            before, after = (ways[way]["quality"].get(name) for way in (BASE, ADAPTER))
            if before and after:
                tiles.append(_change(MEASURES[name], before, after))
    for way in ways:
        agreement = ways[way]["agreement"]
        if way not in (BASE, ADAPTER) and agreement:
            same = f"{agreement['identical']} of {agreement['rows']}"
            tiles.append(Tile(f"{WAYS[way]} = adapter", same, "answers equal, token by token"))
    return Section("At a glance", text, tiles=tiles)


def _change(measure: Measure, before: Summary, after: Summary) -> Tile:
    values = [number(one["value"] * measure.scale, measure.digits) for one in (before, after)]
    note = f"base → adapter, {measure.unit or 'of 1'}"
    return Tile(measure.label, " → ".join(values), note)


def _quality(summary: dict[str, Any]) -> Section:
    ways = summary["ways"]
    measures = [name for name in MEASURES if any(name in way["quality"] for way in ways.values())]
    panels = [
        Panel(
            f"{MEASURES[name].label} ({MEASURES[name].unit or '0 to 1'})",
            [_interval_bar(MEASURES[name], way["quality"].get(name)) for way in ways.values()],
            MEASURES[name].digits,
        )
        for name in ("exact_match", "rouge_l", "loss")
        if name in measures
    ]
    caption = "Bars are means over the held-out rows, lines their 95 % intervals."
    rows = [
        [
            way["label"],
            *(
                with_interval(MEASURES[name], way["quality"][name])
                if name in way["quality"]
                else "–"
                for name in measures
            ),
        ]
        for way in ways.values()
    ]
    head = ["Way", *(headed(MEASURES[name]) for name in measures)]
    return Section(
        "How good the answers are",
        statements=quality_statements(summary, (ADAPTER,)),
        figures=[Figure("quality", bar_figure("quality", _rows(ways), panels), caption)],
        tables=[Table(head, rows, "Mean over the rows and its 95 % interval")],
    )


def _merging(summary: dict[str, Any]) -> Section:
    ways = {name: way for name, way in summary["ways"].items() if way["agreement"]}
    columns: dict[str, Callable[[dict[str, Any]], float]] = {
        "Same answer (%)": lambda found: 100 * found["identical"] / found["rows"],
        "Tokens until they part (%)": lambda found: 100 * found["shared_prefix"],
        "Same likeliest token (%)": lambda found: 100 * found["probe"]["top1_agreement"],
    }
    panels = [
        Panel(title, [Bar(value(way["agreement"])) for way in ways.values()])
        for title, value in columns.items()
    ]
    head = ("Way", "Same answer", "Tokens until they part", "KL mean, nats", "KL largest, nats")
    rows = [
        [
            way["label"],
            f"{found['identical']} of {found['rows']}",
            f"{100 * found['shared_prefix']:.1f} %",
            f"{found['probe']['mean_kl']:.1e}",
            f"{found['probe']['max_kl']:.1e}",
        ]
        for way in ways.values()
        for found in [way["agreement"]]
    ]
    drawing = bar_figure("agreement", _rows(ways), panels) if ways else ""
    caption = "Agreement of every way with the adapter: whole answers, tokens, next tokens."
    return Section(
        "What merging changes",
        statements=agreement_statements(summary),
        figures=[Figure("agreement", drawing, caption)] if ways else [],
        tables=[
            *([Table(head, rows, "Every way against the adapter")] if ways else []),
            *_certificates(summary["certificates"]),
        ],
    )


def _certificates(certificates: Mapping[str, Any]) -> list[Table]:
    return [
        Table(
            ("Check", "Found", "Limit", "Result"),
            [
                (
                    check["name"],
                    f"{check['figure']:.3g}",
                    f"{'≥' if check['at_least'] else '≤'} {check['limit']:g}",
                    "PASS" if check["passed"] else "FAIL",
                )
                for check in certificate["checks"]
            ],
            f"Certificate of the {WAYS[way]} model: {'PASS' if certificate['passed'] else 'FAIL'}",
        )
        for way, certificate in certificates.items()
    ]


def _speed(summary: dict[str, Any]) -> Section:
    ways = summary["ways"]

    def panel(name: str) -> Panel:
        measure = SPEEDS[name]
        bars = [_range_bar(measure, way["speed"][name]) for way in ways.values()]
        return Panel(f"{measure.label} ({measure.unit})", bars, measure.digits)

    def figure(name: str, names: Sequence[str], caption: str) -> Figure:
        return Figure(name, bar_figure(name, _rows(ways), [panel(n) for n in names]), caption)

    repeats = summary["settings"]["repeats"]
    how = "one process each" if repeats == 1 else f"medians of {repeats} processes each, in turns"
    rows = [
        [way["label"], *(quantity(SPEEDS[name], way["speed"][name]["median"]) for name in SPEEDS)]
        for way in ways.values()
    ]
    text = (
        "Every way decodes the same prompts and equally many tokens, however long its answers are, "
        "after a warm-up that is not counted. Peak memory is that of the whole process before its "
        "losses are measured; memory-mapped weights count where they were read. The adapter’s way "
        "needs the base on disk as well."
    )
    return Section(
        "Speed, memory, disk",
        text,
        statements=speed_statements(summary),
        figures=[
            figure("speed", ["tokens_per_second", "batch_tokens_per_second"], f"Speed, {how}."),
            figure("waiting", ["load_seconds", "first_token_seconds"], f"Waiting, {how}."),
            figure("size", ["peak_memory_bytes", "bytes_on_disk"], f"Memory and disk, {how}."),
        ],
        tables=[Table(["Way", *(m.label for m in SPEEDS.values())], rows, f"As drawn, {how}")],
    )


def _training(summary: dict[str, Any], training: Sequence[dict[str, Any]]) -> Section:
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


def _samples(summary: dict[str, Any], entries: Sequence[dict[str, Any]]) -> Section:
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


def _verdicts(summary: dict[str, Any], entry: dict[str, Any]) -> list[Verdict]:
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


def _rows(ways: Mapping[str, Any]) -> list[tuple[str, int]]:
    order = list(WAYS)
    return [(way["label"], order.index(name)) for name, way in ways.items()]


def _interval_bar(measure: Measure, found: Summary | None) -> Bar | None:
    return Bar(*(found[end] * measure.scale for end in ("value", "low", "high"))) if found else None


def _range_bar(measure: Measure, found: Summary) -> Bar:
    return Bar(*(found[end] * measure.scale for end in ("median", "low", "high")))
