"""Greedy answers of one trained adapter, by four programs that share no code: are they the same?

python benchmarks/same_answers.py [OUT.json]     (default: benchmarks/results/same-answers.json)

A LoRA is trained on bundled rows and merged three ways. Twenty prompts, half of them held-out rows
and half questions with longer answers, are answered by Suri's decoder with the adapter beside the
base, by transformers on the merged HF folder, by llama.cpp on the merged GGUF file in float16 and,
token for token behind the first one's answer, by the second decoder on the merged Meta folder.
Answers count as the same up to the first place whose two likeliest tokens lie within a margin:
there any rounding decides.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from suri.data.encode import encode_prompt
from suri.data.records import Record, read_records
from suri.export.llama_cpp import read
from suri.export.meta_decoder import MetaDecoder
from suri.infer.engines import open_model
from suri.model.attention import PackedAttention
from suri.model.embedded import embedded_base
from suri.recipe import GREEDY
from suri.train.machine import environment

RESULTS = Path(__file__).parent / "results"
MOST, MARGIN = 40, 0.05
QUESTIONS = (
    "Name three rivers in Europe.",
    "Explain why the sky is blue.",
    "Write a short story about a fox and a crow.",
    "What is photosynthesis?",
    "Give me a recipe for pancakes.",
    "How does a bicycle stay upright?",
    "Describe the city of Vienna in two sentences.",
    "What should I pack for a week in the mountains?",
    "Write a Python function that reverses a list.",
    "Why do leaves fall in autumn?",
)
HELD_OUT = 20 - len(QUESTIONS)
TRAINING = {
    "data_path": "bundled:130:en", "val_set_size": str(HELD_OUT), "max_steps": "30",
    "batch_size": "4", "learning_rate": "1e-4", "lora_r": "8",
}  # fmt: skip
MERGES = {"hf": "float32", "meta": "float32", "gguf": "float16"}

Ids = list[int]


def suri(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "suri", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])


def prepare(place: Path) -> dict[str, Path]:
    """Train an adapter and merge it; the folders by name."""
    folders = {name: place / name for name in ("adapter", *MERGES)}
    flags = [word for key, value in TRAINING.items() for word in (f"--{key}", value)]
    suri("train", *flags, "--output_dir", str(folders["adapter"]))
    for to, dtype in MERGES.items():
        out = ("--output_dir", str(folders[to]))
        suri("merge", str(folders["adapter"]), "--to", to, "--dtype", dtype, *out)
    return folders


def compare(folders: dict[str, Path], every: int = 1) -> dict[str, Any]:
    """How far the answers go together, by reader, and where a tie ends the comparison.

    `every`: of the prompts only every so many is asked.
    """
    ours = open_model(str(folders["adapter"]), dtype="float32")
    records = read_records(folders["adapter"] / "held_out.jsonl")[:HELD_OUT]
    records += [Record(question, "", "") for question in QUESTIONS]
    prompts = [
        [int(i) for i in encode_prompt(replace(r, output=""), ours.tokenizer, ours.prompt)]
        for r in records[::every]
    ]
    eos = ours.tokenizer.eos_id
    answers = greedy(str(folders["adapter"]), prompts)
    theirs = {
        "transformers": greedy(str(folders["hf"]), prompts, engine="transformers"),
        "meta_decoder": behind(folders["meta"], prompts, answers),
    }
    found = read(folders["gguf"] / "model.gguf", prompts=prompts, most=MOST, stop=eos)
    if found.problem:
        raise SystemExit(f"llama.cpp: {found.problem}")
    theirs["llama.cpp"] = [[i for i, _ in answer] for answer in found.answers]
    certain = until_a_tie(ours, prompts, answers)
    base = greedy(str(embedded_base()), prompts)
    return {
        "prompts": len(prompts),
        "margin": MARGIN,
        "tokens": sum(map(len, answers)),
        "tokens_before_a_tie": sum(certain),
        "answers_with_a_tie": sum(n < len(a) for n, a in zip(certain, answers, strict=True)),
        "answers_that_training_changed": sum(a != b for a, b in zip(answers, base, strict=True)),
        "readers": {
            name: {
                "same_up_to_a_tie": sum(
                    a[:n] == b[:n] for a, b, n in zip(answers, other, certain, strict=True)
                ),
                "same_to_the_end": sum(a == b for a, b in zip(answers, other, strict=True)),
            }
            for name, other in theirs.items()
        },
        "llama_cpp": found.reader,
    }


def greedy(model: str, prompts: Sequence[Ids], engine: str = "suri") -> list[Ids]:
    """Answers of at most MOST tokens, with the one that ended them."""
    opened = open_model(model, engine=engine, dtype="float32")
    eos = opened.tokenizer.eos_id
    found = opened.engine.generate(prompts, eos, replace(GREEDY, max_new_tokens=MOST))
    return [g.ids + [eos] * g.stopped for g in found]


def behind(folder: Path, prompts: Sequence[Ids], answers: Sequence[Ids]) -> list[Ids]:
    """The likeliest token of the second decoder before each token of these answers.

    Up to the first that differs this is its own greedy answer.
    """
    texts = [p + a[:-1] for p, a in zip(prompts, answers, strict=True)]
    logits = MetaDecoder(folder).logits(texts).split([len(text) for text in texts])
    return [
        rows[len(prompt) - 1 :].argmax(-1).tolist()
        for rows, prompt in zip(logits, prompts, strict=True)
    ]


@torch.no_grad()
def scores(decoder: Any, ids: Ids) -> torch.Tensor:
    """Our decoder's logits [T, vocab]."""
    attend = PackedAttention([len(ids)], decoder.config.sliding_window)
    return decoder.logits(decoder(torch.tensor(ids), torch.arange(len(ids)), attend))


def until_a_tie(model: Any, prompts: Sequence[Ids], answers: Sequence[Ids]) -> list[int]:
    """How many tokens of each answer come before a place whose two best logits are close."""
    counts = []
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = scores(model.engine.decoder, prompt + answer[:-1])[len(prompt) - 1 :]
        best = logits.topk(2).values
        close = torch.nonzero(best[:, 0] - best[:, 1] <= MARGIN).flatten().tolist()
        counts.append(close[0] if close else len(answer))
    return counts


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "same-answers.json"
    with tempfile.TemporaryDirectory() as place:
        result = compare(prepare(Path(place)))
    about = {"command": "python benchmarks/same_answers.py", "training": TRAINING}
    result = about | {"merges": MERGES} | result | {"environment": environment("cpu")}
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["readers"], indent=1))


if __name__ == "__main__":
    main()
