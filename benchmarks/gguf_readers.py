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

from suri.export.checks import compare_logits
from suri.export.fold import open_merge
from suri.export.probes import probe_ids
from suri.export.publish import write_merge
from suri.model.adapter import initial_adapter
from suri.model.adapter_file import write_adapter
from suri.model.config import read_config
from suri.model.embedded import embedded_base
from suri.model.load import layered_logits
from suri.model.weights import base_identity
from suri.recipe import LINEARS
from suri.train.machine import environment

RESULTS = Path(__file__).parent / "results"
DTYPES = ("float32", "float16", "bfloat16", "q8_0")
ADAPTERS = [
    (2, 0.01, ("v_proj",), ("q8_0",)),
    (8, 0.3, ("q_proj", "v_proj"), DTYPES),
    (8, 0.2, LINEARS, ("q8_0",)),
]


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


def measure(adapter: Path, place: Path, dtypes: tuple[str, ...]) -> dict[str, Any]:
    """What each format's certificate says, and how much the adapter changes at all."""
    merge = open_merge(adapter)
    ids = probe_ids(merge)
    expected = layered_logits(merge.base.folder, ids, adapter=merge.adapter)
    plain = layered_logits(merge.base.folder, ids)
    changed = compare_logits(expected, plain, "bfloat16")
    result: dict[str, Any] = {"the adapter's change": {c.name: c.figure for c in changed}}
    for dtype in dtypes:
        certificate = write_merge("gguf", None, adapter, place / dtype, dtype)
        figures = {check.name: check.figure for check in certificate.checks}
        readers = {"reader": certificate.record["reader"]}
        result[dtype] = figures | readers | {"llama.cpp": certificate.record["llama.cpp"]}
    return result


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "gguf-readers.json"
    result: dict[str, Any] = {"command": "python benchmarks/gguf_readers.py", "adapters": []}
    with tempfile.TemporaryDirectory() as name:
        for number, (r, alpha, targets, dtypes) in enumerate(ADAPTERS):
            place = Path(name) / str(number)
            make_adapter(place / "adapter", r, alpha, targets)
            found = measure(place / "adapter", place, dtypes)
            about = {"r": r, "alpha": alpha, "targets": list(targets)}
            result["adapters"].append(about | found)
            print(json.dumps(found, indent=1), flush=True)
    result["environment"] = environment("cpu")
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
