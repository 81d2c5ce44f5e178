"""A merge at full size: Llama-1-7B's shape in bf16, random weights, beside cp and PEFT.

python benchmarks/merging.py [--layers N] [--keep FOLDER] [OUT.json]
    (default: all 32 layers, benchmarks/results/merging.json; needs 30 GB of disk)

Each line is a process of its own that ends when its bytes are on the disk (sync), and its
largest resident memory is the system's own figure for it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "merging.json"
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32,
    "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "hidden_act": "silu", "dtype": "bfloat16",
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
RANK, ALPHA = 16, 24.0


def make_base(folder: Path, layers: int) -> None:
    """Random weights in shards, of a spread that keeps activations in range."""
    import torch

    from suri.export.hf import _shards
    from suri.files import write_json
    from suri.model.config import read_config
    from suri.model.tensor_files import write_safetensors

    folder.mkdir(parents=True)
    write_json(folder / "config.json", CONFIG | {"num_hidden_layers": layers})
    config = read_config(folder)
    size, vocab = config.hidden_size, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, size)}
    for number in range(layers):
        prefix = f"model.layers.{number}."
        shapes |= {f"{prefix}{m}.weight": s for m, s in config.linear_shapes().items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{norm}.weight"] = (size,)
    shapes |= {"model.norm.weight": (size,), "lm_head.weight": (vocab, size)}

    def tensors(names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for name in names:
            torch.manual_seed(len(name) + hash(name) % 1000)
            shape = shapes[name]
            spread = shape[-1] ** -0.5 if len(shape) == 2 else 0.1
            tensor = torch.empty(shape, dtype=torch.bfloat16).normal_(0, spread)
            yield name, tensor + (len(shape) == 1)

    shards = _shards({name: 2 * torch.Size(shape).numel() for name, shape in shapes.items()})
    places = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        entries = [(name, shapes[name], torch.bfloat16) for name in names]
        write_safetensors(folder / file, entries, tensors(names))
        places |= dict.fromkeys(names, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def make_adapter(folder: Path, base: Path) -> None:
    """Random pairs on every linear."""
    from dataclasses import replace

    import torch

    from suri.model.adapter import initial_adapter
    from suri.model.adapter_file import write_adapter
    from suri.model.config import read_config
    from suri.model.weights import base_identity
    from suri.recipe import LINEARS

    fresh = initial_adapter(read_config(base), r=RANK, alpha=ALPHA, targets=LINEARS, seed=1,
                            base=base_identity(base, "none"))  # fmt: skip
    torch.manual_seed(2)
    pairs = {name: (a, 0.01 * torch.randn_like(b)) for name, (a, b) in fresh.tensors.items()}
    folder.mkdir()
    write_adapter(folder, replace(fresh, tensors=pairs))


FOLD = """
import sys
from pathlib import Path
from suri.export.fold import open_merge
from suri.export.hf import write_weights
out = Path(sys.argv[3]); out.mkdir()
write_weights(open_merge(Path(sys.argv[2]), Path(sys.argv[1])), out)
"""
READ_BACK = """
import sys
from pathlib import Path
from suri.export.certify import check_others, check_targets, hashes
from suri.export.fold import open_merge
from suri.export.readers import read_tensors
merge, out = open_merge(Path(sys.argv[2]), Path(sys.argv[1])), Path(sys.argv[3])
output = read_tensors(out, "hf", merge.base)
print(check_targets(merge, output), check_others(merge, output, "hf"), sep="\\n")
hashes(merge.base.folder, [file.name for file in merge.base.files])
hashes(out, [file.name for file in out.glob("*.safetensors")])
"""
PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
merged = PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload()
merged.save_pretrained(sys.argv[3])
"""


def table(result: dict[str, Any]) -> str:
    """The result as the documents show it."""
    titles = {
        "cp": "`cp -r`",
        "fold": "the fold alone",
        "read-back and hashes": "read back: targets, other tensors, hashes of base and result",
        "suri merge --to hf": "`suri merge --to hf`, certified",
        "suri merge --to meta": "`suri merge --to meta`, certified",
        "PEFT merge_and_unload": "PEFT `merge_and_unload`, `save_pretrained`",
    }
    found = result["lines"]
    return "\n".join(
        f"| {title} | {found[name]['seconds']:.0f} | {found[name]['times cp']:.2f} "
        f"| {found[name]['gb']:.2f} GB |"
        for name, title in titles.items()
    )


def timed(command: list[str]) -> dict[str, float]:
    """Seconds until its bytes are on the disk, and its peak resident memory in GB."""
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    os.sync()
    return {"seconds": round(time.perf_counter() - started, 1), "gb": usage.ru_maxrss / 1e6}


def main() -> None:
    """Make the base, time everything beside cp, write the table."""
    ask = argparse.ArgumentParser()
    ask.add_argument("out", nargs="?", type=Path, default=RESULTS)
    ask.add_argument("--layers", type=int, default=32)
    ask.add_argument("--keep", type=Path, help="folder whose base is used again")
    ask.add_argument("--make", action="store_true", help="the base and the adapter alone")
    asked = ask.parse_args()
    place = asked.keep or Path(tempfile.mkdtemp())
    base, adapter, out = place / "base", place / "adapter", place / "out"
    if asked.make:
        make_base(base, asked.layers)
        make_adapter(adapter, base)
        return
    if not base.exists():  # in a process of its own: children start with this one's memory
        words = [__file__, "--make", "--layers", str(asked.layers), "--keep", str(place)]
        subprocess.run([sys.executable, *words], check=True)
    merge = [sys.executable, "-m", "suri", "merge", str(adapter), "--base_model", str(base)]
    code = [sys.executable, "-c"]
    places = [str(base), str(adapter), str(out)]
    lines = {
        "cp": ["cp", "-r", str(base), str(out)],
        "fold": [*code, FOLD, *places],
        "read-back and hashes": [*code, READ_BACK, *places],
        "PEFT merge_and_unload": [*code, PEFT, *places],
        "cp again": ["cp", "-r", str(base), str(out)],
        "suri merge --to hf": [*merge, "--to", "hf", "--output_dir", str(out)],
        "suri merge --to meta": [*merge, "--to", "meta", "--output_dir", str(out)],
    }
    found = {}
    for name, command in lines.items():
        if name != "read-back and hashes":
            shutil.rmtree(out, ignore_errors=True)
        found[name] = timed(command)
        print(name, found[name], flush=True)
    shutil.rmtree(out, ignore_errors=True)
    copy = (found["cp"]["seconds"] + found["cp again"]["seconds"]) / 2
    for line in found.values():
        line["times cp"] = round(line["seconds"] / copy, 2)
    size = sum(file.stat().st_size for file in base.iterdir())
    kept = {"command": "python benchmarks/merging.py", "bytes": size, "layers": asked.layers,
            "rank": RANK, "lines": found}  # fmt: skip
    asked.out.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    if not asked.keep:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
