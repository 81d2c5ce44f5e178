"""Tokenizers: special tokens stay text, and folders of 2023 are mended."""

import json
from pathlib import Path

import pytest
import torch

from conftest import make_model
from suri.errors import Corrupt, UsageError
from suri.model.load import load_decoder
from suri.model.tokenizer import read_tokenizer


@pytest.fixture(scope="session")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real sentencepiece model, trained here, with LLaMA's settings and ids."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("sp")
    corpus = folder / "corpus.txt"
    words = "the llama eats grass and sleeps while an alpaca spins fine wool in the warm sun"
    corpus.write_text("\n".join([words, words[::-1], "Below is an instruction"] * 40))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    return folder / "tokenizer.model"


def old_folder(folder: Path, sentencepiece_file: Path) -> Path:
    """A LLaMA folder as they were in spring 2023: two `.bin` shards, slow tokenizer, odd ids."""
    make_model(folder, vocab_size=400)
    from safetensors.torch import load_file

    tensors = {k: v.half() for k, v in load_file(folder / "model.safetensors").items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"1": names[::2], "2": names[1::2]}
    weight_map = {}
    for number, part in shards.items():
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "tokenizer.model").write_bytes(sentencepiece_file.read_bytes())
    odd = {"tokenizer_class": "LLaMATokenizer", "bos_token": "", "eos_token": "", "unk_token": ""}
    (folder / "tokenizer_config.json").write_text(json.dumps(odd))
    config = json.loads((folder / "config.json").read_text())
    config |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": -1, "torch_dtype": "float16"}
    config["architectures"] = ["LLaMAForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_old_folder_is_mended_and_read(
    tmp_path: Path, sentencepiece_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import sentencepiece

    folder = old_folder(tmp_path, sentencepiece_file)
    tokenizer = read_tokenizer(folder)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (pieces.bos_id(), pieces.eos_id())
    assert "eos_token was '', mended to '</s>'" in caplog.text
    text = "Below is an instruction: the llama\n\neats  é"
    assert tokenizer.encode(text) == pieces.encode(text)
    decoder = load_decoder(folder)
    shard = torch.load(folder / "pytorch_model-00001-of-00002.bin", weights_only=True)
    assert torch.equal(decoder.head, shard["lm_head.weight"].float())


def test_saved_tokenizer_reads_the_same_and_transformers_agrees(
    tmp_path: Path, sentencepiece_file: Path
) -> None:
    import transformers

    first, second = tmp_path / "a", tmp_path / "b"
    second.mkdir()
    ours = read_tokenizer(old_folder(first, sentencepiece_file))
    ours.save(second)
    again, theirs = read_tokenizer(second), transformers.AutoTokenizer.from_pretrained(second)
    text = "the alpaca spins </s> wool"
    assert again.encode(text) == ours.encode(text)
    assert (again.bos_id, again.eos_id) == (ours.bos_id, ours.eos_id)
    assert theirs("fine wool")["input_ids"] == [1, *again.encode("fine wool")]


@pytest.mark.parametrize("text", ["</s>", "<s> and <unk>", "a<|im_end|>b", "<|endoftext|>"])
def test_text_like_a_special_token_stays_text(text: str, embedded: Path) -> None:
    tokenizer = read_tokenizer(embedded)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.eos_id, tokenizer.pad_id} & set(ids)


def test_a_folder_without_tokenizer_and_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no tokenizer"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(Corrupt, match="not a tokenizer"):
        read_tokenizer(tmp_path)
