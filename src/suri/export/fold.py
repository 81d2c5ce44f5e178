"""Folding an adapter into its base: W + scaling * B A, one tensor at a time."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from suri.errors import Corrupt, UsageError
from suri.model.adapter import Adapter, read_adapter
from suri.model.config import read_config
from suri.model.storage import nf4_roundtrip
from suri.model.tokenizer import FILE, SENTENCEPIECE, Tokenizer, read_tokenizer
from suri.model.weights import base_identity, open_weights, recorded_base

BLOCK_BYTES = 4_000_000
"""Most bytes of one block of rows in fp32: what stays in a processor's cache."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

MergeBaseName = Literal["dequantized", "original"]
Report = Callable[[str, int, int], None]
"""Told the stage, what is done of it and its total."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


class MergeBase(Mapping[str, Tensor]):
    """The frozen weights by HF name, each read when asked for; a tied head has no name of its own.

    With `dequantized` the linears pass through nf4 and back in fp32, as training used them.
    """

    def __init__(self, folder: Path, *, dequantized: bool = False) -> None:
        self.folder, self.config = folder, read_config(folder)
        self._weights = open_weights(folder)
        self.files = self._weights.files
        linears = {
            f"model.layers.{number}.{module}.weight"
            for number in range(self.config.num_layers)
            for module in self.config.linear_shapes()
        }
        if missing := sorted(linears - set(self._weights)):
            raise Corrupt(f"{folder}: weights are missing", found=", ".join(missing))
        self._roundtrip = linears if dequantized else set()
        tied = {"lm_head.weight"} if self.config.tied_head else set()
        self._names = [name for name in self._weights if name not in tied]

    def __getitem__(self, name: str) -> Tensor:
        weight = self._weights[name]
        return nf4_roundtrip(weight.float()) if name in self._roundtrip else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; nothing is quantised to learn it."""
        return self._weights.stored(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """The number format of a tensor as it is stored."""
        return self._weights.stored(name).dtype

    def rows(self, name: str, rows: list[int]) -> Tensor:
        """Some rows of a tensor; one that passes through nf4 is made whole for them."""
        if name in self._roundtrip:
            return self[name][rows]
        return self._weights.stored(name).read(rows)


@dataclass(frozen=True)
class Merge:
    """What is folded: an adapter, the base under it, and the dtype of the result.

    `quantize` is how the base is stored in the model that the result must equal: nf4 or none.
    """

    base: MergeBase
    adapter: Adapter
    adapter_folder: Path
    dtype: torch.dtype
    quantize: str
    tokenizer: Tokenizer | None

    @property
    def dtype_name(self) -> str:
        """As config.json writes it: float32, float16 or bfloat16."""
        return str(self.dtype).removeprefix("torch.")


def open_merge(
    adapter_folder: Path,
    base_folder: Path | None = None,
    *,
    dtype: str = "auto",
    merge_base: MergeBaseName = "dequantized",
) -> Merge:
    """Open an adapter and its base (the recorded one unless given) and check that they fit.

    `dtype` auto is the base's own. `merge_base` matters for adapters trained on nf4 alone.
    Raises UsageError for another base than the adapter's, listing what does not fit.
    """
    adapter = read_adapter(adapter_folder)
    folder = base_folder or recorded_base(adapter_folder)
    _check_same_base(adapter, folder)
    trained_on_nf4 = adapter.base.get("quantize") == "nf4"
    quantize = "nf4" if trained_on_nf4 and merge_base == "dequantized" else "none"
    base = MergeBase(folder, dequantized=quantize == "nf4")
    adapter.check_fits(base.config)
    tokenizer = _tokenizer(folder, adapter_folder)
    return Merge(base, adapter, adapter_folder, _dtype(dtype, base), quantize, tokenizer)


def fold(
    weights: Mapping[str, Tensor],
    adapter: Adapter | None,
    dtype: torch.dtype,
    names: Iterable[str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Give each HF name (those of `names` alone) with its merged tensor in `dtype`, in order.

    Raises Corrupt for a result that is not finite (in float16: above 65,504).
    """
    modules = {} if adapter is None else {f"{module}.weight": module for module in adapter.tensors}
    for name in weights if names is None else names:
        weight = weights[name]
        if adapter is not None and name in modules:
            merged = add_delta(weight, adapter, modules[name], dtype)
        else:
            merged = weight.to(dtype)
        if not is_finite(merged):
            raise Corrupt(
                f"{name} holds numbers that are not finite in {dtype}",
                do="merge with --dtype bfloat16 or float32, whose range is wider",
            )
        yield name, merged


def add_delta(weight: Tensor, adapter: Adapter, module: str, dtype: torch.dtype) -> Tensor:
    """W + scaling * B A in fp32, cast once to `dtype`; [out, in], summed in blocks of rows."""
    merged = torch.empty(weight.shape, dtype=dtype)
    for rows in blocks(weight):
        block = weight[rows].to(torch.float32, copy=True)
        merged[rows] = adapter.weight_delta(module, rows, onto=block)
    return merged


def is_finite(tensor: Tensor) -> bool:
    """Whether every entry is; the extremes tell, and cost a tenth of asking each one in bf16."""
    return not tensor.numel() or all(map(math.isfinite, map(float, torch.aminmax(tensor))))


def blocks(weight: Tensor) -> Iterator[slice]:
    """Rows of a tensor, BLOCK_BYTES of them in fp32 at a time."""
    width = math.prod(weight.shape[1:])
    step = max(1, BLOCK_BYTES // (4 * width))
    for start in range(0, len(weight), step):
        yield slice(start, start + step)


def _check_same_base(adapter: Adapter, folder: Path) -> None:
    """Raise UsageError where the adapter recorded another base than this one."""
    recorded = adapter.base.get("fingerprint")
    if recorded and recorded != base_identity(folder, "none")["fingerprint"]:
        raise UsageError(
            f"{folder} is not the base that this adapter was trained on",
            found="other tensors than the fingerprint in the adapter's base.json says",
            do=f"give the one it was trained on, then at {adapter.base.get('path')}",
        )


def _dtype(name: str, base: MergeBase) -> torch.dtype:
    """The dtype asked for; auto is that of the base's own embedding."""
    if name == "auto":
        name = str(base.dtype("model.embed_tokens.weight")).removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError(
            f"weights of dtype {name} are not written", do=f"choose --dtype {' or '.join(DTYPES)}"
        )
    return DTYPES[name]


def _tokenizer(*folders: Path) -> Tokenizer | None:
    """The tokenizer of the first folder that has one."""
    for folder in folders:
        if (folder / FILE).is_file() or (folder / SENTENCEPIECE).is_file():
            return read_tokenizer(folder)
    return None
