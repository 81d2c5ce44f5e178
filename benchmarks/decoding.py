"""Tokens per second of every way to run a trained model, at several batch sizes; greedy, fp32.

python benchmarks/decoding.py [OUT.json]     (default: benchmarks/results/decoding.json)

All ways are open at once and take turns, so that what else the machine does meets them alike.
Batches of 1, 4 and 16 write 64 tokens each; last, 32 rows of other lengths are answered as they
are: each up to its own end.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from suri.cli.main import main as suri
from suri.data.encode import encode_prompt
from suri.data.records import read_records
from suri.export import llama_cpp
from suri.infer.engines import open_model
from suri.recipe import GREEDY
from suri.train.machine import environment

RESULTS = Path(__file__).parent / "results" / "decoding.json"
BATCHES, TOKENS, ROUNDS = (1, 4, 16), 64, 5
ROWS, MOST = 32, 64
NEVER = -1
"""An end-of-text token that does not come: every answer has the same length."""
Way = Callable[[list[list[int]], int, int], tuple[float, int]]
"""Seconds and tokens of answers to these prompts, of at most so many tokens, up to this end."""


def by_engine(model: str, **asked: Any) -> Way:
    """A model that stays open."""
    engine = open_model(model, **asked).engine

    def answers(prompts: list[list[int]], most: int, end: int) -> tuple[float, int]:
        started = time.perf_counter()
        found = engine.generate(prompts, end, replace(GREEDY, max_new_tokens=most))
        return time.perf_counter() - started, sum(len(each.ids) + each.stopped for each in found)

    return answers


def by_llama_cpp(file: Path) -> Way:
    """llama.cpp in its own process: what more tokens take beyond a start with one token."""

    def answers(prompts: list[list[int]], most: int, end: int) -> tuple[float, int]:
        took = []
        for count in (1, most + 1):
            started = time.perf_counter()
            found = llama_cpp.read(file, prompts=prompts, most=count, stop=end)
            took.append(time.perf_counter() - started)
            assert all(len(answer) == count for answer in found.answers), found.problem
        return took[1] - took[0], len(prompts) * most

    return answers


def ways(place: Path) -> dict[str, Way]:
    """Train a little, merge, and open everything."""
    run, hf = place / "run", place / "hf"
    suri(["train", "--data_path", "bundled:64", "--max_steps", "8", "--output_dir", str(run)])
    suri(["merge", str(run), "--to", "hf", "--output_dir", str(hf)])
    for dtype in ("float16", "q8_0"):
        out = str(place / dtype)
        suri(["merge", str(run), "--to", "gguf", "--dtype", dtype, "--output_dir", out])
    return {
        "merged": by_engine(str(hf)),
        "adapter on its base": by_engine(str(run)),
        "merged, int8": by_engine(str(hf), load_8bit=True),
        "merged, nf4": by_engine(str(hf), quantize="nf4"),
        "merged, transformers": by_engine(str(hf), engine="transformers"),
        "GGUF f16, llama.cpp": by_llama_cpp(place / "float16" / "model.gguf"),
        "GGUF q8_0, llama.cpp": by_llama_cpp(place / "q8_0" / "model.gguf"),
    }


def measure(opened: dict[str, Way], prompts: list[list[int]], end: int) -> dict[str, Any]:
    """Tokens per second, median, least and most of ROUNDS, by way and kind of work."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in opened}
    works = {str(batch): (prompts[:batch], TOKENS, NEVER) for batch in BATCHES}
    works["rows"] = (prompts[:ROWS], MOST, end)
    for kind, work in works.items():
        for turn in range(ROUNDS + 1):  # the first one warms up
            for name, way in opened.items():
                if kind != "1" and "llama.cpp" in name:
                    continue  # its program here answers one prompt after the other
                seconds, tokens = way(*work)
                if turn:
                    found[name].setdefault(kind, []).append(tokens / seconds)
        print(kind, {n: round(statistics.median(r[kind])) for n, r in found.items() if kind in r})
    return {
        name: {
            kind: {"median": statistics.median(rates), "least": min(rates), "most": max(rates)}
            for kind, rates in by_kind.items()
        }
        for name, by_kind in found.items()
    }


def table(result: dict[str, Any]) -> str:
    """The result as the documents show it."""
    kinds = {str(batch): f"batch {batch}" for batch in BATCHES} | {"rows": f"{ROWS} rows"}
    lines = ["| tokens/s | " + " | ".join(kinds.values()) + " |", "|---|" + "--:|" * len(kinds)]
    for name, rates in result["ways"].items():
        cells = [
            f"{r['median']:.0f} ({r['least']:.0f} to {r['most']:.0f})" if r else ""
            for r in map(rates.get, kinds)
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and write the table."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    with tempfile.TemporaryDirectory() as folder:
        opened = ways(Path(folder))
        model = open_model(str(Path(folder) / "run"))
        records = read_records(Path(__file__).parents[1] / "mini_data.json")[:ROWS]
        prompts = [
            [int(i) for i in encode_prompt(record, model.tokenizer, model.prompt)]
            for record in records
        ]
        found = measure(opened, prompts, model.tokenizer.eos_id)
    asked = {"tokens": TOKENS, "rounds": ROUNDS, "rows": ROWS, "most": MOST}
    result = {"command": "python benchmarks/decoding.py", **asked, "ways": found}
    result["environment"] = environment("cpu")
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
