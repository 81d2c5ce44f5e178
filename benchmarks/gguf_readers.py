"""How far the logits of GGUF merges lie from base + adapter in fp32, read by two programs.

python benchmarks/gguf_readers.py [OUT.json]     (default: benchmarks/results/gguf-readers.json)

Adapters of random numbers, weak to strong, on the embedded base; the certificate's four texts. By
these figures the certificate's limits were chosen.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suri.export.checks import largest_difference, mean_divergence, same_share
from suri.export.fold import open_merge
from suri.export.gguf import write_gguf
from suri.export.llama_cpp import read
from suri.export.probes import probe_ids
from suri.export.readers import decoder_logits, read_logits
from suri.model.adapter import initial_adapter, write_adapter
from suri.model.config import read_config
from suri.model.embedded import embedded_base
from suri.model.load import load_decoder
from suri.model.weights import base_identity
from suri.recipe import LINEARS
from suri.train.machine import environment

RESULTS = Path(__file__).parent / "results"
ADAPTERS = [(2, 0.01, ("v_proj",)), (8, 0.3, ("q_proj", "v_proj")), (8, 0.2, LINEARS)]
DTYPES = ("float32", "float16", "bfloat16", "q8_0")


def make_adapter(folder: Path, r: int, alpha: float, targets: tuple[str, ...]) -> None:
    base = embedded_base()
    adapter = initial_adapter(
        read_config(base), r=r, alpha=alpha, targets=targets, seed=1,
        base=base_identity(base, "none"),
    )  # fmt: skip
    torch.manual_seed(r)
    for _, b in adapter.tensors.values():
        b.normal_()
    write_adapter(folder, adapter)


def figures(expected: Tensor, found: Tensor) -> dict[str, float]:
    return {
        "divergence": mean_divergence(expected, found),
        "same_likeliest": same_share(expected, found),
        "largest_difference": largest_difference(expected, found),
    }


def measure(adapter: Path, place: Path) -> dict[str, Any]:
    """Each format's figures by each reader, and how much the adapter changes at all."""
    merge = open_merge(adapter)
    ids = probe_ids(merge)
    expected = decoder_logits(load_decoder(merge.base.folder, adapter=merge.adapter), ids)
    plain = decoder_logits(load_decoder(merge.base.folder), ids)
    result: dict[str, Any] = {"the adapter's change": figures(expected, plain)}
    for dtype in DTYPES:
        folder = place / dtype
        write_gguf(None, adapter, folder, dtype)
        name, logits = read_logits(folder, "gguf", ids)
        by_llama_cpp = read(folder / "model.gguf", ids)
        if by_llama_cpp.problem:
            raise SystemExit(by_llama_cpp.problem)
        result[dtype] = {
            name: figures(expected, logits),
            by_llama_cpp.reader: figures(expected, by_llama_cpp.logits),
        }
    return result


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "gguf-readers.json"
    result: dict[str, Any] = {"command": "python benchmarks/gguf_readers.py", "adapters": []}
    with tempfile.TemporaryDirectory() as name:
        for number, (r, alpha, targets) in enumerate(ADAPTERS):
            place = Path(name) / str(number)
            make_adapter(place / "adapter", r, alpha, targets)
            found = measure(place / "adapter", place)
            about = {"r": r, "alpha": alpha, "targets": list(targets)}
            result["adapters"].append(about | found)
            print(json.dumps(found, indent=1), flush=True)
    result["environment"] = environment("cpu")
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
