"""The tokenizer of a base: text to ids and back, special tokens never from text."""

import hashlib
import logging
import shutil
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from suri.errors import Corrupt, SuriError, UsageError
from suri.files import write_json
from suri.model.known_words import KnownWords
from suri.model.rank_file import BEGIN, END, holds_ranks, read_ranks
from suri.reading import read_object, well_formed

log = logging.getLogger(__name__)

CONFIG_FILE, FILE, SENTENCEPIECE = "tokenizer_config.json", "tokenizer.json", "tokenizer.model"
CHAT_TEMPLATE = "chat_template.jinja"
MOST_IDS = 2**24


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. `bos_id` is None where the base's own tokenizer adds no BOS."""

    backend: Backend
    eos_id: int
    bos_id: int | None
    pad_id: int
    vocab_size: int
    config: dict[str, Any] = field(repr=False)
    source: Path = field(repr=False)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Tokens that no text is turned into, with their ids."""
        added = self.backend.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    @property
    def names(self) -> dict[str, str]:
        """Special tokens by the names that templates use: bos_token, eos_token, ..."""
        named = {key: _name_of(value) for key, value in self.config.items()}
        return {key: name for key, name in named.items() if key.endswith("_token") and name}

    @property
    def chat_template(self) -> str | None:
        """The base's own template of conversations (Jinja), if it has one."""
        file = self.source / CHAT_TEMPLATE
        if file.is_file():
            with well_formed(file):
                return file.read_text(encoding="utf-8")
        template = self.config.get("chat_template")
        if isinstance(template, list):  # several by name, as some folders of 2024 have them
            tables = [each for each in template if isinstance(each, dict)]
            template = next((t.get("template") for t in tables if t.get("name") == "default"), None)
        return template if isinstance(template, str) else None

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of everything that decides about ids."""
        text = f"{self.backend.to_str()} {self.bos_id} {self.eos_id}"
        return hashlib.sha256(text.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a text; text like `</s>` stays text."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_many(self, texts: Sequence[str]) -> list["array[int]"]:
        """The ids of many texts, in arrays of C ints: faster for each."""
        return self._known_words.encode_many(texts)

    @cached_property
    def _known_words(self) -> KnownWords:
        return KnownWords(self.backend)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json, and tokenizer.model where there is one."""
        self.backend.encode_special_tokens = False
        self.backend.save(str(folder / FILE))
        self.backend.encode_special_tokens = True
        write_json(folder / CONFIG_FILE, self.config)
        if (self.source / SENTENCEPIECE).is_file() and self.source != folder:
            shutil.copyfile(self.source / SENTENCEPIECE, folder / SENTENCEPIECE)


def tokenizer_file(folder: Path) -> Path | None:
    """tokenizer.json or tokenizer.model of a folder; Llama 1's lies one folder above its weights.

    None where there is neither.
    """
    places = [folder / FILE, folder / SENTENCEPIECE]
    if (folder / "params.json").is_file():
        places.append(folder.absolute().parent / SENTENCEPIECE)
    return next((place for place in places if place.is_file()), None)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read tokenizer.json, or convert tokenizer.model; impossible special tokens are mended."""
    config = read_object(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    config.pop("auto_map", None)
    file = tokenizer_file(folder)
    if file is None:
        raise UsageError(
            f"{folder} has no tokenizer",
            found=f"neither {FILE} nor {SENTENCEPIECE}",
            do="copy the tokenizer files of the base into it",
        )
    if file.name == FILE:
        with explained(f"{file} is not a tokenizer"):
            backend = Backend.from_file(str(file))
            _check_ids(backend, MOST_IDS)
            backend.encode("try it")  # some faults show in use alone
    else:
        backend, names = _converted(file, folder)
        config = names | config | {"tokenizer_class": "PreTrainedTokenizerFast"}
    model = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    rows = model.get("vocab_size")
    words = backend.get_vocab(with_added_tokens=False).values()
    if type(rows) is int and max(words, default=0) >= rows:
        found = f"{max(words)}, and the model has {rows!r:.80}"
        raise Corrupt(f"{folder}: the tokenizer has larger ids than the model", found=found)
    names = _special_names(backend, config, model)
    config |= names
    ids = {name: int(backend.token_to_id(token) or 0) for name, token in names.items()}
    adds_bos = config.get("add_bos_token", _adds_bos(backend, ids.get("bos_token")))
    if not isinstance(adds_bos, bool | None):
        raise Corrupt(f"{folder / CONFIG_FILE}: add_bos_token is {adds_bos!r:.80}")
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return Tokenizer(
        backend=backend,
        eos_id=ids["eos_token"],
        bos_id=ids.get("bos_token") if adds_bos else None,
        pad_id=ids["pad_token"],
        vocab_size=backend.get_vocab_size(),
        config=config,
        source=file.parent,
    )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the tokenizers library raises into Corrupt; its panics are no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, SuriError):
        raise
    except BaseException as problem:
        raise Corrupt(what, found=repr(problem)[:200]) from None


def _check_ids(backend: Backend, most: int) -> None:
    """Raise ValueError for ids that are too large: the library makes a list as long as the last."""
    largest = max(backend.get_vocab().values(), default=0)
    if largest >= most:
        raise ValueError(f"an id is {largest}")


def _adds_bos(backend: Backend, bos_id: int | None) -> bool:
    return bos_id is not None and backend.encode("a").ids[:1] == [bos_id]


LIKELY = {
    "bos_token": ("<s>", "<|begin_of_text|>", "<|im_start|>", "<|endoftext|>"),
    "eos_token": ("</s>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"),
}


def _special_names(
    backend: Backend, config: dict[str, Any], model: dict[str, Any]
) -> dict[str, str]:
    """The tokens that begin, end and pad text; empty or impossible ones are mended, with a message.

    Folders of 2023 say "" in tokenizer_config.json and -1 or 0 (the unknown token) in config.json.
    """
    names = {}
    for name, likely in LIKELY.items():
        given = _name_of(config.get(name))
        by_id = model.get(name.replace("_token", "_token_id"))
        by_id = by_id[0] if isinstance(by_id, list) and by_id else by_id
        usable = [given] if given and backend.token_to_id(given) is not None else []
        if given is None and type(by_id) is int and 0 < by_id < 2**31:
            usable += [token] if (token := backend.id_to_token(by_id)) else []
        found = usable + [token for token in likely if backend.token_to_id(token) is not None]
        if found:
            names[name] = found[0]
        if found and not usable and (name == "eos_token" or name in config):
            log.warning("tokenizer: %s was %r, mended to %r", name, config.get(name), found[0])
    if "eos_token" not in names:
        raise UsageError("the tokenizer names no token that ends a text (eos_token)")
    pad = _name_of(config.get("pad_token"))
    names["pad_token"] = pad if pad and backend.token_to_id(pad) is not None else names["eos_token"]
    return names


def _name_of(token: Any) -> str | None:
    """A special token's text, written plainly or as a table with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _converted(file: Path, folder: Path) -> tuple[Backend, dict[str, Any]]:
    """A tokenizer.model, in Llama 3's form or that of all before, with the names that it fixes."""
    if holds_ranks(file):
        return read_ranks(file, folder), {"bos_token": BEGIN, "eos_token": END}
    return _from_sentencepiece(file), {}


def _from_sentencepiece(file: Path) -> Backend:
    """Convert through transformers, which is shown a class name that it knows."""
    try:
        import google.protobuf  # noqa: F401 (transformers needs both for the conversion)
        import sentencepiece  # noqa: F401
        from transformers import AutoTokenizer
    except ImportError as problem:
        raise UsageError(
            f"{file} is a sentencepiece tokenizer, and {problem.name} is missing to read it",
            do="pip install sentencepiece protobuf transformers",
        ) from None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copyfile(file, folder / SENTENCEPIECE)
        config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
        config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        write_json(folder / CONFIG_FILE, config)
        write_json(folder / "config.json", {"model_type": "llama"})
        try:
            converted = AutoTokenizer.from_pretrained(folder)
        except Exception as problem:  # whatever the conversion stumbles over
            raise Corrupt(
                f"{file} is not a sentencepiece model", found=str(problem)[:200]
            ) from None
        return Backend.from_str(converted.backend_tokenizer.to_str())
