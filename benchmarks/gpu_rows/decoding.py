"""Decoding against the time that reading the weights takes."""

import statistics

import torch

from candidates.graphed import Steps
from gpu_rows.bench import Bench
from gpu_rows.model import CHECKED_LAYERS, make_decoder
from gpu_rows.rates import copy_rate
from suri.infer.engine import DecoderEngine
from suri.model.decoder import Decoder
from suri.model.kv_cache import KVCache
from suri.recipe import Decoding

PROMPT = 64
"""Tokens of the prompt."""


def decode(bench: Bench) -> None:
    """Tokens per second of `generate` and of a graph at batch 1 and 32, and of the ceiling."""
    _check(bench, _without_pairs(make_decoder(bench, layers=CHECKED_LAYERS)))
    decoder = _without_pairs(make_decoder(bench))
    weights = sum(b.numel() * b.element_size() for b in decoder.buffers())
    weights -= decoder.embedding.numel() * decoder.embedding.element_size()
    ceiling = copy_rate(bench) / weights
    bench.figure("ceiling at batch 1: bandwidth / bytes of weights", [ceiling], "tokens/s")
    draw = torch.Generator().manual_seed(4)
    few, many = (2, 6) if bench.tiny else (8, 72)
    for rows in (1, 4 if bench.tiny else 32):
        prompts = torch.randint(3, 100, (rows, PROMPT), generator=draw).tolist()

        def answer(tokens: int, prompts: list[list[int]] = prompts) -> None:
            decoding = Decoding(temperature=0, max_new_tokens=tokens)
            DecoderEngine(decoder).generate(prompts, -1, decoding)

        start = statistics.median(bench.times(lambda: answer(few), 2))
        seconds = bench.times(lambda: answer(many), 3, warm_up=0)
        made = [rows * (many - few) / max(t - start, 1e-9) for t in seconds]
        bench.figure(f"own generation, batch {rows}", made, "tokens/s", first_tokens_seconds=start)
        _share(bench, rows, "own generation", made, ceiling)
        what = "graph" if bench.cuda else "the graph's step without a graph"
        steps = Steps(decoder, prompts, 6 * (many - few))

        def replay(steps: Steps = steps) -> None:
            for _ in range(many - few):
                steps.step()

        seconds = bench.times(replay, 5)
        made = [rows * (many - few) / t for t in seconds]
        bench.figure(f"{what}, batch {rows}", made, "tokens/s", "a cache of fixed size")
        _share(bench, rows, what, made, ceiling)


def _without_pairs(decoder: Decoder) -> Decoder:
    for _, fused, _ in decoder.linears():
        fused.pairs.clear()
    return decoder.requires_grad_(False)


def _share(bench: Bench, rows: int, what: str, made: list[float], ceiling: float) -> None:
    if rows == 1:
        bench.figure(f"{what}, batch 1: of the ceiling", [100 * m / ceiling for m in made], "%")


@torch.no_grad()
def _check(bench: Bench, decoder: Decoder) -> None:
    """The step of fixed size against the cache that grows, on the same tokens."""
    prompts = [[5, 6, 7, 8, 9], [7, 5, 3]]
    config, device = decoder.config, decoder.embedding.device
    steps = Steps(decoder, prompts, 20)
    cache = KVCache(config, 2, 25, decoder.embedding.dtype, device)
    ids = torch.tensor([*prompts[0], *prompts[1]], device=device)
    places = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2], device=device)
    decoder(ids, places, cache.extend([5, 3]))
    for number in range(4):
        forced = torch.tensor([11 + number, 20 + number], device=device)
        steps.tokens.copy_(forced)
        steps.step()
        at = torch.tensor(cache.lengths, device=device)
        wanted = decoder.logits(decoder(forced, at, cache.extend([1, 1])))
    bench.check("scores of a graph's step", steps.scores, wanted, 3e-2)
