"""What llama.cpp itself makes of a written GGUF file, where the package xllamacpp is installed."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suri.export.checks import Check, compare_logits, largest_difference, same_share
from suri.export.fold import Merge
from suri.export.gguf_reader import GGUF_FILE
from suri.export.probes import PROBES

PACKAGE = "xllamacpp"
INSTALL = f"pip install {PACKAGE}"

PROGRAM = str(Path(__file__).with_name("llama_cpp_process.py"))

START_SECONDS = 120
BYTES_PER_SECOND = 100e6
"""How slowly a token's weights may be read before llama.cpp counts as hanging: a tenth of what
the slowest disk of a laptop gives."""


@dataclass(frozen=True)
class Reading:
    """What llama.cpp found in a file, or why there is nothing.

    `refused`: it was there and did not take this file. Otherwise a problem says nothing of the
    file: the package is missing, or does not work here.
    """

    reader: str = ""
    problem: str = ""
    refused: bool = False
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    tokens: list[list[int]] = field(default_factory=list)
    answers: list[list[tuple[int, float]]] = field(default_factory=list)


def read(
    file: Path,
    ids: Sequence[Sequence[int]] = (),
    texts: Sequence[str] = (),
    prompts: Sequence[Sequence[int]] = (),
    *,
    most: int = 0,
    stop: int = -1,
) -> Reading:
    """Let llama.cpp read a GGUF file, in a process of its own.

    For `ids` it gives fp32 logits [T, vocab], one list after the other; for `texts` its token ids,
    for `prompts` greedy answers of at most `most` tokens up to `stop`, each token with its lead
    over the second best. No list may be longer than 512 tokens, its answer with it.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        return Reading(problem=f"it is not installed: {INSTALL}")
    count = sum(map(len, ids)) + sum(len(p) + most for p in prompts)
    with tempfile.TemporaryDirectory() as place:
        numbers = f"{place}/logits.npy"
        request = {
            "file": str(file.absolute()), "threads": torch.get_num_threads(),
            "ids": [list(each) for each in ids], "logits": numbers,
            "texts": list(texts), "reply": f"{place}/reply.json",
            "prompts": [list(each) for each in prompts], "most": most, "stop": stop,
        }  # fmt: skip
        seconds = START_SECONDS + count * file.stat().st_size / BYTES_PER_SECOND
        end = _run(request, seconds)
        reply = _reply(Path(place))
        if "answers" not in reply:
            reader = reply.get("reader", "")
            problem = ": ".join(part for part in (reply.get("problem"), end) if part)
            if "libgomp" in problem:
                problem = f"{PACKAGE} needs OpenMP: apt-get install libgomp1"
            return Reading(reader, problem, refused=bool(reader))
        logits = torch.from_numpy(np.load(numbers)) if ids else torch.empty(0)
    answers = [[(i, lead) for i, lead in answer] for answer in reply["answers"]]
    return Reading(reply["reader"], logits=logits, tokens=reply["tokens"], answers=answers)


def _run(request: dict[str, Any], seconds: float) -> str:
    """Run the process to its end, which is told in words."""
    try:
        done = subprocess.run(
            # By its path, and -P so that nothing beside it is taken for a package of that name.
            [sys.executable, "-P", PROGRAM],
            input=json.dumps(request).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it had not ended after {seconds:.0f} s"
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if "error" in line]
    return said[-1] if said else f"its process ended with {done.returncode}"


def _reply(place: Path) -> dict[str, Any]:
    file = place / "reply.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it ended before, or while, it wrote
        return {}
    return found


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
