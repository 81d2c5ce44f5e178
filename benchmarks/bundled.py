"""Exact match on held-out bundled rows: the base, and a LoRA trained on 2,000 others.

python benchmarks/bundled.py [LANGUAGE] [OUT.json]   (en, benchmarks/results/bundled-en.json)
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from suri.data.records import Record, read_records
from suri.data.skills import is_correct
from suri.infer.engines import open_model
from suri.recipe import GREEDY
from suri.study.intervals import share_interval

RESULTS = Path(__file__).parent / "results"
ROWS, HELD_OUT = 2000, 280
SETTINGS = {
    "val_set_size": str(HELD_OUT),
    "num_epochs": "1",
    "batch_size": "8",
    "learning_rate": "2e-3",
    "lora_r": "8",
}


def score(model: str, records: list[Record]) -> dict[str, Any]:
    """The share of answers that are exactly right, with its 95 % interval, and each skill's."""
    answers = open_model(model).answer(records, replace(GREEDY, max_new_tokens=48))
    right: Counter[str] = Counter()
    for record, answer in zip(records, answers, strict=True):
        right[record.skill] += bool(is_correct(record, answer.text))
    asked = Counter(record.skill for record in records)
    return {
        "exact_match": asdict(share_interval(right.total(), len(records))),
        "skills": {skill: f"{right[skill]} of {count}" for skill, count in asked.items()},
    }


def main() -> None:
    """Train, answer with both, write the figures."""
    language = sys.argv[1] if len(sys.argv) > 1 else "en"
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS / f"bundled-{language}.json"
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        flags = [word for key, value in SETTINGS.items() for word in (f"--{key}", value)]
        data = ["--data_path", f"bundled:{ROWS}:{language}"]
        command = ["suri", "train", *data, *flags]
        subprocess.run([sys.executable, "-m", *command, "--output_dir", str(run)], check=True)
        records = read_records(run / "held_out.jsonl")
        read = lambda file: json.loads((run / file).read_text(encoding="utf-8"))  # noqa: E731
        result = {
            "command": f"python benchmarks/bundled.py {language}",
            "training_command": " ".join(command),
            "held_out_rows": len(records),
            "base": score("embedded", records),
            "adapter": score(str(run), records),
            "training": read("result.json"),
            "environment": read("environment.json"),
        }
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("base", "adapter")}, indent=1))


if __name__ == "__main__":
    main()
