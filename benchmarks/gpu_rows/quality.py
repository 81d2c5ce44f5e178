"""What nf4 and fp8 keep of the gain of fine-tuning, on the embedded base."""

import os
import tempfile
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from gpu_rows.bench import Bench, NotHere
from gpu_rows.commands import lacking
from suri.data.batch import micro_batches
from suri.model.adapter_file import read_adapter
from suri.model.embedded import PACKAGE
from suri.model.load import load_decoder
from suri.recipe import Recipe
from suri.train.loss import summed_loss
from suri.train.prepare import Prepared, prepare
from suri.train.run import train

RECIPE = Recipe(
    num_epochs=2, batch_size=16, learning_rate=1e-3, lr_schedule="linear", warmup_ratio=0.03,
    lora_r=8, lora_alpha=16.0, val_set_size=200,
)  # fmt: skip
SEEDS = (1, 2, 3)
WAYS = ("none", "fp8", "nf4")


def quality(bench: Bench) -> None:
    """Every adapter is judged on the base in bf16; an adapter of nf4 also on the base in nf4."""
    if missing := lacking():
        raise NotHere(f"not installed: {', '.join(missing)}")
    if not bench.cuda:
        raise NotHere("the bf16 of a CPU is no measure")
    try:
        distribution(PACKAGE)
    except PackageNotFoundError:
        raise NotHere(f"{PACKAGE} is not installed") from None
    recipe = replace(RECIPE, data_path=os.environ.get("SURI_ROWS", RECIPE.data_path))
    for seed in SEEDS:
        _one_seed(bench, replace(recipe, seed=seed))
    for way in ("fp8", "nf4", "nf4 on its base"):
        kept = bench.kept.get(f"kept by {way}")
        if kept:
            bench.figure(f"{way}: kept of the gain", kept, "%", seeds=SEEDS)


def _one_seed(bench: Bench, recipe: Recipe) -> None:
    made = prepare(recipe)
    base = _held_out_loss(made, None, "none")
    losses, seconds = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            run = Path(folder) / way
            settings = replace(recipe, quantize=way, output_dir=str(run))
            result = train(settings, lambda *_: None, lambda _, prompts, *__: [[] for _ in prompts])
            losses[way], seconds[way] = _held_out_loss(made, run, "none"), result["train_seconds"]
            if way == "nf4":
                losses["nf4 on its base"] = _held_out_loss(made, run, "nf4")
    gain = base - losses["none"]
    found = {way: round(loss, 4) for way, loss in losses.items()}
    bench.figure(f"held-out loss of seed {recipe.seed}, of the base", [base], "nats",
                 rows=len(made.encoded.examples), found=found, train_seconds=seconds)  # fmt: skip
    for way, loss in losses.items():
        if way != "none":
            bench.keep(f"kept by {way}", list).append(100 * (base - loss) / gain)
    bench.figure(f"held-out loss of seed {recipe.seed}, trained in bf16", [losses["none"]], "nats")


def _held_out_loss(made: Prepared, run: Path | None, quantize: str) -> float:
    """Per learned token, in nats."""
    device = torch.device("cuda")
    decoder = load_decoder(made.base, quantize=quantize, dtype=torch.bfloat16, device=device)
    if run is not None:
        read_adapter(run).attach(decoder)
    examples = made.held_out.examples
    cut = micro_batches(list(examples), max_rows=0, token_budget=8192, share_prefix=True)
    with torch.no_grad():
        total = sum(float(summed_loss(decoder, batch)) for batch in cut)
    return total / sum(batch.learned_tokens for batch in cut)
