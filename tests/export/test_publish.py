"""Publishing: the whole folder or none of it, on tiny models and on the embedded base."""

import dataclasses
from pathlib import Path

import pytest
import torch
from merges import adapter, base, files_in, make_adapter, make_base, write_hf, write_meta
from safetensors.torch import load_file

from faults.children import start, wait
from suri.errors import DoesNotFit, SuriError
from suri.export import hf
from suri.export import publish as publishing
from suri.export.verify import verify
from suri.model.adapter import initial_adapter
from suri.model.adapter_file import write_adapter
from suri.model.config import read_config
from suri.model.weights import base_identity
from suri.recipe import LINEARS


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


@pytest.mark.slow
def test_a_killed_merge_goes_on_with_its_whole_shards(base, adapter, tmp_path, monkeypatch):
    """Several shards; the process is killed after the second, and the next writes the others."""
    monkeypatch.setattr(hf, "SHARD_BYTES", 30_000)
    write_hf(base, adapter, tmp_path / "unbroken")
    whole = sorted((tmp_path / "unbroken").glob("*.safetensors"))
    assert len(whole) > 3
    out, left = tmp_path / "merged", tmp_path / ".merged.partial"
    assert wait(start(lambda: write_hf(base, adapter, out), "merge.shard*2=kill")) == -9
    begun = {file.name: file.stat().st_ino for file in left.glob("model-*.safetensors")}
    assert len(begun) == 2
    write_hf(base, adapter, out)
    assert not left.exists()
    for file in whole:
        assert (out / file.name).read_bytes() == file.read_bytes()
    assert all((out / name).stat().st_ino == number for name, number in begun.items())
    assert files_in(out) == files_in(tmp_path / "unbroken")


@pytest.mark.slow
def test_what_a_killed_merge_of_something_else_left_is_not_used(
    base, adapter, tmp_path, monkeypatch
):
    monkeypatch.setattr(hf, "SHARD_BYTES", 30_000)
    out = tmp_path / "merged"
    assert wait(start(lambda: write_hf(base, adapter, out), "merge.shard*2=kill")) == -9
    other = make_adapter(tmp_path / "other", base, r=3)
    write_hf(base, other, out)
    write_hf(base, other, tmp_path / "unbroken")
    for file in (tmp_path / "unbroken").glob("*.safetensors"):
        assert (out / file.name).read_bytes() == file.read_bytes()


def test_two_merges_into_one_folder_do_not_meet(base, adapter, tmp_path):
    out, refused = tmp_path / "merged", []

    def second(stage: str, done: int, total: int) -> None:
        if done == 1 and stage == "folding":
            with pytest.raises(SuriError, match="is writing into"):
                write_hf(base, adapter, out)
            refused.append(stage)

    write_hf(base, adapter, out, report=second)
    assert refused == ["folding"]
    assert files_in(tmp_path) == {"merged"}


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
def test_the_embedded_base_as_nf4_merges_both_ways(shallow, tmp_path):
    adapter = initial_adapter(
        read_config(shallow), r=8, alpha=16.0, targets=LINEARS, seed=1,
        base=base_identity(shallow, "nf4"),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    pairs = {
        name: (a, torch.randn(b.shape, generator=generator) * 0.003)
        for name, (a, b) in adapter.tensors.items()
    }
    write_adapter(tmp_path / "adapter", dataclasses.replace(adapter, tensors=pairs))
    for write, dtype in ((write_hf, "float16"), (write_meta, "bfloat16")):
        certificate = write(None, tmp_path / "adapter", tmp_path / dtype, dtype)
        assert certificate.passed
        assert certificate.record["base"]["quantize"] == "nf4"
    assert verify(tmp_path / "bfloat16")[0].passed
