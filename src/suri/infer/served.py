"""One base in memory with any number of adapters over it, each a model of its own by name."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

from suri.data.chat_template import ChatPrompt
from suri.data.prompt import Prompt, find_prompt, read_prompt
from suri.errors import UsageError
from suri.infer.engine import DecoderEngine, Generated
from suri.infer.engines import find_places, open_model, storage_of, warn_of_other_base
from suri.model.adapter import Adapter
from suri.model.adapter_file import read_adapter
from suri.model.decoder import Decoder
from suri.model.linear import Linear, LowRank
from suri.model.tokenizer import Tokenizer
from suri.model.weights import recorded_base
from suri.recipe import Decoding

Placed = list[tuple[Linear, str, LowRank]]
"""An adapter's pairs, and where each belongs."""


@dataclass(frozen=True)
class Voice:
    """One of the models: its prompt, its adapter's pairs (none: the base), and its folder."""

    prompt: Prompt
    pairs: Placed
    folder: Path


class Served:
    """A decoder that answers as one of its voices at a time; `default` is the model asked for.

    Several threads may use it, in turns.
    """

    def __init__(
        self, decoder: Decoder, tokenizer: Tokenizer, voices: Mapping[str, Voice], default: str,
        storage: str = "none",
    ) -> None:  # fmt: skip
        self.decoder, self.tokenizer = decoder, tokenizer
        self.voices, self.default, self.storage = dict(voices), default, storage
        self._next, self._using = Lock(), Lock()
        self._now: Voice | None = None

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """The decoder as this voice, for one thread; who waits comes before who has just had it."""
        with self._next:
            self._using.acquire()
        try:
            self._become(name)
            yield
        finally:
            self._using.release()

    @property
    def base(self) -> Voice:
        """The voice without an adapter."""
        return next(voice for voice in self.voices.values() if not voice.pairs)

    def add(self, name: str, folder: Path) -> bool:
        """Put one more adapter over the base, if it was trained on that base, stored like this."""
        adapter = read_adapter(folder)
        if recorded_base(folder).resolve() != self.base.folder.resolve():
            return False
        if storage_of(adapter.base.get("quantize")) != self.storage:
            return False
        with self.turn(self.default):
            self._now = None
            pairs = _placed(self.decoder, adapter)
        # Others may be reading the old ones.
        self.voices = self.voices | {name: Voice(read_prompt(folder), pairs, folder)}
        return True

    def _become(self, name: str) -> None:
        """Put this voice's pairs, and no others, into the decoder; nothing is copied."""
        voice = self.voices[name]
        if voice is self._now:
            return
        for _, linear, part in self.decoder.linears():
            if part in linear.pairs:
                del linear.pairs[part]
        for linear, part, pair in voice.pairs:
            linear.pairs[part] = pair
        self._now = voice


class Turns(DecoderEngine):
    """Answers as one voice, a turn for each token, while others use the decoder too."""

    def __init__(self, served: Served, name: str) -> None:
        super().__init__(served.decoder)
        self.served, self.name = served, name

    def generate(
        self, prompts: Sequence[Sequence[int]], eos_id: int, decoding: Decoding, *,
        stop: Event | None = None,
    ) -> list[Generated]:  # fmt: skip
        """As in Engine, in one turn."""
        with self.served.turn(self.name):
            return super().generate(prompts, eos_id, decoding, stop=stop)

    def stream(
        self, prompt: Sequence[int], eos_id: int, decoding: Decoding, *, stop: Event | None = None
    ) -> Iterator[int]:
        """As in Engine."""
        tokens = super().stream(prompt, eos_id, decoding, stop=stop)
        while True:
            with self.served.turn(self.name):
                token = next(tokens, None)
            if token is None:
                return
            yield token


def open_served(
    model: str, *, lora_weights: str = "", adapters: Mapping[str, str] | None = None,
    load_8bit: bool = False, device: str = "auto", prompt: str = "",
) -> Served:  # fmt: skip
    """Open a base once, and over it the adapter of `model` or `lora_weights` and all `adapters`.

    `prompt` names a template for all of them; otherwise each has its own. Raises UsageError where
    two have one name, or where adapters were trained on the base in different storage.
    """
    base, own = find_places(model.strip(), lora_weights.strip())
    folders = {name: Path(folder).expanduser() for name, folder in (adapters or {}).items()}
    if own:
        folders = _with_own(own, folders)
    read = {name: read_adapter(folder) for name, folder in folders.items()}
    storage = _storage(read, load_8bit)
    opened = open_model(
        str(base),
        lora_weights=str(own or ""),
        load_8bit=load_8bit,
        quantize=storage,
        device=device,
    )
    assert isinstance(opened.engine, DecoderEngine)
    decoder = opened.engine.decoder
    given = find_prompt(prompt, opened.tokenizer) if prompt else None
    alone = model.strip() if not own or lora_weights.strip() else ""
    name = _name_of_base(base, alone, next(iter(read.values())) if own else None)
    name += "-base" * (name in folders)
    voices = {name: Voice(given or read_prompt(base), [], base)}
    for each, folder in folders.items():
        warn_of_other_base(base, read[each].base)
        pairs = _placed(decoder, read[each])
        voices[each] = Voice(given or read_prompt(folder), pairs, folder)
    default = next(iter(folders)) if own else name
    return Served(decoder, opened.tokenizer, voices, default, storage_of(storage, load_8bit))


def check_prompt(name: str) -> None:
    """Tell of a wrong template before gigabytes are read."""
    if name and name != ChatPrompt.name:
        find_prompt(name)


def _name_of_base(base: Path, asked: str, adapter: Adapter | None) -> str:
    """The base as people know it: as asked for, as the adapter recorded it, or by its folder."""
    if asked:
        return asked if not Path(asked).expanduser().exists() else Path(asked).resolve().name
    recorded = str(adapter.base.get("name") or "") if adapter else ""
    return Path(recorded).name or base.resolve().name


def _with_own(own: Path, folders: dict[str, Path]) -> dict[str, Path]:
    name = own.resolve().name
    if name in folders:
        raise UsageError(
            f"two adapters are called {name}", do="give the other one by another --adapter NAME"
        )
    return {name: own} | folders


def _storage(adapters: Mapping[str, Adapter], load_8bit: bool) -> str | None:
    """How the base is stored: as in the adapters' training, where they agree."""
    storages = {each.base.get("quantize") or "none" for each in adapters.values()}
    if len(storages) > 1 and not load_8bit:
        raise UsageError(
            "these adapters were trained on a base in different storage",
            found=", ".join(sorted(storages)),
            do="serve them apart, or all over an int8 base: --load_8bit",
        )
    return storages.pop() if storages else None


def _placed(decoder: Decoder, adapter: Adapter) -> Placed:
    """The adapter's pairs for this decoder, which is left without them."""
    adapter.check_fits(decoder.config)
    placed: Placed = []
    for number, (name, linear, part) in enumerate(decoder.linears()):
        if name in adapter.tensors:
            pair = adapter.attach_to(name, linear, part, number)
            placed.append((linear, part, pair.requires_grad_(False)))
            del linear.pairs[part]
    return placed
