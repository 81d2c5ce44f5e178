"""Meta folders: their parts, what params.json leaves open, where the tokenizer lies."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from conftest import need
from suri.errors import Corrupt, UsageError
from suri.model.config import read_config
from suri.model.meta_shards import embedding_rows, joined_tensors, shard_files
from suri.model.tokenizer import read_tokenizer, tokenizer_file
from suri.model.weights import open_weights

PARAMS = {"dim": 12, "multiple_of": 16, "n_heads": 2, "n_layers": 1, "vocab_size": -1}


def write(folder: Path, *parts: dict[str, torch.Tensor], params: dict | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for number, part in enumerate(parts):
        torch.save(part, folder / f"consolidated.{number:02}.pth")
    (folder / "params.json").write_text(json.dumps(params or PARAMS))
    return folder


def shape_of(name: str) -> tuple[int, ...]:
    return {"a": (6, 4), "norm": (4,)}[name]


@pytest.mark.parametrize("axis", [0, 1])
def test_pieces_are_joined_along_the_side_that_was_cut(tmp_path, axis):
    whole, norm = torch.arange(24.0).view(6, 4), torch.rand(4)
    pieces = [{"a": part.clone(), "norm": norm} for part in whole.chunk(2, dim=axis)]
    files = shard_files(write(tmp_path, *pieces))
    found = joined_tensors(files, shape_of)
    assert torch.equal(found["a"].read(), whole)
    assert torch.equal(found["a"].read(slice(2, 5)), whole[2:5])
    assert torch.equal(found["norm"].read(), norm)


def test_each_file_is_mapped_for_one_piece_and_let_go(tmp_path, monkeypatch):
    from suri.model import tensor_files

    pieces = [{"a": torch.rand(3, 4), "norm": torch.rand(4)} for _ in range(2)]
    found = joined_tensors(shard_files(write(tmp_path, *pieces)), shape_of)
    opened = []
    right = tensor_files.load_torch_file
    monkeypatch.setattr(
        tensor_files, "load_torch_file", lambda file: opened.append(file.name) or right(file)
    )
    found["a"].read(slice(1, 3))
    assert opened == ["consolidated.00.pth"]
    found["a"].read()
    assert opened[1:] == ["consolidated.00.pth", "consolidated.01.pth"]
    found["a"].read().zero_()
    assert found["a"].read().any()


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        ({"a": torch.ones(2, 4), "norm": torch.ones(4)}, "does not make"),
        ({"a": torch.ones(3, 4).half(), "norm": torch.ones(4)}, "does not make"),
        ({"a": torch.ones(12), "norm": torch.ones(4)}, "does not make"),
        ({"a": torch.ones(3, 4)}, "another model"),
        ({"a": torch.ones(3, 4), "norm": torch.ones(4), "b": torch.ones(1)}, "another model"),
    ],
)
def test_parts_of_different_models_are_refused(tmp_path, second, complaint):
    first = {"a": torch.ones(3, 4), "norm": torch.ones(4)}
    files = shard_files(write(tmp_path, first, second))
    with pytest.raises(Corrupt, match=complaint):
        joined_tensors(files, shape_of)


def test_a_missing_part_is_named(tmp_path):
    write(tmp_path, *[{"tok_embeddings.weight": torch.ones(5, 3)}] * 4)
    (tmp_path / "consolidated.02.pth").unlink()
    with pytest.raises(Corrupt, match="parts of the model are missing") as caught:
        open_weights(tmp_path)
    assert caught.value.found == "no consolidated.02.pth"
    (tmp_path / "consolidated.03.pth").unlink()
    with pytest.raises(Corrupt, match=r"tok_embeddings\.weight of 2 parts does not make"):
        open_weights(tmp_path)


@pytest.mark.parametrize("parts", [[(40, 12)], [(40, 6)] * 2, [(10, 12)] * 4])
def test_the_embedding_tells_the_vocabularys_size(tmp_path, parts):
    write(tmp_path, *[{"tok_embeddings.weight": torch.ones(shape)} for shape in parts])
    assert embedding_rows(tmp_path, 12) == 40
    assert read_config(tmp_path).vocab_size == 40
    write(tmp_path, params={name: PARAMS[name] for name in PARAMS if name != "vocab_size"})
    assert read_config(tmp_path).vocab_size == 40
    write(tmp_path, params=PARAMS | {"vocab_size": 39})
    assert read_config(tmp_path).vocab_size == 39


def test_without_an_embedding_the_size_stays_open(tmp_path):
    with pytest.raises(UsageError, match="leaves the vocabulary's size open") as caught:
        read_config(write(tmp_path))
    assert "consolidated" in caught.value.do


@pytest.mark.parametrize(
    ("settings", "positions", "scaled"),
    [
        ({}, 2048, False),
        ({"rope_theta": 1e6}, 16384, False),
        ({"rope_theta": 500000.0}, 8192, False),
        ({"rope_theta": 500000.0, "use_scaled_rope": True}, 131072, True),
        ({"rope_theta": 500000.0, "max_seq_len": 300}, 300, False),
    ],
)
def test_the_release_shows_in_the_rotary_settings(tmp_path, settings, positions, scaled):
    config = read_config(write(tmp_path, params=PARAMS | {"vocab_size": 9} | settings))
    assert config.max_positions == positions
    assert (config.rope_scaling is not None) == scaled


def test_llama_1s_tokenizer_lies_above_its_weights(tiny, tmp_path, monkeypatch):
    need("sentencepiece")
    folder = write(tmp_path / "7B")
    assert tokenizer_file(folder) is None
    model = train_sentencepiece(tmp_path)
    assert tokenizer_file(folder) == model
    monkeypatch.chdir(folder)
    assert tokenizer_file(Path()) == model
    above = read_tokenizer(folder)
    assert above.encode("a river") == read_tokenizer(tmp_path).encode("a river")
    above.save(folder)
    assert (folder / "tokenizer.model").read_bytes() == model.read_bytes()
    shutil.copy(tiny / "tokenizer.json", folder)
    assert tokenizer_file(folder) == folder / "tokenizer.json"
    other = tmp_path / "no-meta"
    other.mkdir()
    assert tokenizer_file(other) is None


def train_sentencepiece(folder: Path) -> Path:
    import sentencepiece

    text = ["a river leaves the mountains", "the people carry their boats", "in the square"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=str(folder / "tokenizer"), model_type="bpe",
        vocab_size=60, hard_vocab_limit=False, byte_fallback=False, minloglevel=2,
    )  # fmt: skip
    return folder / "tokenizer.model"
