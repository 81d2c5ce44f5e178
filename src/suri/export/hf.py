"""Writing a merge as a Hugging Face model folder, one tensor in memory at a time."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from suri.export.companions import sampling
from suri.export.fold import Merge, Report, fold, silent
from suri.export.peft_merge import merged_weights
from suri.files import fault, replacing, write_json
from suri.model.config import ModelConfig, class_of
from suri.model.tensor_files import write_safetensors
from suri.model.tokenizer import Tokenizer

SHARD_BYTES = 5 * 10**9
"""Most bytes of one file, unless a single tensor is larger."""

DROPPED = (
    "auto_map", "custom_pipelines", "quantization_config", "torch_dtype", "_name_or_path",
    "_attn_implementation", "transformers_version",
)  # fmt: skip
"""Keys of config.json that would run code of the base's folder, or no longer hold."""

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_hf(merge: Merge, folder: Path, report: Report = silent) -> None:
    """Write weights, config.json and generation_config.json."""
    write_weights(merge, folder, report)
    config = merged_config(merge.base.config, merge.dtype_name, merge.tokenizer)
    write_json(folder / "config.json", config)
    ids = {name: value for name, value in config.items() if name in SPECIAL_IDS}
    write_json(folder / "generation_config.json", ids | sampling())


def merged_config(
    config: ModelConfig, dtype: str, tokenizer: Tokenizer | None = None
) -> dict[str, Any]:
    """config.json of the result: the base's, its dtype, its class and usable special tokens."""
    kept = {name: value for name, value in config.raw.items() if name not in DROPPED}
    for name in SPECIAL_IDS:
        if isinstance(kept.get(name), int) and not 0 <= kept[name] < config.vocab_size:
            del kept[name]
    if tokenizer is not None:
        kept |= _special_ids(kept, tokenizer)
    return kept | {"architectures": [class_of(config.model_type)], "dtype": dtype}


def _special_ids(raw: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """The token that training learned to end with must end the result's answers, too."""
    ends = raw.get("eos_token_id")
    ids: dict[str, Any] = {"pad_token_id": tokenizer.pad_id}
    if not (isinstance(ends, list) and tokenizer.eos_id in ends):
        ids["eos_token_id"] = tokenizer.eos_id
    if tokenizer.bos_id is not None:
        ids["bos_token_id"] = tokenizer.bos_id
    return ids


def write_weights(merge: Merge, folder: Path, report: Report = silent) -> None:
    """Write model.safetensors, or shards of at most SHARD_BYTES with their index."""
    size = merge.dtype.itemsize
    shapes = {name: merge.base.shape(name) for name in merge.base}
    shards = _shards({name: size * math.prod(shape) for name, shape in shapes.items()})
    dora = bool(merge.adapter and merge.adapter.magnitudes)
    weights, adapter = (merged_weights(merge), None) if dora else (merge.base, merge.adapter)
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = file if len(shards) > 1 else "model.safetensors"
        if not (folder / file).exists():  # whole, of a merge that was killed
            entries = [(name, shapes[name], merge.dtype) for name in names]
            with replacing(folder / file) as temporary:
                stream = fold(weights, adapter, merge.dtype, names)
                told = _reported(stream, report, len(places), len(merge.base))
                write_safetensors(temporary, entries, told)
            fault("merge.shard")
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(size * math.prod(shape) for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(folder / "model.safetensors.index.json", index)


def _reported(
    stream: Iterator[tuple[str, Tensor]], report: Report, before: int, total: int
) -> Iterator[tuple[str, Tensor]]:
    for done, pair in enumerate(stream, before + 1):
        report("folding", done, total)
        yield pair


def _shards(sizes: dict[str, int]) -> list[list[str]]:
    """Names in order, cut where the next tensor would make a file longer than SHARD_BYTES."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
