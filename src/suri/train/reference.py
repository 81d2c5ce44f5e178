"""The reference engine: transformers and peft in a plain way, over the same batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suri.data.batch import Batch
from suri.errors import UsageError
from suri.model.adapter import Adapter
from suri.model.vector_math import settle
from suri.recipe import Recipe
from suri.train.engine import Ids


class ReferenceEngine:
    """Padded rows through a transformers model with a peft adapter; slower, and independent."""

    shares_prefix = False

    def __init__(self, recipe: Recipe, base: Path, adapter: Adapter, device: str) -> None:
        self.start = adapter
        settle()
        self.device = torch.device(device)
        self.model = _peft_model(recipe, base, adapter, device)
        self.weights = {
            name: tensor
            for name, tensor in self.model.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }
        self.load(adapter)
        self.parameters: list[nn.Parameter] = list(self.weights.values())
        self.b_parameters = [p for name, p in self.weights.items() if ".lora_B." in name]

    def loss(self, batch: Batch, step: int | None) -> Tensor:
        """As in Engine: documents padded on the right to the longest, scores of every token."""
        self.model.train(step is not None)
        ids, mask, targets = (x.to(self.device) for x in padded(batch))
        scores = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return F.cross_entropy(
            scores.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
        )

    def adapter(self) -> Adapter:
        """As in Engine."""
        tensors = {
            name: (
                self.weights[_key(name, "A")].detach().float().cpu().clone(),
                self.weights[_key(name, "B")].detach().float().cpu().clone(),
            )
            for name in self.start.tensors
        }
        return replace(self.start, tensors=tensors)

    def load(self, adapter: Adapter) -> None:
        """As in Engine."""
        with torch.no_grad():
            for name, pair in adapter.tensors.items():
                for letter, tensor in zip("AB", pair, strict=True):
                    self.weights[_key(name, letter)].copy_(tensor)

    def answers(self, prompts: list[Ids], eos_id: int, max_new_tokens: int) -> list[list[int]]:
        """As in Engine, one prompt after the other."""
        self.model.eval()
        answers = []
        for prompt in prompts:
            ids = torch.tensor([[int(i) for i in prompt]], device=self.device)
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=eos_id,
                pad_token_id=eos_id,
            )
            new = out[0, ids.shape[1] :].tolist()
            answers.append(new[:-1] if new and new[-1] == eos_id else new)
        return answers


def padded(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """A packed batch as rows: ids, attention mask and targets, each int64 [rows, longest]."""
    shape = (len(batch.lengths), max(batch.lengths))
    ids = torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    targets = torch.full(shape, -100, dtype=torch.int64)
    start = 0
    for row, length in enumerate(batch.lengths):
        part = slice(start, start + length)
        ids[row, :length] = torch.from_numpy(batch.ids[part])
        targets[row, :length] = torch.from_numpy(batch.targets[part])
        mask[row, :length] = 1
        start += length
    return ids, mask, targets


def _key(module: str, letter: str) -> str:
    return f"base_model.model.{module}.lora_{letter}.default.weight"


def _peft_model(recipe: Recipe, base: Path, adapter: Adapter, device: str) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    except ImportError as problem:
        raise UsageError(
            f"--engine reference needs the package {problem.name}",
            do="pip install transformers peft",
        ) from None
    quantization = None
    if recipe.quantize == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32 if device == "cpu" else torch.bfloat16,
        )
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.float32 if device == "cpu" else torch.bfloat16,
        quantization_config=quantization,
        device_map={"": device},
    )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rslora,
        target_modules=list(adapter.targets),
    )
    return get_peft_model(model, config, autocast_adapter_dtype=True)
