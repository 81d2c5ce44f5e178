"""Decoding one row against the time that reading the weights takes."""

import statistics

import torch

from gpu_rows.bench import Bench
from gpu_rows.model import make_decoder
from gpu_rows.rates import copy_rate
from suri.infer.generate import generate
from suri.recipe import Decoding

PROMPT = 64
"""Tokens of the prompt."""


def decode(bench: Bench) -> None:
    """Tokens per second of `generate` at batch 1 and 32, and of the ceiling."""
    decoder = make_decoder(bench)
    decoder.requires_grad_(False)
    for linear_pairs in (fused.pairs for _, fused, _ in decoder.linears()):
        linear_pairs.clear()
    weights = sum(b.numel() * b.element_size() for b in decoder.buffers())
    weights -= decoder.embedding.numel() * decoder.embedding.element_size()
    ceiling = copy_rate(bench) / weights
    bench.figure("ceiling at batch 1: bandwidth / bytes of weights", [ceiling], "tokens/s")
    draw = torch.Generator().manual_seed(4)
    few, many = (2, 6) if bench.tiny else (8, 72)
    for rows in (1, 4 if bench.tiny else 32):
        prompts = torch.randint(3, 100, (rows, PROMPT), generator=draw).tolist()

        def answer(tokens: int, prompts: list[list[int]] = prompts) -> None:
            generate(decoder, prompts, -1, Decoding(temperature=0, max_new_tokens=tokens))

        start = statistics.median(bench.times(lambda: answer(few), 2))
        seconds = bench.times(lambda: answer(many), 3, warm_up=0)
        made = [rows * (many - few) / max(t - start, 1e-9) for t in seconds]
        bench.figure(f"own generation, batch {rows}", made, "tokens/s", first_tokens_seconds=start)
        if rows == 1:
            bench.figure("own generation, batch 1: of the ceiling",
                         [100 * m / ceiling for m in made], "%")  # fmt: skip
