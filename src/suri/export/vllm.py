"""An adapter as vLLM serves it over its base: pairs of one kind, its prompt, and the command."""

import shlex
from dataclasses import replace
from pathlib import Path

import torch

from suri.errors import Corrupt, UsageError
from suri.export.companions import context_of, write_companions
from suri.export.fold import Merge, open_merge
from suri.files import publishing, write_text
from suri.model.adapter import Adapter
from suri.model.adapter_file import read_adapter, write_adapter

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank. Source: MaxLoRARanks in its vllm/config/lora.py."""
OVER_NF4 = (
    "it was trained over a base in nf4, and vLLM serves it over the base as it is: answers may "
    "differ a little from those of `suri chat`; a merged folder has the sum of training"
)
ROWS = slice(64)
"""Rows of every module on which what was written is held against the adapter."""
CLOSE = 1e-5
"""Largest difference, in parts of the module's largest number: a few roundings of fp32."""


def write_vllm(base: Path | None, adapter_folder: Path, out: Path) -> list[str]:
    """Write `out`: the adapter with one rank and alpha, tokenizer, chat template, and a README.

    Nothing is merged. Returns what was checked and the command, a line each. Raises UsageError for
    what vLLM does not serve over a base, with what does.
    """
    merge = open_merge(adapter_folder, base, merge_base="original")
    assert merge.adapter is not None
    _refuse(merge, adapter_folder)
    even = levelled(merge.adapter)
    command = vllm_command(merge, even, out)
    with publishing(out) as folder:
        write_adapter(folder, even)
        write_companions(merge, folder, "hf")
        difference = _difference(merge.adapter, read_adapter(folder))
        if difference > CLOSE:
            raise Corrupt(
                f"the adapter for vLLM adds something else than {adapter_folder}",
                found=f"a difference of {difference:.1e}, in parts of the largest number",
            )
        write_text(folder / "README.md", _card(merge, command, out.name))
    notes = [f"ok   every module adds the same: {difference:.1e} <= {CLOSE:.0e}", command]
    if merge.adapter.base.get("quantize") == "nf4":
        notes.append(f"note: {OVER_NF4}")
    return notes


def levelled(adapter: Adapter) -> Adapter:
    """The same deltas with one rank and alpha for all: what older versions of vLLM read alone.

    Pairs of a lower rank get rows and columns of zeros, and B takes what its module's scaling
    differs by.
    """
    ranks = {adapter.rank_of(module) for module in adapter.tensors}
    if ranks == {adapter.r} and not adapter.alphas:
        return adapter
    rank = max(ranks)
    pairs = {}
    for module, (a, b) in adapter.tensors.items():
        more = rank - len(a)
        pairs[module] = (
            torch.nn.functional.pad(a, (0, 0, 0, more)),
            torch.nn.functional.pad(b * adapter.scaling_of(module), (0, more)),
        )
    return replace(adapter, r=rank, alpha=float(rank), rslora=False, tensors=pairs, alphas={})


def vllm_command(merge: Merge, adapter: Adapter, out: Path) -> str:
    """The command that serves base and adapter, for a shell.

    vLLM puts every conversation by the template of its one tokenizer and never by an adapter's, so
    that the tokenizer is the one of `out`, which has the prompt of training.
    """
    rank = next(size for size in RANKS if size >= adapter.r)
    place = out.absolute()
    words = [
        *("vllm", "serve", str(merge.base.folder.absolute()), "--tokenizer", str(place)),
        *("--enable-lora", "--max-lora-rank", str(rank)),
        *("--lora-modules", f"{place.name}={place}"),
        *("--max-model-len", str(context_of(merge.base.config))),
    ]
    return shlex.join(words)


def _refuse(merge: Merge, adapter_folder: Path) -> None:
    """Raise UsageError where vLLM would not load base and adapter, or load other ones."""
    assert merge.adapter is not None
    base, found = merge.base.folder, ""
    do = f"merge it: `suri merge {adapter_folder} --to hf --output_dir OUT`"
    if not (base / "config.json").is_file():
        found = f"{base} holds Meta's files, and vLLM reads Hugging Face folders"
        do += f"; or bring the base there: `suri convert {base} --to hf --output_dir BASE`"
    elif merge.base.added:
        found = f"{merge.base.added} tokens of its tokenizer have no row in the base"
    elif merge.tokenizer is None:
        found, do = "there is no tokenizer beside base or adapter", "put tokenizer.json there"
    elif max(map(merge.adapter.rank_of, merge.adapter.tensors)) > RANKS[-1]:
        found = f"its rank is above {RANKS[-1]}"
    if found:
        raise UsageError(f"vLLM does not serve {adapter_folder} over its base", found=found, do=do)


def _difference(adapter: Adapter, written: Adapter) -> float:
    """The largest difference of what any module adds, in parts of the module's largest number."""
    if adapter.tensors.keys() != written.tensors.keys():
        return float("inf")
    largest = 0.0
    for module in adapter.tensors:
        ours = adapter.weight_delta(module, ROWS)
        off = (written.weight_delta(module, ROWS) - ours).abs().max()
        largest = max(largest, float(off / ours.abs().max().clamp_min(1e-30)))
    return largest


def _card(merge: Merge, command: str, name: str) -> str:
    adapter = merge.adapter
    assert adapter is not None
    note = f"\nNote: {OVER_NF4}.\n" if adapter.base.get("quantize") == "nf4" else ""
    return f"""---
library_name: peft
pipeline_tag: text-generation
tags: [lora, vllm]
---
# {merge.title}, for vLLM

```bash
{command}
```

Ask for it as the model `{name}`. The tokenizer here writes conversations as in training. More
adapters of the same base and the same prompt go behind `--lora-modules` as NAME=FOLDER.
{note}"""
