"""The certificate: proof that what lies on disk is the base plus the adapter, and nothing else."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from suri.export.checks import (
    Check,
    Wide,
    block_error,
    compare_logits,
    half_spacing,
    same_bits,
    wide,
)
from suri.export.fold import Merge, Report, silent
from suri.export.gguf_reader import GgufTensors
from suri.export.llama_cpp import check_with_llama_cpp
from suri.export.probes import probe_ids
from suri.export.provenance import held_adapters
from suri.export.readers import misplaced, read_logits, read_tensors, source_logits
from suri.export.recompute import AdapterFile
from suri.manifest import fingerprint
from suri.model.adapter_file import CONFIG_FILE, WEIGHTS_FILE
from suri.model.tokenizer import tokenizer_file
from suri.model.weights import Weights

ROWS = 64
"""Rows of each target that are computed again."""
BLOCK_ROWS = 4096
"""Rows of a quantised tensor that are held in fp64 at once."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Certificate:
    """Every check of one written folder, and the identity of all that took part."""

    to: str
    checks: tuple[Check, ...]
    record: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every check is kept."""
        return all(check.passed for check in self.checks)

    @property
    def readers(self) -> list[str]:
        """Who read the folder back for its logits."""
        named = [self.record["reader"], self.record.get("llama.cpp", {}).get("reader")]
        return [name for name in named if name]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader could not do, which fails nothing."""
        notes = [self.record.get("llama.cpp", {}).get("note")]
        if added := self.record.get("added_words"):
            notes.append(f"the tokenizer has {added} more words: each got the mean of the others")
        return tuple(f"note: {note}" for note in notes if note)

    def as_json(self) -> dict[str, Any]:
        """What certificate.json holds."""
        checks = [asdict(check) | {"passed": check.passed} for check in self.checks]
        return {"passed": self.passed, "to": self.to, **self.record, "checks": checks}


def certify(merge: Merge, folder: Path, to: str, report: Report = silent) -> Certificate:
    """Check the folder just written (`to`: hf, meta or gguf) against base and adapter."""
    output = read_tensors(folder, to, merge.base)
    report("checking", 0, 4)
    targets = [check_targets(merge, output)] if merge.adapter else []
    report("checking", 1, 4)
    others = check_others(merge, output, to)
    report("checking", 2, 4)
    readers, logits = check_logits(merge, folder, to)
    report("checking", 3, 4)
    record = {
        "dtype": merge.dtype_name,
        **sources_of(merge),
        "output": {"files": hashes(folder, sorted(p.name for p in folder.glob("[!.]*")))},
        "probes": "texts" if merge.tokenizer else "token ids",
        "added_words": merge.base.added,
        **readers,
    }
    report("checking", 4, 4)
    return Certificate(to, (*targets, others, *check_index(folder), *logits), record)


def check_targets(merge: Merge, output: Mapping[str, Tensor]) -> Check:
    """Every target is what the adapter's file makes of it, within one rounding, on seeded rows.

    The figure is the largest error, where 1 is half the output format's spacing there plus what
    fp32 may lose on the way.
    """
    assert merge.adapter_folder is not None
    worst = 0.0
    adapter = AdapterFile(merge.adapter_folder)
    for number, module in enumerate(adapter.modules):
        name = f"{module}.weight"
        count = merge.base.shape(name)[0]
        chosen = np.random.default_rng(number).choice(count, min(ROWS, count), replace=False)
        rows = np.sort(chosen)
        exact, lost = adapter.rows(module, wide(merge.base.rows(name, rows.tolist())), rows)
        error = _rounding(merge, output, name, rows, exact, lost)
        worst = float(np.maximum(worst, error))  # max() would forget what is no number
    title = f"{len(adapter.modules)} targets: largest error of {adapter.formula}, in roundings"
    return Check(title, worst, 1)


def check_others(merge: Merge, output: Mapping[str, Tensor], to: str) -> Check:
    """Every other tensor is the base's, cast (GGUF: vectors in fp32): the same shapes and bits."""
    # The weights that the adapter's file names, whatever was made of it since.
    modules = AdapterFile(merge.adapter_folder).modules if merge.adapter_folder else []
    targets = {f"{module}.weight" for module in modules}
    others = {name: name for name in merge.base if name not in targets}
    if to == "meta" and merge.base.config.tied_head:
        others["lm_head.weight"] = "model.embed_tokens.weight"
    strange = set(output) - set(merge.base) - set(others)
    wrong = sum(
        name not in output or not _is_bases(merge, output, name, source, to)
        for name, source in others.items()
    )
    which = "other tensors" if merge.adapter else "tensors"
    name = f"{len(others)} {which}: how many are not the base's"
    return Check(name, wrong + len(strange), 0)


def check_index(folder: Path) -> tuple[Check, ...]:
    """Where the weights lie in several files, their index says in which; else nothing."""
    wrong = misplaced(folder)
    return (
        () if wrong is None else (Check("names and files of the index that are wrong", wrong, 0),)
    )


def check_logits(merge: Merge, folder: Path, to: str) -> tuple[dict[str, Any], tuple[Check, ...]]:
    """Who read the folder from disk, and its logits against base + unmerged adapter in fp32."""
    texts = probe_ids(merge)
    expected = source_logits(merge, texts)
    reader, found = read_logits(folder, to, texts, merge.base)
    found = found[:, : expected.shape[1]]  # words that only the tokenizer has were added
    checks = compare_logits(expected, found, merge.dtype_name)
    if to != "gguf":
        return {"reader": reader}, checks
    record, more = check_with_llama_cpp(merge, folder, texts, expected)
    return {"reader": reader, "llama.cpp": record}, (*checks, *more)


def _rounding(
    merge: Merge, output: Mapping[str, Tensor], name: str, rows: Rows, exact: Wide, slack: Wide
) -> float:
    """The largest error of stored rows, where 1 is that of one rounding and `slack`."""
    if isinstance(output, GgufTensors) and output.kind(name) == "Q8_0":
        return block_error(exact, slack, *output.blocks(name, rows))
    # Beside q8_0 lie the tensors whose rows make no whole blocks.
    dtype = "float16" if merge.rounded_to else merge.dtype_name
    allowed = half_spacing(exact, dtype) + slack
    if isinstance(output, Weights):
        found = output.stored(name).read(rows.tolist())
    else:
        found = output[name][rows]
    return float(np.max(np.abs(wide(found) - exact) / allowed))


def _is_bases(merge: Merge, output: Mapping[str, Tensor], name: str, source: str, to: str) -> bool:
    """Whether a tensor is the base's, cast or quantised."""
    if not (isinstance(output, GgufTensors) and output.kind(name) == "Q8_0"):
        found = output[name]  # first: a mapped file counts as memory while it is read
        return same_bits(found, _cast(merge, merge.base[source], to))
    weight = merge.base[source]
    if output[name].shape != weight.shape:
        return False
    for start in range(0, len(weight), BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, len(weight)))
        exact = wide(weight[rows])
        if not _rounding(merge, output, name, rows, exact, np.zeros_like(exact)) <= 1:
            return False
    return True


def _cast(merge: Merge, weight: Tensor, to: str) -> Tensor:
    if to == "gguf" and weight.dim() == 1:
        return weight.float()
    return weight.half() if merge.rounded_to else weight.to(merge.dtype)


def sources_of(merge: Merge) -> dict[str, Any]:
    """Base and adapter with their places and checksums; no adapter for a conversion.

    `holds` are the adapters that were merged into the base before.
    """
    base, adapter = merge.base.folder, merge.adapter_folder
    held = {"holds": held} if (held := held_adapters(base)) else {}
    return {
        "base": {
            "path": str(base.absolute()),
            "quantize": merge.quantize,
            "files": hashes(base, _base_files(merge)),
            **held,
        },
        "adapter": adapter
        and {
            "path": str(adapter.absolute()),
            "files": hashes(adapter, [CONFIG_FILE, WEIGHTS_FILE]),
        },
    }


def hashes(folder: Path, names: list[str]) -> dict[str, str]:
    """The fingerprints of these files of a folder."""
    return {name: fingerprint(folder / name) for name in names}


def _base_files(merge: Merge) -> list[str]:
    """The base's files that decide what the merge is: weights, configuration, tokenizer."""
    folder = merge.base.folder
    beside = ("config.json", "params.json", "tokenizer.json", "tokenizer.model")
    names = [name for name in beside if (folder / name).is_file()]
    tokenizer = tokenizer_file(folder)
    if tokenizer and not any((folder / name).is_file() for name in beside[2:]):
        names.append(os.path.relpath(tokenizer, folder))  # Llama 1's, one folder above
    return [file.name for file in merge.base.files] + names
