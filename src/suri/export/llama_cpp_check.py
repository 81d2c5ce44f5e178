"""The part of a GGUF file's certificate that llama.cpp signs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from suri.export.checks import (
    Check,
    largest_difference,
    mean_divergence,
    same_share,
)  # fmt: skip
from suri.export.fold import Merge
from suri.export.gguf_reader import GGUF_FILE
from suri.export.llama_cpp import read
from suri.export.probes import PROBES

DIVERGENCE = {"float32": 2e-4, "float16": 5e-4, "bfloat16": 1e-3, "q8_0": 2e-2}
SAME_SHARE = {"bfloat16": 0.98, "q8_0": 0.88}
"""Wider than for readers in fp32: llama.cpp keeps keys and values in fp16, and rounds what it
multiplies by the weights to their own type. On the embedded base it came to 5e-7, 5e-6, 2e-4 and
up to 6e-3; the share with q8_0 was at least 0.945 (benchmarks/gguf_readers.py)."""


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
    limit = DIVERGENCE[merge.dtype_name]
    logits = found.logits[:, : expected.shape[1]]
    divergence, same = mean_divergence(expected, logits), same_share(expected, logits)
    checks = [Check("llama.cpp: KL divergence of the next token", divergence, limit)]
    if merge.dtype_name in SAME_SHARE:
        limit = SAME_SHARE[merge.dtype_name]
        name = "llama.cpp: same likeliest next token, share"
        checks.append(Check(name, same, limit, at_least=True))
    record: dict[str, Any] = {
        "reader": found.reader,
        "largest_difference": largest_difference(expected, logits),
        "same_likeliest": same,
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
    return record, tuple(checks)
