"""Measure one way of running a model, in a process of its own: `measure SPEC.json OUT.json`."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from suri.data.batch import micro_batches
from suri.data.encode import Rules, encode_prompt, encode_records
from suri.data.examples import Example
from suri.data.prompt import read_prompt
from suri.data.records import read_records
from suri.errors import SuriError
from suri.files import read_json, size_bytes, write_json
from suri.infer.engines import Model, open_model
from suri.infer.generate import generate, stream
from suri.model.weights import recorded_base
from suri.recipe import GREEDY
from suri.train.loss import head_loss, hidden_states, learned_rows
from suri.train.machine import environment, peak_memory_bytes

Part = Literal["speed", "answers", "losses"]

BATCH = 8
TIMED_PROMPTS = 3
TIMED_TOKENS = 16
PROBED_TOKENS = 256
TOKEN_BUDGET = 512
NEVER = -1
"""An end-of-text token that no model gives, so that every way decodes equally many tokens."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What to measure. Everything is a plain value, so that it travels as JSON."""

    run: str
    """The run folder: its prompt, its base and, for the way `adapter`, its adapter."""
    way: str
    """`base`, `adapter`, or what a merged model is called."""
    model: str = ""
    """Folder of a merged model; "" for base and adapter."""
    quantize: str = "none"
    dtype: str = "float32"
    device: str = "auto"
    rows: str = ""
    """File of the held-out rows."""
    max_new_tokens: int = 32
    cutoff_len: int = 512
    parts: tuple[Part, ...] = ("speed", "answers", "losses")
    reference: str = ""
    """File of the adapter's next-token log-probabilities: `adapter` writes it, others read it."""


def measure(spec: Spec) -> dict[str, Any]:
    """Open the model and measure the parts asked for; `speed` first, because it takes the peak.

    The peak is that of the process until then: the pages of mapped weight files that were read
    count too.
    """
    base = str(recorded_base(Path(spec.run)))
    model, load_seconds = open_timed(spec, base)
    device = model.decoder.embedding.device.type
    records = read_records(Path(spec.rows))
    prompts = [encode_prompt(record, model.tokenizer, model.prompt) for record in records]
    rules = Rules(spec.cutoff_len)
    examples = encode_records(records, model.tokenizer, model.prompt, rules).examples
    found: dict[str, Any] = {"way": spec.way, "environment": _environment(device)}
    if "speed" in spec.parts:
        found["speed"] = {
            "load_seconds": load_seconds,
            **time_decoding(model, prompts, min(spec.max_new_tokens, TIMED_TOKENS)),
            "peak_memory_bytes": peak_memory_bytes(device),
            "bytes_on_disk": bytes_on_disk(spec, base),
        }
    if "answers" in spec.parts:
        found["answers"] = answer(model, prompts, spec.max_new_tokens)
    if "losses" in spec.parts:
        found |= score_responses(model, examples, spec)
    return found


def open_timed(spec: Spec, base: str) -> tuple[Model, float]:
    """The model of a way, with the run's prompt, and the seconds until it was ready."""
    started = time.perf_counter()
    model = open_model(
        spec.model or base,
        lora_weights=spec.run if spec.way == "adapter" else "",
        quantize=spec.quantize,
        dtype=spec.dtype,
        device=spec.device,
    )
    seconds = time.perf_counter() - started
    return replace(model, prompt=read_prompt(Path(spec.run))), seconds


@torch.no_grad()
def time_decoding(model: Model, prompts: Sequence[Any], tokens: int) -> dict[str, float]:
    """Seconds to the first token, and tokens per second alone and eight at a time.

    Every prompt decodes exactly `tokens` tokens; medians over TIMED_PROMPTS prompts, after a
    warm-up that is not counted. The eight at a time include reading their prompts.
    """
    decoding = replace(GREEDY, max_new_tokens=max(2, tokens))
    generate(model.decoder, prompts[:1], NEVER, replace(GREEDY, max_new_tokens=2))
    firsts, rates = [], []
    for prompt in prompts[:TIMED_PROMPTS]:
        started = time.perf_counter()
        moments = [
            time.perf_counter() - started for _ in stream(model.decoder, prompt, NEVER, decoding)
        ]
        firsts.append(moments[0])
        rates.append((len(moments) - 1) / (moments[-1] - moments[0]))
    batch = [prompts[place % len(prompts)] for place in range(BATCH)]
    started = time.perf_counter()
    answers = generate(model.decoder, batch, NEVER, decoding)
    seconds = time.perf_counter() - started
    return {
        "first_token_seconds": float(np.median(firsts)),
        "tokens_per_second": float(np.median(rates)),
        "batch_tokens_per_second": sum(len(answer.ids) for answer in answers) / seconds,
    }


def answer(model: Model, prompts: Sequence[Any], max_new_tokens: int) -> list[dict[str, Any]]:
    """The greedy answer to every prompt: text, token ids, and whether it ended by itself."""
    decoding = replace(GREEDY, max_new_tokens=max_new_tokens)
    answers = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        answers += generate(model.decoder, batch, model.tokenizer.eos_id, decoding)
    return [
        {"text": model.tokenizer.decode(one.ids).strip(), "ids": one.ids, "stopped": one.stopped}
        for one in answers
    ]


@torch.no_grad()
def score_responses(model: Model, examples: Sequence[Example], spec: Spec) -> dict[str, Any]:
    """Loss of every row, in nats summed over its learned tokens, by the functions of training.

    With a reference also the next-token distributions at the first learned tokens, against it.
    """
    decoder = model.decoder
    losses: list[dict[str, float]] = []
    probed: list[torch.Tensor] = []
    for batch in micro_batches(examples, max_rows=0, token_budget=TOKEN_BUDGET):
        learned, targets = learned_rows(batch, decoder.embedding.device)
        hidden = hidden_states(decoder, batch)[learned]
        documents = np.repeat(np.arange(len(batch.rows)), batch.lengths)[learned.cpu()]
        for place, row in enumerate(batch.rows):
            mine = torch.from_numpy(documents == place).to(hidden.device)
            loss = head_loss(
                decoder.norm(hidden[mine]), decoder.head, targets[mine], decoder.scorer
            )
            count = int(mine.sum())
            losses.append({"row": row, "loss_sum": float(loss), "learned_tokens": count})
        room = PROBED_TOKENS - sum(len(part) for part in probed)
        if spec.reference and room > 0:
            probed.append(decoder.logits(hidden[:room]).log_softmax(dim=-1).cpu())
    return {"losses": losses} | (
        {"probe": against_adapter(torch.cat(probed), spec)} if probed else {}
    )


def against_adapter(found: torch.Tensor, spec: Spec) -> dict[str, float]:
    """Compare log-probabilities, fp32 [tokens, vocab], with the adapter's.

    KL(adapter || this way) in nats per token, and the share of tokens where both like the same
    token best. The way `adapter` writes the reference, and differs from it by nothing.
    """
    if spec.way == "adapter":
        np.save(spec.reference, found.numpy(), allow_pickle=False)
    adapter = torch.from_numpy(np.load(spec.reference, allow_pickle=False)).double()
    kl = (adapter.exp() * (adapter - found.double())).sum(dim=-1).clamp(min=0)
    same = adapter.argmax(dim=-1) == found.argmax(dim=-1)
    return {
        "tokens": len(found),
        "mean_kl": float(kl.mean()),
        "max_kl": float(kl.max()),
        "top1_agreement": float(same.double().mean()),
    }


def bytes_on_disk(spec: Spec, base: str) -> int:
    """Bytes that this way needs on disk; the adapter's way needs base and adapter."""
    if spec.model:
        return size_bytes(Path(spec.model))
    adapter = Path(spec.run, "adapter_model.safetensors") if spec.way == "adapter" else None
    return size_bytes(Path(base)) + (size_bytes(adapter) if adapter else 0)


def _environment(device: str) -> dict[str, Any]:
    """That of training, and how busy the machine is: processes that run or wait, by the minute."""
    load = {"load_average": round(os.getloadavg()[0], 1)} if hasattr(os, "getloadavg") else {}
    return environment(device) | {"device": device} | load


def main(spec_path: str, out_path: str) -> int:
    """Read the spec, measure, write what was measured; a user's mistake is printed."""
    try:
        spec = Spec(**read_json(Path(spec_path)))
        write_json(Path(out_path), measure(spec))
    except SuriError as problem:
        print("\n".join(problem.lines()), file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
