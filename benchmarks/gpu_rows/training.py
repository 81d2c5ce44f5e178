"""Steps of LoRA and QLoRA training by the project's own functions."""

import importlib.util
import statistics
from typing import Any

import torch

from gpu_rows.bench import Bench, NotHere
from gpu_rows.model import ALPHA, RANK, batches, make_decoder, needed_flop
from gpu_rows.rates import matmul_rate
from suri.data.batch import Batch
from suri.model.decoder import Decoder
from suri.recipe import Recipe
from suri.train import budget as planner
from suri.train.loss import summed_loss
from suri.train.optimizer import clip_gradients, make_optimizer


def budgets(bench: Bench) -> tuple[int, ...]:
    """Tokens of a micro-batch."""
    return (64, 128) if bench.tiny else (8192, 16384)


class Trainer:
    """Optimizer steps of a decoder, as the training loop makes them."""

    def __init__(self, decoder: Decoder) -> None:
        pairs = decoder.pairs().values()
        self.decoder = decoder
        self.parameters = [p for pair in pairs for p in (pair.a, pair.b)]
        self.optimizer = make_optimizer(Recipe(), self.parameters, [])

    def loss(self, batch: Batch) -> Any:
        """Of one micro-batch, summed over its learned tokens."""
        return summed_loss(self.decoder, batch)

    def step(self, cut: list[Batch]) -> float:
        """One optimizer step over all micro-batches; the loss per learned token before it."""
        learned = sum(batch.learned_tokens for batch in cut)
        total = 0.0
        for batch in cut:
            loss = self.loss(batch) / learned
            loss.backward()
            total = total + loss.detach()
        clip_gradients(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(total)


def timed_step(
    bench: Bench, trainer: Trainer, cut: list[Batch], what: str, note: str = ""
) -> float:
    """Tokens per second of a step, with its share of the floor; returns seconds of a step."""
    config = trainer.decoder.config
    seconds = bench.times(lambda: trainer.step(cut), 5, warm_up=2)
    tokens, rows = sum(b.tokens for b in cut), sum(len(b.rows) for b in cut)
    floor = sum(needed_flop(config, b) for b in cut) / matmul_rate(bench)
    bench.figure(
        what,
        [tokens / t for t in seconds],
        "tokens/s",
        note,
        seconds=seconds,
        rows_per_second=[rows / t for t in seconds],
        share_of_floor=[floor / t for t in seconds],
        tokens=tokens,
        computed_tokens=sum(len(b.ids) for b in cut),
        rows=rows,
    )
    bench.figure(f"{what}: share of the 4N floor", [100 * floor / t for t in seconds], "%")
    return statistics.median(seconds)


def lora(bench: Bench) -> None:
    """Speed and memory of the own LoRA step at two sizes of micro-batch."""
    trainer = Trainer(make_decoder(bench))
    for budget in budgets(bench):
        cut = batches(bench, budget)
        if bench.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            timed_step(bench, trainer, cut, f"own LoRA, micro-batch {budget}")
        except torch.OutOfMemoryError:
            trainer.optimizer.zero_grad(set_to_none=True)
            bench.note(f"own LoRA, micro-batch {budget}", "out of memory")
            continue
        _memory(bench, trainer, budget, f"own LoRA, micro-batch {budget}", "none")


def _memory(bench: Bench, trainer: Trainer, budget: int, what: str, quantize: str) -> None:
    what = f"{what}: peak memory"
    if not bench.cuda:
        bench.note(what, "a CPU does not count its allocations")
        return
    measured = torch.cuda.max_memory_allocated()
    recipe = Recipe(lora_r=RANK, lora_alpha=ALPHA, quantize=quantize)
    config, memory = trainer.decoder.config, planner.Memory("cuda")
    planned = planner.estimate(config, recipe, budget, memory).total
    bench.figure(what, [measured / 1e9], "GB", planned_gb=planned / 1e9)
    bench.figure(f"{what}, of what a run plans with", [100 * measured / planned], "%")


def qlora(bench: Bench) -> None:
    """The nf4 step against the dense one, on the same micro-batch."""
    cut = batches(bench, budgets(bench)[0])
    trainer = Trainer(make_decoder(bench))
    dense = timed_step(bench, trainer, cut, "own LoRA, beside QLoRA")
    del trainer
    bench.free()
    if importlib.util.find_spec("bitsandbytes") is None:
        raise NotHere("bitsandbytes is not installed")
    if bench.tiny and not bench.cuda:
        raise NotHere("the import of bitsandbytes takes too long for --tiny on a CPU")
    trainer = Trainer(make_decoder(bench, quantize="nf4"))
    seconds = timed_step(bench, trainer, cut, "own QLoRA")
    bench.figure("own QLoRA: time of the LoRA step", [seconds / dense], "x")
    _memory(bench, trainer, budgets(bench)[0], "own QLoRA", "nf4")
