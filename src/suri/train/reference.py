"""The reference engine: transformers and peft in a plain way, over the same batches."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from suri.data.batch import Batch
from suri.errors import UsageError
from suri.model.adapter import Adapter
from suri.model.vector_math import settle
from suri.recipe import Recipe
from suri.train.engine import Ids
from suri.train.machine import dtype_on


class ReferenceEngine:
    """Padded rows through a transformers model with a peft adapter; slower, and independent.

    PiSSA (arXiv:2404.02948) and OLoRA (arXiv:2406.01775) start from B0 A0, a part of W that is
    taken out of the base: what is learned is W - s B0 A0 + s B A. As an adapter of the base
    itself that is a plain pair of twice the rank, [A; A0] and [B, -B0], which everybody can read.
    """

    sharded = False

    def __init__(self, recipe: Recipe, base: Path, adapter: Adapter, device: str) -> None:
        self.start = adapter
        self.device = torch.device(device)
        self.model = _peft_model(recipe, base, adapter, device)
        self.weights: dict[str, nn.Parameter] = {
            name: tensor for name, tensor in self.model.named_parameters() if tensor.requires_grad
        }
        self.taken_out: dict[str, tuple[Tensor, Tensor]] = {}
        if recipe.lora_variant in ("pissa", "olora"):
            self.taken_out = {name: self._pair(name) for name in adapter.tensors}
        else:
            self.load(adapter)
        self.parameters: list[nn.Parameter] = list(self.weights.values())
        # As peft's LoRA+ does, DoRA's magnitudes go with B.
        self.b_parameters = [p for name, p in self.weights.items() if ".lora_A." not in name]

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
        tensors = {name: self._pair(name) for name in self.start.tensors}
        if self.taken_out:
            return self._of_the_whole_base(tensors)
        magnitudes = {
            name: self._copy(name, "magnitude_vector")
            for name in tensors
            if _key(name, "magnitude_vector") in self.weights
        }
        return replace(self.start, tensors=tensors, magnitudes=magnitudes)

    def load(self, adapter: Adapter) -> None:
        """As in Engine."""
        r = self.start.r
        with torch.no_grad():
            for name, (a, b) in adapter.tensors.items():
                self.weights[_key(name, "A")].copy_(a[:r])
                self.weights[_key(name, "B")].copy_(b[:, :r])
                if self.taken_out:
                    self.taken_out[name] = (a[r:].clone(), -b[:, r:])
            for name, magnitude in adapter.magnitudes.items():
                self.weights[_key(name, "magnitude_vector")].copy_(magnitude)

    def _of_the_whole_base(self, tensors: dict[str, tuple[Tensor, Tensor]]) -> Adapter:
        """The plain adapter of the untouched base that equals these pairs on what is left of it."""
        whole = {}
        for name, (a, b) in tensors.items():
            a_out, b_out = self.taken_out[name]
            whole[name] = (torch.cat([a, a_out]), torch.cat([b, -b_out], dim=1))
        # Twice the rank with the same scaling, alpha / r or alpha / sqrt(r).
        alpha = self.start.alpha * (math.sqrt(2) if self.start.rslora else 2)
        return replace(self.start, r=2 * self.start.r, alpha=alpha, tensors=whole)

    def _pair(self, module: str) -> tuple[Tensor, Tensor]:
        return self._copy(module, "A"), self._copy(module, "B")

    def _copy(self, module: str, part: str) -> Tensor:
        return self.weights[_key(module, part)].detach().float().cpu().clone()

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
    lengths = list(batch.lengths)
    ids, targets = torch.from_numpy(batch.ids), torch.from_numpy(batch.targets)
    mask = pad_sequence(torch.ones_like(ids).split(lengths), batch_first=True)
    ids = pad_sequence(ids.split(lengths), batch_first=True)
    targets = pad_sequence(targets.split(lengths), batch_first=True, padding_value=-100)
    return ids, mask, targets


def _key(module: str, part: str) -> str:
    return f"base_model.model.{module}.lora_{part}.default.weight"


def load_transformers(
    base: Path, quantize: str, dtype: torch.dtype, device: str, **more: Any
) -> Any:
    """A causal model of transformers, stored as `quantize` says: none, or nf4 by bitsandbytes.

    `more` goes to `from_pretrained`. Raises UsageError where transformers or peft is missing.
    """
    try:
        import peft  # noqa: F401
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig
        from transformers.utils import logging
    except ImportError as problem:
        raise UsageError(
            f"running a model by transformers needs the package {problem.name}",
            do="pip install 'suri[reference]'",
        ) from None
    storage = None
    if quantize == "nf4":
        storage = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    settle()
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, quantization_config=storage, device_map={"": device}, **more
    )


def _peft_model(recipe: Recipe, base: Path, adapter: Adapter, device: str) -> Any:
    # On a CPU bitsandbytes packs the weights anew, and peft takes no row's length of those.
    if recipe.quantize == "nf4" and recipe.lora_variant == "dora" and device == "cpu":
        raise UsageError(
            "DoRA on a base in nf4 needs a GPU", do="--quantize none, with --overwrite"
        )
    model = load_transformers(base, recipe.quantize, dtype_on(device), device)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rslora,
        use_dora=recipe.lora_variant == "dora",
        init_lora_weights=recipe.lora_variant
        if recipe.lora_variant in ("pissa", "olora")
        else True,
        target_modules=list(adapter.targets),
    )
    return get_peft_model(model, config, autocast_adapter_dtype=True)
