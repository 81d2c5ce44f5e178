"""What is compared and measured: names, units, how numbers are written, when they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from suri.study.intervals import Interval, interval_of
from suri.study.language import qualified, tr

BASE, ADAPTER, HF, META, GGUF = "base", "adapter", "hf", "meta", "gguf"
WAYS = {
    BASE: "base",
    ADAPTER: "adapter",
    HF: "merged HF",
    META: "merged Meta",
    "int8": "adapter on 8-bit",
    "nf4": "adapter on 4-bit",
    GGUF: "merged GGUF",
    "hf-original": "merged HF, base as given",
}
"""Forms of the weights. GGUF holds them in 16 bits. A run in nf4 is merged with its base as it was
in training; the last form merges it with the base that this was made from."""
METHODS = {"none": "LoRA", "int8": "LoRA in int8", "nf4": "QLoRA"}


@dataclass(frozen=True)
class Measure:
    """How a number is called and written, and from where on a difference matters."""

    label: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 3
    matters: float = 0.0
    """Two ways whose difference surely lies within this count as equal."""

    @property
    def head(self) -> str:
        """What stands at the head of a column: the name and its unit."""
        return qualified(tr(self.label), *([tr(self.unit)] if self.unit else []))

    def text(self, value: float) -> str:
        """A value as people read it; the unit is left to the head of the column."""
        return number(value * self.scale, self.digits)

    def with_unit(self, value: float) -> str:
        """A value and its unit."""
        return f"{self.text(value)} {tr(self.unit)}".rstrip()

    def cell(self, found: Mapping[str, Any] | None) -> str:
        """A median and its unit, or a value and below it its 95 % interval; a dash for neither.

        Where there is no interval, that is said.
        """
        if not found:
            return "–"
        if "median" in found:
            return self.with_unit(found["median"])
        known = interval_of(found)
        value, low, high = map(self.text, (known.value, known.low, known.high))
        if known.is_point:
            return f"{value}\n{tr('all alike' if known.rows * known.seeds > 1 else 'no interval')}"
        return f"{value}\n{low}\u00a0{tr('to')}\u00a0{high}"


MEASURES = {
    "exact_match": Measure("Exact match", "%", 100, 1),
    "rouge_l": Measure("ROUGE-L", "", matters=0.001),
    "chrf": Measure("chrF", "", matters=0.001),
    "bleu": Measure("BLEU", "", matters=0.001),
    "loss": Measure("Response loss", "nats/token", matters=0.001),
    "perplexity": Measure("Perplexity", digits=2),
    "stop_rate": Measure("Ended by itself", "%", 100, 1),
    "answer_tokens": Measure("Answer length", "tokens", digits=1),
}
SPEEDS = {
    "load_seconds": Measure("Load", "s", digits=2),
    "first_token_seconds": Measure("First token", "ms", 1000, 0),
    "prefill_tokens_per_second": Measure("Reading", "tokens/s", digits=0),
    "tokens_per_second": Measure("Decode", "tokens/s", digits=1),
    "batch_tokens_per_second": Measure("Decode, eight at once", "tokens/s", digits=1),
    "peak_memory_bytes": Measure("Peak memory", "MB", 1e-6, 0),
    "bytes_on_disk": Measure("On disk", "MB", 1e-6, 0),
}
COSTS = {
    "seconds_per_step": Measure("Time per step", "s", digits=2),
    "train_seconds": Measure("All steps", "s", digits=1),
    "total_seconds": Measure("Command to adapter", "s", digits=1),
    "tokens_per_second": Measure("Throughput", "tokens/s", digits=0),
    "peak_memory_bytes": SPEEDS["peak_memory_bytes"],
}

RESULT = {
    "rows": Measure("Training rows", digits=0),
    "steps": Measure("Steps", digits=0),
    "best_step": Measure("Step of the lowest held-out loss", digits=0),
    "tokens": Measure("Tokens in all", digits=0),
    "learned_tokens": Measure("Tokens learned", digits=0),
    "base_loss": Measure("Loss of the base", "nats/token"),
    "held_out_loss": Measure("Held-out loss", "nats/token"),
    "held_out_perplexity": Measure("Held-out perplexity", digits=2),
    "train_seconds": COSTS["train_seconds"],
    "total_seconds": COSTS["total_seconds"],
    "tokens_per_second": COSTS["tokens_per_second"],
    "peak_memory_bytes": COSTS["peak_memory_bytes"],
    "reckoned_bytes": Measure("Peak memory, reckoned before", "MB", 1e-6, 0),
}
"""What a reader wants to know of a run's result.json."""


def method_label(entry: Mapping[str, Any]) -> str:
    """A trial's or a group's method in words, with what else the plan varies."""
    varied = [f"{name} {value}" for name, value in entry["settings"].items()]
    return qualified(tr(METHODS[entry["quantize"]]), *varied)


def way_label(way: Mapping[str, Any]) -> str:
    """A way in words: its form, and where it stands apart, engine and number format."""
    label = tr(WAYS[way["form"]])
    return label if way["is_main"] else qualified(label, way["engine"], way["dtype"])


def number(value: float, digits: int) -> str:
    """A number with that many decimals, or in powers of ten where these would show only zeros."""
    is_tiny = value and not round(abs(value), digits)
    text = f"{value:.1e}" if is_tiny else f"{value:,.{digits}f}"
    return f"−{text[1:]}" if text.startswith("-") else text


def size_of(found: Interval) -> str:
    """What an interval rests on."""
    if found.rows == 1:
        return tr("n = {seeds:seed|seeds}", seeds=found.seeds)
    if found.seeds == 1:
        return f"n = {found.rows}"
    return tr("n = {rows:row|rows}, {seeds:seed|seeds}", rows=found.rows, seeds=found.seeds)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and most of repeated measurements."""
    return {
        "median": median(values), "low": min(values), "high": max(values), "repeats": len(values)
    }  # fmt: skip
