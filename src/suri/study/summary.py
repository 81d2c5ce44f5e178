"""What the measured rows, steps and seconds come to, as plain values for JSON."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from suri.study.scores import Interval, difference_interval, mean_interval, share_interval

BASE, ADAPTER, HF, META = "base", "adapter", "hf", "meta"
WAYS = {BASE: "base", ADAPTER: "adapter", HF: "merged HF", META: "merged Meta"}
METHODS = {"none": "LoRA", "int8": "LoRA in int8", "nf4": "QLoRA"}

Entry = dict[str, Any]
"""One held-out row of answers.jsonl, or one trial of a study."""


@dataclass(frozen=True)
class Measure:
    """How a number is called and written, and from where on a difference matters."""

    label: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 3
    matters: float = 0.0
    """Two ways whose difference surely lies within this count as equal."""


MEASURES = {
    "exact_match": Measure("Exact match", "%", 100, 1),
    "rouge_l": Measure("ROUGE-L", "", matters=0.001),
    "loss": Measure("Response loss", "nats/token", matters=0.001),
    "perplexity": Measure("Perplexity", digits=2),
    "stop_rate": Measure("Ended by itself", "%", 100, 1),
    "answer_tokens": Measure("Answer length", "tokens", digits=1),
}
SPEEDS = {
    "load_seconds": Measure("Load", "s", digits=2),
    "first_token_seconds": Measure("First token", "ms", 1000, 0),
    "tokens_per_second": Measure("Decode", "tokens/s", digits=1),
    "batch_tokens_per_second": Measure("Eight at once", "tokens/s", digits=1),
    "peak_memory_bytes": Measure("Peak memory", "MB", 1e-6, 0),
    "bytes_on_disk": Measure("On disk", "MB", 1e-6, 0),
}
COMPARED = ("exact_match", "rouge_l", "loss")
SHARES = ("exact_match", "stop_rate")


def summarise_ways(
    entries: Sequence[Entry], speeds: dict[str, list[dict[str, float]]], probes: dict[str, Any]
) -> dict[str, Any]:
    """Quality, agreement and speed of every way, and the differences that statements rest on.

    `entries` are the lines of answers.jsonl, `speeds` the repeated measurements of each way,
    `probes` each way's next-token distributions against the adapter's.
    """
    ways = {
        way: {
            "label": WAYS[way],
            "quality": _quality(entries, way),
            "agreement": _agreement(entries, way, probes.get(way)),
            "speed": {name: _spread([one[name] for one in speeds[way]]) for name in SPEEDS},
        }
        for way in speeds
    }
    pairs = [(ADAPTER, BASE), (HF, ADAPTER), (META, ADAPTER)]
    differences = [
        {"measure": measure, "ours": ours, "theirs": theirs, **asdict(found)}
        for ours, theirs in pairs
        if ours in ways and theirs in ways
        for measure in COMPARED
        if (found := _difference(entries, measure, ours, theirs))
    ]
    return {"ways": ways, "differences": differences}


def row_scores(entries: Iterable[Entry], measure: str, way: str) -> list[tuple[float, float]]:
    """(total, weight) of every row that has this measure: loss weighs tokens, the others rows."""
    answers = [entry["answers"][way] for entry in entries]
    if measure == "loss":
        return [
            (answer["loss_sum"], answer["learned_tokens"])
            for answer in answers
            if answer.get("learned_tokens")
        ]
    field = {"exact_match": "correct", "stop_rate": "stopped", "answer_tokens": "tokens"}
    values = (answer[field.get(measure, measure)] for answer in answers)
    return [(float(value), 1.0) for value in values if value is not None]


def interval_of(summary: dict[str, Any]) -> Interval:
    """The interval that a summary holds as plain values."""
    return Interval(*(summary[name] for name in ("value", "low", "high", "rows")))


def _quality(entries: Sequence[Entry], way: str) -> dict[str, Any]:
    quality = {}
    for measure in MEASURES:
        if measure == "perplexity":
            continue
        scores = row_scores(entries, measure, way)
        if not scores:
            continue
        totals, weights = zip(*scores, strict=True)
        if measure in SHARES:
            found = share_interval(round(sum(totals)), len(totals))
        else:
            found = mean_interval(totals, weights)
        quality[measure] = asdict(found)
        if measure == "loss":
            quality["perplexity"] = asdict(_exponential(found))
    return quality


def _exponential(loss: Interval) -> Interval:
    value, low, high = (math.exp(min(x, 700.0)) for x in (loss.value, loss.low, loss.high))
    return replace(loss, value=value, low=low, high=high)


def _difference(entries: Sequence[Entry], measure: str, ours: str, theirs: str) -> Interval | None:
    our, their = (row_scores(entries, measure, way) for way in (ours, theirs))
    if not our or not their:
        return None
    weights = [weight for _, weight in our]
    return difference_interval([x for x, _ in our], [x for x, _ in their], weights)


def _agreement(entries: Sequence[Entry], way: str, probe: dict[str, Any] | None) -> dict[str, Any]:
    """How near the answers are to the adapter's; empty where the adapter was not measured."""
    answers = [entry["answers"][way] for entry in entries]
    if not answers or "same_as_adapter" not in answers[0]:
        return {}
    return {
        "identical": sum(answer["same_as_adapter"] for answer in answers),
        "rows": len(answers),
        "shared_prefix": sum(answer["shared_prefix"] for answer in answers) / len(answers),
        "probe": probe,
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and most of repeated measurements."""
    return {
        "median": median(values), "low": min(values), "high": max(values), "repeats": len(values)
    }  # fmt: skip


def summarise_trials(trials: Sequence[Entry]) -> dict[str, Any]:
    """Groups of equal size and method, nf4 against none at each size, and what more rows bring.

    A trial holds what summary.json says of it: its plan, the numbers of result.json, the seconds
    per token of each step and the loss of every held-out row. Only finished ones count.
    """
    finished = [trial for trial in trials if trial["status"] == "finished"]
    sizes = sorted({trial["rows"] for trial in finished})
    methods = [method for method in METHODS if any(t["quantize"] == method for t in finished)]
    cells = {
        (rows, method): found
        for rows in sizes
        for method in methods
        if (found := [t for t in finished if (t["rows"], t["quantize"]) == (rows, method)])
    }
    return {
        "groups": [_group(cell) for cell in cells.values()],
        "methods": [
            _methods_compared(plain, quantized)
            for rows in sizes
            for plain, quantized in [_same_seeds(cells, rows)]
            if plain
        ],
        "sizes": [
            _sizes_compared(cells[small, method], cells[large, method])
            for method in methods
            for small, large in itertools.pairwise(sizes)
            if (small, method) in cells and (large, method) in cells
        ],
    }


def _group(trials: Sequence[Entry]) -> dict[str, Any]:
    totals, weights = _losses_by_row(trials)
    names = ("train_seconds", "seconds_per_step", "tokens_per_second", "peak_memory_bytes")
    return {
        "rows": trials[0]["rows"],
        "quantize": trials[0]["quantize"],
        "seeds": [trial["seed"] for trial in trials],
        "steps": trials[0]["steps"],
        "base_loss": median(trial["base_loss"] for trial in trials),
        "loss": asdict(mean_interval(totals, weights)),
        **{name: _spread([trial[name] for trial in trials]) for name in names},
    }


def _same_seeds(
    cells: dict[tuple[int, str], list[Entry]], rows: int
) -> tuple[list[Entry], list[Entry]]:
    """The trials of one size without and with nf4, those whose seed both have, in pairs."""
    plain, quantized = (
        {trial["seed"]: trial for trial in cells.get((rows, method), [])}
        for method in ("none", "nf4")
    )
    seeds = [seed for seed in plain if seed in quantized]
    return [plain[seed] for seed in seeds], [quantized[seed] for seed in seeds]


def _methods_compared(plain: Sequence[Entry], quantized: Sequence[Entry]) -> dict[str, Any]:
    """nf4 against none on the same rows, steps and seeds; a speed-up above 1 means nf4 is faster.

    Step k of both learned from the same tokens, so their seconds per token pair. The first step
    warms up and is left out.
    """
    steps = [
        pair
        for one, other in zip(plain, quantized, strict=True)
        for pair in zip(one["token_seconds"][1:], other["token_seconds"][1:], strict=True)
    ]
    memory, less_memory = (
        sum(trial["peak_memory_bytes"] for trial in trials) for trials in (plain, quantized)
    )
    ours, weights = _losses_by_row(quantized)
    theirs, _ = _losses_by_row(plain)
    return {
        "rows": plain[0]["rows"],
        "seeds": [trial["seed"] for trial in plain],
        "speed_up": asdict(mean_interval(*zip(*steps, strict=True))) if steps else None,
        "memory_saved": 1 - less_memory / memory,
        "loss_difference": asdict(difference_interval(ours, theirs, weights)),
    }


def _sizes_compared(small: Sequence[Entry], large: Sequence[Entry]) -> dict[str, Any]:
    ours, weights = _losses_by_row(large)
    theirs, _ = _losses_by_row(small)
    return {
        "quantize": small[0]["quantize"],
        "from": small[0]["rows"],
        "to": large[0]["rows"],
        "loss_difference": asdict(difference_interval(ours, theirs, weights)),
    }


def _losses_by_row(trials: Sequence[Entry]) -> tuple[list[float], list[float]]:
    """Summed loss of every held-out row, the mean over the seeds, and its learned tokens."""
    rows = zip(*(trial["losses"] for trial in trials), strict=True)
    pairs = [
        (sum(one["loss_sum"] for one in row) / len(trials), row[0]["learned_tokens"])
        for row in rows
    ]
    return [total for total, _ in pairs], [weight for _, weight in pairs]
