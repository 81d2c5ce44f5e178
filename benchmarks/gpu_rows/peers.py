"""Other systems on the same rows, where they are installed."""

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gpu_rows.bench import Bench, NotHere
from gpu_rows.model import ALPHA, RANK, examples, make_decoder, shape_of
from gpu_rows.training import Trainer, budgets
from suri.data.batch import micro_batches
from suri.data.examples import NOT_LEARNED, Example

SETTINGS = [(16, True), (8, True), (16, False), (8, False), (4, True), (4, False)]
"""Rows of a batch, and whether those of similar lengths come together; the best ones first."""
SECONDS = 45
"""The settings that are not begun by then stay unmeasured, and the figures say so."""
FEW_LAYERS = 8
"""Of a model that has to be written to a disk."""
SETS = 3
"""Sets of rows, one for each step. A first round over all of them warms up: allocators have met
every shape by then, as after the first minutes of a training."""


def hugging_face(bench: Bench) -> None:
    """transformers + peft at its best setting, then our engine on the same rows and layers."""
    for package in ("transformers", "peft"):
        if importlib.util.find_spec(package) is None:
            raise NotHere(f"{package} is not installed")
    sets = row_sets(bench)
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
        if seconds := _timed(bench, trainer, [cut(s, size, grouped) for s in sets], what, note):
            found[what] = seconds
    del trainer
    bench.free()
    if found:
        _ours(bench, layers, sets, min(found.items(), key=lambda item: item[1]))


def row_sets(bench: Bench) -> list[list[Example]]:
    """Sets of rows of as many tokens as two micro-batches."""
    size = budgets(bench)[1]
    sets: list[list[Example]] = [[]]
    for row in examples(bench, (SETS + 1) * size):
        if sum(len(other.ids) for other in sets[-1]) + len(row.ids) > size:
            sets.append([])
        sets[-1].append(row)
    return sets[:SETS]


def _attention() -> str:
    return "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"


def cut(rows: list[Example], size: int, grouped: bool) -> list[list[Example]]:
    """Batches of so many rows."""
    order = sorted(rows, key=lambda row: -len(row.ids)) if grouped else rows
    return [order[start : start + size] for start in range(0, len(order), size)]


def _timed(
    bench: Bench, trainer: "_Peer", sets: list[list[list[Example]]], what: str, note: str
) -> float:
    """Seconds of a step over a set, the median; 0 where it did not fit."""
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        seconds = _seconds(bench, trainer, sets)
    except torch.OutOfMemoryError:
        trainer.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        bench.note(what, "out of memory")
        return 0.0
    _figures(bench, what, sets, seconds, note)
    _memory(bench, what)
    return statistics.median(seconds)


def _seconds(bench: Bench, trainer: Any, sets: list[Any]) -> list[float]:
    """Of a step over each set, in the second round."""
    for one in sets:
        trainer.step(one)
    return [bench.times(lambda s=s: trainer.step(s), 1, warm_up=0)[0] for s in sets]


def _figures(
    bench: Bench, what: str, sets: list[list[list[Example]]], seconds: list[float], note: str
) -> None:
    tokens = [sum(len(row.ids) for batch in s for row in batch) for s in sets]
    rows = [sum(map(len, s)) for s in sets]
    bench.figure(what, [n / t for n, t in zip(tokens, seconds, strict=True)], "tokens/s", note,
                 seconds=seconds,
                 rows_per_second=[n / t for n, t in zip(rows, seconds, strict=True)])  # fmt: skip


def _memory(bench: Bench, what: str) -> None:
    if bench.cuda:
        memory = torch.cuda.max_memory_allocated() / 1e9
        bench.figure(f"{what}: peak memory", [memory], "GB")


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


def _ours(
    bench: Bench, layers: int | None, sets: list[list[Example]], best: tuple[str, float]
) -> None:
    """Our engine on the same rows, and how much faster it is than their best."""
    trainer = Trainer(make_decoder(bench, layers=layers))
    batches = [
        micro_batches(rows, max_rows=0, token_budget=budgets(bench)[0], share_prefix=True)
        for rows in sets
    ]
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = _seconds(bench, trainer, batches)
    what = "own LoRA on the same rows" + (f", {layers} layers" if layers else "")
    _figures(bench, what, [[rows] for rows in sets], seconds, "")
    _memory(bench, what)
    bench.figure(f"own LoRA against {best[0]}", [best[1] / statistics.median(seconds)], "x")


def unsloth(bench: Bench) -> None:
    """Unsloth's fused adapters and layers on the same rows, then our engine."""
    for package in ("unsloth", "trl"):
        _needs(bench, package)
    sets, found = row_sets(bench), dict[str, float]()
    batches = {size: [cut(rows, size, True) for rows in sets] for size in (16, 8)}
    with _offline_model(bench) as folder:
        seconds = _in_own_process(folder, [s for each in batches.values() for s in each])
    for place, (size, each) in enumerate(batches.items()):
        what = f"Unsloth, batches of {size}, grouped, {FEW_LAYERS} layers"
        own = seconds[place * SETS : (place + 1) * SETS]
        _figures(bench, what, each, own, "")
        found[what] = statistics.median(own)
    _ours(bench, FEW_LAYERS, sets, min(found.items(), key=lambda item: item[1]))


def _in_own_process(folder: str, sets: list[list[list[Example]]]) -> list[float]:
    """Seconds of Unsloth's steps; it changes transformers and peft wherever it is imported."""
    rows = Path(folder) / "rows.json"
    plain = [
        [[{"ids": row.ids.tolist(), "labels": row.labels.tolist()} for row in b] for b in batches]
        for batches in sets
    ]
    rows.write_text(json.dumps(plain), encoding="utf-8")
    environment = os.environ | {
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "UNSLOTH_COMPILE_LOCATION": f"{folder}/compiled",
    }
    script = Path(__file__).parent / "unsloth_steps.py"
    done = subprocess.run(
        [sys.executable, str(script), folder, str(rows)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"Unsloth: {done.stderr[-300:]}\n{done.stderr}")
    return [float(value) for value in json.loads(done.stdout.splitlines()[-1])]


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
    """A folder with a few random layers, for systems that read nothing else."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.for_model(**shape_of(bench, FEW_LAYERS))
    with tempfile.TemporaryDirectory() as folder:
        with bench.device:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        del model
        bench.free()
        yield folder
