"""Publishing a merge: what lies beside the weights, the certificate, and the name only then."""

import math
from pathlib import Path

from suri.errors import Corrupt
from suri.export.card import README, write_card
from suri.export.certify import Certificate, certify
from suri.export.companions import write_companions
from suri.export.fold import Merge, MergeBaseName, Report, open_merge, silent
from suri.export.gguf import write_gguf
from suri.export.hf import write_hf
from suri.export.meta import write_meta
from suri.export.provenance import FILE
from suri.files import disk_errors_explained, make_folder, need_space, publishing, write_json
from suri.locks import claiming
from suri.model.adapter_file import CONFIG_FILE, WEIGHTS_FILE

WRITERS = {"hf": write_hf, "meta": write_meta, "gguf": write_gguf}


def write_merge(
    to: str,
    base: Path | None,
    adapter: Path | None,
    out: Path,
    dtype: str = "auto",
    *,
    merge_base: MergeBaseName = "dequantized",
    report: Report = silent,
) -> Certificate:
    """Merge an adapter folder into its base (None: the recorded one) as a new folder `out`.

    `to` is hf, meta or gguf; `dtype` auto is the base's own, for gguf float16. Without an adapter
    the base itself is written. The folder is certified, and gets its name only when it passes.
    Raises UsageError where `out` exists or its format cannot hold the model, DoesNotFit where the
    disk is too small, and Corrupt with every failed check; then nothing is left behind.
    """
    if to == "gguf" and dtype == "auto":
        dtype = "float16"
    merge = open_merge(adapter, base, dtype=dtype, merge_base=merge_base, to=to, dora=to == "hf")
    work = "merge" if merge.adapter else "conversion"
    numbers = sum(math.prod(merge.base.shape(name)) for name in merge.base)
    need_space(out, int(numbers * merge.itemsize), f"the {work}")
    make_folder(out.parent)
    with (
        disk_errors_explained(out),
        claiming(out.parent / f".{out.name}.partial"),
        publishing(out, _key(merge, to)) as folder,
    ):
        WRITERS[to](merge, folder, report)
        write_companions(merge, folder, to)
        for name in (README, FILE):  # of a merge that was killed just before its end
            (folder / name).unlink(missing_ok=True)
        certificate = certify(merge, folder, to, report)
        if not certificate.passed:
            failed = [str(check) for check in certificate.checks if not check.passed]
            raise Corrupt(
                f"the {work} to {to} failed its certificate; {out} was not written",
                found="; ".join(failed),
                do="try --dtype float32; where that fails too, the weights written are not "
                "what they should be, and that is a fault to report",
            )
        write_card(merge, certificate, folder, out.name)
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
