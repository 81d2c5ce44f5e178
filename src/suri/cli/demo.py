"""`suri demo`: the whole path on the embedded base, each step a command of its own."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from suri.cli.flags import parse
from suri.errors import SuriError, UsageError
from suri.files import make_folder, need_space, write_text
from suri.model.embedded import embedded_base

MARK = ".suri-demo"
"""Says that a folder is an earlier demo's and may be replaced."""
SPACE_BYTES = 3_000_000_000

TRAINING = {
    "data_path": "bundled:300",
    "val_set_size": "24",
    "num_epochs": "1",
    "batch_size": "8",
    "learning_rate": "1e-3",
}
"""Settings of the demo's training: about 90 seconds on two cores."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train, merge, compare and report on the embedded base and the bundled rows."""

    output_dir: str = "./demo"
    """Folder for all results; an earlier demo in it is replaced."""


def run(argv: list[str]) -> None:
    """Run every step and end by saying where the report is; a step that fails ends the demo."""
    demo = parse(Demo, argv, "suri demo")
    folder = Path(demo.output_dir)
    embedded_base()  # where it is missing that is the one message, before any folder is made
    _open(folder)
    console, began = Console(highlight=False), time.perf_counter()
    for number, (title, command) in enumerate(steps(folder), start=1):
        shown = " ".join(["suri", *command])
        console.rule(f"[bold]{number}. {title}", align="left")
        console.print(f"[dim]$ {escape(shown)}[/]", soft_wrap=True)
        done = subprocess.run([sys.executable, "-m", "suri", *command], check=False)
        if done.returncode:
            problem = SuriError(f"step {number} of the demo failed", do=f"try it alone: {shown}")
            problem.exit_code = done.returncode if done.returncode > 0 else 1
            raise problem
    console.rule(f"[bold green]done in {time.perf_counter() - began:.0f} s", align="left")
    report = folder / "compare" / "report.html"
    console.print(f"report: [bold]{escape(str(report))}[/]", soft_wrap=True)
    chat = f"{_program()} chat {folder / 'run'}"
    console.print(f"chat:   [bold]{escape(chat)}[/]", soft_wrap=True)


def _program() -> str:
    """What a person types to start this program: its path where the shell does not know it."""
    if shutil.which("suri"):
        return "suri"
    return os.path.relpath(Path(sys.executable).with_name("suri"))


def steps(folder: Path) -> list[tuple[str, list[str]]]:
    """What the demo does: a title and the arguments of `suri` for each step."""
    trained, hf, meta = (str(folder / name) for name in ("run", "merged-hf", "merged-meta"))
    training = [word for name, value in TRAINING.items() for word in (f"--{name}", value)]
    comparison = ["--output_dir", str(folder / "compare"), "--prompts", "24"]
    comparison += ["--ways", "base,adapter,hf,meta", "--max_new_tokens", "32"]
    comparison += ["--merged_hf", hf, "--merged_meta", meta]
    return [
        ("Train a LoRA on 300 bundled rows", ["train", *training, "--output_dir", trained]),
        ("Merge into Hugging Face weights", ["merge", trained, "--to", "hf", "--output_dir", hf]),
        ("Merge into Meta weights", ["merge", trained, "--to", "meta", "--output_dir", meta]),
        ("Compare base, adapter and both merges", ["compare", trained, *comparison]),
    ]


def _open(folder: Path) -> None:
    if (folder / MARK).is_file():
        shutil.rmtree(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} exists and holds something else", do="choose an --output_dir")
    make_folder(folder)
    need_space(folder, SPACE_BYTES, "the demo")
    write_text(folder / MARK, "made by `suri demo`; replaced by the next one\n")
