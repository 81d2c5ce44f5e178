"""Publishing a merge: what lies beside the weights, the certificate, and the name only then."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

from suri.data.prompt import PROMPT_FILE, read_prompt
from suri.errors import Corrupt
from suri.export.certify import Certificate, certify
from suri.export.fold import Merge, Report, name_of, silent
from suri.export.provenance import FILE, held_adapters
from suri.files import (
    disk_errors_explained,
    make_folder,
    need_space,
    publishing,
    read_object,
    write_json,
    write_text,
)
from suri.locks import claiming
from suri.model.adapter import CONFIG_FILE, WEIGHTS_FILE, Adapter
from suri.model.tokenizer import CHAT_TEMPLATE

CARD = """\
---
library_name: {library}
pipeline_tag: text-generation
tags: [lora, merged]
---

# {base} + {adapter}, merged

The weights of `{base}` with the LoRA adapter `{adapter}` (r {r}, alpha {alpha}, on {targets})
merged into them: {formula} in fp32, rounded once to {dtype}.{quantized}

`certificate.json` records how this was checked after the files were read back, and the checksum
of every file. `suri verify` checks it again; `suri chat` opens this folder. The prompt that the
adapter was trained with is in `prompt.json`.{licence}
"""


CONVERTED = """\
---
library_name: {library}
pipeline_tag: text-generation
tags: [converted]
---

# {base}, in another format

The weights of `{base}`{held}, every tensor of them, in {dtype}. Nothing was trained or added here.

`certificate.json` records how this was checked after the files were read back, and the checksum
of every file. `suri verify` checks it again; `suri chat` opens this folder.
"""


def publish(
    merge: Merge, out: Path, to: str, write: Callable[[Path], None], report: Report = silent
) -> Certificate:
    """Let `write` fill a folder, certify it, and give it the name `out` only when it passes.

    Raises UsageError where `out` exists, DoesNotFit where the disk is too small, and Corrupt
    with every failed check; then nothing is left behind.
    """
    work = "merge" if merge.adapter else "conversion"
    numbers = sum(math.prod(merge.base.shape(name)) for name in merge.base)
    need_space(out, int(numbers * merge.itemsize), f"the {work}")
    make_folder(out.parent)
    with (
        disk_errors_explained(out),
        claiming(out.parent / f".{out.name}.partial"),
        publishing(out, _key(merge, to)) as folder,
    ):
        write(folder)
        _write_companions(merge, folder, to)
        certificate = certify(merge, folder, to, report)
        if not certificate.passed:
            failed = [str(check) for check in certificate.checks if not check.passed]
            raise Corrupt(
                f"the {work} to {to} failed its certificate; {out} was not written",
                found="; ".join(failed),
                do="try --dtype float32; where that fails too, the weights written are not "
                "what they should be, and that is a fault to report",
            )
        write_json(folder / FILE, certificate.as_json())
    return certificate


def _key(merge: Merge, to: str) -> str:
    """What a merge that was killed must have in common with one that goes on with its files."""
    adapter = merge.adapter_folder
    files = [
        *merge.base.files,
        *([adapter / WEIGHTS_FILE, adapter / CONFIG_FILE] if adapter else []),
    ]
    seen = [f"{file.absolute()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return "\n".join([to, merge.dtype_name, merge.quantize, *seen])


def _write_companions(merge: Merge, folder: Path, to: str) -> None:
    """Tokenizer, prompt and model card."""
    if merge.tokenizer is not None:
        merge.tokenizer.save(folder)
    if (merge.base.folder / CHAT_TEMPLATE).is_file() and to == "hf":
        shutil.copyfile(merge.base.folder / CHAT_TEMPLATE, folder / CHAT_TEMPLATE)
    prompt_of = merge.adapter_folder or merge.base.folder
    if merge.adapter or (prompt_of / PROMPT_FILE).is_file():
        read_prompt(prompt_of).save(folder)
    library = {"hf": "transformers", "gguf": "gguf"}.get(to, "pytorch")
    card = _merge_card(merge, library) if merge.adapter else _conversion_card(merge, library)
    write_text(folder / "README.md", card)


def _merge_card(merge: Merge, library: str) -> str:
    assert merge.adapter is not None
    assert merge.adapter_folder is not None
    quantized = (
        " W is the base after nf4 and back, as in training." if merge.quantize == "nf4" else ""
    )
    data = merge.adapter_folder / "data.json"
    licence = read_object(data).get("licence") if data.is_file() else None
    return CARD.format(
        library=library,
        base=name_of(merge.base.folder),
        adapter=name_of(merge.adapter_folder),
        r=_spread(merge.adapter, merge.adapter.rank_of),
        alpha=_spread(merge.adapter, merge.adapter.alpha_of),
        formula=_formula(merge.adapter),
        targets=", ".join(merge.adapter.targets),
        dtype=merge.dtype_name,
        quantized=quantized,
        licence=f"\n\nLicence of the data that the adapter learned: {licence}." if licence else "",
    )


def _formula(adapter: Adapter) -> str:
    """What was made of a weight W, as text."""
    if adapter.magnitudes:
        scaling = _spread(adapter, adapter.scaling_of)
        return f"DoRA's m (W + s B A) / |W + s B A| by row, s {scaling}, by peft"
    scaling = _spread(adapter, adapter.scaling_of)
    return f"W + s B A, s {scaling} by module," if " to " in scaling else f"W + {scaling} B A"


def _spread(adapter: Adapter, of: Callable[[str], float]) -> str:
    """One number, or from the least to the largest of the adapter's modules."""
    numbers = sorted({of(module) for module in adapter.tensors})
    return " to ".join(f"{number:g}" for number in (numbers[:1] + numbers[1:][-1:]))


def _conversion_card(merge: Merge, library: str) -> str:
    held = [f"`{Path(each['path']).name}`" for each in held_adapters(merge.base.folder)]
    return CONVERTED.format(
        library=library,
        base=name_of(merge.base.folder),
        held=f", which hold {' and '.join(held)}" if held else "",
        dtype=merge.dtype_name,
    )
