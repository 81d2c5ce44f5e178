"""What all rows share: the device, the clock, the table, the file of results."""

import gc
import importlib.metadata
import json
import math
import platform
import re
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDERS = re.compile(r"(?<![\w.])/(?:[\w.@+-]+/)+")
"""Of an absolute path, all but its last name."""
PACKAGES = ("torch", "triton", "transformers", "peft", "bitsandbytes", "numpy", "flash-attn",
            "unsloth", "vllm")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What measures it, and the most seconds that it may take."""

    measure: Callable[["Bench"], None]
    seconds: int


class NotHere(Exception):
    """A row cannot be measured on this machine; the text says why."""


class Overrun(Exception):
    """A row took longer than it may."""


class Bench:
    """Collects figures; every one is on the screen and in the file as soon as it is known."""

    def __init__(self, out: Path | None, folder: Path, tiny: bool, go_on: bool = False) -> None:
        self.tiny, self.row = tiny, ""
        self.cuda = torch.cuda.is_available()
        if not (self.cuda or tiny):
            raise SystemExit("no CUDA device here; --tiny runs every row on a CPU")
        self.device = torch.device("cuda" if self.cuda else "cpu")
        name = torch.cuda.get_device_name() if self.cuda else "cpu"
        plain = "-".join(name.lower().split()) + ("-tiny" if tiny else "")
        self.out = out or folder / f"gpu-{plain}.json"
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.result: dict[str, Any] = {
            "command": "python benchmarks/gpu.py" + (" --tiny" if tiny else ""),
            "device": name,
            "tiny": tiny,
            "environment": environment(self.cuda),
            "seconds": {},
            "table": {},
            "figures": [],
        }
        if go_on:
            self.result = json.loads(self.out.read_text(encoding="utf-8"))
        else:
            print(f"{name}, torch {torch.__version__}" + (", TINY: times say nothing" * tiny))
        self.kept: dict[str, Any] = {}

    def run(self, name: str, row: Row, left: float) -> bool:
        """Measure one row; whether the device can still be used after it."""
        self.row, usable = name, True
        began = time.perf_counter()
        try:
            if left < 5:
                raise NotHere("left out: the run's minutes were over")
            with _limit(int(min(row.seconds, left))):
                row.measure(self)
        except NotHere as reason:
            self.note("all of it", str(reason))
        except torch.OutOfMemoryError as problem:
            self.note("the rest of it", f"out of memory: {str(problem)[:120]}")
            del problem
        except BaseException as problem:
            if isinstance(problem, KeyboardInterrupt | SystemExit):
                raise
            self.broke("all of it", problem)
            # Libraries that refuse a shape leave the device usable.
            usable = "CUDA error" not in str(problem) or "CUBLAS" in str(problem)
            del problem
        self.result["seconds"][name] = round(time.perf_counter() - began, 1)
        self.write()
        if usable:
            self.free()
        return usable

    def figure(
        self, what: str, values: Sequence[float], unit: str, note: str = "", **more: Any
    ) -> float:
        """One measured figure with all its values; returns the median."""
        median = statistics.median(values)
        spread = (max(values) - min(values)) / abs(median) if median else 0.0
        found = {"what": what, "median": median, "unit": unit, "spread": round(spread, 4)}
        self._add(found | {"raw": [float(v) for v in values]} | more | _noted(note))
        return median

    def check(self, what: str, found: Tensor, wanted: Tensor, bound: float, note: str = "") -> None:
        """Compare with a reference: |found - wanted| / |wanted| in fp64 must stay below `bound`.

        `control` is the same against the wanted numbers in another order: were it below the bound
        too, the comparison would prove nothing, and it fails.
        """
        place = found.device
        found, wanted = (x.detach().to(place, torch.float64).flatten() for x in (found, wanted))
        if found.shape != wanted.shape or not len(found):
            raise ValueError(f"{what}: {list(found.shape)} against {list(wanted.shape)}")
        size = float(wanted.norm())
        error = float((found - wanted).norm()) / max(size, 1e-30)
        other = wanted.roll(1) if len(wanted) > 1 else -wanted
        control = float((other - wanted).norm()) / max(size, 1e-30)
        passed = math.isfinite(error) and size > 0 and error < bound < control
        figures = {"error": error, "bound": bound, "control": control, "compared": len(found)}
        self._add({"what": what, "passed": passed} | figures | _noted(note))

    def note(self, what: str, reason: str) -> None:
        """A figure that there is not, and why."""
        self._add({"what": what, "missing": reason})

    def broke(self, what: str, problem: BaseException) -> None:
        """A figure that there is not, because of an error."""
        self._add({"what": what, "failed": _shortened(problem)})

    def times(self, work: Callable[[], object], repeats: int = 5, warm_up: int = 1) -> list[float]:
        """Seconds of each of some runs, the device's work included."""
        for _ in range(warm_up):
            work()
        seconds = []
        for _ in range(2 if self.tiny else repeats):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            seconds.append(time.perf_counter() - began)
        return seconds

    def wait(self) -> None:
        """Let the device finish."""
        if self.cuda:
            torch.cuda.synchronize()

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """What several parts of a row use; forgotten by `free`."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def free(self) -> None:
        """Give back the memory of the device; small figures under `rate` stay known."""
        self.kept = {name: value for name, value in self.kept.items() if name.startswith("rate")}
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def write(self) -> None:
        """Write the file anew, so that it is whole at any moment."""
        new = self.out.with_suffix(".new")
        new.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")
        new.replace(self.out)

    def failed(self) -> bool:
        """Whether any row broke or any check found a difference."""
        return any("failed" in f or f.get("passed") is False for f in self.result["figures"])

    def _add(self, figure: dict[str, Any]) -> None:
        self.result["figures"].append({"row": self.row} | figure)
        if "median" in figure:  # found by name, where a document quotes it
            self.result["table"].setdefault(self.row, {})[figure["what"]] = figure["median"]
        print(_line(self.row, figure), flush=True)
        self.write()


def _noted(note: str) -> dict[str, str]:
    return {"note": note} if note else {}


def _line(row: str, figure: dict[str, Any]) -> str:
    """One line of the table."""
    if "missing" in figure:
        value = f"-  {figure['missing']}"
    elif "failed" in figure:
        value = f"FAILED  {figure['failed'].splitlines()[0]}"
    elif "passed" in figure:
        verdict = "same" if figure["passed"] else "DIFFERENT"
        value = f"{verdict}, error {figure['error']:.2e} of {figure['bound']:.0e}"
    else:
        value = f"{figure['median']:,.4g} {figure['unit']} (+-{50 * figure['spread']:.0f} %)"
    note = f"  [{figure['note']}]" if figure.get("note") else ""
    return f"{row:<21}{figure['what']:<54} {value}{note}"


def _shortened(problem: BaseException) -> str:
    """The error in a line, then where it came from; files without the folders of this machine."""
    head = f"{type(problem).__name__}: {str(problem)[:300]}"
    places = "".join(traceback.format_tb(problem.__traceback__)[-6:])
    return FOLDERS.sub("", f"{head}\n{places}")


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    """Raise Overrun when the time is over."""

    def over(*_: object) -> None:
        raise Overrun(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def environment(cuda: bool) -> dict[str, Any]:
    """Versions and the device's sizes."""
    found: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if cuda:
        device = torch.cuda.get_device_properties(0)
        found |= {
            "cuda": torch.version.cuda,
            "capability": f"{device.major}.{device.minor}",
            "memory_bytes": device.total_memory,
            "multiprocessors": device.multi_processor_count,
        }
    return found
