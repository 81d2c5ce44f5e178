"""Opening any model, with or without an adapter, and answering records with it."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch

from suri.data.encode import encode_prompt
from suri.data.prompt import Prompt, read_prompt
from suri.data.records import Record
from suri.errors import UsageError
from suri.infer.engine import DecoderEngine, Engine
from suri.infer.pieces import Pieces
from suri.model.adapter_file import is_adapter, read_adapter
from suri.model.config import read_config
from suri.model.gguf_base import gguf_file
from suri.model.kernels import compile_few_rows
from suri.model.load import choose_device, load_decoder
from suri.model.storage import IN_USE
from suri.model.tokenizer import Tokenizer, read_tokenizer, tokenizer_file
from suri.model.weights import base_identity, find_base, recorded_base
from suri.recipe import EMBEDDED, Decoding
from suri.train.machine import dtype_on

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """One answer: its text, its number of tokens, and whether it ended by itself."""

    text: str
    tokens: int
    stopped: bool


@dataclass(frozen=True)
class Model:
    """An engine with the tokenizer and the prompt that belong to it; `label` names it to people."""

    engine: Engine
    tokenizer: Tokenizer
    prompt: Prompt
    label: str

    def answer(
        self, records: Sequence[Record], decoding: Decoding, stop: Event | None = None
    ) -> list[Answer]:
        """Answer all records, batched; `stop` ends them within one token."""
        prompts = [self._ids(record) for record in records]
        found = self.engine.generate(prompts, self.tokenizer.eos_id, decoding, stop=stop)
        return [Answer(self.tokenizer.decode(g.ids), len(g.ids), g.stopped) for g in found]

    def stream(
        self, record: Record, decoding: Decoding, stop: Event | None = None
    ) -> Iterator[str]:
        """Yield one piece of text for each token; joined they are the answer's text.

        A piece is empty while a character of several tokens is incomplete.
        """
        pieces = Pieces(self.tokenizer)
        for token in self.engine.stream(
            self._ids(record), self.tokenizer.eos_id, decoding, stop=stop
        ):
            yield pieces.take(token)
        if rest := pieces.rest():
            yield rest

    def _ids(self, record: Record) -> list[int]:
        return [int(token) for token in encode_prompt(record, self.tokenizer, self.prompt)]


def open_model(
    model: str,
    *,
    lora_weights: str = "",
    load_8bit: bool = False,
    quantize: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    engine: str = "suri",
) -> Model:
    """Open `embedded`, a run or adapter folder, or a model in HF's, Meta's or GGUF's format.

    With `lora_weights`, `model` is the base and that folder the adapter; a run or adapter folder
    alone brings the base it records. `quantize` None stores the base as in the adapter's
    training; `load_8bit` stores it as int8; `dtype` auto is float32 on a CPU and bfloat16 on a
    GPU. The prompt is the one saved with adapter or model, else alpaca's. `engine` transformers
    runs the same weights there.

    Raises UsageError for no such folder, neither model nor adapter, or an adapter for another
    base; Corrupt for a file that is not what its format says.
    """
    model = model.strip()
    base, adapter_folder = find_places(model, lora_weights.strip())
    adapter = read_adapter(adapter_folder) if adapter_folder else None
    recorded = adapter.base if adapter else {}
    warn_of_other_base(base, recorded)
    storage = storage_of(quantize or recorded.get("quantize"), load_8bit)
    place = choose_device(device)
    kind = dtype_on(place) if dtype == "auto" else getattr(torch, dtype)
    if adapter:
        adapter.check_fits(read_config(base))  # before gigabytes are read
    runs: Engine
    if engine == "transformers":
        from suri.infer.transformers_engine import TransformersEngine

        runs = TransformersEngine(base, adapter_folder, storage, kind, place)
    else:
        compile_few_rows()
        runs = DecoderEngine(
            load_decoder(base, quantize=storage, dtype=kind, device=place, adapter=adapter)
        )
    return Model(
        engine=runs,
        tokenizer=read_tokenizer(_with_tokenizer(base, adapter_folder)),
        prompt=read_prompt(adapter_folder or base),
        label=_label(base, adapter_folder, model, storage) + f", {place}",
    )


def storage_of(trained_on: str | None, load_8bit: bool = False) -> str:
    """How a base is stored that answers with an adapter which was trained on it so stored."""
    return "int8-weight" if load_8bit else IN_USE[trained_on or "none"]


def find_places(model: str, lora_weights: str) -> tuple[Path, Path | None]:
    """The folders of the base and of the adapter, if there is one."""
    if lora_weights:
        return find_base(model), Path(lora_weights).expanduser()
    folder = Path(model).expanduser()
    if model != EMBEDDED and is_adapter(folder):
        return recorded_base(folder), folder
    if model != EMBEDDED and folder.is_dir() and not _is_model(folder):
        raise UsageError(
            f"{folder} holds neither a model nor an adapter",
            found=", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing",
            do="give the output_dir of a finished training, or a folder with config.json, "
            "params.json or a GGUF file",
        )
    return find_base(model), None


def _is_model(folder: Path) -> bool:
    names = ("config.json", "params.json")
    return any((folder / name).is_file() for name in names) or gguf_file(folder) is not None


def warn_of_other_base(base: Path, recorded: dict[str, Any]) -> None:
    """Say it when an adapter meets other weights than it was trained on, as far as one can see.

    A copy in another dtype differs too and is of use, so this is no error.
    """
    known = recorded.get("fingerprint")
    if not known or base.resolve() == Path(str(recorded.get("path"))).resolve():
        return
    if base_identity(base, "none")["fingerprint"] != known:
        log.warning("the adapter was trained on other weights (%s)", recorded.get("path"))


def _label(base: Path, adapter_folder: Path | None, model: str, storage: str) -> str:
    """The model in a few words."""
    if adapter_folder:
        name = f"{adapter_folder} on {base.name}"
    elif model == EMBEDDED:
        name = f"{EMBEDDED}: {base.name}"
    else:  # of a GGUF file the base is a folder that was made of it
        name = model if gguf_file(Path(model).expanduser()) else str(base)
    return name if storage == "none" else f"{name}, {storage}"


def _with_tokenizer(base: Path, adapter_folder: Path | None) -> Path:
    """The base, or the adapter's folder where only that has a tokenizer."""
    if adapter_folder and not tokenizer_file(base):
        return adapter_folder
    return base
