"""What this machine is, what it has free, and what this process took of it."""

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def environment(device: str) -> dict[str, Any]:
    """Machine and versions, for a reader who wants to repeat the run."""
    packages = {}
    for name in ("suri", "torch", "tokenizers", "bitsandbytes", "transformers", "peft"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if device != "cpu" and torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "packages": packages,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if hasattr(os, "sysconf")
        else None,
        "gpu": gpu,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def dtype_on(device: str) -> torch.dtype:
    """What models are computed in there: fp32 on a CPU, bf16 on a GPU."""
    return torch.float32 if device == "cpu" else torch.bfloat16


def peak_memory_bytes(device: str) -> int:
    """The most memory this process held: of the GPU where one trains, else resident."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    # Not getrusage: its figure is at least that of the process that started this one.
    if highest := _kernel_bytes("self/status", "VmHWM"):
        return highest
    try:
        import resource
    except ImportError:  # Windows
        return 0
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _kernel_bytes(file: str, name: str) -> int | None:
    """What a file in /proc says under a name; None where there is none."""
    place = Path("/proc") / file
    text = place.read_text(encoding="utf-8", errors="replace") if place.is_file() else ""
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else None


def ran_out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that an allocation failed, on a GPU or on the CPU."""
    if isinstance(problem, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(problem) or "could not create a memory" in str(problem)


def held_memory_bytes() -> int:
    """What this process holds of the machine's memory now; 0 where that cannot be told."""
    return _kernel_bytes("self/status", "VmRSS") or 0


def free_memory_bytes(device: str) -> int | None:
    """What a run may still take: of the GPU, or of the machine and its container.

    None where that cannot be told.
    """
    if device != "cpu":
        return int(torch.cuda.mem_get_info()[0])
    left = [_kernel_bytes("meminfo", "MemAvailable"), *(_container(*f) for f in CONTAINER_FILES)]
    return min((count for count in left if count is not None), default=None)


CONTAINER = Path("/sys/fs/cgroup")
CONTAINER_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""Limit and use of a container, in that folder: version 2 and version 1."""


def _container(limit: str, used: str) -> int | None:
    """What a container has left by these two files; None where it has no limit."""
    try:
        texts = [(CONTAINER / name).read_text(encoding="ascii").strip() for name in (limit, used)]
    except OSError:
        return None
    return int(texts[0]) - int(texts[1]) if all(text.isdigit() for text in texts) else None
