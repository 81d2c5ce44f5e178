"""Damaged files of every format: each is refused with one message, or loads as something whole.

Not one of them may end in another exception, take long, or allocate far beyond its own size; where
a checksum covers a file, every change must be found.
"""

import json
import random
import resource
import struct
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from damage import DAMAGE, Trial, counts
from formats import Format, make_formats
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suri.errors import SuriError
from suri.reading import read_json_lines
from suri.train.run_folder import forget_after

FORMATS = (
    "adapter", "adapter in its run", "checkpoint", "model", "tokenizer", "Meta model", "GGUF",
    "merge", "certificate", "prompt", "chat prompt", "recipe", "plan", "run", "trial",
    "judged trial",
)  # fmt: skip
REPORTS = ("comparison", "study")
"""A report takes a second to build: damage to its results is tried in the slow tests alone."""
COSTLY = {"comparison": 30, "study": 30, "GGUF": 2, "certificate": 4, "model": 2}
"""Formats whose reading takes longer, and how many times fewer are tried."""
MEMORY = 2**30


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Format]]:
    made = make_formats(tmp_path_factory.mktemp("formats"))
    assert set(made) == {*FORMATS, *REPORTS}
    yield made
    for name, how in sorted({key[:2] for key in counts}):
        found = {end: counts[name, how, end] for end in ("refused", "unchanged", "other")}
        print(f"\n{name}, {how}: {sum(found.values())} tried, {found}", end="")


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Memory beyond a gigabyte more than is held now is not to be had."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_refused_or_read_whole(formats, name: str, how: str) -> None:
    trial = Trial(name, formats[name], how)
    DAMAGE[how](trial, 40 // COSTLY.get(name, 1))
    trial.finish()


@pytest.mark.soak
@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", FORMATS + REPORTS)
def test_many_more_damaged_files_are_refused_or_read_whole(formats, name: str, how: str) -> None:
    trial = Trial(name, formats[name], how)
    DAMAGE[how](trial, 300 // COSTLY.get(name, 1))
    trial.finish()


def with_json(folder: Path, file: str, **changes: Any) -> bytes:
    return json.dumps(json.loads((folder / file).read_bytes()) | changes).encode()


def with_id(folder: Path, number: int) -> bytes:
    """The tokenizer with one word under another id."""
    tree = json.loads((folder / "tokenizer.json").read_bytes())
    tree["model"]["vocab"]["q"] = number
    return json.dumps(tree).encode()


def with_block_count(folder: Path, count: int) -> bytes:
    content = (folder / "model.gguf").read_bytes()
    key = b"llama.block_count" + struct.pack("<I", 4)
    assert content.count(key) == 1
    return content.replace(key + struct.pack("<I", 2), key + struct.pack("<I", count))


def with_swapped_offsets(folder: Path) -> bytes:
    """The second layer's norm read from where the first one's numbers are."""
    content = (folder / "model.gguf").read_bytes()
    ends = [
        content.index(b"blk.%d.attn_norm.weight" % n) + len("blk.0.attn_norm.weight")
        for n in (0, 1)
    ]
    first, second = (slice(end + 16, end + 24) for end in ends)
    return content[: second.start] + content[first] + content[second.stop :]


def with_numbers(folder: Path, kind: str) -> bytes:
    content = (folder / "adapter_model.safetensors").read_bytes()
    return content.replace(b'"F32"', f'"{kind}"'.encode(), 1)


UNNOTICED: dict[str, tuple[str, str, Callable[[Path], bytes], str]] = {
    "fewer layers than weights": (
        "model", "config.json", lambda f: with_json(f, "config.json", num_hidden_layers=1),
        "more layers",
    ),
    "fewer layers than a GGUF file has": (
        "GGUF", "model.gguf", lambda f: with_block_count(f, 1), "more layers",
    ),
    "a tensor that starts at another's numbers": (
        "GGUF", "model.gguf", with_swapped_offsets, "starts elsewhere",
    ),
    "an id that a list as long as it is made for": (
        "tokenizer", "tokenizer.json", lambda f: with_id(f, 2**31), "an id is",
    ),
    "an id that the model has no row for": (
        "tokenizer", "tokenizer.json", lambda f: with_id(f, 131), "larger ids",
    ),
    "whole numbers as an adapter's": (
        "adapter", "adapter_model.safetensors", lambda f: with_numbers(f, "I32"), "floating point",
    ),
    "another scaling in a finished run": (
        "adapter in its run", "adapter_config.json",
        lambda f: with_json(f, "adapter_config.json", lora_alpha=8.0), "has changed",
    ),
    "a manifest that lost a file": (
        "checkpoint", "manifest.json",
        lambda f: with_json(f, "manifest.json", files={}), "not recorded",
    ),
    "a flag as text": (
        "model", "config.json", lambda f: with_json(f, "config.json", attention_bias="false"),
        "attention_bias",
    ),
    "a hidden size that would be rounded": (
        "model", "config.json", lambda f: with_json(f, "config.json", intermediate_size=24.5),
        "no whole number",
    ),
}  # fmt: skip
"""Damage that once loaded as another model, or took the machine's memory."""


@pytest.mark.parametrize("what", UNNOTICED)
def test_what_once_went_unnoticed_is_named(formats, what: str) -> None:
    name, file, damage, complaint = UNNOTICED[what]
    form = formats[name]
    whole = (form.folder / file).read_bytes()
    content = damage(form.folder)
    assert content != whole
    (form.folder / file).write_bytes(content)
    try:
        with pytest.raises(SuriError, match=complaint):
            form.read(form.folder)
    finally:
        (form.folder / file).write_bytes(whole)


def test_a_line_cut_while_it_was_written_counts_as_not_written(formats) -> None:
    form = formats["run"]
    file = form.folder / "metrics.jsonl"
    whole = file.read_bytes()
    lines = read_json_lines(file)
    file.write_bytes(whole + b'{"step": 99, "tra')
    try:
        assert read_json_lines(file) == lines
        forget_after(file, 2)
        assert [line["step"] for line in read_json_lines(file)] == [
            line["step"] for line in lines if line["step"] <= 2
        ]
    finally:
        file.write_bytes(whole)
