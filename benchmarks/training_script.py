"""What `suri train` is timed against from start to end: a plain script with Trainer and PEFT.

python benchmarks/training_script.py ROWS.json OUT BASE MICRO_BATCH random|group_by_length
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

BATCH, CUTOFF = 16, 512
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALONE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)

rows_file, out, base, micro, sampling = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)


def encode(row):
    prompt = (PAIRED if row["input"] else ALONE).format(**row)
    asked = tokenizer(prompt)["input_ids"]
    ids = tokenizer(prompt + row["output"] + tokenizer.eos_token)["input_ids"][:CUTOFF]
    return {"input_ids": ids, "labels": [-100] * len(asked) + ids[len(asked) :]}


rows = [encode(row) for row in json.loads(Path(rows_file).read_text(encoding="utf-8"))]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model = get_peft_model(
    model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=LINEARS)
)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=out,
        per_device_train_batch_size=int(micro),
        gradient_accumulation_steps=BATCH // int(micro),
        num_train_epochs=1,
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        train_sampling_strategy=sampling,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    ),
    train_dataset=rows,
    data_collator=DataCollatorForSeq2Seq(tokenizer),
)
trainer.train()
model.save_pretrained(out)
tokenizer.save_pretrained(out)
print("RESULT " + json.dumps({"tokens": sum(len(row["input_ids"]) for row in rows)}))
