"""Training speed on a CPU: our engine against HF Trainer + PEFT at its best setting.

python benchmarks/training.py ROWS.json [--rounds 5] [--rows 64] [--out OUT.json] [--tiny]

Every way learns the same encoded rows (responses only, dropout 0) from the same base with an
adapter of the same shape, each time in a process of its own; the ways take turns. Useful tokens
are the rows' own tokens, whatever a way computes. HF's setting is the fastest of micro-batches of
4, 8 and 16, padded or grouped by length, all accumulated to the same 16 rows per step.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BATCH, RANK, ALPHA, RATE, HELD_OUT = 16, 8, 16.0, 3e-4, 16
TARGETS = {"qv": ("q_proj", "v_proj"), "all": ()}
HF_SETTINGS = [(rows, grouped) for rows in (4, 8, 16) for grouped in (False, True)]


def recipe_of(job: dict[str, Any]) -> Any:
    """The settings that every way shares."""
    from suri.recipe import LINEARS, Recipe

    return Recipe(
        base_model=job["base"],
        data_path=job["data"],
        output_dir=job["out"],
        batch_size=BATCH,
        num_epochs=1,
        learning_rate=RATE,
        lr_schedule="constant",
        warmup_ratio=0.0,
        cutoff_len=job["cutoff"],
        val_set_size=job["held_out"],
        lora_r=RANK,
        lora_alpha=ALPHA,
        lora_target_modules=TARGETS[job["targets"]] or LINEARS,
        quantize=job.get("quantize", "none"),
        eval_steps=1_000_000,
        overwrite=True,
        device="cpu",
    )


def train_ours(job: dict[str, Any]) -> dict[str, Any]:
    """`suri train` as a user runs it, without its sample answers."""
    from suri.cli.main import THREADS

    os.environ.update(THREADS)
    from suri.train.run import train

    answer = lambda _decoder, prompts, *_: [[] for _ in prompts]  # noqa: E731
    result = train(recipe_of(job), lambda *_: None, answer)
    return {name: result[name] for name in ("train_seconds", "tokens", "peak_memory_bytes")}


def train_hf(job: dict[str, Any]) -> dict[str, Any]:
    """transformers' Trainer with a peft model, as their documentation has it."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    from suri.data.cache import encode_table
    from suri.data.encode import Rules
    from suri.data.prompt import find_prompt
    from suri.data.split import load_rows
    from suri.model.tokenizer import read_tokenizer
    from suri.model.weights import find_base
    from suri.train.machine import peak_memory_bytes

    recipe = recipe_of(job)
    base = find_base(recipe.base_model)
    tokenizer = read_tokenizer(base)
    prompt = find_prompt(recipe.prompt_template_name, tokenizer)
    rules = Rules(recipe.cutoff_len, False, recipe.overlong)
    examples = encode_table(load_rows(recipe).train, tokenizer, prompt, rules).examples
    rows = [
        {"input_ids": list(map(int, e.ids)), "labels": list(map(int, e.labels))} for e in examples
    ]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, lora_dropout=0.0,
        target_modules=list(recipe.lora_target_modules),
    )  # fmt: skip
    model = get_peft_model(model, config)
    padding = transformers.DataCollatorForSeq2Seq(
        transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(base / "tokenizer.json"), pad_token="<|endoftext|>"
        )
        if not job["tiny"]
        else transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(base / "tokenizer.json"), pad_token="</s>"
        ),
        label_pad_token_id=-100,
    )
    arguments = transformers.TrainingArguments(
        output_dir=job["out"], per_device_train_batch_size=job["micro"],
        gradient_accumulation_steps=BATCH // job["micro"], num_train_epochs=1,
        learning_rate=RATE, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0,
        train_sampling_strategy="group_by_length" if job["grouped"] else "random",
        logging_strategy="no", save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False, remove_unused_columns=False,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=rows, data_collator=padding
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    model.save_pretrained(job["out"])
    return {
        "train_seconds": seconds,
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "peak_memory_bytes": peak_memory_bytes("cpu"),
    }


def work(job: dict[str, Any]) -> None:
    result = {"ours": train_ours, "hf": train_hf}[job["way"]](job)
    print("RESULT " + json.dumps(result))


def run(job: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True
    )
    seconds = time.perf_counter() - began
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    return json.loads(lines[-1][7:]) | {"process_seconds": seconds}


if __name__ == "__main__":
    if sys.argv[1] == "--job":
        work(json.loads(sys.argv[2]))
