"""Hand-written results of a comparison and a study; no two numbers are equal by accident."""

import json

from suri.recipe import Recipe, settings_of
from suri.study.compare_summary import summarise_ways
from suri.study.forms import ways_of
from suri.study.statements import threats
from suri.study.study_summary import summarise_trials

ROWS = 12
WAYS = "base,adapter,hf,meta,int8"
PLACE = {"device": "cpu", "threads": 2}
ATTACK = "<script>alert('x')</script><img src=http://evil.example/p.png>"


def answer(text, ids, *, stopped=True, correct=None, loss_sum=1.0, rouge=0.5):
    return {
        "text": text,
        "ids": ids,
        "tokens": len(ids),
        "stopped": stopped,
        "correct": correct,
        "rouge_l": rouge,
        "chrf": rouge / 2,
        "bleu": rouge / 3,
        "loss_sum": loss_sum,
        "learned_tokens": 3,
    }


def entry(row):
    ids = [7, row, 9]
    right = row % 4 != 3
    good = {"correct": right, "rouge": 0.9 if right else 0.31}
    loss = 1.2 + row / 10
    return {
        "row": row,
        "instruction": f"Sort these words, please ({row}).",
        "input": f"pear{row}, apple, fig",
        "expected": f"apple, fig, pear{row}",
        "skill": "sort",
        "answers": {
            "base": answer(
                ATTACK
                if row == 0
                else "Sure! Here are the words you asked me to sort, in order: pear",
                [7, 2, 3, 4, row],
                stopped=row == 5,
                correct=False,
                loss_sum=8.5 + row / 7,
                rouge=0.12,
            ),
            "adapter": answer(
                f"apple, fig, pear{row}" if right else "fig", ids, loss_sum=loss, **good
            ),
            "hf": answer(f"apple, fig, pear{row}" if right else "fig", ids, loss_sum=loss, **good),
            "meta": answer(
                f"apple, fig, pear{row}" if right else "fig", ids, loss_sum=loss + 1e-6, **good
            ),
            "int8": answer("fig", [7, row, 8], loss_sum=loss + 0.01, correct=False, rouge=0.3),
            "hf-suri-bfloat16": answer("fig, apple", [7, 8], loss_sum=loss + 0.02, **good),
        },
    }


def speed(load, first, rate, batch, memory, disk):
    return {
        "load_seconds": load,
        "first_token_seconds": first,
        "prefill_tokens_per_second": 90 / first,
        "tokens_per_second": rate,
        "batch_tokens_per_second": batch,
        "peak_memory_bytes": memory,
        "bytes_on_disk": disk,
    }


def make_entries():
    return [entry(row) for row in range(ROWS)]


def make_comparison():
    entries = make_entries()
    speeds = {
        "base": speed(1.1, 0.12, 21.7, 83.0, 1.21e9, 5.41e8),
        "adapter": speed(1.3, 0.14, 18.1, 71.5, 1.25e9, 5.51e8),
        "hf": speed(1.2, 0.121, 21.9, 84.1, 1.22e9, 5.42e8),
        "meta": speed(1.9, 0.123, 21.5, 82.2, 1.83e9, 6.54e8),
        "int8": speed(2.9, 0.17, 9.5, 42.2, 0.83e9, 5.52e8),
        "hf-suri-bfloat16": speed(1.0, 0.3, 5.5, 32.2, 0.73e9, 2.7e8),
    }
    kls = {"base": 0.21, "adapter": 0.0, "hf": 2.5e-12, "meta": 3.5e-12, "int8": 1e-4}
    measured = {
        way: [
            {
                "speed": found,
                "probe": {
                    "tokens": 36, "mean_kl": kl, "max_kl": 3 * kl, "top1_agreement": 1 - kl
                },
            }
        ]
        for way, found in speeds.items()
        for kl in [kls.get(way, 2e-3)]
    }  # fmt: skip
    ways = ways_of(WAYS, "suri", "float32,bfloat16", "none")
    ways = [way for way in ways if way.name in speeds]
    checks = [
        {
            "name": "largest difference of a logit",
            "figure": 3.1e-5,
            "limit": 1e-3,
            "at_least": False,
        },
        {
            "name": "same likeliest next token, share",
            "figure": 0.991,
            "limit": 0.98,
            "at_least": True,
        },
    ]
    checks = [check | {"passed": True} for check in checks]
    recipe = settings_of(Recipe(lora_r=4, learning_rate=1e-3))
    return {
        "kind": "compare",
        "run": "lora-alpaca",
        "rows": ROWS,
        "settings": {"max_new_tokens": 32, "repeats": 1},
        "recipe": recipe,
        "result": {"steps": 42, "train_seconds": 87.5, "base_loss": 2.9, "held_out_loss": 0.61},
        "environment": {"python": "3.11.9", "packages": {"torch": "2.13.0"}, "cores": 2},
        "measured_in": PLACE,
        "threats": threats(recipe, ROWS, PLACE, seeds=1),
        "certificates": {
            "hf": {"passed": True, "checks": checks},
            "meta": {"passed": True, "checks": checks},
        },
        **summarise_ways(entries, ways, measured),
    }


def write_comparison(folder):
    folder.mkdir()
    (folder / "compare.json").write_text(json.dumps(make_comparison()))
    (folder / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in make_entries()))
    lines = [{"step": 0, "eval/loss": 2.9}]
    lines += [{"step": step, "train/loss": 2.8 - step / 20} for step in range(1, 43)]
    lines += [{"step": 21, "eval/loss": 1.3}, {"step": 42, "eval/loss": 0.61}]
    (folder / "training.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


def trial(rows, quantize, seed=0, **changes):
    steps = rows // 8
    slower = {"none": 1.0, "nf4": 1.5, "int8": 0.7}[quantize]
    worse = {"none": 0.0, "nf4": 0.01, "int8": 0.02}[quantize]
    losses = [
        {
            "row": row,
            "loss_sum": 6.5 + row / 3 - rows / 100 + worse * (-1) ** row + seed / 50,
            "learned_tokens": 4 + row % 3,
        }
        for row in range(ROWS)
    ]
    return {
        "name": f"{quantize}-rows{rows}-seed{seed}",
        "quantize": quantize,
        "rows": rows,
        "settings": {},
        "seed": seed,
        "status": "finished",
        "reason": "",
        "attempts": 1,
        "steps": steps,
        "train_seconds": 3.3 * steps * slower,
        "total_seconds": 7.7 + 3.3 * steps * slower,
        "seconds_per_step": 3.1 * slower,
        "tokens_per_second": 310 / slower,
        "peak_memory_bytes": 1.9e9 / (1.3 if quantize == "nf4" else 1),
        "base_loss": 2.41,
        "held_out_loss": 1.5 - rows / 200,
        "token_seconds": [slower * (0.003 + 0.0001 * (step % 3)) for step in range(steps)],
        "losses": losses,
        "correct": [row % 3 != 1 or None for row in range(ROWS)],
        "facts": {
            "steps": steps,
            "rows_seen": f"order{rows}-{seed}",
            "micro_batches": 2 * steps,
            "initial_adapter": f"start{seed}",
            "adapter_dtype": "float32",
            "learned_tokens": 50 * steps,
        },
        "curve": {
            "train": [list(range(1, steps + 1)), [2.4 - step / steps for step in range(steps)]],
            "eval": [[0, steps], [2.41, 1.5 - rows / 200]],
        },
    } | changes


def make_study(seeds=(0,)):
    trials = [
        trial(rows, quantize, seed)
        for rows in (96, 192)
        for seed in seeds
        for quantize in ("none", "int8", "nf4")
    ]
    failed = {"status": "failed", "reason": "needs 3.0 GB", "name": "nf4-rows384-seed0"}
    trials.append({"rows": 384, "quantize": "nf4", "seed": 0, "settings": {}} | failed)
    recipe = settings_of(Recipe())
    return {
        "kind": "study",
        "plan": {
            "rows": [96, 192, 384], "quantize": ["none", "int8", "nf4"], "seeds": list(seeds),
            "vary": {},
        },
        "recipe": recipe,
        "environment": {"python": "3.11.9", "cores": 2},
        "measured_in": PLACE,
        "held_out_rows": ROWS,
        "threats": threats(recipe, ROWS, PLACE, seeds=len(seeds)),
        "equal": {
            "held-out rows": "the same 96 for every trial",
            "optimizer steps": "8 rows each, as many for every method",
            "micro-batches": "up to 512 tokens, cut alike",
        },
        "trials": trials,
        **summarise_trials(trials),
    }  # fmt: skip


def write_study(folder):
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(make_study((0, 1, 2))))
    return folder
