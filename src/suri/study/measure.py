"""Measure one way of running a model, in a process of its own: `measure SPEC.json OUT.json`."""

import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from suri.data.encode import Rules, encode_prompt, encode_records
from suri.data.examples import NOT_LEARNED, Example
from suri.data.prompt import read_prompt
from suri.data.records import read_records
from suri.files import size_bytes, write_json
from suri.infer.engine import Engine
from suri.infer.engines import Model, open_model
from suri.model.weights import recorded_base
from suri.reading import read_json
from suri.recipe import GREEDY
from suri.study.process import Spec, as_program
from suri.train.machine import environment, peak_memory_bytes
from suri.wording import counted

BATCH = 8
TIMED_PROMPTS = 8
TIMED_TOKENS = 16
PROBED_TOKENS = 256
NEVER = -1
"""An end-of-text token that no model gives, so that every way decodes equally many tokens."""


def measure(spec: Spec) -> dict[str, Any]:
    """Open the model and measure the parts asked for; `speed` first, because it takes the peak.

    The peak is that of the process until then: the pages of mapped weight files that were read
    count too.
    """
    base = str(recorded_base(Path(spec.run)))
    model, load_seconds = open_timed(spec, base)
    records = read_records(Path(spec.rows))
    prompts = [encode_prompt(record, model.tokenizer, model.prompt) for record in records]
    device = model.engine.device
    found: dict[str, Any] = {"way": spec.way, "environment": _environment(device)}
    if "speed" in spec.parts:
        found["speed"] = {
            "load_seconds": load_seconds,
            **time_decoding(model.engine, prompts, min(spec.max_new_tokens, TIMED_TOKENS)),
            "peak_memory_bytes": peak_memory_bytes(device),
            "bytes_on_disk": bytes_on_disk(spec, base),
        }
    if "answers" in spec.parts:
        found["answers"] = answer(model, prompts, spec.max_new_tokens)
    if "losses" in spec.parts:
        rules = Rules(spec.cutoff_len)
        examples = encode_records(records, model.tokenizer, model.prompt, rules).examples
        found |= score_responses(model.engine, examples, spec)
    return found


def open_timed(spec: Spec, base: str) -> tuple[Model, float]:
    """The model of a way, with the run's prompt, and the seconds until it was ready."""
    started = time.perf_counter()
    model = open_model(
        spec.model or base,
        lora_weights=spec.run if spec.with_adapter else "",
        load_8bit=spec.quantize == "int8-weight",
        quantize=spec.quantize,
        dtype=spec.dtype,
        device=spec.device,
        engine=spec.engine,
    )
    seconds = time.perf_counter() - started
    return replace(model, prompt=read_prompt(Path(spec.run))), seconds


def time_decoding(engine: Engine, prompts: Sequence[Any], tokens: int) -> dict[str, float]:
    """Seconds to the first token, and tokens per second read, decoded alone, and eight at a time.

    Every prompt decodes exactly `tokens` tokens; medians over TIMED_PROMPTS prompts, after a
    warm-up that is not counted. Of the eight at a time the time of two tokens is taken off, which
    is that of reading their prompts.
    """
    tokens = max(4, tokens)
    decoding = replace(GREEDY, max_new_tokens=tokens)
    engine.generate(prompts[:1], NEVER, replace(GREEDY, max_new_tokens=2))
    firsts, reads, rates = [], [], []
    for prompt in prompts[:TIMED_PROMPTS]:
        started = time.perf_counter()
        moments = [time.perf_counter() - started for _ in engine.stream(prompt, NEVER, decoding)]
        firsts.append(moments[0])
        reads.append(len(prompt) / moments[0])
        rates.append((len(moments) - 1) / (moments[-1] - moments[0]))
    batch = [prompts[place % len(prompts)] for place in range(BATCH)]
    short, long = (_seconds(engine, batch, count) for count in (2, tokens))
    if long <= short:  # somebody else's second fell into the first of them
        short = 0.0
    return {
        "first_token_seconds": float(np.median(firsts)),
        "prefill_tokens_per_second": float(np.median(reads)),
        "tokens_per_second": float(np.median(rates)),
        "batch_tokens_per_second": BATCH * (tokens - 2) / (long - short),
    }


def _seconds(engine: Engine, batch: Sequence[Any], tokens: int) -> float:
    """Seconds that a batch takes to decode so many tokens each."""
    started = time.perf_counter()
    engine.generate(batch, NEVER, replace(GREEDY, max_new_tokens=tokens))
    return time.perf_counter() - started


def answer(model: Model, prompts: Sequence[Any], max_new_tokens: int) -> list[dict[str, Any]]:
    """The greedy answer to every prompt: text, token ids, and whether it ended by itself."""
    decoding = replace(GREEDY, max_new_tokens=max_new_tokens)
    answers = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        answers += model.engine.generate(batch, model.tokenizer.eos_id, decoding)
    return [
        {"text": model.tokenizer.decode(one.ids).strip(), "ids": one.ids, "stopped": one.stopped}
        for one in answers
    ]


def score_responses(engine: Engine, examples: Sequence[Example], spec: Spec) -> dict[str, Any]:
    """Loss of every row, in nats summed over its learned tokens.

    With a reference also the next-token distributions at the first learned tokens, against it.
    """
    losses: list[dict[str, float]] = []
    probed: list[torch.Tensor] = []
    room = PROBED_TOKENS if spec.reference else 0
    for example in examples:
        places = np.flatnonzero(example.labels != NOT_LEARNED)
        targets = torch.from_numpy(example.ids[places].astype(np.int64))
        scores = engine.log_probs(example.ids.tolist(), places.tolist())
        total = -float(scores.gather(1, targets[:, None]).double().sum())
        losses.append({"row": example.row, "loss_sum": total, "learned_tokens": len(targets)})
        probed.append(scores[:room])
        room = max(0, room - len(targets))
    if not spec.reference:
        return {"losses": losses}
    return {"losses": losses, "probe": against_reference(torch.cat(probed), spec)}


def against_reference(found: torch.Tensor, spec: Spec) -> dict[str, float]:
    """Compare log-probabilities, fp32 [tokens, vocab], with the first way's that was measured.

    KL(first || this way) in nats per token, and the share of tokens where both like the same
    token best. The first way writes the reference, and differs from it by nothing.
    """
    reference = Path(spec.reference)
    if not reference.is_file():
        np.save(reference, found.numpy(), allow_pickle=False)
    adapter = torch.from_numpy(np.load(reference, allow_pickle=False)).double()
    kl = (adapter.exp() * (adapter - found.double())).sum(dim=-1).clamp(min=0)
    same = adapter.argmax(dim=-1) == found.argmax(dim=-1)
    return {
        "tokens": len(found),
        "mean_kl": float(kl.mean()),
        "max_kl": float(kl.max()),
        "top1_agreement": float(same.double().mean()),
    }


def bytes_on_disk(spec: Spec, base: str) -> int:
    """Bytes that this way needs on disk: a merged model, or base and adapter."""
    if spec.model:
        return size_bytes(Path(spec.model))
    adapter = Path(spec.run, "adapter_model.safetensors") if spec.with_adapter else None
    return size_bytes(Path(base)) + (size_bytes(adapter) if adapter else 0)


def _environment(device: str) -> dict[str, Any]:
    """That of training, and how busy the machine is: processes that run or wait, by the minute."""
    load = {"load_average": round(os.getloadavg()[0], 1)} if hasattr(os, "getloadavg") else {}
    return environment(device) | {"device": device} | load


def main(spec_path: str, out_path: str) -> None:
    """Read the spec, measure, write what was measured, and print it in short."""
    # It warns of an optional kernel collection that is not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    found = measure(Spec(**read_json(Path(spec_path))))
    write_json(Path(out_path), found)
    for name, value in found.get("speed", {}).items():
        print(f"{name}: {value:,.4g}")
    for part in ("answers", "losses"):
        if part in found:
            print(f"{part}: {counted(len(found[part]), 'row|rows')}")


if __name__ == "__main__":
    sys.exit(as_program(main, sys.argv[1:]))
