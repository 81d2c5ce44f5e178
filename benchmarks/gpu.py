"""Every figure that needs a GPU, in one run of at most eight minutes.

python benchmarks/gpu.py [--out OUT.json] [--rows NAME,...] [--minutes 8] [--tiny]

Needs a CUDA device, torch 2.11 or newer, triton, transformers, safetensors and numpy, and no
download: the 7B model is random, its rows are as long as Alpaca's. Suri itself need not be
installed. peft, bitsandbytes, flash-attn, unsloth and vllm are measured where they are installed.
`--tiny` runs every row on a tiny model, on a CPU too, to see that the script works; its times say
nothing. Rows come in the order of their importance, the file is written after each of them.
"""

import argparse
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent / "src"):
    sys.path.insert(0, str(folder))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
STARTED = time.perf_counter()

from gpu_rows import checks, commands, decoding, kernels, peers, quality, rates, training  # noqa: E402
from gpu_rows.bench import Bench, Row  # noqa: E402

ROWS = {
    "rates": Row(rates.rates, 30),
    "attention": Row(checks.attention, 20),
    "gradients": Row(checks.gradients, 40),
    "lora": Row(training.lora, 60),
    "elementwise": Row(kernels.elementwise, 40),
    "qlora": Row(training.qlora, 40),
    "fp8": Row(kernels.fp8, 40),
    "decode": Row(decoding.decode, 40),
    "commands": Row(commands.commands, 60),
    "hf": Row(peers.hugging_face, 100),
    "unsloth": Row(peers.unsloth, 90),
    "vllm": Row(peers.vllm, 60),
    "quality": Row(quality.quality, 300),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = os.environ.get("OUT") or HERE / "results"
    parser.add_argument("--out", type=Path, help="the results (default: one named by the device)")
    parser.add_argument("--folder", type=Path, default=Path(folder), help=argparse.SUPPRESS)
    parser.add_argument("--rows", default=",".join(ROWS), help="some of: " + ", ".join(ROWS))
    parser.add_argument("--minutes", type=float, default=8.0, help="the whole run's limit")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on any machine")
    parser.add_argument("--go-on", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.rows = [name for name in given.rows.split(",") if name]
    if unknown := [name for name in given.rows if name not in ROWS]:
        parser.error(f"no such rows: {', '.join(unknown)}")
    return given


def start_again(given: argparse.Namespace, bench: Bench, rest: list[str]) -> None:
    """Replace this process, whose CUDA context is lost, by one that runs the other rows."""
    minutes = given.minutes - (time.perf_counter() - STARTED) / 60
    command = [sys.executable, __file__, "--go-on", "--out", str(bench.out), "--rows"]
    tiny = ["--tiny"] if given.tiny else []
    sys.stdout.flush()
    os.execv(sys.executable, [*command, ",".join(rest), "--minutes", str(minutes), *tiny])


def main() -> int:
    """Run the rows asked for; 1 if one of them failed or a check found a difference."""
    given = arguments()
    bench = Bench(given.out, given.folder, given.tiny, given.go_on)
    deadline = STARTED + 60 * given.minutes
    for place, name in enumerate(given.rows):
        left = deadline - time.perf_counter()
        usable = bench.run(name, ROWS[name], left)
        rest = given.rows[place + 1 :]
        if not usable and rest:
            start_again(given, bench, rest)
    print(f"{time.perf_counter() - STARTED:.0f} s; {bench.out}")
    return int(bench.failed())


if __name__ == "__main__":
    sys.exit(main())
