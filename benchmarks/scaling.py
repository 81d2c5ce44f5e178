"""What several processes hold and exchange, by arithmetic; and what two gain here, measured.

python benchmarks/scaling.py                          the table of docs/scaling.md
python benchmarks/scaling.py --measure [OUT.json]     runs of 1, 2 and 4 processes of the embedded
                                                      base on this machine's cores
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from suri.model.config import ModelConfig, read_config
from suri.recipe import Recipe
from suri.train.budget import Memory, adapter_numbers, estimate, shard_bytes
from suri.train.machine import environment

ROOT = Path(__file__).parents[1]
RECIPE = Recipe(lora_r=16)
TOKENS = 4096
"""Tokens of a micro-batch on each GPU."""
COUNTS = (1, 2, 8, 64)


def shapes() -> dict[str, ModelConfig]:
    """Llama's and Llama 2's sizes."""
    seven = read_config(ROOT / "recipes" / "shapes" / "llama-7b")
    thirteen = {"hidden_size": 5120, "intermediate_size": 13824, "num_layers": 40, "num_heads": 40}
    seventy = {"hidden_size": 8192, "intermediate_size": 28672, "num_layers": 80, "num_heads": 64}
    return {
        "7B": seven,
        "13B": replace(seven, **thirteen, num_kv_heads=40, head_dim=128),
        "70B": replace(seven, **seventy, num_kv_heads=8, head_dim=128),
    }


def row(config: ModelConfig, quantize: str, count: int) -> dict[str, float]:
    """GB that each of `count` GPUs holds and sends, in a ring: (N - 1) / N of what is joined."""
    recipe = replace(RECIPE, quantize=quantize)
    ring = (count - 1) / count
    held = [
        estimate(config, recipe, TOKENS, Memory("cuda", shards=shards)).total
        for shards in (1, count)
    ]
    return {
        "whole": held[0] / 1e9,
        "cut": held[1] / 1e9,
        "gradients": 2 * ring * 4 * adapter_numbers(config, recipe) / 1e9,
        # Gathered twice for each micro-batch: forward, and again backward.
        "gathered": 2 * ring * shard_bytes(config, quantize, 2) / 1e9,
    }


def table() -> None:
    """As Markdown."""
    print("| base | stored | GPUs | each holds, whole | each holds, cut | a step sends | cut: a "
          "micro-batch sends too |\n|---|---|--:|--:|--:|--:|--:|")  # fmt: skip
    for name, config in shapes().items():
        for quantize in ("none", "nf4"):
            for count in COUNTS:
                found = row(config, quantize, count)
                sizes = " | ".join(f"{size:.2f}" for size in found.values())
                print(f"| {name} | {quantize} | {count} | {sizes} |")


def measure() -> dict[str, Any]:
    """Tokens per second of the whole run and the largest peak of any of its processes."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for count in (1, 2, 4):
            out = Path(place) / str(count)
            words = ["--data_path", "bundled:128", "--max_steps", "6", "--val_set_size", "0"]
            words += ["--device", "cpu", "--gpus", str(count), "--output_dir", str(out)]
            threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
            command = [sys.executable, "-m", "suri", "train", *words]
            subprocess.run(command, check=True, env=os.environ | threads)
            result = json.loads((out / "result.json").read_text(encoding="utf-8"))
            names = ("tokens_per_second", "peak_memory_bytes", "train_seconds")
            found[str(count)] = {name: result[name] for name in names}
    return {"environment": environment("cpu"), "processes": found}


def main() -> None:
    if "--measure" not in sys.argv:
        table()
        return
    text = json.dumps(measure(), indent=1)
    places = [word for word in sys.argv[1:] if word != "--measure"]
    if places:
        Path(places[0]).write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
