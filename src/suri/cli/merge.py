"""`suri merge`, `suri convert`, `suri verify`: weights in another form, and the proof of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from suri.cli.flags import parse

if TYPE_CHECKING:
    from suri.export.fold import Report

MergeBase = Literal["dequantized", "original"]
DType = Literal["auto", "float32", "float16", "bfloat16", "q8_0"]


@dataclass(frozen=True, kw_only=True)
class MergeFlags:
    """Fold an adapter into its base and prove the result."""

    run: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
    """Run folder, or any LoRA adapter folder in PEFT's format."""
    to: Literal["hf", "meta", "gguf", "vllm"]
    """hf: a Hugging Face folder. meta: consolidated.00.pth and params.json. gguf: model.gguf.
    vllm: nothing is folded; the adapter as vLLM serves it over its base, and the command."""
    output_dir: str
    """Folder to write; it must not exist yet."""
    base_model: str = ""
    """Folder of the base ("": where the adapter says it is)."""
    merge_base: MergeBase = "dequantized"
    """For an adapter trained on nf4: the base as it was in training, or as it was before."""
    dtype: DType = "auto"
    """Numbers of the result (auto: the base's own; for gguf float16). q8_0 is for gguf alone."""


@dataclass(frozen=True, kw_only=True)
class ConvertFlags:
    """Write a model in another format, and prove that it is the same."""

    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="FROM")]]
    """Model: a folder in HF's or Meta's format, a GGUF file, a hub id, or `embedded`."""
    to: Literal["hf", "meta", "gguf"]
    """hf: a Hugging Face folder. meta: consolidated.00.pth and params.json. gguf: model.gguf."""
    output_dir: str
    """Folder to write; it must not exist yet."""
    dtype: DType = "auto"
    """Numbers of the result (auto: the model's own, and float32 where it mixes some or holds
    quantised ones; for gguf float16). q8_0 is for gguf alone."""


@dataclass(frozen=True, kw_only=True)
class VerifyFlags:
    """Check a merge's certificate again: checksums, and logits where base and adapter remain.

    With --adapter, certify a merge that another program wrote.
    """

    folder: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DIR")]]
    """Folder that `suri merge` or `suri convert` has written, or with --adapter any merge."""
    adapter: str = ""
    """The adapter that must be in the weights ("": the one that DIR's certificate names)."""
    base_model: str = ""
    """With --adapter, the folder of its base ("": where the adapter says it is)."""
    merge_base: MergeBase = "dequantized"
    """With --adapter trained on nf4: the base as it was in training, or as it was before."""


def run_merge(args: list[str]) -> None:
    """Parse `suri merge`, write the folder and print its certificate; the last line is PASS."""
    flags = parse(MergeFlags, args, "suri merge")
    run, base = Path(flags.run), _base(flags.base_model)
    if flags.to != "vllm":
        _write(flags, base, run, flags.merge_base)
        return
    from suri.export.vllm import write_vllm

    out = Path(flags.output_dir)
    print(*write_vllm(base, run, out), sep="\n")
    print(f"PASS vllm {out}")


def run_convert(args: list[str]) -> None:
    """Parse `suri convert`, write the folder and print its certificate; the last line is PASS."""
    flags = parse(ConvertFlags, args, "suri convert")
    from suri.model.weights import find_base

    _write(flags, find_base(flags.source))


def _base(name: str) -> Path | None:
    """The base of that name; None for "", where the adapter says it."""
    from suri.model.weights import find_base

    return find_base(name) if name else None


def _write(
    flags: MergeFlags | ConvertFlags,
    base: Path | None,
    adapter: Path | None = None,
    merge_base: MergeBase = "dequantized",
) -> None:
    """Write the folder that the flags name."""
    from suri.export.publish import write_merge

    out = Path(flags.output_dir)
    with _bar() as report:
        certificate = write_merge(
            flags.to, base, adapter, out, flags.dtype, merge_base=merge_base, report=report
        )
    print(*certificate.checks, *certificate.notes, sep="\n")
    print(f"PASS {flags.to} {out}")


def run_verify(args: list[str]) -> None:
    """Parse `suri verify` and check; prints PASS, or raises Corrupt with what is wrong."""
    flags = parse(VerifyFlags, args, "suri verify")
    from suri.errors import Corrupt
    from suri.export.verify import certify_other, verify

    folder, adapter = Path(flags.folder), flags.adapter
    with _bar() as report:
        if adapter:
            certificate = certify_other(
                folder,
                Path(adapter),
                _base(flags.base_model),
                merge_base=flags.merge_base,
                report=report,
            )
            lines: list[object] = [*certificate.checks]
        else:
            certificate, left_out = verify(folder, report)
            lines = ["ok   every file has its checksum", *certificate.checks, *certificate.notes]
            lines += [f"note: {left_out}"] if left_out else []
    print(*lines, sep="\n")
    if not certificate.passed and adapter:
        raise Corrupt(f"{folder} is not this base with this adapter")
    if not certificate.passed:
        raise Corrupt(f"{folder} no longer gives the logits of what it was made from")
    print(f"PASS {certificate.to} {folder}")


@contextmanager
def _bar() -> Iterator["Report"]:
    """A bar for each stage on a terminal, nothing in a file."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = progress.add_task(stage, total=total)
        progress.update(tasks[stage], completed=done)

    with progress:
        yield report
