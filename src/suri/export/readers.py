"""Reading a written model back from disk by code that did not write it, for its logits."""

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from suri.export.fold import Merge, MergeBase
from suri.export.gguf_reader import GGUF_FILE, GgufTensors, transformers_gguf
from suri.export.meta_decoder import MetaDecoder
from suri.export.peft_merge import no_bars, unmerged_logits
from suri.export.streamed import streamed_logits
from suri.model.gguf_base import convert
from suri.model.load import layered_logits
from suri.model.meta_shards import FIRST
from suri.model.vector_math import settle
from suri.model.weights import open_weights
from suri.reading import read_object

Texts = Sequence[Sequence[int]]
LARGE_BYTES = 4_000_000_000
"""Weight files of more bytes are read by transformers one module at a time, not as a whole."""
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
    said = set(read_object(folder / INDEX)["weight_map"].items())
    found = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as shard:
            found |= {(name, file.name) for name in shard.offset_keys()}
    return len(said ^ found)


def read_logits(folder: Path, to: str, texts: Texts, base: MergeBase) -> tuple[str, Tensor]:
    """The reader's name and fp32 logits [T, vocab] of token-id lists, one after the other.

    Meta folders are read by `meta_decoder`, HF and GGUF folders by transformers; where that is
    not installed, and large GGUF files that it holds as a whole, by Suri's own decoder with the
    configuration of `base`, and the name says so.
    """
    settle()
    if to == "meta":
        return "meta_decoder", MetaDecoder(folder).logits(texts)
    files = [*folder.glob("*.safetensors"), *folder.glob(GGUF_FILE)]
    large = sum(file.stat().st_size for file in files) > LARGE_BYTES
    if large and to == "gguf":
        weights = GgufTensors(folder, base.config, list(base))
        found = layered_logits(base.folder, texts, weights=weights, config=base.config)
        return "suri, one weight at a time", found
    if importlib.util.find_spec("transformers") and not large:
        return _transformers_logits(folder, to, texts)
    if large and all(map(importlib.util.find_spec, ("transformers", "accelerate"))):
        return _transformers("one module at a time"), streamed_logits(folder, texts)
    if to == "gguf":
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            convert(folder / GGUF_FILE, Path(place), [])
            return "suri", layered_logits(Path(place), texts)
    return "suri", layered_logits(folder, texts)


def source_logits(merge: Merge, texts: Texts) -> Tensor:
    """What a written folder's logits must be: fp32 [T, vocab] of base + unmerged adapter.

    A Meta folder that is converted is read by `meta_decoder`: how its files are put together, and
    in what order its rows are, is what the conversion could have got wrong. DoRA is peft's.
    """
    if merge.adapter and merge.adapter.magnitudes:
        return unmerged_logits(merge, texts)
    folder = merge.base.folder
    if merge.adapter is None and FIRST in [file.name for file in merge.base.files]:
        return MetaDecoder(folder).logits(texts)
    return layered_logits(folder, texts, quantize=merge.quantize, adapter=merge.adapter)


def _transformers(how: str = "") -> str:
    return f"transformers {version('transformers')}" + (f", {how}" if how else "")


@torch.no_grad()
def _transformers_logits(folder: Path, to: str, texts: Texts) -> tuple[str, Tensor]:
    import transformers

    with no_bars():
        if to == "gguf":
            model = transformers_gguf(folder)
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
    logits = [model(torch.tensor([list(ids)])).logits[0] for ids in texts]
    return _transformers(), torch.cat(logits)
