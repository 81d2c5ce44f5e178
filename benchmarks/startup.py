"""How long the command line takes to answer `--help`, and whether it loads torch for it.

python benchmarks/startup.py [OUT.json]     (default: benchmarks/results/startup.json)
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from suri.train.machine import environment

RESULTS = Path(__file__).parent / "results"
COMMANDS = (["--help"], ["train", "--help"], ["fit", "--help"])
RUNS = 7


def seconds(words: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "suri", *words], check=True, capture_output=True)
    return time.perf_counter() - began


def loads_torch(words: list[str]) -> bool:
    code = (
        "import sys\nfrom suri.cli.main import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "raise SystemExit('torch' in sys.modules)"
    )
    return bool(subprocess.run([sys.executable, "-c", code], capture_output=True).returncode)


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "startup.json"
    result = {"command": "python benchmarks/startup.py", "environment": environment("cpu")}
    for words in COMMANDS:
        seconds(words)  # the first run reads the files from the disk
        times = [seconds(words) for _ in range(RUNS)]
        result["suri " + " ".join(words)] = {
            "seconds": times,
            "median": statistics.median(times),
            "loads_torch": loads_torch(words),
        }
        print(f"suri {' '.join(words)}: {statistics.median(times):.2f} s", flush=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
