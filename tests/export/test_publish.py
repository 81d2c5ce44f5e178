"""Publishing: the whole folder or none of it, on tiny models and on the embedded base."""

import dataclasses
from pathlib import Path

import pytest
import torch
from merges import files_in, make_adapter, make_base
from safetensors.torch import load_file

from suri.errors import DoesNotFit, SuriError
from suri.export import publish as publishing
from suri.export.certify import verify
from suri.export.hf import write_hf
from suri.export.meta import write_meta
from suri.model.adapter import initial_adapter, write_adapter
from suri.model.config import read_config
from suri.model.weights import base_identity
from suri.recipe import LINEARS


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), base)


def test_progress_reaches_the_end_of_every_stage(base, adapter, tmp_path):
    seen: dict[str, list[tuple[int, int]]] = {}
    write_hf(
        base, adapter, tmp_path / "merged",
        report=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)),
    )  # fmt: skip
    assert list(seen) == ["folding", "checking"]
    for steps in seen.values():
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]


def test_a_disk_too_small_is_said_before_anything_is_written(base, adapter, tmp_path, monkeypatch):
    needed = []

    def no_space(folder: Path, count: int, purpose: str) -> None:
        needed.append(count)
        raise DoesNotFit(f"{purpose} needs {count} bytes")

    monkeypatch.setattr(publishing, "need_space", no_space)
    with pytest.raises(DoesNotFit):
        write_hf(base, adapter, tmp_path / "merged", "float16")
    numbers = sum(tensor.numel() for tensor in load_file(base / "model.safetensors").values())
    assert needed == [2 * numbers]
    assert files_in(tmp_path) == set()


def test_a_stop_in_the_middle_leaves_nothing(base, adapter, tmp_path):
    def stop(stage: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_meta(base, adapter, tmp_path / "merged", report=stop)
    assert files_in(tmp_path) == set()


def test_a_full_disk_is_one_message(base, adapter, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("suri.export.hf.write_safetensors", full)
    with pytest.raises(SuriError, match="failed") as caught:
        write_hf(base, adapter, tmp_path / "merged")
    assert caught.value.found == "No space left on device"
    assert files_in(tmp_path) == set()


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_the_embedded_base_merges_both_ways(embedded, tmp_path, quantize):
    adapter = initial_adapter(
        read_config(embedded), r=8, alpha=16.0, targets=LINEARS, seed=1,
        base=base_identity(embedded, quantize),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    pairs = {
        name: (a, torch.randn(b.shape, generator=generator) * 0.003)
        for name, (a, b) in adapter.tensors.items()
    }
    write_adapter(tmp_path / "adapter", dataclasses.replace(adapter, tensors=pairs))
    for write, out in ((write_hf, "hf"), (write_meta, "meta")):
        certificate = write(None, tmp_path / "adapter", tmp_path / out)
        assert certificate.passed
        assert certificate.record["base"]["quantize"] == quantize
    assert verify(tmp_path / "meta")[0].passed
    for dtype in ("float16", "bfloat16"):
        assert write_meta(None, tmp_path / "adapter", tmp_path / dtype, dtype).passed
