"""The memory estimate before a run against the peak that was measured at its end.

python benchmarks/memory.py ROWS.json [OUT.json]     (default: benchmarks/results/memory.json)

Each run is `suri train` on the embedded base for four steps, in a process of its own; the file of
rows is named, never copied. The settings are others than those by which the estimate's constants
were found.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from suri.train.machine import environment

RESULTS = Path(__file__).parent / "results"
RUNS: list[dict[str, Any]] = [
    {"quantize": "none", "lora_r": 16, "token_budget": 384, "cutoff_len": 384},
    {"quantize": "none", "lora_r": 4, "token_budget": 1536, "cutoff_len": 512},
    {"quantize": "none", "lora_r": 32, "token_budget": 700, "cutoff_len": 300},
    {"quantize": "int8", "lora_r": 16, "token_budget": 700, "cutoff_len": 384},
    {"quantize": "int8", "lora_r": 4, "token_budget": 300, "cutoff_len": 256},
    {"quantize": "nf4", "lora_r": 16, "token_budget": 700, "cutoff_len": 384},
    {"quantize": "nf4", "lora_r": 4, "token_budget": 300, "cutoff_len": 256},
]


def measure(rows: Path, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Estimate and peak of one run, in bytes."""
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = ["suri", "train", "--data_path", str(rows), "--output_dir", str(out), *flags]
    command += ["--max_steps", "4", "--batch_size", "16", "--val_set_size", "16"]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    estimate, peak = result["memory_estimate"]["total"], result["peak_memory_bytes"]
    return {
        "settings": settings,
        "estimate_bytes": estimate,
        "peak_bytes": peak,
        "error": estimate / peak - 1,
        "parts": result["memory_estimate"]["parts"],
        "tokens": result["memory_estimate"]["tokens"],
    }


def main() -> None:
    rows = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS / "memory.json"
    result: dict[str, Any] = {
        "command": "python benchmarks/memory.py ROWS.json",
        "rows": {"name": rows.name, "sha256": hashlib.sha256(rows.read_bytes()).hexdigest()},
        "environment": environment("cpu"),
        "load_average_before": os.getloadavg()[0],
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as name:
        for number, settings in enumerate(RUNS):
            found = measure(rows, settings, Path(name) / str(number))
            result["runs"].append(found)
            out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(
                f"{settings}: {found['estimate_bytes'] / 1e9:.2f} GB estimated, "
                f"{found['peak_bytes'] / 1e9:.2f} GB measured ({found['error']:+.1%})",
                flush=True,
            )


if __name__ == "__main__":
    main()
