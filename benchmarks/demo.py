"""Time every step of the demo, each as a process of its own, and keep what it found.

python benchmarks/demo.py [OUT.json]     (default: benchmarks/results/demo.json)
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from suri.cli.demo import steps
from suri.study.measures import way_label

RESULTS = Path(__file__).parent / "results"
QUALITY = ("exact_match", "rouge_l", "loss", "stop_rate")
SPEED = ("load_seconds", "first_token_seconds", "tokens_per_second", "batch_tokens_per_second",
         "peak_memory_bytes", "bytes_on_disk")  # fmt: skip


def run_demo(folder: Path) -> dict[str, float]:
    """Seconds of each step."""
    seconds = {}
    for title, command in steps(folder):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "suri", *command], check=True)
        seconds[title] = round(time.perf_counter() - started, 1)
    return seconds


def collect(folder: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """The demo's figures without its texts."""
    compared = json.loads((folder / "compare" / "compare.json").read_text(encoding="utf-8"))
    ways = {
        name: {
            "label": way_label(way),
            "quality": {key: way["quality"][key] for key in QUALITY if key in way["quality"]},
            "speed": {key: way["speed"][key]["median"] for key in SPEED},
            "agreement": way["agreement"],
        }
        for name, way in compared["ways"].items()
    }
    read = lambda name: json.loads((folder / "run" / name).read_text(encoding="utf-8"))  # noqa: E731
    return {
        "command": "python benchmarks/demo.py",
        "steps_seconds": seconds,
        "total_seconds": round(sum(seconds.values()), 1),
        "training": read("result.json"),
        "environment": read("environment.json"),
        "rows": compared["rows"],
        "ways": ways,
    }


def table(result: dict[str, Any]) -> str:
    """The result as the README shows it."""
    lines = [
        "| | exact match | response loss | same answer as adapter | tokens/s | peak memory |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for way in result["ways"].values():
        exact, loss = way["quality"]["exact_match"], way["quality"]["loss"]
        same = way["agreement"]
        lines.append(
            f"| {way['label']} | {100 * exact['value']:.0f} % ({100 * exact['low']:.0f} to "
            f"{100 * exact['high']:.0f}) | {loss['value']:.3f} | {same['identical']} of "
            f"{same['rows']} | {way['speed']['tokens_per_second']:.1f} | "
            f"{way['speed']['peak_memory_bytes'] / 1e9:.1f} GB |"
        )
    return "\n".join(lines)


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "demo.json"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = collect(folder, run_demo(folder))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(result))
    print(f"{result['total_seconds']} s in all: {out}")


if __name__ == "__main__":
    main()
