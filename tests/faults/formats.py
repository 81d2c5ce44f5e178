"""A small real example of every format that is read from outside or read back, and its reader."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from children import run
from safetensors.torch import load_file
from samples import make_base, write_gguf_file, write_meta_folder
from torch import nn

from suri.cli.curve import two_curves
from suri.cli.runs import _row
from suri.data.prompt import find_prompt, read_prompt
from suri.data.records import Record, write_records
from suri.export.publish import write_merge
from suri.export.verify import verify
from suri.files import write_json
from suri.model.adapter_file import read_adapter
from suri.model.attention import PackedAttention
from suri.model.config import read_config
from suri.model.gguf_base import convert
from suri.model.load import load_decoder
from suri.model.tensor_names import to_gguf, to_meta, unpermute
from suri.model.tokenizer import read_tokenizer
from suri.model.weights import find_base, recorded_base
from suri.reading import read_json
from suri.recipe import Recipe, recipe_from_toml
from suri.study.forms import is_merge_of
from suri.study.plan import read_plan
from suri.study.report import build
from suri.study.trials import collect
from suri.train.checkpoint import find_checkpoint, load_checkpoint
from suri.train.runs import differing, read_run

ROOT = Path(__file__).parents[2]
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "base.json")


@dataclass(frozen=True)
class Format:
    """A folder, the files in it that are damaged, and what reading it gives: its meaning.

    `exact`: checksums cover it, so that nothing but the meaning it had may come of it. Where there
    are none, `keeps` is the part of the meaning that must stay.
    """

    folder: Path
    files: tuple[str, ...]
    read: Callable[[Path], object]
    exact: bool = False
    keeps: Callable[[Any], object] = lambda _: None


def bits(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        assert bool(torch.isfinite(tensor).all()), f"{name} holds what is no number"
        digest.update(f"{name} {tensor.shape} {tensor.dtype}".encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def adapter_of(folder: Path) -> object:
    adapter = read_adapter(folder)
    pairs = {f"{name} {i}": t for name, ab in adapter.tensors.items() for i, t in enumerate(ab)}
    scalings = sorted({adapter.scaling_of(name) for name in adapter.tensors})
    assert 0 < scalings[0] <= scalings[-1] < float("inf")
    base = recorded_base(folder)
    adapter.attach(load_decoder(base, only_layers=3))
    shapes = {name: tensor.shape for name, tensor in pairs.items()}
    return (adapter.r, adapter.targets, shapes), scalings, bits(pairs), base


def checkpoint_of(folder: Path) -> object:
    place, passed_over = find_checkpoint(folder)
    adapter = read_adapter(place)
    names = [
        f"model.layers.{n}.{m}" for n in range(2) for m in ("self_attn.q_proj", "mlp.down_proj")
    ]
    parameters = [nn.Parameter(t.clone()) for name in names for t in adapter.tensors[name]]
    optimizer = torch.optim.AdamW(parameters)
    progress, adapter = load_checkpoint(place, optimizer)
    assert not passed_over
    pairs = {f"{name} {i}": t for name, ab in adapter.tensors.items() for i, t in enumerate(ab)}
    state = optimizer.state_dict()["state"]
    moments = {f"{number} {n}": t for number, each in state.items() for n, t in each.items()}
    scalings = sorted({adapter.scaling_of(name) for name in adapter.tensors})
    return progress, scalings, bits(pairs), bits(moments)


def base_of(folder: Path) -> tuple[object, ...]:
    config = read_config(folder)
    decoder = load_decoder(find_base(str(folder)))
    ids = torch.arange(5) % config.vocab_size
    with torch.no_grad():
        hidden = decoder(ids, torch.arange(5), PackedAttention([5], config.sliding_window))
        shown = decoder.logits(hidden)
    kept = config.linear_shapes(), config.num_layers, config.vocab_size, config.num_kv_heads
    return kept, config, hashlib.sha256(shown.numpy().tobytes()).hexdigest()


def gguf_of(folder: Path) -> object:
    with tempfile.TemporaryDirectory() as place:
        convert(folder / "model.gguf", Path(place), [])
        tokenizer = read_tokenizer(Path(place))
        weights = bits(load_file(Path(place) / "model.safetensors"))
        return *base_of(Path(place)), weights, tokenizer.encode("to be")


def tokenizer_of(folder: Path) -> object:
    tokenizer = read_tokenizer(folder)
    texts = ["to be or</s> not", "", "12 to 345\n\nbe?", "\u00e9\u4e16"]
    ids = [list(each) for each in tokenizer.encode_many(texts)]
    assert ids == [tokenizer.encode(text) for text in texts]
    special = (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id, tokenizer.names)
    return ids, special, tokenizer.special_tokens, tokenizer.chat_template, [
        tokenizer.decode(each) for each in ids
    ]  # fmt: skip


def prompt_of(folder: Path) -> object:
    prompt = read_prompt(folder)
    return prompt, prompt.name if "chat" in prompt.name else prompt.turns(Record("a", "b", "c"))


def run_of(folder: Path) -> object:
    entry = read_run(folder)
    lines = two_curves(entry.metrics, entry.metrics, width=30, ascii_only=True)
    row = [*_row(entry, folder).values()][2:]  # without its place and its time
    return row, entry.figures, list(lines), differing(entry, entry)


def trial_of(folder: Path) -> object:
    return collect(folder, read_json(folder.parent / "judged" / "measured.json"))


def merge_of(folder: Path) -> object:
    certificate, left_out = verify(folder)
    return certificate.passed, certificate.to, not left_out


def report_of(folder: Path) -> object:
    # matplotlib's drawing takes a second.
    with patch("suri.study.figures._svg", lambda figure: ""):
        return [part.title for part in build([folder], "en").parts]


RECIPE = """[recipe]
base_model = "embedded"
learning_rate = 3e-4
lora_target_modules = ["q_proj", "v_proj"]
val_set_size = 0.25
seed = 7
use_rslora = false
"""
PLAN = (
    RECIPE
    + """
[study]
quantize = ["none", "nf4"]
rows = [2, 4]
seeds = [0, 1]
lora_r = [4, 8]
lora_target_modules = [["q_proj"], ["k_proj", "v_proj"]]
"""
)


CHAT = {
    "name": "chat", "chat_template": "{{ messages }}", "names": {"eos_token": "</s>"},
    "special_tokens": ["<s>", "</s>"], "today": "2026-01-02",
}  # fmt: skip
JUDGED = {
    "losses": [{"row": row, "loss_sum": 4.5 + row, "learned_tokens": 4} for row in range(3)],
    "answers": [{"text": "x1 y", "ids": [3, 1], "stopped": True} for _ in range(3)],
    "environment": {"device": "cpu", "cores": 2},
}


def train_in(place: Path) -> Path:
    """A finished run over place/base with two saved states, below a trial's folder."""
    write_records(place / "rows.json", [Record("Say it.", f"{n}", f"x{n} y") for n in range(7)])
    recipe = Recipe(
        base_model=str(place / "base"), data_path=str(place / "rows.json"), val_set_size=3.0,
        num_epochs=2.0, batch_size=2, lora_r=3, lora_alpha=7.0, save_steps=2, device="cpu",
        lora_target_modules=("q_proj", "down_proj"), output_dir=str(place / "trial" / "run"),
        learning_rate=0.05, token_budget=512,
    )  # fmt: skip
    (place / "trial").mkdir()
    assert run(recipe) == 0
    write_json(place / "trial" / "judged" / "measured.json", JUDGED)
    return place / "trial" / "run"


def make_formats(place: Path) -> dict[str, Format]:
    """Every format, below a place."""
    tensors = make_base(place / "base")
    trained = train_in(place)
    (place / "adapter").mkdir()
    for name in ADAPTER:
        shutil.copyfile(trained / name, place / "adapter" / name)
    write_meta_folder(place / "meta", tensors)
    write_gguf_file(place / "gguf" / "model.gguf", tensors)
    write_merge("hf", place / "base", place / "adapter", place / "merged")
    for name in ("text", "chat"):
        (place / name).mkdir()
    find_prompt("alpaca").save(place / "text")
    write_json(place / "chat" / "prompt.json", CHAT)
    (place / "text" / "recipe.toml").write_text(RECIPE)
    (place / "text" / "plan.toml").write_text(PLAN)
    for number in (1, 2):
        shutil.copytree(ROOT / "docs" / "results" / f"task{number}", place / f"task{number}",
                        ignore=shutil.ignore_patterns("report*", "figures"))  # fmt: skip
    state = sorted((trained / "checkpoints").iterdir())[-1]
    weights = tuple(p.name for p in sorted((place / "base").glob("*.safetensors")))
    return {
        "adapter": Format(place / "adapter", ADAPTER, adapter_of, keeps=itemgetter(0)),
        "adapter in its run": Format(trained, (*ADAPTER, "manifest.json"), adapter_of, exact=True),
        "checkpoint": Format(
            state, tuple(p.name for p in sorted(state.iterdir())), checkpoint_of, exact=True
        ),
        "model": Format(
            place / "base", ("config.json", "model.safetensors.index.json", *weights), base_of,
            keeps=itemgetter(0),
        ),
        "tokenizer": Format(
            place / "base", ("tokenizer.json", "tokenizer_config.json", "config.json"), tokenizer_of
        ),
        "Meta model": Format(place / "meta", ("params.json",), base_of, keeps=itemgetter(0)),
        "GGUF": Format(place / "gguf", ("model.gguf",), gguf_of, keeps=itemgetter(0)),
        "merge": Format(
            place / "merged", ("model.safetensors", "config.json", "tokenizer.json"), merge_of,
            exact=True,
        ),
        "certificate": Format(
            place / "merged", ("certificate.json",),
            lambda f: (merge_of(f), is_merge_of(f, trained)),
        ),
        "prompt": Format(place / "text", ("prompt.json",), prompt_of),
        "chat prompt": Format(place / "chat", ("prompt.json",), prompt_of),
        "recipe": Format(
            place / "text", ("recipe.toml",), lambda f: recipe_from_toml(f / "recipe.toml")
        ),
        "plan": Format(place / "text", ("plan.toml",), lambda f: read_plan(f / "plan.toml")),
        "run": Format(
            trained, ("recipe.toml", "result.json", "metrics.jsonl", "environment.json"), run_of
        ),
        "trial": Format(trained, ("result.json", "metrics.jsonl", "held_out.jsonl"), trial_of,
                        exact=True),
        "judged trial": Format(
            place / "trial" / "judged", ("measured.json",), lambda f: trial_of(f.parent / "run")
        ),
        "comparison": Format(place / "task1", ("compare.json", "answers.jsonl"), report_of),
        "study": Format(place / "task2", ("summary.json",), report_of),
    }  # fmt: skip
