"""The readers of a written folder: who reads, in what precision, and no text sees another."""

import pytest
import torch
from merges import (
    IDS,
    KINDS,
    make_adapter,
    make_base,
    merged_by_peft,
    reference_logits,
    write_hf,
    write_meta,
)

from conftest import LLAMA3_ROPE
from suri.export import readers
from suri.export.fold import MergeBase
from suri.export.readers import read_logits
from suri.export.streamed import streamed_logits
from suri.model.adapter_file import read_adapter
from suri.model.attention import PackedAttention
from suri.model.load import layered_logits, load_decoder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grouped", "tied"])
def test_every_reader_gives_the_logits_of_pefts_merge(kind, tmp_path, monkeypatch):
    base = make_base(tmp_path / "base", **KINDS[kind])
    adapter = make_adapter(tmp_path / "adapter", base)
    write_hf(base, adapter, tmp_path / "hf")
    write_meta(base, adapter, tmp_path / "meta")
    expected = reference_logits(merged_by_peft(base, adapter))
    found = {}
    for to in ("hf", "meta"):
        reader, logits = read_logits(tmp_path / to, to, IDS, MergeBase(base))
        found[reader.split()[0]] = logits
    monkeypatch.setattr(readers, "LARGE_BYTES", 1000)
    reader, logits = read_logits(tmp_path / "hf", "hf", IDS, MergeBase(base))
    found[reader.partition(", ")[2]] = logits
    monkeypatch.setattr(readers.importlib.util, "find_spec", lambda name: None)
    reader, logits = read_logits(tmp_path / "hf", "hf", IDS, MergeBase(base))
    found[reader] = logits
    assert set(found) == {"transformers", "meta_decoder", "one module at a time", "suri"}
    for name, logits in found.items():
        assert logits.dtype == torch.float32
        assert (logits - expected).abs().max() < 1e-4, name


def test_texts_do_not_see_each_other(tmp_path):
    base = make_base(tmp_path)
    for logits in (layered_logits, streamed_logits):
        together = logits(base, IDS)
        alone = torch.cat([logits(base, [ids]) for ids in IDS])
        assert (together - alone).abs().max() < 1e-5
        other = logits(base, [IDS[1], IDS[1]])
        assert (together[len(IDS[0]) :] - other[: len(IDS[1])]).abs().max() < 1e-5


FAMILY = [
    ("llama", {"rope_scaling": LLAMA3_ROPE}),
    ("llama", {"tie_word_embeddings": True}),
    ("mistral", {"sliding_window": 4}),
    ("qwen2", {}),
    ("qwen3", {"head_dim": 10}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "changes"), FAMILY)
def test_a_model_read_in_turn_gives_what_the_whole_one_does(kind, changes, tmp_path):
    import transformers

    base = make_base(tmp_path, kind, **changes)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = reference_logits(model)
    for logits in (layered_logits, streamed_logits):
        assert (logits(base, IDS) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_layers_with_an_adapter_give_what_the_whole_decoder_does(quantize, tmp_path):
    base = make_base(tmp_path / "base")
    adapter = read_adapter(make_adapter(tmp_path / "adapter", base))
    decoder = load_decoder(base, quantize=quantize, adapter=adapter)
    (ids, *_), attend = IDS, PackedAttention([len(IDS[0])], None)
    with torch.no_grad():
        hidden = decoder(torch.tensor(ids), torch.arange(len(ids)), attend)
        expected = decoder.logits(hidden)
    found = layered_logits(base, [ids], quantize=quantize, adapter=adapter)
    assert (found - expected).abs().max() < 1e-5
