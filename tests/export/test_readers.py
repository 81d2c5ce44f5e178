"""The readers of a written folder: who reads, in what precision, and no text sees another."""

import pytest
import torch
from merges import IDS, KINDS, make_adapter, make_base, merged_by_peft, reference_logits

from suri.export import readers
from suri.export.hf import write_hf
from suri.export.meta import write_meta
from suri.export.readers import decoder_logits, read_logits
from suri.model.load import load_decoder


@pytest.mark.parametrize("kind", ["grouped", "tied"])
def test_every_reader_gives_the_logits_of_pefts_merge(kind, tmp_path, monkeypatch):
    base = make_base(tmp_path / "base", **KINDS[kind])
    adapter = make_adapter(tmp_path / "adapter", base)
    write_hf(base, adapter, tmp_path / "hf")
    write_meta(base, adapter, tmp_path / "meta")
    expected = reference_logits(merged_by_peft(base, adapter))
    found = {}
    for to in ("hf", "meta"):
        reader, logits = read_logits(tmp_path / to, to, IDS)
        found[reader.split()[0]] = logits
    monkeypatch.setattr(readers.importlib.util, "find_spec", lambda name: None)
    reader, logits = read_logits(tmp_path / "hf", "hf", IDS)
    found[reader] = logits
    assert set(found) == {"transformers", "meta_decoder", "suri"}
    for name, logits in found.items():
        assert logits.dtype == torch.float32
        assert (logits - expected).abs().max() < 1e-4, name


def test_texts_do_not_see_each_other(tmp_path):
    decoder = load_decoder(make_base(tmp_path))
    together = decoder_logits(decoder, IDS)
    alone = torch.cat([decoder_logits(decoder, [ids]) for ids in IDS])
    assert (together - alone).abs().max() < 1e-5
    other = decoder_logits(decoder, [IDS[1], IDS[1]])
    assert (together[len(IDS[0]) :] - other[: len(IDS[1])]).abs().max() < 1e-5
