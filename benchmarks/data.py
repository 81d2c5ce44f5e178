"""Time reading, checking and encoding rows, and take their memory.

python benchmarks/data.py ALPACA.json [OUT.json]     (default: benchmarks/results/data.json)

ALPACA.json is any file of Alpaca rows. It is enlarged to 52,000 rows: in every copy after the first
a few words of a row are replaced by made-up ones, so that the number of different words grows with
the rows as it does in real text (Heaps' law; 999 rows have 14,000, 52,000 then about 130,000).
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROWS, ROUNDS, NEW_WORDS = 52_000, 5, 2.3
BIG_ROWS, BIG_BYTES = 1_000_000, 1_000_000_000


def enlarged(source: Path, rows: int) -> Iterator[dict[str, str]]:
    """As many different rows as asked for, from fewer."""
    originals = json.loads(source.read_text(encoding="utf-8"))
    draw = random.Random(1)
    for number in range(rows):
        row = dict(originals[number % len(originals)])
        if number >= len(originals):
            words = row["output"].split(" ")
            for _ in range(int(NEW_WORDS) + (draw.random() < NEW_WORDS % 1)):
                words[draw.randrange(len(words))] = "".join(draw.choices("etaoinshrdlu", k=7))
            row["output"] = " ".join(words)
            row["instruction"] += f" ({number})"
        yield row


def write_big(source: Path, out: Path) -> None:
    """A million rows in JSON lines, a gigabyte in all."""
    size = BIG_BYTES // BIG_ROWS
    with out.open("w", encoding="utf-8") as stream:
        for row in enlarged(source, BIG_ROWS):
            row["output"] = (row["output"] * 200)[: size - 90 - len(row["instruction"])]
            row["input"] = ""
            stream.write(json.dumps(row) + "\n")


def seconds(run: Callable[[], object]) -> float:
    """How long something takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def check_seconds(file: Path, *flags: str) -> float:
    """Of the whole command, start of Python included."""
    command = [sys.executable, "-m", "suri", "data", "check", str(file), *flags]
    return seconds(lambda: subprocess.run(command, check=True, capture_output=True))


def encoding_seconds(file: Path) -> tuple[float, float, float]:
    """One tokenizer call of transformers for each row, two of them, and our encoding of the rows.

    One call tokenises prompt and response as one text and does not tell what is learned; two, as
    alpaca-lora makes them, tokenise the prompt by itself too. Ours gives ids, what is learned of
    them, and the same ids for the prompt by itself.
    """
    import transformers

    from suri.data.encode import Rules, encode_records
    from suri.data.prompt import find_prompt
    from suri.data.records import read_records
    from suri.model.embedded import embedded_base
    from suri.model.tokenizer import read_tokenizer

    base = embedded_base()
    prompt = find_prompt("alpaca")
    records = read_records(file)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(base), read_tokenizer(base)
    turns = [turn for record in records for turn in prompt.turns(record)]
    one = seconds(lambda: [theirs(turn.asked[0] + turn.answer) for turn in turns])
    other = seconds(lambda: [theirs(turn.asked[0]) for turn in turns])
    return one, one + other, seconds(lambda: encode_records(records, ours, prompt, Rules(4096)))


def peak_bytes(code: str, *args: str) -> tuple[float, int]:
    """Seconds, and the most memory that a process of its own held."""
    # Not getrusage: its figure is at least that of the process that started this one.
    code += "\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *args], check=True, capture_output=True, text=True
    )
    return time.perf_counter() - started, int(done.stdout.split()[-1]) * 1024


CHECK = """
import sys
from suri.data.check import check_rows
assert check_rows(sys.argv[1], held_out=(0.05, 42)).usable == 1_000_000
"""
ENCODE = """
import sys
from suri.data.cache import encode_table
from suri.data.encode import Rules
from suri.data.prompt import find_prompt
from suri.data.split import load_rows
from suri.model.embedded import embedded_base
from suri.model.tokenizer import read_tokenizer
from suri.recipe import Recipe
rows = load_rows(Recipe(data_path=sys.argv[1], val_set_size=2000))
tokenizer = read_tokenizer(embedded_base())
encoded = encode_table(rows.train, tokenizer, find_prompt("alpaca"), Rules(512))
assert len(encoded.examples) == 998_000
"""


def spread(figures: list[float]) -> dict[str, Any]:
    """Median and all figures."""
    return {"median": round(statistics.median(figures), 2), "all": [round(f, 2) for f in figures]}


def main() -> None:
    """Measure all of it, interleaved, and write the figures."""
    source = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS / "data.json"
    with tempfile.TemporaryDirectory() as name:
        file, big = Path(name) / "rows.json", Path(name) / "big.jsonl"
        file.write_text(json.dumps(list(enlarged(source, ROWS))), encoding="utf-8")
        plain, measured, times = [], [], []
        for _ in range(ROUNDS):
            plain.append(check_seconds(file, "--base_model", "none"))
            measured.append(check_seconds(file))
            times.append(encoding_seconds(file))
        write_big(source, big)
        size = big.stat().st_size
        checked, encoded = peak_bytes(CHECK, str(big)), peak_bytes(ENCODE, str(big))
    from suri.train.machine import environment

    result = {
        "command": "python benchmarks/data.py ALPACA.json",
        "rows": ROWS,
        "check_seconds": spread(plain),
        "check_with_lengths_seconds": spread(measured),
        "one_call_per_row_seconds": spread([one for one, _, _ in times]),
        "two_calls_per_row_seconds": spread([two for _, two, _ in times]),
        "encode_seconds": spread([ours for _, _, ours in times]),
        "speedup_over_one_call": spread([one / ours for one, _, ours in times]),
        "speedup_over_two_calls": spread([two / ours for _, two, ours in times]),
        "million_rows": {
            "bytes": size,
            "check": {"seconds": round(checked[0]), "peak_memory_bytes": checked[1]},
            "encode": {"seconds": round(encoded[0]), "peak_memory_bytes": encoded[1]},
        },
        "environment": environment("cpu"),
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "environment"}, indent=1))


if __name__ == "__main__":
    main()
