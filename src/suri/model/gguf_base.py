"""A GGUF file as a base: made into a Hugging Face folder in the cache once, then reused."""

import hashlib
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suri.errors import Corrupt, SuriError, UsageError
from suri.files import cache_folder, disk_errors_explained, need_space, publishing, write_json
from suri.model.config import UNREADABLE, ModelConfig, class_of, config_of
from suri.model.gguf_file import PLAIN, GgufFile
from suri.model.gguf_rope import llama3_scaling
from suri.model.gguf_vocabulary import write_tokenizer
from suri.model.tensor_files import write_safetensors
from suri.model.tensor_names import (
    ARCHITECTURES,
    ROPE_FACTORS,
    from_gguf,
    permute,
    rotary_heads,
    to_gguf,
)

BESIDE = (
    "prompt.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "certificate.json",
)  # fmt: skip
"""Files of a GGUF's folder that say more exactly what the file itself says, or what it holds."""


def gguf_file(place: Path) -> Path | None:
    """The GGUF file that a path names: itself, or the one in a folder that is no other model.

    Raises UsageError where a folder holds several.
    """
    if place.suffix == ".gguf" and place.is_file():
        return place
    if not place.is_dir() or any((place / n).is_file() for n in ("config.json", "params.json")):
        return None
    files = sorted(place.glob("*.gguf"))
    if len(files) > 1:
        raise UsageError(
            f"{place} holds {len(files)} GGUF files",
            found=", ".join(file.name for file in files[:8]),
            do="name one of them; a model in several parts is not read",
        )
    return files[0] if files else None


def gguf_base(place: Path) -> Path:
    """The HF folder of a GGUF file, or of a folder with one; made in the cache where it is not yet.

    A folder's own prompt and tokenizer come along; a file named by itself brings what is in it.
    Raises UsageError for a model that is not of the Llama family, Corrupt for a broken file.
    """
    file = gguf_file(place)
    assert file is not None
    beside = [place / name for name in BESIDE if place.is_dir() and (place / name).is_file()]
    # Gigabytes are not hashed at every opening: name, size and time tell a changed file apart.
    marks = [
        f"{part.resolve()} {part.stat().st_size} {part.stat().st_mtime_ns}"
        for part in (file, *beside)
    ]
    digest = hashlib.sha256("\n".join(marks).encode()).hexdigest()
    folder = cache_folder() / f"gguf-{file.stem}-{digest[:12]}"
    try:
        if not folder.is_dir():
            with disk_errors_explained(folder), publishing(folder) as temporary:
                convert(file, temporary, beside)
                write_json(temporary / "source.json", {"file": str(file.resolve()), "marks": marks})
    except SuriError:
        if not folder.is_dir():  # else another process was faster
            raise
    return folder


def convert(file: Path, folder: Path, beside: list[Path]) -> None:
    """Write config, weights and tokenizer of a GGUF file as an HF folder; F16 and BF16 stay so."""
    source = GgufFile(file)
    config = read_gguf_config(source)
    sizes = (
        each.size if each.kind in PLAIN else 4 * math.prod(each.shape)
        for each in source.tensors.values()
    )
    need_space(folder, sum(sizes), f"reading {file}")
    _write_weights(source, config, folder)
    ids = {f"{name}_token_id": i for name, i in source.special_ids().items() if name != "unk"}
    write_json(folder / "config.json", config.raw | ids)
    for part in beside:
        shutil.copyfile(part, folder / part.name)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        write_tokenizer(source, folder)


def read_gguf_config(source: GgufFile) -> ModelConfig:
    """The model's shape from the keys of its architecture; the embedding says the vocabulary's."""
    values, arch = source.values, source.values.get("general.architecture")
    if arch not in ARCHITECTURES.values() or values.get("split.count", 1) not in (0, 1):
        raise UsageError(
            f"{source.path}: not a model of the Llama family in one file",
            found=f"architecture {arch}, {values.get('split.count', 1)} file(s)",
            do=f"one of {', '.join(sorted(set(ARCHITECTURES.values())))} is read",
        )
    if strange := [n for n in source.tensors if from_gguf(n) is None and n != ROPE_FACTORS]:
        raise UsageError(f"{source.path}: not a plain {arch} model", found=f"it holds {strange[0]}")
    try:
        hidden = int(values[f"{arch}.embedding_length"])
        heads = int(values[f"{arch}.attention.head_count"])
        theta = float(values.get(f"{arch}.rope.freq_base", 10000.0))
        raw = {
            "architectures": [class_of(str(arch))],
            "model_type": str(arch),
            "vocab_size": source.tensors["token_embd.weight"].shape[0],
            "hidden_size": hidden,
            "num_hidden_layers": int(values[f"{arch}.block_count"]),
            "num_attention_heads": heads,
            "num_key_value_heads": int(values.get(f"{arch}.attention.head_count_kv", heads)),
            "head_dim": int(values.get(f"{arch}.attention.key_length", hidden // heads)),
            "intermediate_size": int(values[f"{arch}.feed_forward_length"]),
            # Stored in fp32: 1e-05 comes back as 9.999999747378752e-06.
            "rms_norm_eps": float(f"{values[f'{arch}.attention.layer_norm_rms_epsilon']:.7g}"),
            "max_position_embeddings": int(values[f"{arch}.context_length"]),
            "tie_word_embeddings": "output.weight" not in source.tensors,
            "rope_theta": theta,
            "hidden_act": "silu",
            "attention_bias": "blk.0.attn_output.bias" in source.tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in source.tensors,
            "dtype": str(source.tensor("token_embd.weight").dtype).removeprefix("torch."),
        }
        config = config_of(raw, str(source.path))
        _check_tensors(source, config)
        rope = {"rope_type": "default", **_scaling(source, config), "rope_theta": theta}
        return config_of(raw | {"rope_parameters": rope}, str(source.path))
    except UNREADABLE as problem:
        found = repr(problem)[:200]
        raise Corrupt(f"{source.path}: its header is incomplete", found=found) from None


def _check_tensors(source: GgufFile, config: ModelConfig) -> None:
    """Raise Corrupt where the linears that the header announces are not those of its tensors.

    Raises UsageError for biases or norms that config.json cannot name, and that would be lost.
    """
    has_bias = "blk.0.attn_q.bias" in source.tensors
    has_norm = "blk.0.attn_q_norm.weight" in source.tensors
    if (has_bias, has_norm) != (config.qkv_bias, config.qk_norm):
        raise UsageError(
            f"{source.path}: not a plain {config.model_type} model",
            found="biases or norms in other places than such models have them",
        )
    for module, expected in config.modules().items():
        name = str(to_gguf(f"{module}.weight"))
        entry = source.tensors.get(name)
        if entry is None or entry.shape != expected:
            raise Corrupt(
                f"{source.path}: {name} does not fit its header",
                found=f"{entry and entry.shape} where {expected} is needed",
            )


def _scaling(source: GgufFile, config: ModelConfig) -> dict[str, Any]:
    """The rotary scaling: linear by its key, Llama 3's by the factors in a tensor; {} for none."""
    prefix = f"{source.values['general.architecture']}.rope."
    kind = source.values.get(f"{prefix}scaling.type", "none")
    turned = source.values.get(f"{prefix}dimension_count", config.head_dim)
    if kind not in ("none", "linear") or turned != config.head_dim:
        raise UsageError(
            f"{source.path}: its heads are turned in a way that is not known here",
            found=f"scaling {kind}, or fewer numbers of a head turned than its {config.head_dim}",
        )
    factor = float(source.values.get(f"{prefix}scaling.factor", 1.0))
    if kind == "linear" and factor != 1.0:
        return {"rope_type": "linear", "factor": factor}
    if ROPE_FACTORS in source.tensors:
        return llama3_scaling(source.tensor(ROPE_FACTORS).tolist(), config, str(source.path))
    return {}


def _write_weights(source: GgufFile, config: ModelConfig, folder: Path) -> None:
    """Write model.safetensors, its tensors in the order in which that library has them."""
    names = {name: gguf for gguf in source.tensors if (name := from_gguf(gguf))}
    entries = [
        (name, source.tensors[gguf].shape, PLAIN.get(source.tensors[gguf].kind, torch.float32))
        for name, gguf in names.items()
    ]
    entries.sort(key=lambda entry: (-entry[2].itemsize, entry[0]))
    tensors = ((name, _hf_tensor(source, names[name], name, config)) for name, _, _ in entries)
    write_safetensors(folder / "model.safetensors", entries, tensors)


def _hf_tensor(source: GgufFile, gguf_name: str, name: str, config: ModelConfig) -> Tensor:
    """A tensor as HF has it; the architecture llama has Meta's order of rotary rows."""
    tensor = source.tensor(gguf_name)
    if not bool(torch.isfinite(tensor).all()):
        raise Corrupt(f"{source.path}: {gguf_name} holds numbers that are not finite")
    heads = rotary_heads(name, config) if config.model_type == "llama" else 0
    return permute(tensor, heads) if heads else tensor
