"""The decoder against transformers, on every kind of model it claims to know."""

from pathlib import Path

import pytest
import torch

from conftest import LLAMA3_ROPE, make_model
from suri.model.attention import PackedAttention
from suri.model.decoder import Decoder
from suri.model.kv_cache import KVCache
from suri.model.load import load_decoder

KINDS = {
    "llama": ("llama", {}),
    "llama-tied-wide-heads": ("llama", {"tie_word_embeddings": True, "head_dim": 12}),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": False}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear-rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5000.0}},
    ),
    "mistral-window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen3": ("qwen3", {"head_dim": 10, "tie_word_embeddings": True}),
}


def reference(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa"
    ).eval()


def packed_logits(decoder: Decoder, documents: list[torch.Tensor]) -> torch.Tensor:
    lengths = [len(d) for d in documents]
    positions = torch.cat([torch.arange(n) for n in lengths])
    attend = PackedAttention(lengths, decoder.config.sliding_window)
    with torch.no_grad():
        return decoder.logits(decoder(torch.cat(documents), positions, attend))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_transformers_in_fp64(kind: str, tmp_path: Path) -> None:
    model_type, changes = KINDS[kind]
    folder = make_model(tmp_path, model_type, **changes)
    decoder = load_decoder(folder, dtype=torch.float64)
    documents = [torch.randint(0, 131, (n,), generator=seeded(n)) for n in (23, 1, 40, 6)]
    ours = packed_logits(decoder, documents)
    model = reference(folder, torch.float64)
    with torch.no_grad():
        theirs = torch.cat([model(document[None]).logits[0] for document in documents])
    assert theirs.abs().max() > 0.5
    assert (ours - theirs).abs().max() <= 1e-10


@pytest.mark.slow
def test_logits_of_the_embedded_base_equal_transformers(embedded: Path) -> None:
    decoder = load_decoder(embedded)
    documents = [torch.randint(5, 40_000, (n,), generator=seeded(n)) for n in (31, 7)]
    ours = packed_logits(decoder, documents)
    model = reference(embedded, torch.float32)
    with torch.no_grad():
        theirs = torch.cat([model(document[None]).logits[0] for document in documents])
    assert (ours - theirs).abs().max() <= 2e-4


@pytest.mark.parametrize("kind", ["llama", "mistral-window", "qwen3"])
def test_cached_rows_give_the_logits_of_whole_documents(kind: str, tmp_path: Path) -> None:
    """Ragged prompts, then several tokens at once, then one each; rows dropped and reordered."""
    model_type, changes = KINDS[kind]
    folder = make_model(tmp_path, model_type, **changes)
    decoder = load_decoder(folder, dtype=torch.float64)
    rows = [torch.randint(0, 131, (20,), generator=seeded(n)) for n in range(3)]
    whole = [packed_logits(decoder, [row]) for row in rows]
    cache = KVCache(decoder.config, rows=3, capacity=20, dtype=torch.float64)

    def extend(order: list[int], counts: list[int]) -> None:
        starts = list(cache.lengths)
        spans = [range(s, s + n) for s, n in zip(starts, counts, strict=True)]
        ids = torch.cat([rows[r][list(span)] for r, span in zip(order, spans, strict=True)])
        positions = torch.tensor([p for span in spans for p in span])
        with torch.no_grad():
            logits = decoder.logits(decoder(ids, positions, cache.extend(counts)))
        wanted = torch.cat([whole[r][list(span)] for r, span in zip(order, spans, strict=True)])
        assert (logits - wanted).abs().max() <= 1e-10

    extend([0, 1, 2], [5, 9, 2])
    extend([0, 1, 2], [3, 1, 4])
    extend([0, 1, 2], [1, 1, 1])
    cache.keep([2, 0])
    extend([2, 0], [1, 1])
    extend([2, 0], [1, 1])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
