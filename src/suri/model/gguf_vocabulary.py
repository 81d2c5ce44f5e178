"""The tokenizer that a GGUF file holds, written as Hugging Face's tokenizer.json."""

from pathlib import Path
from typing import Any

from suri.errors import UsageError
from suri.files import write_json
from suri.model.gguf_file import GgufFile
from suri.model.tokenizer import explained
from suri.model.word_splits import pre_tokenizer

SAME_SPLIT = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
"""Further names of tokenizer.ggml.pre that mean a known way of cutting words."""


def write_tokenizer(source: GgufFile, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; nothing where the file has no vocabulary.

    Raises UsageError for a vocabulary or a way of cutting words that is not known here, Corrupt
    where tokens and their kinds do not fit together.
    """
    kind = source.values.get("tokenizer.ggml.model", "none")
    if kind == "none":
        return
    if kind not in ("gpt2", "llama"):
        raise _unknown(source, f"a vocabulary of kind {kind}")
    with explained(f"{source.path}: its vocabulary is broken"):
        if kind == "gpt2":
            _byte_level(source).save(str(folder / "tokenizer.json"))
        else:
            _write_sentencepiece(source, folder)
        write_json(folder / "tokenizer_config.json", _config(source, adds_bos=kind == "llama"))


def _unknown(source: GgufFile, what: str) -> UsageError:
    return UsageError(
        f"{source.path}: its tokenizer is not known here",
        found=what,
        do="put the model's tokenizer.json beside it and give the folder",
    )


def _byte_level(source: GgufFile) -> Any:
    """Byte-level BPE; text is cut into words as the name tokenizer.ggml.pre says."""
    from gguf import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    tokens = source.values["tokenizer.ggml.tokens"]
    kinds = source.values["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ", 1)) for pair in source.values.get("tokenizer.ggml.merges", [])]
    pre = str(source.values.get("tokenizer.ggml.pre", "default"))
    pre = SAME_SPLIT.get(pre, pre)
    known = zip(tokens, kinds, range(len(tokens)), strict=True)
    vocabulary = {token: i for token, kind, i in known if kind != TokenType.UNUSED}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe")
    )
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer(pre)
    if tokenizer.pre_tokenizer is None:
        raise _unknown(source, f"text is cut into words as for {pre}")
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind == TokenType.CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False)])
        elif kind == TokenType.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    return tokenizer


def _write_sentencepiece(source: GgufFile, folder: Path) -> None:
    """Convert through transformers, which derives the merges from the scores."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UsageError(
            f"{source.path} has a sentencepiece vocabulary; transformers is missing to read it",
            do="pip install transformers",
        ) from None
    try:
        converted = AutoTokenizer.from_pretrained(
            source.path.parent, gguf_file=source.path.name, local_files_only=True
        )
    except Exception as problem:  # whatever the conversion stumbles over
        raise _unknown(source, str(problem)[:200]) from None
    converted.backend_tokenizer.save(str(folder / "tokenizer.json"))


def _config(source: GgufFile, *, adds_bos: bool) -> dict[str, Any]:
    tokens = source.values["tokenizer.ggml.tokens"]
    ids = source.special_ids()
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if not all(0 <= number < len(tokens) for number in ids.values()):
        raise ValueError(f"special tokens {ids} of {len(tokens)}")
    config |= {f"{name}_token": tokens[number] for name, number in ids.items()}
    config["add_bos_token"] = bool(source.values.get("tokenizer.ggml.add_bos_token", adds_bos))
    if length := source.values.get(f"{source.values['general.architecture']}.context_length"):
        config["model_max_length"] = int(length)
    if template := source.values.get("tokenizer.chat_template"):
        config["chat_template"] = str(template)
    return config
