"""The model that is measured, its rows, what they cost at least and what they keep in memory."""

import json
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpu_rows.bench import Bench
from suri.data.batch import Batch, micro_batches
from suri.data.examples import NOT_LEARNED, Example
from suri.model.adapter import initial_adapter
from suri.model.config import ModelConfig, config_from_hf
from suri.model.decoder import Decoder
from suri.model.linear import Linear
from suri.model.load import load_decoder
from suri.model.storage import Storage
from suri.recipe import LINEARS

LENGTHS = Path(__file__).parents[1] / "alpaca_lengths.json"
RANK, ALPHA = 16, 32.0
CHECKED_LAYERS = 2
"""Whole models are compared in so many layers: each layer of random weights makes the differences
of rounding larger, and after 32 of them those of a faulty way could not be told from them."""
SHAPE_7B = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 32000,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
SHAPE_TINY = SHAPE_7B | {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 176, "vocab_size": 128,
}  # fmt: skip


def shape_of(bench: Bench, layers: int | None = None) -> dict[str, Any]:
    """config.json of the model, with fewer layers where asked."""
    shape = SHAPE_TINY if bench.tiny else SHAPE_7B
    return shape | ({"num_hidden_layers": layers} if layers else {})


class RandomWeights(Mapping[str, Tensor]):
    """Weights drawn on the device when they are asked for; a name gives the same ones always.

    They are as large as the 7B's 0.02 for its width, so that attention is as uneven in a tiny model
    and a fault in it changes the results.
    """

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.device, self.shapes = device, dict(_shapes(config))
        self.size = 0.02 * (SHAPE_7B["hidden_size"] / config.hidden_size) ** 0.5

    def __getitem__(self, name: str) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode()))
        shape = self.shapes[name]
        drawn = torch.empty(shape, dtype=torch.bfloat16, device=self.device)
        if len(shape) == 1:
            return drawn.normal_(1.0, 0.1, generator=generator)
        return drawn.normal_(0.0, self.size, generator=generator)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    whole = (config.vocab_size, config.hidden_size)
    yield from (("model.embed_tokens.weight", whole), ("lm_head.weight", whole))
    yield "model.norm.weight", (config.hidden_size,)
    for number in range(config.num_layers):
        prefix = f"model.layers.{number}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{norm}.weight", (config.hidden_size,)
        for name, shape in config.linear_shapes().items():
            yield f"{prefix}{name}.weight", shape


def make_decoder(
    bench: Bench,
    *,
    layers: int | None = None,
    kv_heads: int | None = None,
    quantize: str = "none",
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | None = None,
) -> Decoder:
    """The project's decoder through its own loader, with trainable pairs on all linears.

    Weights are drawn on the bench's device, whichever device the decoder is for.
    """
    shape = shape_of(bench, layers) | ({"num_key_value_heads": kv_heads} if kv_heads else {})
    config = config_from_hf(shape)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_text(json.dumps(shape), encoding="utf-8")
        decoder = load_decoder(
            Path(name),
            quantize=quantize,
            dtype=dtype,
            device=device or bench.device,
            weights=RandomWeights(config, bench.device),
        )
    adapter = initial_adapter(config, r=RANK, alpha=ALPHA, targets=LINEARS, seed=1)
    adapter.attach(decoder, trainable=True)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # B = 0 would leave A without a gradient to compare
        for pair in decoder.pairs().values():
            pair.b.copy_(torch.empty(pair.b.shape).normal_(0, 1e-3, generator=generator))
    return decoder


def examples(bench: Bench, tokens: int) -> list[Example]:
    """Rows as long as Alpaca's, in the file's order, at least `tokens` in all; random ids."""
    table = json.loads(LENGTHS.read_text(encoding="utf-8"))
    draw, found, total = np.random.default_rng(3), [], 0
    vocabulary = shape_of(bench)["vocab_size"]
    prefix = draw.integers(3, vocabulary, table["common_prefix"])
    for row, (asked, answered) in enumerate(table["rows"]):
        if bench.tiny:
            asked, answered = asked // 3, max(2, answered // 12)
        ids = draw.integers(3, vocabulary, asked + answered).astype(np.int32)
        ids[: min(asked, len(prefix))] = prefix[:asked]
        labels = np.where(np.arange(len(ids)) < asked, NOT_LEARNED, ids).astype(np.int32)
        found.append(Example(ids, labels, row))
        total += len(ids)
        if total >= tokens:
            break
    return found


def batches(bench: Bench, budget: int, count: int = 1) -> list[Batch]:
    """So many full micro-batches of at most `budget` tokens, as training cuts them."""
    rows = examples(bench, (count + 1) * budget)
    cut = micro_batches(rows, max_rows=0, token_budget=budget, share_prefix=True)
    return cut[:count]


def needed_flop(config: ModelConfig, batch: Batch) -> float:
    """4 N per token: forward, and the input's gradient; the head for learned tokens alone."""
    body = config.num_layers * sum(o * i for o, i in config.linear_shapes().values())
    head = config.vocab_size * config.hidden_size
    return 4.0 * (body * len(batch.ids) + head * batch.learned_tokens)


def linears(decoder: Decoder) -> Iterator[Linear]:
    """Every fused linear of every layer."""
    for layer in decoder.layers:
        yield from (layer.qkv, layer.o, layer.gate_up, layer.down)


@contextmanager
def stored_as(decoder: Decoder, make: Any) -> Iterator[None]:
    """Store the frozen weights another way for a while."""
    before: list[tuple[Linear, Storage]] = [(linear, linear.base) for linear in linears(decoder)]
    try:
        for linear, base in before:
            linear.base = make([base.weight])
        yield
    finally:
        for linear, base in before:
            linear.base = base
