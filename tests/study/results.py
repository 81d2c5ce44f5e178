"""Hand-written results of a comparison and a study; no two numbers are equal by accident."""

import json

from suri.recipe import Recipe, settings_of
from suri.study.summary import summarise_trials, summarise_ways

ROWS = 12
ATTACK = "<script>alert('x')</script><img src=http://evil.example/p.png>"


def answer(text, ids, *, stopped=True, correct=None, loss_sum=1.0, adapter_ids=None, rouge=0.5):
    return {
        "text": text,
        "tokens": len(ids),
        "stopped": stopped,
        "correct": correct,
        "rouge_l": rouge,
        "loss_sum": loss_sum,
        "learned_tokens": 3,
        "same_as_adapter": ids == adapter_ids,
        "shared_prefix": 1.0 if ids == adapter_ids else 0.25,
    }


def entry(row):
    ids = [7, row, 9]
    right = row % 4 != 3
    good = {"correct": right, "adapter_ids": ids, "rouge": 0.9 if right else 0.31}
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
                [1, 2, 3, 4, row],
                stopped=row == 5,
                correct=False,
                loss_sum=8.5 + row / 7,
                adapter_ids=ids,
                rouge=0.12,
            ),
            "adapter": answer(
                f"apple, fig, pear{row}" if right else "fig", ids, loss_sum=loss, **good
            ),
            "hf": answer(f"apple, fig, pear{row}" if right else "fig", ids, loss_sum=loss, **good),
            "meta": answer(
                f"apple, fig, pear{row}" if right else "fig", ids, loss_sum=loss + 1e-6, **good
            ),
        },
    }


def speed(load, first, rate, batch, memory, disk):
    return {
        "load_seconds": load,
        "first_token_seconds": first,
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
        "base": [speed(1.1, 0.12, 21.7, 83.0, 1.21e9, 5.41e8)],
        "adapter": [speed(1.3, 0.14, 18.1, 71.5, 1.25e9, 5.51e8)],
        "hf": [speed(1.2, 0.121, 21.9, 84.1, 1.22e9, 5.42e8)],
        "meta": [speed(1.9, 0.123, 21.5, 82.2, 1.83e9, 6.54e8)],
    }
    probes = {
        way: {"tokens": 36, "mean_kl": kl, "max_kl": 3 * kl, "top1_agreement": 1 - kl}
        for way, kl in [("base", 0.21), ("adapter", 0.0), ("hf", 2.5e-12), ("meta", 3.5e-12)]
    }
    checks = [
        {"name": "largest logit", "figure": 3.1e-5, "limit": 1e-3, "at_least": False},
        {"name": "same likeliest token", "figure": 0.991, "limit": 0.98, "at_least": True},
    ]
    checks = [check | {"passed": True} for check in checks]
    return {
        "kind": "compare",
        "run": "lora-alpaca",
        "rows": ROWS,
        "settings": {"max_new_tokens": 32, "dtype": "float32", "repeats": 1},
        "recipe": settings_of(Recipe(lora_r=4, learning_rate=1e-3)),
        "result": {"steps": 42, "train_seconds": 87.5, "base_loss": 2.9, "held_out_loss": 0.61},
        "environment": {"python": "3.11.9", "packages": {"torch": "2.13.0"}, "cores": 2},
        "measured_in": {"device": "cpu", "threads": 2},
        "certificates": {
            "hf": {"passed": True, "checks": checks},
            "meta": {"passed": True, "checks": checks},
        },
        **summarise_ways(entries, speeds, probes),
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


def trial(rows, quantize, seed=0):
    steps = rows // 8
    slower = 1.5 if quantize == "nf4" else 1.0
    losses = [
        {
            "row": row,
            "loss_sum": 6.5 + row / 3 - rows / 100 + (0.01 * (-1) ** row if slower > 1 else 0),
            "learned_tokens": 4 + row % 3,
        }
        for row in range(ROWS)
    ]
    return {
        "name": f"{quantize}-rows{rows}-seed{seed}",
        "quantize": quantize,
        "rows": rows,
        "seed": seed,
        "status": "finished",
        "reason": "",
        "steps": steps,
        "train_seconds": 3.3 * steps * slower,
        "seconds_per_step": 3.1 * slower,
        "tokens_per_second": 310 / slower,
        "peak_memory_bytes": 1.9e9 / (1.3 if quantize == "nf4" else 1),
        "base_loss": 2.41,
        "held_out_loss": 1.5 - rows / 200,
        "token_seconds": [slower * (0.003 + 0.0001 * (step % 3)) for step in range(steps)],
        "losses": losses,
        "curve": {
            "train": [list(range(1, steps + 1)), [2.4 - step / steps for step in range(steps)]],
            "eval": [[0, steps], [2.41, 1.5 - rows / 200]],
        },
    }


def make_study():
    trials = [trial(rows, quantize) for rows in (96, 192) for quantize in ("none", "nf4")]
    failed = {"status": "failed", "reason": "needs 3.0 GB", "name": "nf4-rows384-seed0"}
    trials.append({"rows": 384, "quantize": "nf4", "seed": 0} | failed)
    return {
        "kind": "study",
        "plan": {"rows": [96, 192, 384], "quantize": ["none", "nf4"], "seeds": [0]},
        "recipe": settings_of(Recipe()),
        "environment": {"python": "3.11.9", "cores": 2},
        "measured_in": {"device": "cpu", "threads": 2},
        "held_out_rows": ROWS,
        "trials": trials,
        **summarise_trials(trials),
    }


def write_study(folder):
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(make_study()))
    return folder
