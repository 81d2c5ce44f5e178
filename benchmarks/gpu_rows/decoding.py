"""Decoding against the time that reading the weights takes."""

import statistics

import torch

from gpu_rows.bench import Bench
from gpu_rows.model import CHECKED_LAYERS, make_decoder
from gpu_rows.rates import copy_rate
from suri.infer import graphed
from suri.infer.engine import DecoderEngine
from suri.infer.graphed import LEAST_KEYS, LEAST_LEFT, Steps, possible
from suri.infer.together import new_cache, read
from suri.model.decoder import Decoder
from suri.recipe import Decoding

PROMPT = 64
"""Tokens of the prompt."""


def decode(bench: Bench) -> None:
    """Tokens per second of `generate` at batch 1 and 32, and of the ceiling."""
    decoder = make_decoder(bench, layers=CHECKED_LAYERS)
    _check(bench, decoder)
    _same_answers(bench, decoder)
    grouped = make_decoder(bench, layers=CHECKED_LAYERS, kv_heads=2 if bench.tiny else 8)
    _check(bench, grouped, ", grouped heads")
    decoder = _without_pairs(make_decoder(bench))
    weights = sum(b.numel() * b.element_size() for b in decoder.buffers())
    weights -= decoder.embedding.numel() * decoder.embedding.element_size()
    ceiling = copy_rate(bench) / weights
    bench.figure("ceiling at batch 1: bandwidth / bytes of weights", [ceiling], "tokens/s")
    draw = torch.Generator().manual_seed(4)
    # Both are long enough to be captured, so that the difference is made of steps alone.
    few, many = (2, 6) if bench.tiny else (2 * LEAST_LEFT, 2 * LEAST_LEFT + 64)
    note = "each step one graph" if bench.cuda else ""
    for rows in (1, 4 if bench.tiny else 32):
        prompts = torch.randint(3, 100, (rows, PROMPT), generator=draw).tolist()

        def answer(tokens: int, prompts: list[list[int]] = prompts) -> None:
            decoding = Decoding(temperature=0, max_new_tokens=tokens)
            DecoderEngine(decoder).generate(prompts, -1, decoding)

        start = statistics.median(bench.times(lambda: answer(few), 2))
        made = [
            rows * (many - few) / max(seconds - start, 1e-9)
            for seconds in bench.times(lambda: answer(many), 3)
        ]
        what = f"own generation, batch {rows}"
        bench.figure(what, made, "tokens/s", note, first_tokens_seconds=start)
        if rows == 1:
            bench.figure(f"{what}: of the ceiling", [100 * m / ceiling for m in made], "%")
    if bench.cuda and not possible(decoder):
        raise RuntimeError("decoding went on without graphs")


def _without_pairs(decoder: Decoder) -> Decoder:
    for _, fused, _ in decoder.linears():
        fused.pairs.clear()
    return decoder.requires_grad_(False)


def _same_answers(bench: Bench, decoder: Decoder) -> None:
    """Greedy answers, where each step begins before the host knows the last one's tokens."""
    draw = torch.Generator().manual_seed(7)
    prompts = [torch.randint(3, 100, (count,), generator=draw).tolist() for count in (9, 30, 17)]
    engine, decoding = DecoderEngine(decoder), Decoding(temperature=0, max_new_tokens=40)
    found = [answer.ids for answer in engine.generate(prompts, -1, decoding)]
    before, graphed.possible = graphed.possible, lambda _: False
    try:
        wanted = [answer.ids for answer in engine.generate(prompts, -1, decoding)]
    finally:
        graphed.possible = before
    same = [
        one == other
        for a, b in zip(found, wanted, strict=True)
        for one, other in zip(a, b, strict=True)
    ]
    bench.figure("tokens by graphs that are those without", [100 * sum(same) / len(same)], "%",
                 "a tie in bf16 changes all that follows")  # fmt: skip


@torch.no_grad()
def _check(bench: Bench, decoder: Decoder, of: str = "") -> None:
    """Captured steps against passes of single kernels, on the same tokens.

    One of four places is idle, the keys outgrow the first graph, and the adapter is taken off.
    """
    draw = torch.Generator().manual_seed(6)
    counts = (5, LEAST_KEYS - 6, 3)
    prompts = [torch.randint(3, 100, (count,), generator=draw).tolist() for count in counts]
    caches = [new_cache(decoder, 0, 0) for _ in range(2)]
    for cache in caches:
        for _ in prompts:
            cache.add(2 * LEAST_KEYS)
        read(decoder, cache, prompts, [])
    steps = Steps(decoder)
    steps.possible = True  # without a GPU too: then the step is done without a graph
    for state in ("with an adapter", "without it"):
        found, wanted = [], []
        for number in range(12):
            forced = [11 + number, 20 + number, 30 + 2 * number]
            scores = steps.read(caches[0], forced, 2 * LEAST_LEFT)
            if scores is None:
                raise RuntimeError("no graph could be captured")
            found.append(scores.clone())
            wanted.append(read(decoder, caches[1], [[token] for token in forced], range(3)))
        what = f"scores of a graph's steps, {state}{of}"
        bench.check(what, torch.stack(found), torch.stack(wanted), 3e-2)
        _without_pairs(decoder)
