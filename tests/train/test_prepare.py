"""Which device a base can be trained on, by how it is stored."""

from pathlib import Path

import pytest
import torch

from suri.errors import UsageError
from suri.recipe import Recipe
from suri.train.prepare import prepare, refuse_storage


def refused(device: str, *, here: bool = True, **settings: str) -> list[str]:
    """The message's lines; none where nothing is refused."""
    try:
        refuse_storage(Recipe(**settings), device, here=here)  # type: ignore[arg-type]
    except UsageError as problem:
        return problem.lines()
    return []


def test_int8_is_for_cpus() -> None:
    said = [
        "--quantize int8 trains on CPUs with --engine suri",
        "  do:    --device cpu, or --quantize nf4 or fp8",
    ]
    assert refused("cuda", quantize="int8") == said
    assert refused("cpu", quantize="int8", engine="reference") == said
    assert refused("cpu", quantize="int8") == []


@pytest.mark.parametrize("capability", [(8, 6), (8, 9), (9, 0), (12, 0)])
def test_fp8_is_for_gpus_that_multiply_it(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "RTX A")
    said = "--quantize fp8 trains on GPUs of compute capability 8.9 or more with --engine suri"
    do = "  do:    --quantize nf4, or int8 with --device cpu"
    lacking = [said, "  found: RTX A, compute capability 8.6", do]
    assert refused("cuda", quantize="fp8") == (lacking if capability < (8, 9) else [])
    assert refused("cpu", quantize="fp8") == [said, "  found: cpu", do]
    by_reference = refused("cuda", quantize="fp8", engine="reference")
    assert by_reference == [said, "  found: --engine reference", do]
    # Another machine's GPU is not known; its CPU is.
    assert refused("cuda", quantize="fp8", here=False) == []
    assert refused("cpu", quantize="fp8", here=False) == [said, "  found: cpu", do]
    assert refused("cuda", quantize="nf4") == []


def test_a_training_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    recipe = Recipe(base_model=str(tmp_path / "none"), quantize="fp8", device="cpu")
    with pytest.raises(UsageError, match="--quantize fp8 trains on GPUs"):
        prepare(recipe)
