"""Folding an adapter into its base: W + scaling * B A, one tensor at a time."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from suri.errors import Corrupt, UsageError
from suri.export.provenance import check_holds_no_other, check_is_no_merge
from suri.model.adapter import Adapter
from suri.model.adapter_file import is_adapter, read_adapter
from suri.model.config import read_config
from suri.model.storage import nf4_roundtrip
from suri.model.tokenizer import Tokenizer, read_tokenizer, tokenizer_file
from suri.model.weights import base_identity, check_layers, open_weights, recorded_base

BLOCK_BYTES = 4_000_000
"""Most bytes of one block of rows in fp32: what stays in a processor's cache."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Q8_0 = "q8_0"
"""GGUF's blocks of 32 integers of 8 bits with one scale in fp16; it is rounded from fp32."""

MergeBaseName = Literal["dequantized", "original"]
Report = Callable[[str, int, int], None]
"""Told the stage, what is done of it and its total."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


BY_WORD = ("model.embed_tokens.weight", "lm_head.weight")
"""The tensors with a row for each word."""


class MergeBase(Mapping[str, Tensor]):
    """The frozen weights by HF name, each read when asked for; a tied head has no name of its own.

    Where the tokenizer has more `words` than they have rows, the embedding and the head get as many
    more, each the mean of the others, so that no token lies outside.
    With `dequantized` the linears pass through nf4 and back in fp32, as training used them.
    """

    def __init__(self, folder: Path, *, dequantized: bool = False, words: int = 0) -> None:
        self.folder, self.config = folder, read_config(folder)
        self.added = max(0, words - self.config.vocab_size)
        self._weights = open_weights(folder)
        self.files = self._weights.files
        check_layers(self._weights, self.config, folder)
        linears = {f"{module}.weight": shape for module, shape in self.config.modules().items()}
        if missing := sorted(set(linears) - set(self._weights)):
            raise Corrupt(f"{folder}: weights are missing", found=", ".join(missing))
        for name, shape in linears.items():
            if (found := self._weights.stored(name).shape) != shape:
                raise Corrupt(
                    f"{folder}: {name} does not fit the configuration",
                    found=f"{list(found)} where {list(shape)} is needed",
                )
        self._roundtrip = set(linears) if dequantized else set()
        tied = {"lm_head.weight"} if self.config.tied_head else set()
        self._names = [name for name in self._weights if name not in tied]
        if self.added:
            raw = self.config.raw | {"vocab_size": words}
            self.config = replace(self.config, vocab_size=words, raw=raw)

    def __getitem__(self, name: str) -> Tensor:
        weight = self._weights[name]
        if self.added and name in BY_WORD:
            mean = weight.double().mean(dim=0).to(weight.dtype)
            return torch.cat([weight, mean.expand(self.added, -1)])
        return nf4_roundtrip(weight.float()) if name in self._roundtrip else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; nothing is quantised to learn it."""
        shape = self._weights.stored(name).shape
        return (self.config.vocab_size, *shape[1:]) if self.added and name in BY_WORD else shape

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

    Without an adapter the base itself is written in another form, and its tokenizer with it.
    `quantize` is how the base is stored in the model that the result must equal: nf4 or none.
    `rounded_to` is q8_0 where the sum in `dtype` is not yet what is stored.
    """

    base: MergeBase
    adapter: Adapter | None
    adapter_folder: Path | None
    dtype: torch.dtype
    quantize: str
    tokenizer: Tokenizer | None
    rounded_to: str = ""

    @property
    def dtype_name(self) -> str:
        """As config.json writes it, float32, float16 or bfloat16; or q8_0."""
        return self.rounded_to or str(self.dtype).removeprefix("torch.")

    @property
    def itemsize(self) -> float:
        """Bytes of a number as stored; q8_0 has 34 for 32."""
        return 34 / 32 if self.rounded_to else self.dtype.itemsize

    @property
    def title(self) -> str:
        """The names of what went in."""
        folders = [folder for folder in (self.base.folder, self.adapter_folder) if folder]
        return " + ".join(name_of(folder) for folder in folders)


def name_of(folder: Path) -> str:
    """A folder's name as people know it; that of a snapshot in the hub's cache is its hub id."""
    folder = folder.absolute()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.name


def open_merge(
    adapter_folder: Path | None,
    base_folder: Path | None = None,
    *,
    dtype: str = "auto",
    merge_base: MergeBaseName = "dequantized",
    to: str = "",
    dora: bool = False,
) -> Merge:
    """Open an adapter and its base (the recorded one unless given) and check that they fit.

    `dtype` auto is the base's own, q8_0 is for `to` gguf alone. `merge_base` matters for adapters
    trained on nf4 alone. With `dora` a DoRA adapter is taken too, for those who leave the merging
    to peft. Without an adapter it is the base that is written.
    Raises UsageError for another base than the adapter's, listing what does not fit, and for a
    base that holds this or another adapter already.
    """
    if adapter_folder is None:
        return _open_conversion(base_folder, dtype, to)
    check_is_no_merge(adapter_folder)
    adapter = read_adapter(adapter_folder, dora=dora)
    folder = base_folder or recorded_base(adapter_folder)
    check_holds_no_other(folder, adapter_folder, adapter)
    _check_same_base(adapter, folder)
    trained_on_nf4 = adapter.base.get("quantize") == "nf4"
    quantize = "nf4" if trained_on_nf4 and merge_base == "dequantized" else "none"
    tokenizer = _tokenizer(folder, adapter_folder)
    words = tokenizer.vocab_size if tokenizer else 0
    base = MergeBase(folder, dequantized=quantize == "nf4", words=words)
    adapter.check_fits(base.config)
    number, rounded_to = _numbers(dtype, to, base)
    return Merge(base, adapter, adapter_folder, number, quantize, tokenizer, rounded_to)


def _open_conversion(folder: Path | None, dtype: str, to: str) -> Merge:
    assert folder is not None  # without an adapter nothing records it
    if is_adapter(folder):
        raise UsageError(
            f"{folder} is an adapter, and only whole models are converted",
            do=f"`suri merge {folder}` makes one of it and its base, in any of the formats",
        )
    base = MergeBase(folder)
    number, rounded_to = _numbers(_exact_dtype(base) if dtype == "auto" else dtype, to, base)
    return Merge(base, None, None, number, "none", _tokenizer(folder), rounded_to)


def _numbers(name: str, to: str, base: MergeBase) -> tuple[torch.dtype, str]:
    """In what the sum is made, and to what it is rounded where that is no dtype of torch.

    auto is the dtype of the base's own embedding.
    """
    if (name, to) == (Q8_0, "gguf"):
        return torch.float32, Q8_0
    if name == "auto":
        name = str(base.dtype("model.embed_tokens.weight")).removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError(
            f"weights of dtype {name} are not written",
            do=f"choose --dtype {' or '.join(DTYPES)}, or {Q8_0} with --to gguf",
        )
    return DTYPES[name], ""


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
    step = max(1, BLOCK_BYTES // (4 * weight.shape[1]))
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        block = weight[rows].to(torch.float32, copy=True)
        merged[rows] = adapter.weight_delta(module, rows, onto=block)
    return merged


def is_finite(tensor: Tensor) -> bool:
    """Whether every entry is; the extremes tell, and cost a tenth of asking each one in bf16."""
    return not tensor.numel() or all(map(math.isfinite, map(float, torch.aminmax(tensor))))


def _check_same_base(adapter: Adapter, folder: Path) -> None:
    """Raise UsageError where the adapter recorded another base than this one."""
    recorded = adapter.base.get("fingerprint")
    if recorded and recorded != base_identity(folder, "none")["fingerprint"]:
        raise UsageError(
            f"{folder} is not the base that this adapter was trained on",
            found="other tensors than the fingerprint in the adapter's base.json says",
            do=f"give the one it was trained on, then at {adapter.base.get('path')}",
        )


def _exact_dtype(base: MergeBase) -> str:
    """The embedding's dtype where every number of the base has a place in it, else fp32.

    GGUF files mix: norms in fp32 beside an embedding in fp16, linears of a few bits.
    """
    dtype, _ = _numbers("auto", "", base)
    for name in (name for name in base if base.dtype(name) != dtype):
        weight = base[name]
        if not torch.equal(weight.to(dtype).to(weight.dtype), weight):
            return "float32"
    return str(dtype).removeprefix("torch.")


def _tokenizer(*folders: Path) -> Tokenizer | None:
    """The tokenizer of the first folder that has one."""
    for folder in folders:
        if tokenizer_file(folder):
            return read_tokenizer(folder)
    return None
