"""How much memory a training takes, part by part, by arithmetic alone: no tensor is made."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from suri.errors import DoesNotFit, UsageError
from suri.model.config import ModelConfig
from suri.recipe import Recipe
from suri.wording import readable_bytes

CHUNK_BYTES = 32_000_000
"""Most memory that the scores of one chunk of learned tokens may take."""
BUDGETS = (16384, 8192, 4096, 2048, 1024, 512, 256, 128)
"""Token budgets that are tried, largest first."""
ON_CPU = 512
"""A larger budget makes nothing faster on a CPU: products of so many rows are at their full rate,
and what lies between them stays in the cache."""
PROCESS_BYTES = {"cpu": 290_000_000, "cuda": 0}
"""Interpreter, torch and rows. On a GPU they are in the machine's memory, not in the GPU's."""
LIBRARY_BYTES = {
    "none": 330_000_000, "int8": 400_000_000, "fp8": 330_000_000, "nf4": 480_000_000
}  # fmt: skip
"""What the libraries take beside on a CPU, measured: code made for shapes, their own buffers. (fp8
does not train there, and counts as none.)"""
SPARE = {"cpu": 1.17, "cuda": 1.0}
"""Memory that allocators hold in holes, as a factor of what comes and goes in a step."""
RESIDUALS = {"cpu": 4, "cuda": 2}
"""Tensors as wide as the residual stream that live at the widest moment of a backward pass."""
OPTIMIZER_BYTES = {"cpu": 24, "cuda": 12}
"""Per trained number: gradient and two moments, fp32; on a CPU also the copies of a checkpoint."""
HEADROOM = 0.92
"""The share of the free memory that a run may plan with."""


@dataclass(frozen=True)
class Memory:
    """What each process of a run may hold, and where."""

    device: str
    """`cpu` or `cuda`."""
    free: int | None = None
    """Bytes in all; None: not known."""
    process: int | None = None
    """Those of them that are held before the base is read; None: as many as is usual."""
    shards: int = 1
    """Processes over which the base is cut."""

    def holds(self, found: "Estimate") -> bool:
        """Whether a run fits, as far as one knows."""
        return self.free is None or found.total <= HEADROOM * self.free


@dataclass(frozen=True)
class Estimate:
    """Bytes of each part at the peak of a training, and what it takes while the base is read."""

    parts: Mapping[str, int]
    loading: int
    tokens: int

    @property
    def total(self) -> int:
        """The peak, in bytes."""
        return max(self.loading, sum(self.parts.values()))

    def as_json(self) -> dict[str, Any]:
        """For result.json."""
        return {"parts": dict(self.parts), "total": self.total, "tokens": self.tokens}


def estimate(config: ModelConfig, recipe: Recipe, tokens: int, memory: Memory) -> Estimate:
    """What a run takes whose largest micro-batch has this many tokens, in each process."""
    device = memory.device
    item = 4 if device == "cpu" else 2
    weights = weight_bytes(config, recipe.quantize, item, memory.shards)
    numbers = adapter_numbers(config, recipe)
    held = PROCESS_BYTES[device] if memory.process is None else memory.process
    parts = {
        "process": held + (LIBRARY_BYTES[recipe.quantize] if device == "cpu" else 0),
        "base": weights,
        "adapter": 4 * numbers,
        "optimizer": OPTIMIZER_BYTES[device] * numbers,
        "activations": round(SPARE[device] * tokens * kept_numbers(config, recipe) * item),
        "working": round(SPARE[device] * _working_bytes(config, recipe, tokens, device)),
    }
    if device == "cpu":  # the file is mapped while it is read; on a GPU that is other memory
        return Estimate(parts, held + weights + file_bytes(config), tokens)
    return Estimate(parts, held + weights, tokens)


def linear_numbers(config: ModelConfig) -> int:
    """Weights of all linears of all layers."""
    shapes = config.linear_shapes().values()
    return config.num_layers * sum(rows * columns for rows, columns in shapes)


def weight_bytes(config: ModelConfig, quantize: str, item: int, shards: int = 1) -> int:
    """The base as it is held: linears as `quantize` stores them, the rest in `item` bytes each.

    Cut into shards: one of them, two layers that are whole at a time, and what is not cut.
    """
    table = config.vocab_size * config.hidden_size
    rest = table * (1 if config.tied_head else 2) * item
    linears = linear_numbers(config)
    rows = config.num_layers * sum(out for out, _ in config.linear_shapes().values())
    # Of qkv, o, gate_up and down: parts with the same input share its columns.
    attended = config.num_heads * config.head_dim
    columns = config.num_layers * (2 * config.hidden_size + attended + config.intermediate_size)
    cut = shard_bytes(config, quantize, item)
    if shards > 1:
        cut = cut // shards + 2 * cut // config.num_layers
    beside = {
        "none": 0,
        # A scale per row; and the head again, for the scores.
        "int8": 4 * rows + table + 4 * config.vocab_size,
        "fp8": 4 * (rows + columns),  # scales of both orders
        # One byte per 64 numbers for the scale, and four bytes per 256 scales.
        "nf4": linears // 64 + 4 * linears // (64 * 256),
    }
    return rest + cut + beside[quantize]


def shard_bytes(config: ModelConfig, quantize: str, item: int) -> int:
    """What is cut of a base that is shared: the numbers of the linears, without their scales.

    fp8 has each of them twice, in both orders.
    """
    linears = linear_numbers(config)
    stored = {"none": linears * item, "int8": linears, "fp8": 2 * linears, "nf4": linears // 2}
    return stored[quantize]


def file_bytes(config: ModelConfig) -> int:
    """The base's files, by the dtype that its configuration names."""
    item = 4 if config.dtype == "float32" else 2
    table = config.vocab_size * config.hidden_size
    return (linear_numbers(config) + table * (1 if config.tied_head else 2)) * item


def adapter_numbers(config: ModelConfig, recipe: Recipe) -> int:
    """Trainable numbers: r * (in + out) for each target of each layer."""
    shapes = config.linear_shapes()
    targets = [name for name in shapes if name.split(".")[1] in recipe.lora_target_modules]
    return config.num_layers * recipe.lora_r * sum(sum(shapes[name]) for name in targets)


def kept_numbers(config: ModelConfig, recipe: Recipe) -> int:
    """Activations that a token leaves for the backward pass, in numbers.

    Per layer: the input of each half, q k v (turned in place), the mixed values and their sums,
    gate and up, and each pair's projection. Norms, SwiGLU and what A multiplies are made again.
    """
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = 2 * config.hidden_size + (q + 2 * kv) + q + 2 * config.num_heads
    layer += 2 * config.intermediate_size
    layer += recipe.lora_r * len(recipe.lora_target_modules)
    return config.num_layers * layer


def _working_bytes(config: ModelConfig, recipe: Recipe, tokens: int, device: str) -> int:
    """What comes and goes: the widest moment of a layer's backward pass, or the head's chunk."""
    inner, hidden = config.intermediate_size, config.hidden_size
    item = 4 if device == "cpu" else 2
    layer = tokens * (6 * inner + RESIDUALS[device] * hidden) * item
    widest = max(shape[0] * shape[1] for shape in config.linear_shapes().values())
    if recipe.quantize == "nf4":  # a whole weight, of gate and up together
        layer += 2 * 2 * widest * item
    if recipe.quantize == "fp8":  # the gradient of gate and up in 8 bits
        layer += tokens * 2 * inner
    head = 2 * CHUNK_BYTES + 4 * tokens * hidden * item
    return max(layer, head)


def fitting_budget(config: ModelConfig, recipe: Recipe, memory: Memory) -> int:
    """The largest token budget whose run fits; 0 where none does."""
    budgets = BUDGETS if memory.device == "cuda" else [b for b in BUDGETS if b <= ON_CPU]
    fitting = (b for b in budgets if memory.holds(estimate(config, recipe, b, memory)))
    return next(fitting, 0)


def alternatives(config: ModelConfig, recipe: Recipe, tokens: int, memory: Memory) -> list[str]:
    """Changes to a recipe that does not fit, each of which would; the least loss first."""
    longest = min(recipe.cutoff_len, tokens)
    least, shortened = max(BUDGETS[-1], longest), max(BUDGETS[-1], longest // 2)
    small, shorter = f"--token_budget {BUDGETS[-1]}", f"--cutoff_len {longest // 2}"
    tried = {
        small: (recipe.quantize, least),
        "--quantize nf4": ("nf4", tokens),
        shorter: (recipe.quantize, shortened),
        f"--quantize nf4 {small}": ("nf4", least),
        f"--quantize nf4 {small} {shorter}": ("nf4", shortened),
    }
    return [
        flags
        for flags, (quantize, size) in tried.items()
        if size < tokens or quantize != recipe.quantize
        if memory.holds(estimate(config, replace(recipe, quantize=quantize), size, memory))
    ]


def refuse_what_does_not_fit(
    found: Estimate, config: ModelConfig, recipe: Recipe, memory: Memory
) -> None:
    """Raise DoesNotFit, naming what would fit, where the estimate is more than may be used."""
    if memory.free is None or memory.holds(found):
        return
    others = alternatives(config, recipe, found.tokens, memory)
    raise DoesNotFit(
        f"this run needs {readable_bytes(found.total)} of memory",
        found=f"{readable_bytes(memory.free)} on {memory.device}",
        do="any of these would fit: " + "; ".join(others)
        if others
        else "it needs a machine with more memory, or a smaller model",
    )


def parse_memory(text: str) -> int:
    """`40GB` or `23.5 GiB`; raises UsageError for anything else."""
    units = {"b": 1, "mb": 1e6, "gb": 1e9, "tb": 1e12, "mib": 2**20, "gib": 2**30}
    stripped = text.strip().lower()
    digits = stripped.rstrip("abcdefghijklmnopqrstuvwxyz ")
    try:
        size = float(digits) * units[stripped[len(digits) :].strip()]
    except (KeyError, ValueError):
        size = math.nan
    if not 0 < size < math.inf:
        raise UsageError(f"--memory {text} is not a size", do="write it as 40GB")
    return round(size)
