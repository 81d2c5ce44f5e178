"""Reading a written model back from disk by code that did not write it, for its logits."""

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from suri.export.fold import Merge, MergeBase
from suri.export.gguf_reader import GGUF_FILE, GgufTensors, transformers_gguf
from suri.export.meta_decoder import MetaDecoder
from suri.model.attention import PackedAttention
from suri.model.decoder import Decoder
from suri.model.gguf_base import convert
from suri.model.load import load_decoder
from suri.model.meta_shards import FIRST
from suri.model.vector_math import settle
from suri.model.weights import open_weights

Texts = Sequence[Sequence[int]]


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
    if importlib.util.find_spec("transformers"):
        return _transformers_logits(folder, to, texts)
    if to == "gguf":
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            convert(folder / GGUF_FILE, Path(place), [])
            return "suri", decoder_logits(load_decoder(Path(place)), texts)
    return "suri", decoder_logits(load_decoder(folder), texts)


def source_logits(merge: Merge, texts: Texts) -> Tensor:
    """What a written folder's logits must be: fp32 [T, vocab] of base + unmerged adapter.

    A Meta folder that is converted is read by `meta_decoder`: how its files are put together, and
    in what order its rows are, is what the conversion could have got wrong.
    """
    folder = merge.base.folder
    if merge.adapter is None and FIRST in [file.name for file in merge.base.files]:
        return MetaDecoder(folder).logits(texts)
    decoder = load_decoder(folder, quantize=merge.quantize, adapter=merge.adapter)
    return decoder_logits(decoder, texts)


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
