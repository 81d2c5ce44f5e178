"""Models by name: what can share a decoder does, others are opened when asked for."""

import gc
from dataclasses import replace
from pathlib import Path

from suri.errors import DoesNotFit
from suri.files import size_bytes
from suri.infer.engines import Model, open_model
from suri.infer.served import Served, Turns
from suri.model.adapter_file import is_adapter
from suri.model.weights import recorded_base
from suri.train.jobs import Runs
from suri.train.machine import free_memory_bytes
from suri.wording import readable_bytes

EIGHT_BIT = "8-bit"
MODEL_FILES = ("config.json", "params.json", "model.gguf")
SPREAD = 2.5
"""A 16-bit file takes twice its size as fp32, and answering some more."""


class Shelf:
    """Opens models by name; one thread may use it, and one of its models at a time."""

    def __init__(self, served: Served, runs: Runs) -> None:
        self.served, self.runs = served, runs
        self.at_hand = tuple(served.voices)
        # The memory of a tokenizer is for one thread: a copy has its own.
        self.tokenizer = replace(served.tokenizer)
        self.opened: dict[str, Model] = {}
        self.device = served.decoder.embedding.device.type

    def names(self) -> list[str]:
        """The model of the start first, its base, 8-bit, then what lies in the folder of runs."""
        at_hand = sorted(self.at_hand, key=lambda name: name != self.served.default)
        eight = [EIGHT_BIT] if self.served.storage == "none" else []
        there = self.runs.holding("adapter_config.json", *MODEL_FILES)
        return list(dict.fromkeys([*at_hand, *eight, *there]))

    def take(self, name: str) -> Model:
        """The model, opened where it is not; others are closed where memory needs it."""
        if name not in self.served.voices and name not in self.opened:
            self._open(name)
        if name in self.opened:
            self.opened[name] = self.opened.pop(name)  # the last one used is the last one closed
            return self.opened[name]
        prompt = self.served.voices[name].prompt
        return Model(Turns(self.served, name), self.tokenizer, prompt, name)

    def _open(self, name: str) -> None:
        if name == EIGHT_BIT:
            voice = self.served.voices[self.served.default]
            self._make_room(self.served.base.folder, name)
            adapter = str(voice.folder) if voice.pairs else ""
            model = open_model(
                str(self.served.base.folder), lora_weights=adapter, load_8bit=True,
                device=self.device,
            )  # fmt: skip
            self.opened[name] = replace(model, prompt=voice.prompt)
            return
        folder = self.runs.place(name)
        if is_adapter(folder):
            if self.served.add(name, folder):
                return
            self._make_room(recorded_base(folder), name)
        else:
            self._make_room(folder, name)
        self.opened[name] = open_model(str(folder), device=self.device)

    def _make_room(self, folder: Path, name: str) -> None:
        """Close the models that were not used for longest until another fits."""
        needed = SPREAD * size_bytes(folder)
        while (free := free_memory_bytes(self.device)) is not None and free < needed:
            if not self.opened:
                raise DoesNotFit(
                    f"{name} does not fit into memory beside the others",
                    found=f"{readable_bytes(free)} free, {readable_bytes(needed)} needed",
                    do="start the page with that model alone: suri chat DIR",
                )
            self.opened.pop(next(iter(self.opened)))
            gc.collect()
