"""The certificate: proof that what lies on disk is the base plus the adapter, and nothing else."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor

from suri.errors import Corrupt, UsageError
from suri.export.fold import Merge, Report, open_merge, silent
from suri.export.readers import read_logits, read_tensors
from suri.files import fingerprint, read_json
from suri.model.adapter import CONFIG_FILE, WEIGHTS_FILE
from suri.model.load import layered_logits

FILE = "certificate.json"
ROWS = 64
"""Rows of each target that are computed again."""
PROBE_TOKENS = 64
"""Tokens of each probe: with four, a few near-ties that bf16 turns round do not reach 2 %."""

PROBES = (
    "The river leaves the mountains near a small town whose bridge was built four hundred years "
    "ago. Every spring the water rises by almost two metres, and the people who live beside it "
    "carry their boats into the square before the first of May. In summer the same square is "
    "full of tables, and children fish from the lowest arch.",
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nSort these numbers from the smallest to the largest.\n\n"
    "### Input:\n17, 4, 256, -3, 80\n\n### Response:\n-3, 4, 17, 80, 256",
    "def area(width: float, height: float) -> float:\n"
    '    """The area of a rectangle in square metres."""\n'
    "    if width < 0 or height < 0:\n"
    '        raise ValueError("a side cannot be negative")\n'
    "    return width * height\n\n\nprint(area(3, 4), area(0.5, 12))\n",
    "Water boils at 100 degrees Celsius at sea level, but at 90 degrees on a mountain of three "
    "thousand metres, because the air presses less on its surface. Cooks who live there boil "
    "potatoes longer; can you say why a lid helps? Answer: it keeps the steam, and the heat that "
    "the steam carries, inside the pot.",
)
"""English of four kinds: a story, a prompt with its answer, a program, a question."""

# Digits of each format's significand and its smallest normal exponent, as np.frexp counts it.
PRECISION = {"float32": (24, -125), "float16": (11, -13), "bfloat16": (8, -125)}

Wide = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Check:
    """One measured figure and the limit it must keep."""

    name: str
    figure: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """A figure that is not a number keeps no limit."""
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "ok  " if self.passed else "FAIL"
        return f"{verdict} {self.name}: {self.figure:.3g} (must be {sign} {self.limit:g})"


@dataclass(frozen=True)
class Certificate:
    """Every check of one written folder, and the identity of all that took part."""

    to: str
    checks: tuple[Check, ...]
    record: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every check is kept."""
        return all(check.passed for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """What certificate.json holds."""
        checks = [asdict(check) | {"passed": check.passed} for check in self.checks]
        return {"passed": self.passed, "to": self.to, **self.record, "checks": checks}


def certify(merge: Merge, folder: Path, to: str, report: Report = silent) -> Certificate:
    """Check the folder just written (`to`: hf, meta or gguf) against base and adapter."""
    output = read_tensors(folder, to, merge.base)
    report("checking", 0, 4)
    targets = check_targets(merge, output)
    report("checking", 1, 4)
    others = check_others(merge, output, to)
    report("checking", 2, 4)
    reader, logits = check_logits(merge, folder, to)
    report("checking", 3, 4)
    record = {
        "dtype": merge.dtype_name,
        "base": {
            "path": str(merge.base.folder.absolute()),
            "quantize": merge.quantize,
            "files": _hashes(merge.base.folder, _base_files(merge)),
        },
        "adapter": {
            "path": str(merge.adapter_folder.absolute()),
            "files": _hashes(merge.adapter_folder, [CONFIG_FILE, WEIGHTS_FILE]),
        },
        "output": {"files": _hashes(folder, sorted(p.name for p in folder.glob("[!.]*")))},
        "probes": "texts" if merge.tokenizer else "token ids",
        "reader": reader,
    }
    report("checking", 4, 4)
    return Certificate(to, (targets, others, *logits), record)


def check_targets(merge: Merge, output: Mapping[str, Tensor]) -> Check:
    """Every target is W + scaling * B A within one rounding, on seeded rows of each.

    The sum is computed again in fp64 from the adapter's file, apart from all other code. The
    figure is the largest error, where 1 is half the output format's spacing there plus what
    fp32 may lose on a sum of r products.
    """
    worst = 0.0
    config = json.loads((merge.adapter_folder / CONFIG_FILE).read_text(encoding="utf-8"))
    r = config["r"]
    scaling = config["lora_alpha"] / (math.sqrt(r) if config.get("use_rslora") else r)
    with safe_open(merge.adapter_folder / WEIGHTS_FILE, framework="pt") as file:
        for number, name in enumerate(_targets(merge)):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            a = _wide(file.get_tensor(f"{module}.lora_A.weight"))
            b = _wide(file.get_tensor(f"{module}.lora_B.weight"))
            count = min(ROWS, len(b))
            rows = np.sort(np.random.default_rng(number).choice(len(b), count, replace=False))
            weight, found = _wide(merge.base.rows(name, rows.tolist())), _wide(output[name][rows])
            exact = weight + scaling * (b[rows] @ a)
            terms = np.abs(weight) + scaling * (np.abs(b[rows]) @ np.abs(a))
            allowed = _half_spacing(exact, merge.dtype_name) + (r + 4) * 2.0**-24 * terms
            worst = max(worst, float(np.max(np.abs(found - exact) / allowed)))
    return Check(f"{len(_targets(merge))} targets: largest error of W + BA, in roundings", worst, 1)


def check_others(merge: Merge, output: Mapping[str, Tensor], to: str) -> Check:
    """Every other tensor is the base's, cast (GGUF: vectors in fp32): the same shapes and bits."""
    others = {name: name for name in merge.base if name not in set(_targets(merge))}
    if to == "meta" and merge.base.config.tied_head:
        others["lm_head.weight"] = "model.embed_tokens.weight"
    strange = set(output) - set(merge.base) - set(others)
    wrong = sum(
        name not in output or not _same_bits(output[name], _cast(merge, source, to))
        for name, source in others.items()
    )
    name = f"{len(others)} other tensors: how many are not the base's"
    return Check(name, wrong + len(strange), 0)


def check_logits(merge: Merge, folder: Path, to: str) -> tuple[str, tuple[Check, ...]]:
    """The reader's name, and the folder read from disk against base + unmerged adapter in fp32."""
    texts = probe_ids(merge)
    expected = layered_logits(
        merge.base.folder, texts, quantize=merge.quantize, adapter=merge.adapter
    )
    reader, found = read_logits(folder, to, texts)
    return reader, compare_logits(expected, found, merge.dtype_name)


def compare_logits(expected: Tensor, found: Tensor, dtype: str) -> tuple[Check, ...]:
    """The checks that this dtype has to pass, of fp32 logits [T, vocab].

    fp32: the largest difference. fp16 and bf16: KL(expected || found) in nats, mean over tokens;
    bf16 also the share of tokens with the same likeliest successor.
    """
    if dtype == "float32":
        difference = float((expected - found).abs().max())
        return (Check("largest difference of a logit", difference, 1e-3),)
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    divergence = float((p.exp() * (p - q)).sum(-1).mean())
    if dtype == "float16":
        return (Check("KL divergence of the next token", divergence, 1e-4),)
    same = float((expected.argmax(-1) == found.argmax(-1)).double().mean())
    return (
        Check("KL divergence of the next token", divergence, 1e-3),
        Check("same likeliest next token, share", same, 0.98, at_least=True),
    )


def probe_ids(merge: Merge) -> list[list[int]]:
    """Fixed texts as token ids; for a base without a tokenizer, fixed ids."""
    tokenizer = merge.tokenizer
    if tokenizer is None:
        shape = (len(PROBES), PROBE_TOKENS)
        ids = np.random.default_rng(0).integers(merge.base.config.vocab_size, size=shape)
        return [[int(i) for i in row] for row in ids]
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [(start + tokenizer.encode(text))[:PROBE_TOKENS] for text in PROBES]


def verify(folder: Path, report: Report = silent) -> tuple[Certificate, str]:
    """Check a certified folder again; gives the certificate and what could not be checked.

    The files' checksums always; the logits where base and adapter are still what they were.
    Raises Corrupt for files that have changed.
    """
    record = _read_record(folder)
    if changed := _changed(folder, record["output"]["files"]):
        raise Corrupt(f"{folder} is not what was certified", found=", ".join(changed))
    report("verifying", 1, 2)
    for source in ("base", "adapter"):
        path = Path(record[source]["path"])
        if changed := _changed(path, record[source]["files"]):
            return Certificate(record["to"], (), record), f"{source} {path}: {', '.join(changed)}"
    merge = open_merge(
        Path(record["adapter"]["path"]),
        Path(record["base"]["path"]),
        dtype=record["dtype"],
        merge_base="dequantized" if record["base"]["quantize"] == "nf4" else "original",
    )
    _, checks = check_logits(merge, folder, record["to"])
    report("verifying", 2, 2)
    return Certificate(record["to"], checks, record), ""


def _read_record(folder: Path) -> dict[str, Any]:
    if not (folder / FILE).is_file():
        raise UsageError(
            f"{folder} has no {FILE}", do="give a folder that `suri merge` or a study has written"
        )
    record: dict[str, Any] = read_json(folder / FILE)
    try:
        for part in ("output", "base", "adapter"):
            _ = record[part]["files"].items()
        _ = record["to"], record["dtype"], record["base"]["quantize"]
    except (KeyError, TypeError, AttributeError):
        raise Corrupt(f"{folder / FILE} is not a certificate") from None
    return record


def _changed(folder: Path, files: dict[str, str]) -> list[str]:
    """The files that are missing or have another checksum, each as one clause."""
    wrong = []
    for name, checksum in files.items():
        if not (folder / name).is_file():
            wrong.append(f"{name} is missing")
        elif fingerprint(folder / name) != checksum:
            wrong.append(f"{name} has changed")
    return wrong


def _hashes(folder: Path, names: list[str]) -> dict[str, str]:
    return {name: fingerprint(folder / name) for name in names}


def _base_files(merge: Merge) -> list[str]:
    """The base's files that decide what the merge is: weights, configuration, tokenizer."""
    beside = ("config.json", "params.json", "tokenizer.json", "tokenizer.model")
    names = [name for name in beside if (merge.base.folder / name).is_file()]
    return [file.name for file in merge.base.files] + names


def _targets(merge: Merge) -> list[str]:
    """Weights that the adapter's file names, whatever was made of it since."""
    with safe_open(merge.adapter_folder / WEIGHTS_FILE, framework="pt") as file:
        keys = [key for key in file.keys() if key.endswith(".lora_A.weight")]  # noqa: SIM118
    return [
        key.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight") for key in keys
    ]


def _wide(tensor: Tensor) -> Wide:
    wide: Wide = tensor.double().numpy()
    return wide


def _half_spacing(values: Wide, dtype: str) -> Wide:
    """Half the distance between neighbours of `dtype` at each value: the error of one rounding."""
    digits, smallest = PRECISION[dtype]
    exponents = np.maximum(np.frexp(values)[1], smallest)
    half: Wide = np.ldexp(0.5, exponents - digits)
    return half


def _cast(merge: Merge, name: str, to: str) -> Tensor:
    weight = merge.base[name]
    return weight.float() if to == "gguf" and weight.dim() == 1 else weight.to(merge.dtype)


def _same_bits(found: Tensor, expected: Tensor) -> bool:
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return False
    found, expected = found.contiguous(), expected.contiguous()
    return torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
