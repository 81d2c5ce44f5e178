"""One training from settings to finished run folder."""

import hashlib
import math
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from suri.data.encode import encode_prompt
from suri.data.findings import KINDS, SHOWN
from suri.data.records import write_records
from suri.files import disk_errors_explained, write_json
from suri.locks import claiming
from suri.model.adapter import Adapter
from suri.model.adapter_file import CONFIG_FILE, WEIGHTS_FILE, write_adapter
from suri.reading import read_json_lines
from suri.recipe import Recipe
from suri.train.budget import ON_CPU
from suri.train.checkpoint import Progress
from suri.train.distributed import Ranks, joined, sharder, was_restarted
from suri.train.engine import Answerer, Engine, SuriEngine
from suri.train.fit import expected_time, fit_here
from suri.train.loop import Listener, Run
from suri.train.machine import peak_memory_bytes
from suri.train.prepare import Prepared, prepare, start_adapter
from suri.train.run_folder import (
    BASE,
    METRICS,
    START,
    after_restart,
    finish_run,
    goes_on,
    open_run,
    recorded_recipe,
    refuse_other_inputs,
    run_folder_of,
)
from suri.train.trackers import reporting
from suri.wording import counted

PROBE = 512
"""Tokens of the first rows that an int8 base is calibrated on."""
SAMPLES, SAMPLE_TOKENS = 3, 32
"""Held-out prompts answered at each evaluation, and the most tokens of each answer."""


def train(recipe: Recipe, listen: Listener, answerer: Answerer) -> dict[str, Any]:
    """Fine-tune as the recipe says; returns what result.json holds.

    `answerer` writes the sample answers: decoding is done above this room.
    """
    with joined(recipe.device) as ranks:
        if not ranks.first:
            listen, recipe = _nobody, replace(recipe, report_to=())
        recipe = ranks.from_first(lambda: _going_on(recipe))
        folder = Path(recipe.output_dir)
        with (
            disk_errors_explained(folder),
            claiming(folder) if ranks.first else nullcontext(),
            reporting(recipe, listen) as tell,
        ):
            return _train(recipe, tell, answerer, ranks)


def _nobody(event: str, numbers: dict[str, Any]) -> None:
    """Hears a process that is not the first: it would say the same."""


def _going_on(recipe: Recipe) -> Recipe:
    """The recipe, or where a run goes on the one that it was started with."""
    folder = run_folder_of(recipe)
    if was_restarted():
        recipe = after_restart(recipe, folder)
    if goes_on(recipe):
        recipe = replace(recorded_recipe(folder, recipe), output_dir=str(folder))
    return recipe


def _train(recipe: Recipe, listen: Listener, answerer: Answerer, ranks: Ranks) -> dict[str, Any]:
    began = time.perf_counter()
    made = ranks.in_turn(lambda: prepare(recipe))
    planned = fit_here(made, ranks=ranks) if recipe.engine == "suri" else None
    if planned:
        made = planned.made
    else:
        made = made.with_settings(token_budget=recipe.token_budget or ON_CPU)
    adapter = start_adapter(made)
    folder = ranks.from_first(lambda: _open(made, adapter))
    notes = [*_notes(made), _summary(made, adapter)]
    if planned:
        notes.append(planned.sentence())
    if ranks.count > 1:
        notes.append(ranks.sentence(sharded=made.recipe.shard_base))
    for text in notes:
        listen("note", {"text": text})
    engine = _engine(made, adapter, answerer, ranks)
    if isinstance(engine, SuriEngine):
        listen("note", {"text": expected_time(made, engine.decoder, ranks.count)})
    run = Run(made, folder, engine, lambda: _sample(made, engine), listen, ranks)
    progress = run.train_all()
    peak = int(ranks.most(peak_memory_bytes(made.device))[0])
    result = _result(made, progress) | {
        "stopped_early": progress.step < run.plan.steps,
        "memory_estimate": planned.estimate.as_json() if planned else None,
        "peak_memory_bytes": max(peak, *(_peaks(folder) if ranks.first else ()), 0),
        "facts": _facts(run, adapter) | {"processes": ranks.count},
        "total_seconds": round(time.perf_counter() - began + run.earlier_seconds, 3),
    }
    if ranks.first:
        _publish_adapter(folder, engine, progress)
        finish_run(folder, made.recipe, result)
    return result


def _peaks(folder: Path) -> list[int]:
    """Peak memory after each step, also of processes before this one."""
    return [line.get("memory/peak_bytes", 0) for line in read_json_lines(folder / METRICS)]


def _facts(run: Run, adapter: Adapter) -> dict[str, Any]:
    """What two runs must have alike before their methods can be compared, as it was in this one.

    Checksums over the numbers that the adapter started from, and over the rows of every step.
    """
    start, rows = hashlib.sha256(), hashlib.sha256()
    for name, pair in sorted(adapter.tensors.items()):
        start.update(name.encode())
        for tensor in pair:
            start.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for step in range(1, run.progress.step + 1):
        rows.update(np.asarray(run.plan.examples(step), dtype=np.int64).tobytes())
    dtypes = {str(p.dtype).removeprefix("torch.") for p in run.engine.parameters}
    return {
        "steps": run.progress.step,
        "rows_seen": rows.hexdigest()[:16],
        "initial_adapter": start.hexdigest()[:16],
        "adapter_dtype": ", ".join(sorted(dtypes)),
        "micro_batches": run.progress.micro_batches,
        "learned_tokens": run.progress.learned_tokens,
    }


def _engine(made: Prepared, adapter: Adapter, answerer: Answerer, ranks: Ranks) -> Engine:
    recipe = made.recipe
    if recipe.engine == "suri":
        probe = made.encoded.examples.ids[:PROBE]
        shard = sharder(made.device) if recipe.shard_base and ranks.count > 1 else None
        return SuriEngine(recipe, made.base, adapter, made.device, answerer, probe, shard)
    from suri.train.reference import ReferenceEngine

    return ReferenceEngine(recipe, made.base, adapter, made.device)


def _open(made: Prepared, adapter: Adapter) -> Path:
    """The run folder, with everything in it that is there before the first step."""
    folder = open_run(made.recipe, 4 * _numbers(adapter))
    left_out = [row + 1 for row in made.encoded.left_out]
    facts = made.rows.facts | {"encoded": made.encoded.counts, "left_out_rows": left_out}
    if goes_on(made.recipe):
        refuse_other_inputs(folder, facts, adapter.base)
    elif made.recipe.start_from:
        write_adapter(folder / START, adapter)
    write_json(folder / "data.json", facts)
    write_json(folder / BASE, adapter.base)
    write_records(folder / "held_out.jsonl", made.rows.held_out)
    made.prompt.save(folder)
    made.tokenizer.save(folder)
    return folder


def _numbers(adapter: Adapter) -> int:
    return sum(a.numel() + b.numel() for a, b in adapter.tensors.values())


def _notes(made: Prepared) -> list[str]:
    """What a user should hear about the settings and the data before the run."""
    recipe, rows, encoded, notes = made.recipe, made.rows, made.encoded, []
    if recipe.start_from:
        start = f"the weights of {recipe.start_from} and the prompt {made.prompt.name}"
        notes.append(f"begins with {start}, all else anew")
    if not recipe.add_eos_token:
        notes.append("add_eos_token False: the end-of-text token is learned all the same")
    warnings = {kind: count for kind, count in rows.facts["warnings"].items() if count}
    if warnings:
        said = "; ".join(f"{count} x {KINDS[kind].says}" for kind, count in warnings.items())
        notes.append(f"in the rows: {said}; `suri data check {recipe.data_path}` tells where")
    done = {
        "trimmed_input": "lose part of their input or their first turns",
        "trimmed_response": "lose the end of their response, and do not teach to stop",
        "dropped": "are left out",
        "without_learned_tokens": "have nothing to learn within it: they are left out",
    }
    for name, what in done.items():
        if count := encoded.counts[name]:
            notes.append(f"rows longer than cutoff_len {recipe.cutoff_len}: {count}; they {what}")
    if encoded.left_out:
        numbers = ", ".join(str(row + 1) for row in encoded.left_out)
        notes.append(f"left out: rows {numbers}" + ", ..." * (len(encoded.left_out) == SHOWN))
    if made.device == "cuda":
        notes.append("training on the GPU in bf16, adapter in fp32")
    return notes


def _summary(made: Prepared, adapter: Adapter) -> str:
    train, held_out = made.encoded.examples, made.held_out.examples
    rows = "row|rows"
    return (
        f"{counted(len(train), rows)} to train, {len(held_out)} held out; "
        f"{counted(made.plan.steps, 'step|steps')} of {counted(made.recipe.batch_size, rows)}; "
        f"adapter of {_numbers(adapter):,} numbers on {made.device}"
    )


def _sample(made: Prepared, engine: Engine) -> list[dict[str, str]]:
    """Answers to some held-out rows, beside those that are expected."""
    records, tokenizer = made.rows.held_out[:SAMPLES], made.tokenizer
    prompts = [encode_prompt(record, tokenizer, made.prompt) for record in records]
    answers = engine.answers(list(prompts), tokenizer.eos_id, SAMPLE_TOKENS)
    return [
        {
            "instruction": record.instruction,
            "input": record.input,
            "expected": record.output,
            "answer": tokenizer.decode(ids),
        }
        for record, ids in zip(records, answers, strict=True)
    ]


def _publish_adapter(folder: Path, engine: Engine, progress: Progress) -> None:
    """The best evaluated adapter becomes the run's; without evaluation the last one."""
    if progress.best_loss is None:
        write_adapter(folder, engine.adapter())
        return
    for name in (WEIGHTS_FILE, CONFIG_FILE, "base.json"):
        shutil.copyfile(folder / "best" / name, folder / name)


def _result(made: Prepared, progress: Progress) -> dict[str, Any]:
    recipe, best = made.recipe, progress.best_loss
    return {
        "steps": progress.step,
        "rows": len(made.encoded.examples),
        "tokens": progress.tokens,
        "learned_tokens": progress.learned_tokens,
        "train_seconds": round(progress.step_seconds, 3),
        "tokens_per_second": progress.tokens / max(progress.step_seconds, 1e-9),
        "base_loss": progress.base_loss,
        "held_out_loss": best,
        "held_out_perplexity": None if best is None else math.exp(min(best, 700.0)),
        "best_step": progress.best_step,
        "quantize": recipe.quantize,
        "engine": recipe.engine,
        "lora_variant": recipe.lora_variant,
        "weights": "last adapter"
        if best is None
        else f"adapter of step {progress.best_step}, the lowest held-out loss",
    }
