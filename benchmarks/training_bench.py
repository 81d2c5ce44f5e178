"""What every part of training.py shares: base, rows, the kept result, and how runs are started."""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import training_inputs as inputs

HERE = Path(__file__).parent


class Bench:
    """The result so far, kept on disk after every run, and how runs are started."""

    def __init__(self, asked: argparse.Namespace, work: Path) -> None:
        from suri.model.weights import find_base
        from suri.recipe import LINEARS, Recipe

        self.asked, self.work = asked, work
        self.base = inputs.tiny_base(work / "tiny") if asked.tiny else find_base("embedded")
        self.recipe = Recipe(
            base_model=str(self.base) if asked.tiny else "embedded",
            batch_size=16,
            num_epochs=1,
            lr_schedule="constant",
            warmup_ratio=0,
            cutoff_len=1000 if asked.tiny else 256,
            val_set_size=0,
            lora_target_modules=LINEARS if asked.targets == "all" else ("q_proj", "v_proj"),
            device="cpu",
        )
        self.rows = self._rows()
        self.result = self._earlier() | {
            "command": "python benchmarks/training.py " + " ".join(_shown(sys.argv[1:])),
            "tiny": asked.tiny,
            "base": "tiny, random" if asked.tiny else self.base.name,
            "rows_file": self.source,
            "environment": _environment(),
        }

    def _rows(self) -> list[Any]:
        from suri.manifest import sha256

        if self.asked.tiny:
            file = inputs.bundled_rows(60, 0, self.work / "rows.json")
        else:
            file = Path(self.asked.rows_file)
        self.source = {"name": file.name, "sha256": sha256(file)}
        rows: list[Any] = json.loads(file.read_text(encoding="utf-8"))
        return rows

    def _earlier(self) -> dict[str, Any]:
        """Parts that an earlier run with the same rows left in the file."""
        file = Path(self.asked.out)
        earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        same = (earlier.get("rows_file"), earlier.get("tiny")) == (self.source, self.asked.tiny)
        return earlier if same else {}

    def save(self, part: str, found: dict[str, Any]) -> None:
        from suri.files import write_json

        self.result[part] = found
        Path(self.asked.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(self.asked.out), self.result)

    def run(self, command: list[str], **environment: str) -> tuple[float, str]:
        """Seconds from start to end of a process, and what it printed."""
        from suri.cli.main import THREADS

        # Suri's command line sets these for itself; the others get the default, as users do.
        default = {name: value for name, value in os.environ.items() if name not in THREADS}
        began = time.perf_counter()
        done = subprocess.run(
            command, capture_output=True, text=True, env=default | environment, check=False
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return seconds, done.stdout

    def peer(self, job: dict[str, Any], python: str = sys.executable) -> dict[str, Any]:
        """What a job of training_peers.py found."""
        file = self.work / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        _, printed = self.run([python, str(HERE / "training_peers.py"), str(file)])
        return result_of(printed)

    def suri(self, recipe: Any, **environment: str) -> tuple[float, dict[str, Any]]:
        """`python -m suri train` with the settings that differ from the defaults."""
        from suri.recipe import Recipe, settings_of

        default = settings_of(Recipe())
        command = [sys.executable, "-m", "suri", "train"]
        for name, value in settings_of(replace(recipe, overwrite=True)).items():
            if value != default[name]:
                words = (
                    [f"[{','.join(value)}]"] if isinstance(value, list | tuple) else [str(value)]
                )
                command += [f"--{name}", *words]
        seconds, _ = self.run(command, **environment)
        result = json.loads((Path(recipe.output_dir) / "result.json").read_text(encoding="utf-8"))
        return seconds, result


def _environment() -> dict[str, Any]:
    from suri.train.machine import environment

    found = environment("cpu")
    for name in ("accelerate", "trl"):
        try:
            found["packages"][name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def result_of(printed: str) -> dict[str, Any]:
    lines = [line for line in printed.splitlines() if line.startswith("RESULT ")]
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


def _shown(words: list[str]) -> list[str]:
    """The command's words without anybody's folders."""
    return [Path(word).name if Path(word).is_absolute() else word for word in words]
