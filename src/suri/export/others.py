"""A merge that another program wrote, held against its base and adapter as one of ours."""

from pathlib import Path

from suri.errors import UsageError
from suri.export.certify import Certificate, certify
from suri.export.fold import DTYPES, MergeBaseName, Report, open_merge, silent
from suri.export.gguf_reader import GGUF_FILE
from suri.export.readers import read_tensors

META_FILE = "consolidated.00.pth"


def certify_other(
    folder: Path,
    adapter: Path,
    base: Path | None = None,
    *,
    merge_base: MergeBaseName = "dequantized",
    report: Report = silent,
) -> Certificate:
    """Check a folder in any of the three formats, in the dtype that its weights have.

    Nothing is written. Raises UsageError for weights of a dtype that no merge here has.
    """
    to = "gguf" if (folder / GGUF_FILE).is_file() else "hf"
    to = "meta" if (folder / META_FILE).is_file() else to
    merge = open_merge(adapter, base, dtype="float32", merge_base=merge_base)
    stored = read_tensors(folder, to, merge.base)["model.embed_tokens.weight"].dtype
    dtype = str(stored).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UsageError(
            f"{folder} holds weights of dtype {dtype}, which is no sum of base and adapter",
            do=f"check a folder in {', '.join(DTYPES)}",
        )
    merge = open_merge(adapter, base, dtype=dtype, merge_base=merge_base)
    return certify(merge, folder, to, report)
