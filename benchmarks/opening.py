"""What two ways of opening save: a compiled loop that is kept, and a GGUF file as a plain array.

python benchmarks/opening.py [OUT.json]     (default: benchmarks/results/opening.json)
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from suri.model.embedded import gguf_file
from suri.train.machine import environment

RESULTS = Path(__file__).parent / "results" / "opening.json"
PAIRS = 5
LOOP = "from suri.model.kernels import compile_few_rows as work"
READER = (
    "import contextlib; from gguf import GGUFReader; "
    "from suri.export.gguf_reader import plainly_mapped\n"
    "def work():\n    with {how}(): GGUFReader({file!r})"
)
TIMED = "import time; began = time.perf_counter(); work(); print(time.perf_counter() - began)"


def seconds(code: str, cache: str) -> float:
    """Of the work alone, in a process of its own, without the imports before it."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{TIMED}"],
        check=True, capture_output=True, text=True, env=os.environ | {"SURI_CACHE": cache},
    )  # fmt: skip
    return float(done.stdout)


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    file = str(gguf_file())
    result = {"command": "python benchmarks/opening.py", "environment": environment("cpu")}
    with tempfile.TemporaryDirectory() as kept:
        seconds(LOOP, kept)
        for name, before, after in (
            ("compiled loop", (LOOP, None), (LOOP, kept)),
            ("vocabulary of a GGUF file",
             (READER.format(how="contextlib.nullcontext", file=file), kept),
             (READER.format(how="plainly_mapped", file=file), kept)),
        ):  # fmt: skip
            found: dict[str, list[float]] = {"before": [], "after": []}
            for _ in range(PAIRS):
                for when, (code, cache) in (("before", before), ("after", after)):
                    with tempfile.TemporaryDirectory() as empty:
                        found[when].append(seconds(code, cache or empty))
            ratios = [a / b for a, b in zip(found["before"], found["after"], strict=True)]
            found["times_as_fast"] = ratios
            result[name] = found | {f"median_{k}": statistics.median(v) for k, v in found.items()}
            print(f"{name}: {statistics.median(ratios):.2f} times as fast", flush=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
