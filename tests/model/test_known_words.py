"""The memory of words gives the ids that the tokenizers library itself gives, for every text."""

import json
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre

from suri.model.known_words import KnownWords

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {
    "gpt2": pre.ByteLevel(add_prefix_space=False, use_regex=True),
    "smollm": pre.Sequence(
        [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False, use_regex=True)]
    ),
    "llama3": pre.Sequence(
        [
            pre.Split(Regex(LLAMA3), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "qwen2": pre.Sequence(
        [
            pre.Split(Regex(LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}
NOT_CUT_HERE = {
    "prefix space": pre.ByteLevel(add_prefix_space=True, use_regex=True),
    "metaspace": pre.Metaspace(),
    "two expressions": pre.Sequence(
        [
            pre.Split(Regex(r"\p{N}{1,3}"), "isolated"),
            pre.Split(Regex(LLAMA3), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "unknown class": pre.Sequence(
        [
            pre.Split(Regex(r"\p{Lu}+|\s+"), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "gaps": pre.Sequence(
        [
            pre.Split(Regex(r"[a-z]+|\s+"), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}
TRAINING = [
    "The quick brown fox's den isn't far: it'll take 12 or 345 minutes, they've said.\n\n",
    "  def f(x):\n\treturn x ** 2  # 平方\r\n“Is it?” — “No…” 你好，世界！ été Übung £3·5",
] * 20


def make(pre_tokenizer: pre.PreTokenizer, *, normalizer: object = None) -> Tokenizer:
    """A tokenizer with merges across every kind of character that its cuts allow."""
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = BpeTrainer(
        vocab_size=700, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    tokenizer.add_special_tokens([AddedToken("<|end|>")])
    tokenizer.add_tokens(["<call>"])
    tokenizer.encode_special_tokens = True
    return tokenizer


def check(words: KnownWords, texts: list[str]) -> None:
    expected = words.backend.encode_batch(texts, add_special_tokens=False)
    for _ in range(2):  # new words, then known ones
        found = words.encode_many(texts)
        assert found == [array("i", each.ids) for each in expected]


def make_llama(kind: str) -> Tokenizer:
    """A tokenizer as transformers converts Llama's of sentencepiece: byte fallback, no cuts."""
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="first")
    special = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    texts = TRAINING if kind != "crossing" else [*TRAINING, "end. Begin end. Begin end. Begin"]
    if kind == "crossing":
        tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="first", split=False)
    tokenizer.train_from_iterator(
        texts, BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    )
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="first", split=False)
    else:
        parts = json.loads(tokenizer.to_str()) | {"pre_tokenizer": None}
        parts["added_tokens"] = []
        tokenizer = Tokenizer.from_str(json.dumps(parts))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    tokenizer.add_tokens(["<call>"])
    tokenizer.encode_special_tokens = True
    return tokenizer


KNOWN = {name: KnownWords(make(cut)) for name, cut in CUTS.items()}
KNOWN |= {f"llama {kind}": KnownWords(make_llama(kind)) for kind in ("legacy", "metaspace")}
PIECES = st.sampled_from(
    [" ", "  ", "\n", "\r\n", "\t", "'s", "'S", "'ll", "1", "234", "a", "The", "quick", "été",
     "你好", "，", ".", "...", "#", "“", "…", "<call>", "<|end|>", "{", "£", "\u00a0", "²", "ß",
     "🙂", "\x1c", "\u2028", "ǅ", "١"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=14).map("".join) | st.text(
    st.sampled_from("ab C'st19\n\r\t .,#\"é一龥，…\x0b\u2003\x85"), max_size=24
)


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_texts_are_cut_as_the_tokenizer_cuts_them(name: str) -> None:
    words = KNOWN[name]
    assert words.cuts

    @settings(max_examples=150, deadline=None)
    @given(st.lists(TEXTS, max_size=5))
    def any_texts(texts: list[str]) -> None:
        check(words, texts)

    any_texts()
    check(words, TRAINING)
    assert len(words.words) > 20  # it is words that were remembered, not whole texts


def test_tokens_that_go_beyond_a_blank_forbid_cutting_there() -> None:
    words = KnownWords(make_llama("crossing"))
    assert not words.cuts
    check(words, TRAINING[:2])


@pytest.mark.parametrize("name", NOT_CUT_HERE)
def test_other_tokenizers_are_used_as_they_are(name: str) -> None:
    words = KnownWords(make(NOT_CUT_HERE[name]))
    check(words, [*TRAINING[:2], "ABC def 12345 été", "", " "])
    assert not words.cuts


def test_normalisers_that_change_texts_are_respected() -> None:
    lower = KnownWords(make(CUTS["gpt2"], normalizer=normalizers.Lowercase()))
    assert not lower.cuts
    check(lower, TRAINING[:2])
    nfc = KnownWords(make(CUTS["gpt2"], normalizer=normalizers.NFC()))
    assert nfc.cuts
    check(nfc, [*TRAINING[:2], "e\u0301te\u0301 ① \u0301x"])


def test_a_full_memory_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suri.model.known_words.MOST_WORDS", 5)
    words = KnownWords(make(CUTS["gpt2"]))
    for text in TRAINING[:2] * 2:
        check(words, [text])
    assert len(words.words) < 60


def test_long_words_are_not_remembered() -> None:
    words = KnownWords(make(CUTS["gpt2"]))
    check(words, ["a " + "你好" * 40 + " b", "x" * 33 + " c"])
    assert set(words.words) == {"b", "c"}


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"single_word": True}, {}])
def test_added_tokens_that_take_in_blanks_forbid_cutting(flags: dict[str, bool]) -> None:
    tokenizer = make(CUTS["gpt2"])
    tokenizer.add_tokens([AddedToken("<it>" if flags else "<of it>", **flags)])
    words = KnownWords(tokenizer)
    assert not words.cuts
    check(words, ["one <it> two", "one <of it> two"])


@pytest.mark.slow
def test_real_rows_get_the_same_ids(real_rows: Path, embedded: Path) -> None:
    backend = Tokenizer.from_file(str(embedded / "tokenizer.json"))
    backend.encode_special_tokens = True
    words = KnownWords(backend)
    for file in (real_rows, real_rows.with_name("alpaca_zh_1000.json")):
        rows = json.loads(file.read_text(encoding="utf-8"))
        check(words, [text for row in rows for text in row.values()])
