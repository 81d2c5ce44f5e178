"""The part of a GGUF file's certificate that llama.cpp signs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from suri.export.checks import Check, compare_logits, largest_difference, same_share
from suri.export.fold import Merge
from suri.export.gguf_reader import GGUF_FILE
from suri.export.llama_cpp import read
from suri.export.probes import PROBES


def check_with_llama_cpp(
    merge: Merge, folder: Path, ids: Sequence[Sequence[int]], expected: Tensor
) -> tuple[dict[str, Any], tuple[Check, ...]]:
    """What the certificate records of llama.cpp, and the checks; none where it is not there.

    A file that llama.cpp does not take fails. So does none whose text it cuts into other tokens:
    for a way of cutting words without a name that is known before, and the weights are right.
    """
    texts = PROBES if merge.tokenizer else ()
    found = read(folder / GGUF_FILE, ids, texts)
    if found.refused:
        check = Check(f"{found.reader} refuses the file ({found.problem})", 1, 0)
        return {"reader": found.reader}, (check,)
    if found.problem:
        return {"note": f"llama.cpp did not read the file: {found.problem}"}, ()
    logits = found.logits[:, : expected.shape[1]]
    checks = compare_logits(expected, logits, merge.dtype_name, by_llama_cpp=True)
    record: dict[str, Any] = {
        "reader": found.reader,
        "largest_difference": largest_difference(expected, logits),
        "same_likeliest": same_share(expected, logits),
    }
    if merge.tokenizer:
        ours = [merge.tokenizer.encode(text) for text in texts]
        record["texts_with_the_same_tokens"] = sum(
            a == b for a, b in zip(ours, found.tokens, strict=True)
        )
        if ours != found.tokens:
            record["note"] = (
                "llama.cpp cuts text into other tokens: give it ids made with tokenizer.json"
            )
    return record, checks
