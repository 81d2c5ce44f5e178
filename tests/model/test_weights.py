"""Finding and opening bases: hub ids from the cache, damaged folders, formats."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import make_model
from suri.errors import Corrupt, UsageError
from suri.model.load import load_decoder
from suri.model.weights import base_identity, find_base, open_weights


def test_a_hub_id_is_taken_from_the_cache(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub library's own cache layout, read by the library itself without a network."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "models--alpaca--tiny", "a" * 40
    shutil.copytree(tiny, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert find_base(" alpaca/tiny ") == repository / "snapshots" / commit
    with pytest.raises(UsageError, match="could not be had from the hub"):
        find_base("alpaca/other")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such model folder"):
        find_base(str(tmp_path / "gone"))
    with pytest.raises(UsageError, match="holds no weights"):
        open_weights(tmp_path)
    with pytest.raises(UsageError, match="holds no model"):
        load_decoder(tmp_path)


def test_a_tensor_that_is_missing_or_of_another_shape(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = make_model(tmp_path)
    whole = load_file(folder / "model.safetensors")
    without = {k: v for k, v in whole.items() if k != "model.layers.1.mlp.up_proj.weight"}
    save_file(without, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Corrupt, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_decoder(folder)
    other = whole | {"model.norm.weight": torch.ones(47)}
    save_file(other, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Corrupt, match=r"model\.norm\.weight does not fit"):
        load_decoder(folder)


def test_an_index_cannot_reach_out_of_its_folder(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    index = {"weight_map": {"model.norm.weight": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Corrupt, match="not in its folder"):
        open_weights(folder)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("executed",)

    folder = make_model(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(Corrupt, match="not a file of plain tensors"):
        open_weights(folder)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    file = make_model(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Corrupt, match="not a whole safetensors file"):
        open_weights(tmp_path)


def test_the_fingerprint_tells_bases_apart(tiny: Path, tmp_path: Path) -> None:
    same = shutil.copytree(tiny, tmp_path / "same")
    other = make_model(tmp_path / "other", head_dim=10)
    marks = [base_identity(f, "none")["fingerprint"] for f in (tiny, same, other)]
    assert marks[0] == marks[1] != marks[2]


def test_a_base_is_remembered_by_the_name_it_was_asked_for(tiny: Path, tmp_path: Path) -> None:
    """Where its folder is gone, the name is how it is found again."""
    identity = base_identity(tiny, "nf4", "somebody/tiny")
    assert (identity["name"], identity["quantize"]) == ("somebody/tiny", "nf4")
    assert identity["path"] == str(tiny.resolve())
