"""transformers' own model of a folder too large to be held, each module's weights read in turn."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suri.errors import Corrupt
from suri.model.kernels import giving_memory_back
from suri.reading import read_json


@torch.no_grad()
def streamed_logits(folder: Path, texts: Sequence[Sequence[int]]) -> Tensor:
    """fp32 logits [T, vocab] of token-id lists, one after the other, by transformers' code.

    The model is built without numbers; every module reads its own, by the safetensors library,
    when it is about to compute and lets them go after it.
    """
    import transformers
    from accelerate import init_empty_weights

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with init_empty_weights(include_buffers=False):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.eval()
    files = _files(folder)
    if config.tie_word_embeddings:
        files.setdefault("lm_head.weight", files["model.embed_tokens.weight"])
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if missing := [name for name in names if name not in files]:
        raise Corrupt(f"{folder}: weights are missing", found=", ".join(missing[:3]))
    for prefix, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(partial(_fill, prefix=prefix, files=files))
            module.register_forward_hook(_empty)
    longest = max(len(ids) for ids in texts)
    # Causal attention: what follows a text changes nothing in it, so no mask is needed.
    rows = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in texts])
    with giving_memory_back():
        logits = model(rows, use_cache=False).logits
    return torch.cat([row[: len(ids)] for row, ids in zip(logits, texts, strict=True)])


Place = tuple[Path, str]


def _files(folder: Path) -> dict[str, Place]:
    """Where each tensor lies: its file, and its name there."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        table: dict[str, str] = read_json(index)["weight_map"]
        return {name: (folder / file, name) for name, file in table.items()}
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        return {name: (folder / "model.safetensors", name) for name in opened.offset_keys()}


def _fill(module: nn.Module, _inputs: Any, *, prefix: str, files: dict[str, Place]) -> None:
    from safetensors import safe_open

    for name, empty in list(module.named_parameters(recurse=False)):
        file, stored = files[f"{prefix}.{name}"]
        with safe_open(file, framework="pt") as opened:
            weight = opened.get_tensor(stored).float()
        if weight.shape != empty.shape:
            raise Corrupt(f"{file}: {stored} is of another shape", found=str(list(weight.shape)))
        module._parameters[name] = nn.Parameter(weight, requires_grad=False)


def _empty(module: nn.Module, _inputs: Any, _output: Any) -> None:
    for name, filled in list(module.named_parameters(recurse=False)):
        module._parameters[name] = nn.Parameter(filled.to("meta"), requires_grad=False)
