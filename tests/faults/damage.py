"""Damage to files, tried one by one: bytes flipped, files cut, other values in their trees."""

import json
import random
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tomli_w
from formats import Format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suri.errors import SuriError

HEADER = 4096
SECONDS = 5
RAW = (
    b"", b"\0", b"\xff\xfe", b"{", b"[]", b"null", b"7", b"[" * 100_000, b'{"a":' * 100_000,
    b"1" * 5000, b"NaN", b'{"r": 1e999}', b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b'"\\ud800"',
    b"a = " + b"1" * 5000, b"a = " + b"[" * 100_000, b"a = nan",
)  # fmt: skip
"""What is no file of any format, or tries the parser itself."""
counts: Counter[tuple[str, str, str]] = Counter()


class Trial:
    """Tries damaged contents of a format's files one by one, and keeps every fault."""

    def __init__(self, name: str, form: Format, how: str) -> None:
        self.name, self.form, self.how = name, form, how
        self.meaning = form.read(form.folder)
        self.faults: dict[str, str] = {}

    def __call__(self, file: str, content: bytes, what: object = "") -> None:
        place = self.form.folder / file
        whole = place.read_bytes()
        started = time.process_time()
        place.write_bytes(content)
        try:
            end = self._read()
        except SuriError:
            end = "refused"
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # a panic of a Rust library is no Exception
            frames = traceback.extract_tb(problem.__traceback__)
            at = [
                f"{Path(f.filename).name}:{f.lineno}" for f in frames if "/src/suri/" in f.filename
            ]
            place_of_fault = f"{type(problem).__name__} at {at[-1:] or problem}"
            self.faults.setdefault(place_of_fault, f"{file} {what}: {problem!s:.200}")
            return
        finally:
            place.write_bytes(whole)
        counts[self.name, self.how, end] += 1
        if time.process_time() - started > SECONDS:
            self.faults.setdefault("slow", f"{file} {what}")

    def _read(self) -> str:
        found = self.form.read(self.form.folder)
        if found == self.meaning:
            return "unchanged"
        assert not self.form.exact, "damage that a checksum covers went unnoticed"
        assert self.form.keeps(found) == self.form.keeps(self.meaning), "it became another model"
        return "other"

    def finish(self) -> None:
        report = "\n".join(f"{where}: {what}" for where, what in self.faults.items())
        assert not self.faults, report


def flip_bytes(trial: Trial, most: int) -> None:
    """Change bytes one at a time, in headers and small files densely, each by a random mask."""
    chance = random.Random(trial.name)
    for file in trial.form.files:
        content = (trial.form.folder / file).read_bytes()
        share = most // len(trial.form.files)
        start = min(len(content), HEADER)
        places = {*chance.sample(range(start), min(start, share))}
        places |= {*chance.choices(range(len(content)), k=share // 4)}
        for place in sorted(places):
            flipped = bytearray(content)
            flipped[place] ^= chance.choice([1 << chance.randrange(8), chance.randrange(1, 256)])
            trial(file, bytes(flipped), f"byte {place}")


def cut(trial: Trial, most: int) -> None:
    """End files early, from nothing to one byte too few; then what is no such file at all."""
    for file in trial.form.files:
        content = (trial.form.folder / file).read_bytes()
        share = most // len(trial.form.files)
        for end in sorted({len(content) * part // share for part in range(share)}):
            trial(file, content[:end], f"cut at {end}")
        for raw in RAW[: max(2, share)]:
            trial(file, raw, raw[:12])


ODD = [
    0, -1, 1, 3, 2**31, 2**63, 2**64, 10**400, 0.5, -0.5, 1e308, 5e-324, True, None, "", "3", "x",
    "\0", "~nobody/x", "..", "/", "a" * 5000, "\ud800", "{", [], {}, [[]], [{}], {"a": []}, [None],
]  # fmt: skip
values = st.one_of(
    st.sampled_from(ODD),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
        ),
        max_leaves=4,
    ),
)


def parts_of(file: str, content: bytes) -> tuple[Any, Callable[[Any], bytes]] | None:
    """The values of a file as a tree, and how a tree becomes such a file again."""
    if file.endswith(".safetensors"):
        end = 8 + int.from_bytes(content[:8], "little")

        def header(tree: Any) -> bytes:
            text = json.dumps(tree).encode()
            return len(text).to_bytes(8, "little") + text + content[end:]

        return json.loads(content[8:end]), header
    if file.endswith(".toml"):
        return tomllib.loads(content.decode()), lambda tree: tomli_w.dumps(tree).encode()
    if file.endswith(".jsonl"):
        lines = [json.loads(line) for line in content.splitlines()]
        return lines, lambda tree: "".join(json.dumps(x) + "\n" for x in tree).encode()
    return (
        (json.loads(content), lambda tree: json.dumps(tree).encode()) if ".json" in file else None
    )


def paths_of(tree: Any, start: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a tree stand; of long lists the first few."""
    yield start
    inner = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree[:6])
        if isinstance(tree, list)
        else ()
    )
    for key, value in list(inner)[:60]:
        yield from paths_of(value, (*start, key))


def changed(tree: Any, path: tuple[Any, ...], action: str, value: Any) -> Any:
    """A copy of the tree with one value replaced, left out, or under another name."""
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if len(path) > 1:
        copy[path[0]] = changed(tree[path[0]], path[1:], action, value)
    elif action == "replace":
        copy[path[0]] = value
    else:
        kept = copy.pop(path[0])
        if action == "rename" and isinstance(copy, dict):
            copy[f"{path[0]}_"] = kept
    return copy


def put_other_values(trial: Trial, most: int) -> None:
    """Replace, remove or rename one value of a file's tree."""
    trees = {}
    for file in trial.form.files:
        if found := parts_of(file, (trial.form.folder / file).read_bytes()):
            trees[file] = (*found, [*paths_of(found[0])])

    @settings(
        max_examples=most,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def try_one(data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(trees)))
        tree, as_file, paths = trees[file]
        path = data.draw(st.sampled_from(paths))
        action = data.draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename"]))
        value = data.draw(values)
        try:
            content = as_file(changed(tree, path, action, value))
        except (TypeError, ValueError, AttributeError):
            return  # TOML has no such value
        trial(file, content, f"{path} {action} {value!r:.60}")

    if trees:
        try_one()


DAMAGE = {"bytes flipped": flip_bytes, "cut": cut, "other values": put_other_values}
