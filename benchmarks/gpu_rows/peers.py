"""Other systems on the same rows, where they are installed."""

import contextlib
import importlib.util
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from gpu_rows.bench import Bench, NotHere
from gpu_rows.model import ALPHA, RANK, examples, make_decoder, shape_of
from gpu_rows.training import Trainer, budgets, timed_step
from suri.data.batch import micro_batches
from suri.data.examples import NOT_LEARNED, Example

SETTINGS = [(rows, grouped) for rows in (16, 8, 4) for grouped in (True, False)]
SECONDS = 75
"""The settings that are not begun by then stay unmeasured, and the figures say so."""


def hugging_face(bench: Bench) -> None:
    """transformers + peft at its best setting, then our engine on the same rows and layers."""
    for package in ("transformers", "peft"):
        if importlib.util.find_spec(package) is None:
            raise NotHere(f"{package} is not installed")
    rows = examples(bench, budgets(bench)[1])
    layers, found = None, dict[str, float]()
    if bench.cuda and torch.cuda.get_device_properties(0).total_memory < 60e9:
        layers = 8
    note = f"{layers or shape_of(bench)['num_hidden_layers']} layers, {_attention()}"
    trainer = _Peer(bench, layers)
    began = time.perf_counter()
    for size, grouped in SETTINGS[: 2 if bench.tiny else None]:
        what = f"HF + PEFT, batches of {size}" + (", grouped" if grouped else "")
        if time.perf_counter() - began > SECONDS:
            bench.note(what, "the row's time was over")
            continue
        if seconds := _timed(bench, trainer, _cut(rows, size, grouped), what, note):
            found[what] = seconds
    del trainer
    bench.free()
    if found:
        _ours(bench, layers, rows, min(found.items(), key=lambda item: item[1]))


def _attention() -> str:
    return "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"


def _cut(rows: list[Example], size: int, grouped: bool) -> list[list[Example]]:
    order = sorted(rows, key=lambda row: -len(row.ids)) if grouped else rows
    return [order[start : start + size] for start in range(0, len(order), size)]


def _timed(bench: Bench, trainer: "_Peer", cut: list[list[Example]], what: str, note: str) -> float:
    """Seconds of a step; 0 where it did not fit."""
    tokens = sum(len(row.ids) for batch in cut for row in batch)
    rows = sum(map(len, cut))
    try:
        trainer.step(cut[:1])
        seconds = bench.times(lambda: trainer.step(cut), 2, warm_up=0)
    except torch.OutOfMemoryError:
        trainer.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        bench.note(what, "out of memory")
        return 0.0
    bench.figure(what, [tokens / t for t in seconds], "tokens/s", note, seconds=seconds,
                 rows_per_second=[rows / t for t in seconds])  # fmt: skip
    return statistics.median(seconds)


class _Peer:
    """A peft model and its step as HF's Trainer makes it in bf16: autocast, padded batches."""

    def __init__(self, bench: Bench, layers: int | None) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoConfig, AutoModelForCausalLM

        shape = shape_of(bench, layers)
        config = AutoConfig.for_model(**shape, use_cache=False)
        with bench.device:
            base = AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, attn_implementation=_attention()
            )
        adapter = LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.model = get_peft_model(base, adapter).to(bench.device).train()
        self.device = bench.device
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, foreach=True)

    def step(self, cut: list[list[Example]]) -> None:
        """One optimizer step over all micro-batches."""
        for batch in cut:
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = self.model(**self._padded(batch)).loss / len(cut)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _padded(self, batch: list[Example]) -> dict[str, torch.Tensor]:
        longest = max(len(row.ids) for row in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        labels, mask = torch.full_like(ids, NOT_LEARNED), torch.zeros_like(ids)
        for place, row in enumerate(batch):
            ids[place, : len(row.ids)] = torch.from_numpy(row.ids)
            labels[place, : len(row.ids)] = torch.from_numpy(row.labels)
            mask[place, : len(row.ids)] = 1
        named = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        return {name: tensor.to(self.device) for name, tensor in named.items()}


def _ours(bench: Bench, layers: int | None, rows: list[Example], best: tuple[str, float]) -> None:
    """Our engine on the same rows, and how much faster it is than their best."""
    cut = micro_batches(rows, max_rows=0, token_budget=budgets(bench)[0], share_prefix=True)
    trainer = Trainer(make_decoder(bench, layers=layers))
    seconds = timed_step(bench, trainer, cut, "own LoRA on the same rows")
    bench.figure(f"own LoRA against {best[0]}", [best[1] / seconds], "x")


def unsloth(bench: Bench) -> None:
    """Unsloth's fused adapters and layers on the same rows."""
    _needs(bench, "unsloth")
    with _offline_model(bench) as folder:
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            folder, max_seq_length=2048, dtype=torch.bfloat16, load_in_4bit=False
        )
        trainer = _Peer.__new__(_Peer)
        trainer.device = bench.device
        trainer.model = FastLanguageModel.get_peft_model(
            model, r=RANK, lora_alpha=ALPHA, lora_dropout=0, use_gradient_checkpointing=False
        )
        trainer.parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        trainer.optimizer = torch.optim.AdamW(trainer.parameters, lr=1e-4, foreach=True)
        cut = _cut(examples(bench, budgets(bench)[1]), 16, True)
        _timed(bench, trainer, cut, "Unsloth, batches of 16, grouped", "8 layers")


def vllm(bench: Bench) -> None:
    """vLLM's decoding of one row."""
    _needs(bench, "vllm")
    with _offline_model(bench) as folder:
        from vllm import LLM, SamplingParams

        model = LLM(folder, skip_tokenizer_init=True, dtype="bfloat16", max_model_len=512)
        wanted = SamplingParams(temperature=0, max_tokens=72, ignore_eos=True, detokenize=False)
        prompt = [{"prompt_token_ids": list(range(3, 67))}]
        seconds = bench.times(lambda: model.generate(prompt, wanted), 3)
        bench.figure("vLLM, batch 1, 8 layers", [72 / t for t in seconds], "tokens/s")


def _needs(bench: Bench, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise NotHere(f"{package} is not installed")
    if not bench.cuda:
        raise NotHere(f"{package} needs a CUDA device")


@contextlib.contextmanager
def _offline_model(bench: Bench) -> Iterator[str]:
    """A folder with 8 random layers, for systems that read nothing else."""
    import tempfile

    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.for_model(**shape_of(bench, 8))
    with tempfile.TemporaryDirectory() as folder:
        with bench.device:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        del model
        bench.free()
        yield folder
