"""The same model run by transformers, with an adapter by peft: slower, and independent of ours."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor

from suri.errors import UsageError
from suri.infer.engine import Generated
from suri.recipe import Decoding
from suri.train.reference import load_transformers

NOTHING = -1
"""No token's id: where nothing ends a text, and what ends a stream."""


class TransformersEngine:
    """A causal model of transformers, prompts padded on the left."""

    def __init__(
        self, base: Path, adapter: Path | None, quantize: str, dtype: torch.dtype, device: str
    ) -> None:
        """Raises UsageError where a package is missing, or the base is in another format."""
        if not (base / "config.json").is_file():
            raise UsageError(
                f"transformers does not read {base}", do="use Suri's own engine for it"
            )
        if quantize not in ("none", "nf4"):
            raise UsageError(f"the engine transformers is not offered with a base in {quantize}")
        own = {"local_files_only": True, "use_safetensors": True}
        model = load_transformers(base, quantize, dtype, device, **own)
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig()
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter)
        self.model = model.eval()

    @property
    def device(self) -> str:
        """As in Engine."""
        return str(self.model.device.type)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        eos_id: int,
        decoding: Decoding,
        *,
        stop: Event | None = None,
    ) -> list[Generated]:
        """As in Engine."""
        longest = max(map(len, prompts))
        rows = [[0] * (longest - len(p)) + [int(i) for i in p] for p in prompts]
        masks = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
        found = self._generate(rows, masks, eos_id, decoding, stop, None)
        return [_until_end(row[longest:].tolist(), eos_id) for row in found]

    def stream(
        self, prompt: Sequence[int], eos_id: int, decoding: Decoding, *, stop: Event | None = None
    ) -> Iterator[int]:
        """As in Engine."""
        if decoding.num_beams > 1:
            yield from self.generate([prompt], eos_id, decoding, stop=stop)[0].ids
            return
        row, mask = [[int(token) for token in prompt]], [[1] * len(prompt)]
        come: Queue[int | BaseException] = Queue()

        def work() -> None:
            try:
                self._generate(row, mask, eos_id, decoding, stop, _Streamer(come, len(prompt)))
                come.put(NOTHING)
            except BaseException as problem:
                come.put(problem)

        Thread(target=work, daemon=True).start()
        while (token := come.get()) != NOTHING:
            if isinstance(token, BaseException):
                raise token
            if token != eos_id:
                yield token

    @torch.no_grad()
    def log_probs(self, ids: Sequence[int], places: Sequence[int]) -> Tensor:
        """As in Engine."""
        text = torch.as_tensor(ids, dtype=torch.int64, device=self.model.device)[None]
        before = torch.as_tensor(places, dtype=torch.int64, device=self.model.device) - 1
        logits = self.model(input_ids=text, use_cache=False).logits[0, before]
        return logits.float().log_softmax(dim=-1).cpu()  # type: ignore[no-any-return]

    @torch.no_grad()
    def _generate(
        self,
        rows: list[list[int]],
        masks: list[list[int]],
        eos_id: int,
        decoding: Decoding,
        stop: Event | None,
        streamer: "_Streamer | None",
    ) -> Tensor:
        from transformers import GenerationConfig, StoppingCriteriaList

        settings: dict[str, Any] = {
            "max_new_tokens": decoding.max_new_tokens,
            "num_beams": decoding.num_beams,
            "repetition_penalty": decoding.repetition_penalty,
            "pad_token_id": 0,
        }
        if eos_id >= 0:
            settings["eos_token_id"] = eos_id
        if decoding.temperature:
            torch.manual_seed(decoding.seed)
            names = ("temperature", "top_p", "top_k")
            settings |= {"do_sample": True} | {name: getattr(decoding, name) for name in names}

        def are_stopped(ids: Tensor, _scores: Any, **_: Any) -> Tensor:
            return torch.full((len(ids),), stop is not None and stop.is_set(), device=ids.device)

        return self.model.generate(  # type: ignore[no-any-return]
            input_ids=torch.tensor(rows, device=self.model.device),
            attention_mask=torch.tensor(masks, device=self.model.device),
            generation_config=GenerationConfig(**settings),
            stopping_criteria=StoppingCriteriaList([are_stopped]),
            streamer=streamer,
        )


class _Streamer:
    """What transformers gives tokens to; the first of them are the prompt's, and left out."""

    def __init__(self, queue: "Queue[int | BaseException]", left_out: int) -> None:
        self.queue, self.left_out = queue, left_out

    def put(self, value: Tensor) -> None:
        """Called by transformers with the prompt, then with one token at a time."""
        for token in value.flatten().tolist():
            if self.left_out:
                self.left_out -= 1
            else:
                self.queue.put(token)

    def end(self) -> None:
        """Called by transformers after the last token."""


def _until_end(ids: list[int], eos_id: int) -> Generated:
    """The tokens before the end-of-text token; a row that ended early is padded after it."""
    if eos_id in ids:
        return Generated(ids[: ids.index(eos_id)], stopped=True)
    return Generated(ids, stopped=False)
