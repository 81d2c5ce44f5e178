"""The peers and the referee of training.py, each as a process of its own, without a line of Suri.

python benchmarks/training_peers.py JOB.json     (training.py writes the job; prints its RESULT)
"""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers


class Clock(transformers.TrainerCallback):
    """Seconds of the steps alone: nothing that a trainer sets up before or writes after them."""

    began = seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.began


def read(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def peak_memory_bytes() -> int:
    """The most memory this process held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) * 1024 if found else 0


def with_adapter(base: str, adapter: str, *, trainable: bool) -> Any:
    """The base in fp32 with a saved adapter on it, as peft reads it."""
    from peft import PeftModel

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter, is_trainable=trainable) if adapter else model


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    """What transformers' TrainingArguments and trl's SFTConfig are given alike."""
    return {
        "output_dir": job["out"],
        "per_device_train_batch_size": job["micro"],
        "gradient_accumulation_steps": job["accumulate"],
        "num_train_epochs": job["epochs"],
        "learning_rate": job["rate"],
        "lr_scheduler_type": "constant",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def finish(model: Any, clock: Clock, job: dict[str, Any]) -> dict[str, Any]:
    peak = peak_memory_bytes()
    model.save_pretrained(job["out"])
    return {"train_seconds": clock.seconds, "peak_memory_bytes": peak}


def hf(job: dict[str, Any]) -> dict[str, Any]:
    """transformers' Trainer with a peft model. Padded rows come in our order, grouped in its own.

    The adapter starts from the same numbers as ours.
    """
    model = with_adapter(job["base"], job["start"], trainable=True)
    clock = Clock()
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            **arguments(job),
            train_sampling_strategy="group_by_length" if job["grouped"] else "sequential",
        ),
        train_dataset=read(job["rows"])["train"],
        data_collator=transformers.DataCollatorForSeq2Seq(
            transformers.AutoTokenizer.from_pretrained(job["base"])
        ),
        callbacks=[clock],
    )
    trainer.train()
    return finish(model, clock, job)


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """trl's SFTTrainer, rows packed to 1,024 tokens, in fp32 and without recomputation as ours."""
    import datasets
    from trl import SFTConfig, SFTTrainer
    from trl import __version__ as version

    datasets.disable_progress_bars()
    model = with_adapter(job["base"], job["start"], trainable=True)
    clock = Clock()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **arguments(job),
            packing=True,
            max_length=1024,
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=datasets.Dataset.from_list(read(job["rows"])["train"]),
        processing_class=transformers.AutoTokenizer.from_pretrained(job["base"]),
        callbacks=[clock],
    )
    trainer.train()
    return finish(trainer.model, clock, job) | {
        "version": version,
        "steps": trainer.state.global_step,
    }


def referee(job: dict[str, Any]) -> dict[str, Any]:
    """Summed cross-entropy over the learned tokens of each held-out row, one row at a time.

    `models` are pairs of a base and an adapter, by name; no adapter means the base itself.
    """
    rows = read(job["rows"])["held_out"]
    sums = {
        name: _sums(with_adapter(base, adapter, trainable=False).eval(), rows)
        for name, (base, adapter) in job["models"].items()
    }
    return {"sums": sums, "tokens": [sum(x != -100 for x in row["labels"][1:]) for row in rows]}


def _sums(model: Any, rows: list[dict[str, list[int]]]) -> list[float]:
    sums = []
    for row in rows:
        labels = torch.tensor(row["labels"])
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0]
        loss = torch.nn.functional.cross_entropy(
            scores[:-1].float(), labels[1:], ignore_index=-100, reduction="sum"
        )
        sums.append(loss.item())
    return sums


if __name__ == "__main__":
    job = read(sys.argv[1])
    result = {"hf": hf, "trl": trl, "referee": referee}[job["way"]](job)
    print("RESULT " + json.dumps(result))
