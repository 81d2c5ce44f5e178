"""Steps of Unsloth in a process of its own: python unsloth_steps.py FOLDER ROWS.json

Prints the seconds of one step over each set of batches, as a JSON list on the last line.
"""

import unsloth  # noqa: F401, I001  # before everything that it changes
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from unsloth import FastLanguageModel

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def main(folder: str, rows: str) -> None:
    """Load, then step."""
    write_tokenizer(folder)
    model, _ = FastLanguageModel.from_pretrained(
        folder, max_seq_length=2048, dtype=torch.bfloat16, load_in_4bit=False,
        use_gradient_checkpointing=False, offload_embedding=False, local_files_only=True,
    )  # fmt: skip
    model = FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, lora_dropout=0.0, bias="none", target_modules=LINEARS,
        use_gradient_checkpointing=False,
    )  # fmt: skip
    FastLanguageModel.for_training(model, use_gradient_checkpointing=False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    sets = json.loads(Path(rows).read_text(encoding="utf-8"))
    for _ in range(2):  # the first round warms up
        seconds = [step(model, optimizer, parameters, batches) for batches in sets]
    print(json.dumps(seconds))


def step(model: Any, optimizer: Any, parameters: list[Any], batches: list[Any]) -> float:
    """Seconds of an optimizer step over these batches."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for batch in batches:
        (model(**padded(batch)).loss / len(batches)).backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def padded(batch: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Rows side by side, filled up on the right."""
    longest = max(len(row["ids"]) for row in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for place, row in enumerate(batch):
        count = len(row["ids"])
        ids[place, :count] = torch.tensor(row["ids"])
        labels[place, :count] = torch.tensor(row["labels"])
        mask[place, :count] = 1
    named = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    return {name: tensor.to("cuda") for name, tensor in named.items()}


def write_tokenizer(folder: str) -> None:
    """One of single bytes: Unsloth loads no model without any."""
    letters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, start, end, unknown = SPECIAL
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=start, eos_token=end,
        unk_token=unknown, model_max_length=2048, padding_side="right",
    ).save_pretrained(folder)  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
