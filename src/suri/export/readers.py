"""Reading a written model back from disk by code that did not write it, for its logits."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from suri.export.meta_decoder import MetaDecoder
from suri.model.attention import PackedAttention
from suri.model.decoder import Decoder
from suri.model.load import load_decoder
from suri.model.vector_math import settle

Texts = Sequence[Sequence[int]]


def read_logits(folder: Path, to: str, texts: Texts) -> tuple[str, Tensor]:
    """The reader's name and fp32 logits [T, vocab] of token-id lists, one after the other.

    Meta folders are read by `meta_decoder`, HF folders by transformers; where that is not
    installed, by Suri's own decoder, and the name says so.
    """
    settle()
    if to == "meta":
        return "meta_decoder", MetaDecoder(folder).logits(texts)
    if importlib.util.find_spec("transformers"):
        return _transformers_logits(folder, texts)
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
def _transformers_logits(folder: Path, texts: Texts) -> tuple[str, Tensor]:
    import transformers
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    finally:
        if bars:
            logging.enable_progress_bar()
    logits = [model(torch.tensor([list(ids)])).logits[0] for ids in texts]
    return f"transformers {transformers.__version__}", torch.cat(logits)
