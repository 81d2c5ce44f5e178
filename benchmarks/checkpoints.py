"""What saving a run's state costs beside its steps, on the embedded base and bundled rows.

python benchmarks/checkpoints.py [OUT.json]     (default: benchmarks/results/checkpoints.json)
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from suri.files import size_bytes
from suri.recipe import Recipe
from suri.train import loop
from suri.train.machine import environment
from suri.train.run import train

RESULTS = Path(__file__).parent / "results" / "checkpoints.json"
METHODS = {"lora": {}, "int8": {"quantize": "int8"}}
RECIPE = Recipe(
    data_path="bundled:256", val_set_size=8.0, num_epochs=2.0, save_steps=2, eval_steps=1000,
    device="cpu",
)  # fmt: skip


def measure(settings: dict[str, str], folder: Path) -> dict[str, object]:
    """Seconds of every save and every step of one run that saves at every other step."""
    saves: list[float] = []
    sizes: list[int] = []
    save = loop.save_checkpoint

    def timed(*args):
        started = time.perf_counter()
        made = save(*args)
        saves.append(time.perf_counter() - started)
        sizes.append(size_bytes(made))
        return made

    loop.save_checkpoint = timed
    try:
        recipe = replace(RECIPE, output_dir=str(folder), **settings)
        result = train(recipe, lambda *_: None, lambda *_: [[] for _ in range(3)])
    finally:
        loop.save_checkpoint = save
    step = result["train_seconds"] / result["steps"]
    middle = statistics.median(saves)
    return {
        "steps": result["steps"],
        "saves": len(saves),
        "bytes": sizes[-1],
        "save_seconds": {"median": middle, "least": min(saves), "most": max(saves)},
        "step_seconds": step,
        "share_at_default": middle / (result["steps"] / 4 * step),
        "steps_between_for_2_percent": middle / (0.02 * step),
    }


def main() -> None:
    """Measure every method and write the table."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    with tempfile.TemporaryDirectory() as folder:
        methods = {name: measure(given, Path(folder, name)) for name, given in METHODS.items()}
    kept = {"command": "python benchmarks/checkpoints.py", "methods": methods,
            "environment": environment("cpu")}  # fmt: skip
    out.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(methods, indent=2))


main()
