"""Reading a written model back from disk by code that did not write it, for its logits."""

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from suri.export.fold import MergeBase
from suri.export.gguf_reader import GGUF_FILE, GgufTensors, transformers_gguf
from suri.export.meta_decoder import MetaDecoder
from suri.files import read_json
from suri.model.attention import PackedAttention
from suri.model.decoder import Decoder
from suri.model.gguf_base import convert
from suri.model.load import load_decoder
from suri.model.vector_math import settle
from suri.model.weights import open_weights

Texts = Sequence[Sequence[int]]
INDEX = "model.safetensors.index.json"


def read_tensors(folder: Path, to: str, base: MergeBase) -> Mapping[str, Tensor]:
    """The tensors of a written folder by HF name, as stored."""
    if to == "gguf":
        return GgufTensors(folder, base.config, list(base))
    return open_weights(folder)


def misplaced(folder: Path) -> int | None:
    """How many tensors lie elsewhere than the folder's index says; None without an index.

    Readers that open every shard do not see it; others make up what they do not find.
    """
    if not (folder / INDEX).is_file():
        return None
    said = set(read_json(folder / INDEX)["weight_map"].items())
    found = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as shard:
            found |= {(name, file.name) for name in shard.offset_keys()}
    return len(said ^ found)


def read_logits(folder: Path, to: str, texts: Texts) -> tuple[str, Tensor]:
    """The reader's name and fp32 logits [T, vocab] of token-id lists, one after the other.

    Meta folders are read by `meta_decoder`, HF and GGUF folders by transformers; where that is
    not installed, by Suri's own decoder, and the name says so.
    """
    settle()
    if to == "meta":
        return "meta_decoder", MetaDecoder(folder).logits(texts)
    if importlib.util.find_spec("transformers"):
        return _transformers_logits(folder, to, texts)
    if to == "gguf":
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            convert(folder / GGUF_FILE, Path(place), [])
            return "suri", decoder_logits(load_decoder(Path(place)), texts)
    return "suri", decoder_logits(load_decoder(folder), texts)


@torch.no_grad()
def decoder_logits(decoder: Decoder, texts: Texts) -> Tensor:
    """fp32 logits [T, vocab] of Suri's decoder for the same lists as one packed stream."""
    lengths = [len(ids) for ids in texts]
    stream = torch.tensor([i for ids in texts for i in ids])
    positions = torch.cat([torch.arange(length) for length in lengths])
    attend = PackedAttention(lengths, decoder.config.sliding_window)
    return decoder.logits(decoder(stream, positions, attend))


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
    return f"transformers {transformers.__version__}", torch.cat(logits)
