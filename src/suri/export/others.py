"""A merge that another program wrote, held against its base and adapter as one of ours."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from suri.errors import Corrupt, UsageError
from suri.export.certify import Certificate, certify
from suri.export.fold import DTYPES, MergeBase, MergeBaseName, Report, open_merge, silent
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

    Nothing is written. Raises Corrupt for a model of another shape, UsageError for weights of a
    dtype that no merge here has.
    """
    to = "gguf" if (folder / GGUF_FILE).is_file() else "hf"
    to = "meta" if (folder / META_FILE).is_file() else to
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
