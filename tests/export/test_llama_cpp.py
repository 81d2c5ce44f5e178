"""llama.cpp itself reads what was written: logits, tokens, and what it refuses."""

import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from merges import (
    IDS,
    adapter,
    base,
    make_adapter,
    make_base,
    merged_by_peft,
    own_cache,
    reference_logits,
    write_gguf,
)

from conftest import LLAMA3_ROPE, need
from suri.errors import Corrupt
from suri.export import gguf, llama_cpp
from suri.export.gguf_vocabulary import vocabulary_of
from suri.export.llama_cpp import read
from suri.export.verify import verify
from suri.model.tokenizer import read_tokenizer
from suri.model.word_splits import SPLITS
from suri.reading import read_json

need("xllamacpp")

KINDS = {
    "llama": ("llama", {"num_key_value_heads": 3}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "linear-rope": (
        "llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}}
    ),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen3": ("qwen3", {"head_dim": 10}),
}  # fmt: skip

HARD_TEXTS = (
    "In 2024, 3.5 % of 1234567 people; don't, I'LL, we've",
    "</s> is text, and so are <|im_end|> <|endoftext|> <s> [INST]",
    "你好，世界。河流从山上流下来，１２３。",
    "naïve café 🦙👩‍👩‍👧 🇦🇹 ½ ∑ ｆｕｌｌ",
    "a  b   c    d\t\te \u00a0 f",
    "\n\nleading lines\n \n  and trailing  \n\n",
    "   leading spaces, a trailing one ",
    "",
    " ",
    "### Instruction:\nSort: b, a.\n\n### Response:\n",
    "def f(x):\n    return x**2  # a comment\r\n\r\n",
    "e\u0301 is not é; \u200bzero width",
)


@pytest.fixture(scope="module")
def merged(tmp_path_factory, base, adapter) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "gguf"
    write_gguf(base, adapter, folder, "float32")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_its_logits_are_those_of_pefts_merge(kind, tmp_path):
    model_type, changes = KINDS[kind]
    base = make_base(tmp_path / "base", model_type, **changes)
    adapter = make_adapter(tmp_path / "adapter", base)
    write_gguf(base, adapter, tmp_path / "merged", "float32")
    found = read(tmp_path / "merged" / "model.gguf", IDS)
    expected = reference_logits(merged_by_peft(base, adapter))
    assert not found.problem
    assert found.logits.shape == expected.shape
    # It keeps keys and values in fp16.
    assert (found.logits - expected).abs().max() < 0.01 * expected.abs().max()
    plain = torch.cat([reference_logits(unmerged(base), [ids]) for ids in IDS])
    assert (plain - expected).abs().max() > 0.1 * expected.abs().max()


def unmerged(base: Path) -> torch.nn.Module:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


@pytest.mark.slow
def test_the_certificate_records_it(base, adapter, merged):
    record = read_json(merged / "certificate.json")
    assert record["llama.cpp"]["reader"].startswith("llama.cpp of xllamacpp ")
    assert record["llama.cpp"]["texts_with_the_same_tokens"] == 4
    assert 0 < record["llama.cpp"]["largest_difference"] < 0.1
    assert record["llama.cpp"]["same_likeliest"] > 0.98
    assert record["reader"].startswith("transformers ")
    names = [check["name"] for check in record["checks"]]
    assert names[-1] == "llama.cpp: KL divergence of the next token"
    assert [check.name for check in verify(merged)[0].checks] == names[2:]


@pytest.mark.slow
def test_its_greedy_answer_is_the_likeliest_token_each_time(merged):
    found = read(merged / "model.gguf", prompts=IDS, most=6, stop=1)
    for ids, answer in zip(IDS, found.answers, strict=True):
        for place, (token, lead) in enumerate(answer):
            before = [i for i, _ in answer[:place]]
            best = read(merged / "model.gguf", [ids + before]).logits[-1].topk(2)
            assert int(best.indices[0]) == token
            assert float(best.values[0] - best.values[1]) == pytest.approx(lead, abs=1e-3)


def test_a_base_without_a_tokenizer_is_read_too(tmp_path):
    base = make_base(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    certificate = write_gguf(base, make_adapter(tmp_path / "adapter", base), tmp_path / "merged")
    assert not certificate.notes
    assert "texts_with_the_same_tokens" not in certificate.record["llama.cpp"]
    assert certificate.checks[-1].name.startswith("llama.cpp: ")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["no model", "cut", "a tensor is missing"])
def test_a_file_that_it_cannot_load_is_refused(merged, tmp_path, what):
    content = (merged / "model.gguf").read_bytes()
    file = tmp_path / "model.gguf"
    changed = {
        "no model": b"not a GGUF file, and not long",
        "cut": content[: len(content) // 2],
        "a tensor is missing": content.replace(b"blk.1.ffn_down", b"blk.1.ffn_dawn"),
    }
    file.write_bytes(changed[what])
    found = read(file, IDS)
    assert found.refused
    assert "it does not load the file: " in found.problem
    assert "error" in found.problem


@pytest.mark.slow
def test_an_abort_in_it_ends_neither_the_merge_nor_speaks(merged, capfd):
    found = read(merged / "model.gguf", [[5] * 3000])  # more than llama_decode takes at once
    assert found.refused
    assert found.problem
    assert capfd.readouterr() == ("", "")


def test_a_file_that_it_refuses_is_not_published(base, adapter, tmp_path, monkeypatch):
    def without_merges(*given):
        return replace(vocabulary_of(*given), merges=[])

    monkeypatch.setattr(gguf, "vocabulary_of", without_merges)
    with pytest.raises(Corrupt) as caught:
        write_gguf(base, adapter, tmp_path / "merged")
    assert "refuses the file" in caught.value.found
    assert not (tmp_path / "merged").exists()


def test_where_it_is_missing_the_certificate_says_so(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "PACKAGE", "no_such_package")
    certificate = write_gguf(base, adapter, tmp_path / "merged")
    assert certificate.passed
    (note,) = certificate.notes
    assert note == "note: llama.cpp did not read the file: it is not installed: " + (
        llama_cpp.INSTALL
    )
    record = read_json(tmp_path / "merged" / "certificate.json")
    assert record["llama.cpp"] == {"note": note.removeprefix("note: ")}


@pytest.mark.parametrize(
    "program", ["raise ImportError('no')", "import os; os.abort()", "__version__ = '1'"]
)
def test_an_installation_that_does_not_work_fails_nothing(merged, tmp_path, monkeypatch, program):
    (tmp_path / "xllamacpp").mkdir()
    (tmp_path / "xllamacpp" / "__init__.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = read(merged / "model.gguf", IDS)
    assert found.problem
    assert not found.refused
    assert not found.reader


def test_one_that_hangs_is_left(merged, monkeypatch):
    monkeypatch.setattr(llama_cpp, "START_SECONDS", 0.01)
    monkeypatch.setattr(llama_cpp, "BYTES_PER_SECOND", 1e12)
    found = read(merged / "model.gguf", IDS)
    assert "had not ended after" in found.problem
    assert not found.refused


@pytest.mark.slow
@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "smollm", "gpt-2"])
def test_it_cuts_text_into_our_tokens(tmp_path, pre):
    base = make_base(tmp_path / "base", vocab_size=700)
    train_tokenizer(base, pre)
    write_gguf(base, make_adapter(tmp_path / "adapter", base), tmp_path / "merged", "float32")
    tokenizer = read_tokenizer(base)
    # Qwen composes characters before it cuts; llama.cpp has to be given them composed.
    texts = [unicodedata.normalize("NFC", t) if pre == "qwen2" else t for t in HARD_TEXTS]
    found = read(tmp_path / "merged" / "model.gguf", texts=texts)
    for text, tokens in zip(HARD_TEXTS, found.tokens, strict=True):
        assert tokens == tokenizer.encode(text), text


@pytest.mark.slow
def test_it_cuts_text_as_sentencepiece_does(tmp_path):
    import sentencepiece

    (tmp_path / "rows.txt").write_text(Path(__file__).read_text("utf-8"), encoding="utf-8")
    base = make_base(tmp_path / "base", vocab_size=611)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "rows.txt"), model_prefix=str(base / "tokenizer"), vocab_size=600,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    write_gguf(base, make_adapter(tmp_path / "adapter", base), tmp_path / "merged", "float32")
    tokenizer = read_tokenizer(base)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    found = read(tmp_path / "merged" / "model.gguf", texts=HARD_TEXTS)
    for text, tokens in zip(HARD_TEXTS, found.tokens, strict=True):
        assert tokens == theirs.encode(text), text
        # transformers, whose conversion is ours, adds no space before one that is there.
        assert tokens == tokenizer.encode(text) or text.startswith(" "), text


def train_tokenizer(folder: Path, pre: str) -> None:
    """A byte-level tokenizer of 650 tokens, learned from these texts, that cuts words that way."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in SPLITS)
    first = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    if pre in SPLITS:
        first = [pre_tokenizers.Split(Regex(SPLITS[pre]), "isolated")]
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=650, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([*HARD_TEXTS, Path(__file__).read_text("utf-8")], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
