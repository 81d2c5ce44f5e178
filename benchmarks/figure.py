"""Draw the figures of the training benchmark from what it found.

python benchmarks/figure.py [RESULT.json] [FOLDER]  (benchmarks/results/training.json, docs/figures)

Prints the lines that a document shows them with.
"""

import json
import sys
from pathlib import Path
from typing import Any

from suri.study.figures import Bar, Line, Panel, bar_figure, for_paper, line_figure

ROOT = Path(__file__).parents[1]
WAYS = {"hf": 0, "exact": 1, "int8": 2, "nf4": 3}
"""Each way's series, which is its colour, in both figures."""
NAMES = {"exact": "Suri", "int8": "Suri, int8", "nf4": "Suri, nf4"}


def speed_figure(found: dict[str, Any]) -> str:
    """Useful tokens per second with the range of the rounds, and peak memory."""
    best = found["best"]
    order = "by length" if best["grouped"] else "padded"
    names = {"hf": f"HF Trainer + PEFT\n{best['micro_batch']} rows at a time, {order}"} | NAMES
    rows = [(names[way], series) for way, series in WAYS.items()]
    bars = [_bar(found["summary"][way]["tokens_per_second"], 1) for way in WAYS]
    memory = [_bar(found["summary"][way]["peak_memory_bytes"], 1e-9) for way in WAYS]
    if "tokens_per_second" in found["trl_packed"]:
        rows.insert(0, ("TRL SFTTrainer\npacked to 1,024, once", 0))
        bars.insert(0, Bar(found["trl_packed"]["tokens_per_second"]))
        memory.insert(0, Bar(found["trl_packed"]["peak_memory_bytes"] / 1e9))
    rounds = len(found["rounds"])
    panels = [
        Panel(f"useful tokens/s (median, range of {rounds})", bars, digits=0),
        Panel("peak memory, GB", memory),
    ]
    return on_white(bar_figure("training-speed", rows, panels))


def _bar(figures: dict[str, float], scale: float) -> Bar:
    return Bar(*(scale * figures[key] for key in ("median", "low", "high")))


def loss_figure(found: dict[str, Any]) -> str:
    """The training loss of every method over the steps."""
    lines = []
    for way, method in found["methods"].items():
        losses = method["training_loss"]
        held_out = found["held_out_loss"]["nf4_on_its_base" if way == "nf4" else way]
        label = f"{NAMES[way]}: held-out loss {held_out:.3f} at the end"
        lines.append(Line(label, range(1, len(losses) + 1), losses, WAYS[way], marked=False))
    x_label = f"step of {found['settings']['batch_size']} rows"
    return on_white(line_figure("training-loss", lines, x_label, "training loss", from_zero=True))


def alt_texts(result: dict[str, Any]) -> dict[str, str]:
    """What the figures show, in words, for who does not see them."""
    figures = result["speed"]["summary"]
    names = {"hf": "HF Trainer + PEFT"} | NAMES
    ways = "; ".join(
        f"{names[way]} {figures[way]['tokens_per_second']['median']:.0f} in "
        f"{figures[way]['peak_memory_bytes']['median'] / 1e9:.1f} GB"
        for way in WAYS
    )
    losses = {
        NAMES[way]: method["training_loss"] for way, method in result["quality"]["methods"].items()
    }
    steps = len(losses["Suri"])
    apart = max(
        abs(a - b) for each in losses.values() for a, b in zip(losses["Suri"], each, strict=True)
    )
    return {
        "training-speed": f"Useful tokens per second and peak memory: {ways}",
        "training-loss": f"Training loss over {steps} steps, exact, in int8 and in nf4: the curves "
        f"are never more than {apart:.2f} apart",
    }


def on_white(svg: str) -> str:
    """The figure in the colours of paper on a white ground, so that it is read on dark pages too.

    A figure in a document is a picture of its own: it does not see the colours of the page.
    """
    start = svg.index(">", svg.index("<svg")) + 1
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return for_paper(svg[:start] + ground + svg[start:])


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks/results/training.json"
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs" / "figures"
    found = json.loads(file.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "training-speed": speed_figure(found["speed"]),
        "training-loss": loss_figure(found["quality"]),
    }
    for name, alt in alt_texts(found).items():
        (folder / f"{name}.svg").write_text(figures[name] + "\n", encoding="utf-8")
        print(f"![{alt}](docs/figures/{name}.svg)")


if __name__ == "__main__":
    main()
