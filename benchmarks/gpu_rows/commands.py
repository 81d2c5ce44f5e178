"""The project's own commands on the device: train in each form, answer, merge."""

import contextlib
import importlib.util
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gpu_rows.bench import Bench, NotHere
from gpu_rows.model import SHAPE_TINY, RandomWeights
from suri.model.config import config_from_hf
from suri.model.fp8 import CAPABILITY
from training_inputs import write_tokenizer

SHAPE = SHAPE_TINY | {
    "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "intermediate_size": 384, "torch_dtype": "bfloat16",
}  # fmt: skip
NEEDED = ("rich", "tyro", "tomli_w", "blake3", "jinja2", "huggingface_hub")


def commands(bench: Bench) -> None:
    """Losses as on the CPU, and every command's end."""
    if missing := lacking():
        raise NotHere(f"not installed: {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _model(folder / "base")
        wanted = _trained(folder, "cpu", "none")
        for quantize in ("none", "nf4", "fp8") if bench.cuda else ("none",):
            if quantize == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
                bench.note("train --quantize nf4", "bitsandbytes is not installed")
                continue
            if quantize == "fp8" and torch.cuda.get_device_capability() < CAPABILITY:
                bench.note("train --quantize fp8", "needs compute capability 8.9")
                continue
            _compared(bench, folder, quantize, wanted)
        _used(bench, folder)


def lacking() -> list[str]:
    """Packages of the commands that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def _compared(bench: Bench, folder: Path, quantize: str, wanted: dict[str, Any]) -> None:
    what = f"train --quantize {quantize}"
    try:
        found = _trained(folder, "auto", quantize)
    except Exception as problem:
        bench.broke(what, problem)
        return
    for loss in ("base_loss", "held_out_loss"):
        one, other = (torch.tensor([result[loss]]) for result in (found, wanted))
        bench.check(
            f"{what}: {loss} as on the CPU", one, other, 1e-2 if quantize == "none" else 0.1
        )
    bench.figure(f"{what}: seconds of the command", [found["total_seconds"]], "s")


def _used(bench: Bench, folder: Path) -> None:
    run, rows = folder / "auto-none", folder / "rows.json"
    rows.write_text(json.dumps([{"instruction": f"Say {n} words."} for n in range(6)]))
    answers = ["--temperature", "0", "--max_new_tokens", "24", "--output_path"]
    for what, words in {
        "generate": ["generate", str(rows), "--model", str(run), *answers, f"{folder}/a.jsonl"],
        "generate --load_8bit": ["generate", str(rows), "--model", str(run), "--load_8bit", "True",
                                 *answers, f"{folder}/b.jsonl"],
        "merge": ["merge", str(run), "--to", "hf", "--output_dir", f"{folder}/merged"],
        "generate from the merge": ["generate", str(rows), "--model", f"{folder}/merged",
                                    *answers, f"{folder}/c.jsonl"],
    }.items():  # fmt: skip
        try:
            began = time.perf_counter()
            _suri(words)
            seconds = [time.perf_counter() - began]
        except Exception as problem:
            bench.broke(what, problem)
            continue
        bench.figure(f"{what}: seconds of the command", seconds, "s")


def _trained(folder: Path, device: str, quantize: str) -> dict[str, Any]:
    """result.json of a run of a few steps on the bundled rows."""
    run = folder / f"{device}-{quantize}"
    _suri([
        "train", "--base_model", str(folder / "base"), "--output_dir", str(run), "--device", device,
        "--quantize", quantize, "--max_steps", "8", "--batch_size", "16", "--learning_rate", "3e-3",
        "--val_set_size", "24", "--save_steps", "4",
    ])  # fmt: skip
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def _suri(words: list[str]) -> None:
    """One command, quiet; what it printed is the error's text."""
    from suri.cli.main import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
    if code:
        raise RuntimeError(f"suri {' '.join(words[:2])}: {code}\n{printed.getvalue()[-500:]}")


def _model(folder: Path) -> None:
    """A small random Llama with a tokenizer of single letters."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
    weights = RandomWeights(config_from_hf(SHAPE), torch.device("cpu"))
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder)
