"""Training on a CPU: speed, time from command to adapter, quality; against HF Trainer + PEFT.

python benchmarks/training.py ROWS.json [--rounds 5] [--rows 64] [--targets qv|all]
    [--parts speed,command,quality] [--quality_rows 400] [--trl_python PYTHON] [--out OUT.json]
python benchmarks/training.py --tiny [--out OUT.json]     (a tiny random model, bundled rows)

Every run is a process of its own, and the ways take turns. All learn the same encoded rows
(responses only, dropout 0, 16 rows per step) from the same base and the same first adapter.
Useful tokens are the rows' own, whatever a way computes. HF is the fastest of micro-batches of 4,
8 and 16, padded or grouped by length. Held-out losses are a referee's: transformers and peft.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import training_inputs as inputs
from training_bench import HERE, Bench, result_of

SETTINGS = [(micro, grouped) for micro in (4, 8, 16) for grouped in (False, True)]
OURS = {"exact": "none", "int8": "int8", "nf4": "nf4"}
HF = "hf"
PACKED = 1024


def speed(bench: Bench) -> None:
    """Steps alone: the best setting of HF is looked for, then it takes turns with ours."""
    asked, work = bench.asked, bench.work / "speed"
    count, held_out = (16, 8) if asked.tiny else (asked.rows, 16)
    inputs.draw(bench.rows, count, held_out, work)
    recipe = replace(bench.recipe, data_path=str(work / "train.json"))
    data = inputs.encode(recipe, work)
    found: dict[str, Any] = {
        "settings": _settings(recipe),
        "data": data,
        "search": [],
        "rounds": [],
        "load_average_before": os.getloadavg()[0],
    }

    def hf(setting: tuple[int, bool], name: str = HF) -> dict[str, Any]:
        job = _job(bench, recipe, name) | {"way": "hf", "micro": setting[0], "grouped": setting[1]}
        return _with_rates(bench.peer(job | {"accumulate": 16 // setting[0]}), data)

    def ours(way: str) -> dict[str, Any]:
        settings = {"output_dir": str(work / way), "quantize": OURS[way]}
        _, result = bench.suri(replace(recipe, **settings))
        return _with_rates({k: result[k] for k in ("train_seconds", "peak_memory_bytes")}, data)

    for setting in SETTINGS[:2] if asked.tiny else SETTINGS:
        named = {"micro_batch": setting[0], "grouped": setting[1]}
        found["search"].append(named | hf(setting))
        bench.save("speed", found)
    fastest = max(found["search"], key=lambda each: each["tokens_per_second"])
    found["best"] = {key: fastest[key] for key in ("micro_batch", "grouped")}
    found["trl_packed"] = _trl(bench, recipe, data)
    ways = [HF, *OURS]
    for number in range(asked.rounds):
        turn = number % len(ways)
        figures = {}
        for way in ways[turn:] + ways[:turn]:
            best = (fastest["micro_batch"], fastest["grouped"])
            figures[way] = hf(best) if way == HF else ours(way)
        found["rounds"].append({way: figures[way] for way in ways})
        found["summary"] = summary(found["rounds"], "train_seconds")
        bench.save("speed", found)
    models = {way: (str(bench.base), str(work / way)) for way in ways}
    if "train_seconds" in found["trl_packed"]:
        models["trl_packed"] = (str(bench.base), str(work / "trl"))
    found["held_out_loss"] = _losses(bench, work, {"base": (str(bench.base), ""), **models})
    bench.save("speed", found)


def _trl(bench: Bench, recipe: Any, data: dict[str, int]) -> dict[str, Any]:
    """trl packed, once; its steps hold as many packs as come nearest to 16 rows."""
    code = "import importlib.util as u; raise SystemExit(u.find_spec('trl') is None)"
    if subprocess.run([bench.asked.trl_python, "-c", code], check=False).returncode:
        return {"missing": "the package trl is not installed"}
    packs = max(1, round(16 * data["tokens"] / data["rows"] / PACKED))
    job = _job(bench, recipe, "trl") | {"way": "trl", "micro": 1, "accumulate": packs}
    try:
        return _with_rates(bench.peer(job, bench.asked.trl_python), data) | {"packs": packs}
    except SystemExit as problem:
        return {"missing": f"trl failed: {str(problem).strip().splitlines()[-1][:200]}"}


def _job(bench: Bench, recipe: Any, name: str) -> dict[str, Any]:
    work = bench.work / "speed"
    return {
        "base": str(bench.base),
        "rows": str(work / "encoded.json"),
        "start": str(work / "start"),
        "out": str(work / name),
        "epochs": recipe.num_epochs,
        "rate": recipe.learning_rate,
    }


def _with_rates(figures: dict[str, Any], data: dict[str, int]) -> dict[str, Any]:
    seconds = figures["train_seconds"]
    return figures | {
        "tokens_per_second": data["tokens"] / seconds,
        "rows_per_second": data["rows"] / seconds,
    }


def summary(rounds: list[dict[str, dict[str, float]]], time: str) -> dict[str, Any]:
    """Median and range of every figure, and of how many times faster than HF in the same round."""
    table = {}
    for way in rounds[0]:
        raw = [each[way] for each in rounds]
        figures = {name: spread([each[name] for each in raw]) for name in raw[0]}
        ratios = [each[HF][time] / each[way][time] for each in rounds]
        table[way] = figures | {"times_hf": spread(ratios)}
    return table


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def command(bench: Bench) -> None:
    """From the start of `python -m suri train` to its end, against a plain script's."""
    asked, work = bench.asked, bench.work / "command"
    work.mkdir()
    count = 16 if asked.tiny else 400
    rows = inputs.bundled_rows(count, bench.recipe.seed, work / "rows.json")
    best = bench.result.get("speed", {}).get("best") or {"micro_batch": 4, "grouped": True}
    from suri.recipe import LINEARS

    cutoff = 1000 if asked.tiny else 512
    recipe = replace(
        bench.recipe, data_path=f"bundled:{count}", cutoff_len=cutoff, lora_target_modules=LINEARS
    )
    found: dict[str, Any] = {
        "settings": _settings(recipe) | {"rows": count},
        "hf_setting": best,
        "rounds": [],
        "load_average_before": os.getloadavg()[0],
    }

    def hf() -> dict[str, Any]:
        sampling = "group_by_length" if best["grouped"] else "random"
        words = [str(rows), str(work / HF), str(bench.base), str(best["micro_batch"]), sampling]
        seconds, printed = bench.run([sys.executable, str(HERE / "training_script.py"), *words])
        return {"seconds": seconds} | result_of(printed)

    def ours(way: str) -> dict[str, Any]:
        settings = {"output_dir": str(work / way), "quantize": OURS[way]}
        cache = Path(tempfile.mkdtemp(dir=work))  # nothing was encoded before
        (cache / bench.base.name).symlink_to(bench.base)
        seconds, result = bench.suri(replace(recipe, **settings), SURI_CACHE=str(cache))
        return {"seconds": seconds, "tokens": result["tokens"]}

    ways = [HF, "exact", "int8"]
    for number in range(asked.rounds):
        turn = number % len(ways)
        figures = {way: hf() if way == HF else ours(way) for way in ways[turn:] + ways[:turn]}
        found["rounds"].append({way: figures[way] for way in ways})
        found["summary"] = summary(found["rounds"], "seconds")
        bench.save("command", found)


def quality(bench: Bench) -> None:
    """What is kept of the gain of fine-tuning when the frozen base is in int8 or nf4."""
    from suri.recipe import LINEARS
    from suri.study.intervals import mean_interval

    asked, work = bench.asked, bench.work / "quality"
    count, held_out = (32, 12) if asked.tiny else (asked.quality_rows, 64)
    inputs.draw(bench.rows, count, held_out, work)
    recipe = replace(
        bench.recipe, data_path=str(work / "train.json"), num_epochs=2, learning_rate=1e-3,
        lr_schedule="linear", warmup_ratio=0.03, lora_target_modules=LINEARS,
    )  # fmt: skip
    found: dict[str, Any] = {"settings": _settings(recipe), "data": inputs.encode(recipe, work)}
    found["methods"] = {}
    for way, quantize in OURS.items():
        settings = {"output_dir": str(work / way), "quantize": quantize}
        bench.suri(replace(recipe, **settings))
        lines = (work / way / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses = [json.loads(line)["train/loss"] for line in lines]
        found["methods"][way] = {"training_loss": losses}
        bench.save("quality", found)
    own = inputs.nf4_base(bench.base, work / "nf4-base")
    models = {way: (str(bench.base), str(work / way)) for way in OURS}
    models |= {"base": (str(bench.base), ""), "nf4_base": (str(own), "")}
    models["nf4_on_its_base"] = (str(own), str(work / "nf4"))
    found["held_out_loss"] = losses = _losses(bench, work, models)
    sums = losses["sums"]
    minus = lambda a, b: [x - y for x, y in zip(sums[a], sums[b], strict=True)]  # noqa: E731
    gain = minus("base", "exact")
    found["kept"] = {
        way: asdict(mean_interval(minus("base", way), gain))
        for way in ("int8", "nf4", "nf4_on_its_base")
    }
    bench.save("quality", found)


def _losses(bench: Bench, work: Path, models: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """The referee's held-out losses by name, with the sums that they are made of."""
    job = {"way": "referee", "rows": str(work / "encoded.json"), "models": models}
    found = bench.peer(job)
    learned = sum(found["tokens"])
    return {name: sum(sums) / learned for name, sums in found["sums"].items()} | found


def _settings(recipe: Any) -> dict[str, Any]:
    names = ("batch_size", "num_epochs", "learning_rate", "lr_schedule", "warmup_ratio",
             "cutoff_len", "lora_r", "lora_alpha", "lora_target_modules", "seed")  # fmt: skip
    return {name: getattr(recipe, name) for name in names}


def table(result: dict[str, Any]) -> str:
    """The result as a document shows it."""
    names = {HF: "HF Trainer + PEFT", "exact": "Suri", "int8": "Suri, int8", "nf4": "Suri, nf4"}
    lines = ["| | useful tokens/s | times HF | peak memory | held-out loss |",
             "|---|--:|--:|--:|--:|"]  # fmt: skip
    found = result["speed"]
    for way, figures in found["summary"].items():
        tokens, times = figures["tokens_per_second"], figures["times_hf"]
        lines.append(
            f"| {names[way]} | {tokens['median']:.0f} ({tokens['low']:.0f} to {tokens['high']:.0f})"
            f" | {times['median']:.2f} ({times['low']:.2f} to {times['high']:.2f}) | "
            f"{figures['peak_memory_bytes']['median'] / 1e9:.1f} GB | "
            f"{found['held_out_loss'][way]:.4f} |"
        )
    return "\n".join(lines)


PARTS = {"speed": speed, "command": command, "quality": quality}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows_file", nargs="?", help="rows in Alpaca's format; never copied")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--quality_rows", type=int, default=400)
    parser.add_argument("--targets", choices=("qv", "all"), default="qv")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--trl_python", default=sys.executable)
    parser.add_argument("--out", default=str(HERE / "results" / "training.json"))
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    if asked.tiny:
        asked.rounds = 1
    elif not asked.rows_file:
        parser.error("give a file of rows, or --tiny")
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(asked, Path(name))
        for part in asked.parts.split(","):
            PARTS[part](bench)
            print(f"{part}: {asked.out}", flush=True)
    if "held_out_loss" in bench.result.get("speed", {}):
        print(table(bench.result))


if __name__ == "__main__":
    main()
