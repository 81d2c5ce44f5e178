"""Checking a merge again: one of ours by its certificate, another program's by its adapter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from suri.errors import Corrupt, UsageError
from suri.export.certify import Certificate, certify, check_logits
from suri.export.fold import DTYPES, Q8_0, MergeBase, MergeBaseName, Report, open_merge, silent
from suri.export.gguf_reader import GGUF_FILE
from suri.export.provenance import FILE
from suri.export.readers import read_tensors
from suri.manifest import changed_files
from suri.model.meta_shards import FIRST
from suri.reading import read_object, well_formed


def verify(folder: Path, report: Report = silent) -> tuple[Certificate, str]:
    """Check a certified folder again; gives the certificate and what could not be checked.

    The files' checksums always; the logits where base and adapter are still what they were.
    Raises Corrupt for files that have changed.
    """
    record = read_certificate(folder)
    files = record["output"]["files"]
    if changed := changed_files(folder, files, *files):
        raise Corrupt(f"{folder} is not what was certified", found=", ".join(changed))
    report("verifying", 1, 2)
    for source in [name for name in ("base", "adapter") if record[name]]:
        path, files = Path(record[source]["path"]), record[source]["files"]
        if changed := changed_files(path, files, *files):
            return Certificate(record["to"], (), record), f"{source} {path}: {', '.join(changed)}"
    merge = open_merge(
        Path(record["adapter"]["path"]) if record["adapter"] else None,
        Path(record["base"]["path"]),
        dtype=record["dtype"],
        merge_base="dequantized" if record["base"]["quantize"] == "nf4" else "original",
        to=record["to"],
        dora=True,
    )
    readers, checks = check_logits(merge, folder, record["to"])
    report("verifying", 2, 2)
    return Certificate(record["to"], checks, record | readers), ""


def read_certificate(folder: Path) -> dict[str, Any]:
    """What certificate.json holds; raises Corrupt where it is not what `write_merge` writes."""
    if not (folder / FILE).is_file():
        raise UsageError(
            f"{folder} has no {FILE}",
            do="give a folder that `suri merge`, `suri convert` or a study has written, or, for "
            "another program's merge, the adapter too: --adapter FOLDER",
        )
    record = read_object(folder / FILE)
    with well_formed(folder / FILE, "a certificate"):
        sources = ["base"] if record["adapter"] is None else ["base", "adapter"]
        files = [len(record[part]["files"].items()) for part in ("output", *sources)]
        _ = [Path(record[part]["path"]) for part in sources], record["passed"], record["checks"]
        known = (
            record["to"] in ("hf", "meta", "gguf"),
            record["base"]["quantize"] in ("none", "nf4"),
            record["dtype"] in (*DTYPES, Q8_0),
        )
        if not (all(files) and all(known)):
            raise ValueError("files, kind or number format")
    return record


def certify_other(
    folder: Path,
    adapter: Path,
    base: Path | None = None,
    *,
    merge_base: MergeBaseName = "dequantized",
    report: Report = silent,
) -> Certificate:
    """Check a folder in any of the three formats, in the dtype that its weights have.

    Nothing is written. Raises Corrupt for a model of another shape, UsageError for weights of a
    dtype that no merge here has.
    """
    to = "gguf" if (folder / GGUF_FILE).is_file() else "hf"
    to = "meta" if (folder / FIRST).is_file() else to
    merge = open_merge(adapter, base, dtype="float32", merge_base=merge_base)
    output = read_tensors(folder, to, merge.base)
    _check_shapes(folder, output, merge.base)
    dtype = str(output["model.embed_tokens.weight"].dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UsageError(
            f"{folder} holds weights of dtype {dtype}, which is no sum of base and adapter",
            do=f"check a folder in {', '.join(DTYPES)}",
        )
    merge = open_merge(adapter, base, dtype=dtype, merge_base=merge_base)
    return certify(merge, folder, to, report)


def _check_shapes(folder: Path, output: Mapping[str, Tensor], base: MergeBase) -> None:
    """Raise Corrupt where a tensor of the base is missing or has another shape."""
    wrong = []
    for name in base:
        if name not in output:
            wrong.append(f"{name} is missing")
        elif (found := tuple(output[name].shape)) != base.shape(name):
            wrong.append(f"{name} is {found}, not {base.shape(name)}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Corrupt(f"{folder} is not a merge of this base", found="; ".join(wrong[:3]) + more)
