"""`suri doctor`: what this machine can do, what is missing, and the command that mends it."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, get_args

from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from suri.cli.flags import parse
from suri.errors import UsageError
from suri.files import cache_folder, free_space
from suri.recipe import Quantize, Recipe
from suri.wording import readable_bytes

EXTRAS = {
    "chat": "the page in the browser",
    "serve": "the HTTP API",
    "fast": "answers on a CPU, up to twice as fast",
    "qlora": "a base in 4 bits (nf4)",
    "reference": "models of other families, and transformers as a second opinion",
    "old-llama": "folders that hold only tokenizer.model",
    "data": "rows in Parquet or on the hub",
    "llama-cpp": "llama.cpp's check of GGUF files",
    "report": "figures, Word and PDF",
    "pictures": "the page's picture in reports",
    "track": "TensorBoard",
    "cluster": "studies on several machines",
}
"""What each extra of the package is for, where somebody who runs Suri may want it."""
MARKS = {"ok": "[green]ok[/]", "missing": "[yellow]–[/]", "wrong": "[red]wrong[/]"}


@dataclass(frozen=True)
class Finding:
    """One line: how it stands, what it is, what is here, and the command that mends it."""

    state: Literal["ok", "missing", "wrong"]
    what: str
    here: str
    do: str = ""


@dataclass(frozen=True)
class DoctorCommand:
    """Tell what this machine can do, what is missing, and the command that mends it.

    Exits with 2 where something that every run needs is wrong.
    """


def run(argv: list[str]) -> None:
    """Parse and run `suri doctor`."""
    parse(DoctorCommand, argv, "suri doctor")
    found = [*_packages(), *_device(), *_places(), *_base(), *_extras()]
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(4):
        table.add_column(overflow="fold")
    for one in found:
        table.add_row(MARKS[one.state], *map(escape, (one.what, one.here, one.do)))
    Console(highlight=False).print(table)
    if wrong := [one for one in found if one.state == "wrong"]:
        raise UsageError(f"{wrong[0].what}: {wrong[0].here}", do=wrong[0].do)


def _packages() -> Iterator[Finding]:
    """Python and what is always needed."""
    yield Finding("ok", "Python", ".".join(map(str, sys.version_info[:3])))
    try:
        yield Finding("ok", "suri", version("suri"))
    except PackageNotFoundError:
        yield Finding("wrong", "suri", "not installed as a package", "pip install -e .")
        return
    core = _needed("")
    if unfit := [said for one in core if (said := _unfit(one))]:
        yield Finding("wrong", "its packages", ", ".join(unfit), _install(core))
    else:
        yield Finding("ok", "its packages", f"{len(core)}, as they have to be")


def _device() -> Iterator[Finding]:
    """What computes, and the ways in which a base can be stored on it."""
    import torch

    from suri.model.load import choose_device
    from suri.train.machine import environment, free_memory_bytes

    try:
        device = choose_device("auto")
    except UsageError as problem:
        yield Finding("wrong", "GPU", f"{problem.what} ({problem.found})", problem.do)
        device = "cpu"
    facts = environment(device)
    name = f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads"
    yield Finding("ok", "computes on", facts["gpu"] or name)
    free = free_memory_bytes(device)
    yield Finding("ok", "free memory", "unknown" if free is None else readable_bytes(free))
    yield Finding("ok", "torch", torch.__version__)
    stored = [way for way in get_args(Quantize) if _can_train(way, device)]
    yield Finding("ok", "trains with", f"--quantize {', '.join(stored)}")


def _places() -> Iterator[Finding]:
    """Room on the disks."""
    for what, place in (("here", Path()), ("cache", cache_folder())):
        free = readable_bytes(free_space(place))
        yield Finding("ok", f"disk, {what}", f"{free} free ({place.resolve()})")


def _base() -> Iterator[Finding]:
    from suri.model.embedded import INSTALL, PACKAGE

    what = "embedded base"
    try:
        yield Finding("ok", what, f"{PACKAGE} {version(PACKAGE)}")
    except PackageNotFoundError:
        yield Finding("missing", what, "not installed; `suri demo` needs it", INSTALL)


def _extras() -> Iterator[Finding]:
    """What not everybody needs, and whether what is installed of it works."""
    for extra, purpose in EXTRAS.items():
        needed = _needed(extra)
        unfit = [said for one in needed if (said := _unfit(one))]
        lacking, remedy = ("", "") if unfit else _lacks(extra)
        if unfit:
            install = f'pip install "suri[{extra}]"'
            yield Finding("missing", extra, f"{purpose}: {', '.join(unfit)}", install)
        elif lacking:
            yield Finding("missing", extra, f"{purpose}: {lacking}", remedy)
        else:
            yield Finding("ok", extra, purpose)


def _lacks(extra: str) -> tuple[str, str]:
    """What an installed extra lacks besides packages, and what brings it; empty for nothing."""
    if extra == "fast":
        from suri.model.kernels import compile_few_rows

        if not compile_few_rows():
            return "finds no OpenMP", "apt-get install libgomp1"
    if extra == "pictures":
        from suri.study.browser import browser_and_driver

        if not all(browser_and_driver()):
            return "finds no browser", "apt-get install chromium chromium-driver"
    return "", ""


def _needed(extra: str) -> list[Requirement]:
    """The packages of an extra; of "" those that are always needed."""
    found = [Requirement(line) for line in requires("suri") or []]
    if not extra:
        return [one for one in found if one.marker is None]
    return [one for one in found if one.marker and one.marker.evaluate({"extra": extra})]


def _unfit(one: Requirement) -> str:
    """What is wrong with an installed package; "" where it is as it has to be."""
    try:
        here = version(one.name)
    except PackageNotFoundError:
        return f"no {one.name}"
    if one.specifier.contains(here, prereleases=True):
        return ""
    return f"{one.name} {here} is not {one.specifier}"


def _install(packages: list[Requirement]) -> str:
    return "pip install " + " ".join(f'"{one}"' for one in packages if _unfit(one))


def _can_train(way: Quantize, device: str) -> bool:
    from suri.train.prepare import refuse_storage

    try:
        refuse_storage(Recipe(quantize=way), device, here=True)
    except UsageError:
        return False
    return way != "nf4" or not any(_unfit(one) for one in _needed("qlora"))
