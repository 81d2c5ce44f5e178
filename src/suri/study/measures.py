"""What is compared and what is measured: names, units, and from where on a difference matters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from suri.study.language import tr

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


def method_label(entry: Mapping[str, Any]) -> str:
    """A trial's or a group's method in words, with what else the plan varies."""
    varied = [f"{name} {value}" for name, value in entry["settings"].items()]
    return ", ".join([tr(METHODS[entry["quantize"]]), *varied])


def way_label(way: Mapping[str, Any]) -> str:
    """A way in words: its form, and where it stands apart, engine and number format."""
    label = tr(WAYS[way["form"]])
    return label if way["is_main"] else f"{label}, {way['engine']}, {way['dtype']}"


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and most of repeated measurements."""
    return {
        "median": median(values), "low": min(values), "high": max(values), "repeats": len(values)
    }  # fmt: skip
