"""Llama 3's tokenizer.model against transformers' converter, and against joining by rank."""

import base64
import json
from itertools import pairwise
from pathlib import Path

import pytest

from suri.errors import Corrupt
from suri.model.rank_file import LLAMA_3, LLAMA_31, holds_ranks, read_ranks
from suri.model.tokenizer import read_tokenizer

TEXTS = [
    "The river's boats cost 12345 coins; 世界, naïve café! \r\n\n  def f(x):\n\treturn x  ",
    "aaaaaaa abababab I'LL   don't\t\n<|begin_of_text|> <|eot_id|> \U0001f600 e\u0301",
    "", " ", "\x00\xff\n",
]  # fmt: skip
CORPUS = "the river leaves the mountains 世界 caféé 123 aaaa abab  \n\n don't I'll there their "


def words() -> list[bytes]:
    """Single bytes in Llama's odd order, then words by joining the commonest neighbours."""
    found = [bytes([byte]) for byte in [*range(33, 127), *range(127, 256), *range(33)]]
    text = [bytes([byte]) for byte in CORPUS.encode()]
    for _ in range(60):
        pairs = list(pairwise(text))
        best = max(sorted(set(pairs)), key=pairs.count)
        if best[0] + best[1] not in found:
            found.append(best[0] + best[1])
        text = joined(text, best[0] + best[1])
    # A word that no two others make, as Llama 3's list has some.
    return [*found, b"zyxwvut"]


def joined(parts: list[bytes], word: bytes) -> list[bytes]:
    made: list[bytes] = []
    for part in parts:
        if made and made[-1] + part == word:
            made[-1] = word
        else:
            made.append(part)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [base64.b64encode(word) + f" {n}\n".encode() for n, word in enumerate(words())]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    (tmp_path / "params.json").write_text(json.dumps({"use_scaled_rope": True}))
    return tmp_path


def test_ids_are_those_of_transformers_converter(folder, monkeypatch):
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = {word: rank for rank, word in enumerate(words())}
    # It reads the file with a package that is not needed for that.
    monkeypatch.setattr(TikTokenConverter, "load_tiktoken_bpe", staticmethod(lambda _: ranks))
    names = {name: None for name in read_ranks(folder / "tokenizer.model", folder).get_vocab()
             if name.startswith("<|")}  # fmt: skip
    assert len(names) == 256
    theirs = TikTokenConverter(str(folder / "tokenizer.model"), extra_special_tokens={}).converted()
    ours = read_ranks(folder / "tokenizer.model", folder)
    mine, their = json.loads(ours.to_str())["model"], json.loads(theirs.to_str())["model"]
    assert mine["vocab"] == their["vocab"]
    assert mine["merges"] == their["merges"]
    assert mine == their
    for text in (*TEXTS, CORPUS, "zyxwvut zyxwvutt"):
        plain = text.replace("<|", "< |")
        assert ours.encode(plain, add_special_tokens=False).ids == theirs.encode(plain).ids
        assert ours.decode(ours.encode(plain).ids) == plain


def test_ids_are_those_of_joining_the_lowest_rank_first(folder):
    """tiktoken's rule, written out, on single words of the pattern."""
    ranks = {word: rank for rank, word in enumerate(words())}
    tokenizer = read_tokenizer(folder)
    for word in ("there", "mountains", "aaaa", "abab", "caféé", "世界", "zyxwvut", "zyxwvutt"):
        parts = [bytes([byte]) for byte in word.encode()]
        while word.encode() not in ranks:
            pairs = [ranks.get(a + b, 10**9) for a, b in pairwise(parts)]
            if not pairs or min(pairs) == 10**9:
                break
            place = pairs.index(min(pairs))
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        whole = [ranks[word.encode()]] if word.encode() in ranks else [ranks[p] for p in parts]
        assert tokenizer.encode(word) == whole, word


def test_special_tokens_are_metas_by_release(folder, caplog):
    count = len(words())
    for scaled, named in ((True, LLAMA_31), (False, LLAMA_3)):
        (folder / "params.json").write_text(json.dumps({"use_scaled_rope": scaled}))
        tokenizer = read_tokenizer(folder)
        ids = tokenizer.special_tokens
        assert [ids[name] for name in named] == list(range(count, count + len(named)))
        assert sorted(ids.values()) == list(range(count, count + 256))
        assert (tokenizer.bos_id, tokenizer.eos_id) == (count, count + 1)
        assert (ids["<|start_header_id|>"], ids["<|eot_id|>"]) == (count + 6, count + 9)
        last = f"<|reserved_special_token_{246 if scaled else 250}|>"
        assert ids[last] == count + 255
        assert count not in tokenizer.encode("<|begin_of_text|>")
    assert not caplog.records


def test_what_is_saved_is_read_by_transformers_as_it_is_here(folder, tmp_path):
    from transformers import AutoTokenizer

    out = tmp_path / "out"
    out.mkdir()
    tokenizer = read_tokenizer(folder)
    tokenizer.save(out)
    theirs = AutoTokenizer.from_pretrained(out)
    assert theirs("there are")["input_ids"] == [tokenizer.bos_id, *tokenizer.encode("there are")]
    assert theirs.eos_token == "<|end_of_text|>"
    again = read_tokenizer(out)
    assert again.encode(CORPUS) == tokenizer.encode(CORPUS)
    assert (again.bos_id, again.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)


@pytest.mark.parametrize(
    "content",
    [b"YQ== 0\n", b"YQ== 0\nYg== x\n", b"YQ== 0\nYg==\n", b"YQ== 0\nY 1\n", b"YQ== 0\n\xff 1\n"],
)
def test_a_damaged_list_is_corrupt(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    assert holds_ranks(tmp_path / "tokenizer.model")
    with pytest.raises(Corrupt, match="list"):
        read_tokenizer(tmp_path)


def test_sentencepieces_files_are_told_apart(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n")
    assert not holds_ranks(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes(b"")
    assert not holds_ranks(tmp_path / "tokenizer.model")
