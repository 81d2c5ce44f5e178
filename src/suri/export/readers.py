"""Reading a written model back from disk by code that did not write it, for its logits."""

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from suri.export.fold import MergeBase
from suri.export.gguf_reader import GGUF_FILE, GgufTensors, transformers_gguf
from suri.export.meta_decoder import MetaDecoder
from suri.export.streamed import streamed_logits
from suri.model.gguf_base import convert
from suri.model.load import layered_logits
from suri.model.vector_math import settle
from suri.model.weights import open_weights

Texts = Sequence[Sequence[int]]
LARGE_BYTES = 4_000_000_000
"""Weight files of more bytes are read by transformers one module at a time, not as a whole."""


def read_tensors(folder: Path, to: str, base: MergeBase) -> Mapping[str, Tensor]:
    """The tensors of a written folder by HF name, as stored."""
    if to == "gguf":
        return GgufTensors(folder, base.config, list(base))
    return open_weights(folder)


def read_logits(folder: Path, to: str, texts: Texts) -> tuple[str, Tensor]:
    """The reader's name and fp32 logits [T, vocab] of token-id lists, one after the other.

    Meta folders are read by `meta_decoder`, HF and GGUF folders by transformers; where that is
    not installed, by Suri's own decoder, and the name says so.
    """
    settle()
    if to == "meta":
        return "meta_decoder", MetaDecoder(folder).logits(texts)
    large = sum(file.stat().st_size for file in folder.glob("*.safetensors")) > LARGE_BYTES
    if large and to == "hf" and importlib.util.find_spec("accelerate"):
        return _transformers("one module at a time"), streamed_logits(folder, texts)
    if importlib.util.find_spec("transformers") and not large:
        return _transformers_logits(folder, to, texts)
    if to == "gguf":
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            convert(folder / GGUF_FILE, Path(place), [])
            return "suri", layered_logits(Path(place), texts)
    return "suri", layered_logits(folder, texts)


def _transformers(how: str = "") -> str:
    return f"transformers {version('transformers')}" + (f", {how}" if how else "")


@torch.no_grad()
def _transformers_logits(folder: Path, to: str, texts: Texts) -> tuple[str, Tensor]:
    import transformers
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        if to == "gguf":
            model = transformers_gguf(folder)
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
    finally:
        if bars:
            logging.enable_progress_bar()
    logits = [model(torch.tensor([list(ids)])).logits[0] for ids in texts]
    return _transformers(), torch.cat(logits)
