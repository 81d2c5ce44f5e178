"""One training from settings to finished run folder."""

import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from suri.data.cache import encode_table
from suri.data.encode import Rules, encode_prompt, encode_records
from suri.data.examples import Encoded
from suri.data.findings import KINDS, SHOWN
from suri.data.prompt import PROMPT_FILE, Prompt, find_prompt, read_prompt
from suri.data.records import Record, write_records
from suri.data.split import Rows, load_rows
from suri.errors import DataError, UsageError
from suri.files import disk_errors_explained, write_json
from suri.model.adapter import CONFIG_FILE, WEIGHTS_FILE, Adapter, initial_adapter, write_adapter
from suri.model.config import read_config
from suri.model.load import choose_device
from suri.model.tokenizer import Tokenizer, read_tokenizer
from suri.model.weights import base_identity, find_base
from suri.recipe import Recipe
from suri.train.checkpoint import Progress
from suri.train.engine import Answerer, Engine, Ids, SuriEngine
from suri.train.loop import Listener, Plan, Run
from suri.train.run_folder import finish_run, open_run, peak_memory_bytes, recorded_recipe
from suri.train.trackers import reporting

PROBE = 512
"""Tokens of the first rows that an int8 base is calibrated on."""
SAMPLES, SAMPLE_TOKENS = 3, 32
"""Held-out prompts answered at each evaluation, and the most tokens of each answer."""


def train(recipe: Recipe, listen: Listener, answerer: Answerer) -> dict[str, Any]:
    """Fine-tune as the recipe says; returns what result.json holds.

    `answerer` writes the sample answers: decoding is done above this room.
    """
    if recipe.resume or recipe.resume_from_checkpoint:
        recipe = recorded_recipe(run_folder_of(recipe), recipe)
        recipe = replace(recipe, output_dir=str(run_folder_of(recipe)))
    with disk_errors_explained(Path(recipe.output_dir)), reporting(recipe, listen) as tell:
        return _train(recipe, tell, answerer)


def run_folder_of(recipe: Recipe) -> Path:
    """The folder of a run: output_dir, or the one around the checkpoint that a resume names."""
    named = Path(recipe.resume_from_checkpoint.strip())
    if not recipe.resume_from_checkpoint:
        return Path(recipe.output_dir.strip())
    return named.parent.parent if named.parent.name == "checkpoints" else named


def _train(recipe: Recipe, listen: Listener, answerer: Answerer) -> dict[str, Any]:
    began = time.perf_counter()
    device = choose_device(recipe.device)
    base = find_base(recipe.base_model)
    config, tokenizer = read_config(base), read_tokenizer(base)
    prompt = _prompt(recipe, tokenizer)
    rows = load_rows(recipe)
    rules = Rules(recipe.cutoff_len, recipe.train_on_inputs, recipe.overlong)
    encoded = encode_table(rows.train, tokenizer, prompt, rules)
    held_out = encode_records(
        rows.held_out, tokenizer, prompt, replace(rules, train_on_inputs=False)
    )
    if not encoded.examples:
        raise DataError(
            f"no row of {recipe.data_path} has a response token within --cutoff_len "
            f"{recipe.cutoff_len}",
            do="raise --cutoff_len",
        )
    if recipe.early_stopping_patience and not held_out.examples:
        raise UsageError(
            "--early_stopping_patience needs held-out rows, and there are none",
            do="raise --val_set_size, or name a file with --val_set_path",
        )
    adapter = initial_adapter(
        config,
        r=recipe.lora_r,
        alpha=recipe.lora_alpha,
        targets=recipe.lora_target_modules,
        seed=recipe.seed,
        dropout=recipe.lora_dropout,
        rslora=recipe.use_rslora,
        base=base_identity(base, recipe.quantize, recipe.base_model.strip()),
    )
    adapter_bytes = sum(4 * (a.numel() + b.numel()) for a, b in adapter.tensors.values())
    folder = open_run(recipe, adapter_bytes)
    _write_inputs(folder, rows, encoded, prompt, tokenizer)
    for text in _notes(recipe, rows, encoded, device):
        listen("note", {"text": text})
    listen("note", {"text": _summary(recipe, encoded, held_out, adapter_bytes, device)})
    engine = _engine(recipe, base, adapter, device, answerer, encoded.examples.ids[:PROBE])
    samples = rows.held_out[:SAMPLES]
    run = Run(
        recipe=recipe,
        device=device,
        folder=folder,
        engine=engine,
        train=encoded.examples,
        held_out=held_out.examples,
        sample=lambda: _sample(engine, samples, tokenizer, prompt),
        listen=listen,
    )
    progress = run.train_all()
    result = _result(recipe, progress, encoded, device) | {
        "stopped_early": progress.step < run.plan.steps,
        "total_seconds": round(time.perf_counter() - began, 3),
    }
    _publish_adapter(folder, engine, progress)
    finish_run(folder, recipe, result)
    return result


def _prompt(recipe: Recipe, tokenizer: Tokenizer) -> Prompt:
    """The prompt of the recipe; a run that goes on keeps its own, whose file may have changed."""
    folder = Path(recipe.output_dir.strip())
    if (recipe.resume or recipe.resume_from_checkpoint) and (folder / PROMPT_FILE).is_file():
        return read_prompt(folder)
    return find_prompt(recipe.prompt_template_name, tokenizer)


def _engine(
    recipe: Recipe, base: Path, adapter: Adapter, device: str, answerer: Answerer, probe: Ids
) -> Engine:
    if recipe.engine == "suri":
        return SuriEngine(recipe, base, adapter, device, answerer, probe)
    from suri.train.reference import ReferenceEngine

    return ReferenceEngine(recipe, base, adapter, device)


def _write_inputs(
    folder: Path, rows: Rows, encoded: Encoded, prompt: Prompt, tokenizer: Tokenizer
) -> None:
    """What describes the run's input, written before the first step."""
    facts = {"encoded": encoded.counts, "left_out_rows": [row + 1 for row in encoded.left_out]}
    write_json(folder / "data.json", rows.facts | facts)
    write_records(folder / "held_out.jsonl", rows.held_out)
    prompt.save(folder)
    tokenizer.save(folder)


def _notes(recipe: Recipe, rows: Rows, encoded: Encoded, device: str) -> list[str]:
    """What a user should hear about the settings and the data before the run."""
    notes = []
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
            notes.append(f"{count} rows are longer than cutoff_len {recipe.cutoff_len} and {what}")
    if encoded.left_out:
        numbers = ", ".join(str(row + 1) for row in encoded.left_out)
        notes.append(f"left out: rows {numbers}" + ", ..." * (len(encoded.left_out) == SHOWN))
    if device == "cuda":
        notes.append("training on the GPU in bf16, adapter in fp32")
    return notes


def _summary(
    recipe: Recipe, encoded: Encoded, held_out: Encoded, adapter_bytes: int, device: str
) -> str:
    steps = Plan(recipe, encoded.examples.lengths).steps
    return (
        f"{len(encoded.examples)} rows to train, {len(held_out.examples)} held out; {steps} steps "
        f"of {recipe.batch_size} rows; adapter of {adapter_bytes // 4:,} numbers on {device}"
    )


def _sample(
    engine: Engine, records: list[Record], tokenizer: Tokenizer, prompt: Prompt
) -> list[dict[str, str]]:
    prompts = [encode_prompt(record, tokenizer, prompt) for record in records]
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


def _result(recipe: Recipe, progress: Progress, encoded: Encoded, device: str) -> dict[str, Any]:
    best = progress.best_loss
    return {
        "steps": progress.step,
        "rows": len(encoded.examples),
        "tokens": progress.tokens,
        "learned_tokens": progress.learned_tokens,
        "train_seconds": round(progress.step_seconds, 3),
        "tokens_per_second": progress.tokens / max(progress.step_seconds, 1e-9),
        "peak_memory_bytes": peak_memory_bytes(device),
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
