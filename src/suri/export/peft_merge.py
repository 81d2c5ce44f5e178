"""Adapters that are no sum of products: DoRA (arXiv:2402.09353), merged by peft in fp32.

The model is built from the checked base and the pairs that were read; nothing of the adapter's
configuration reaches peft but ranks, alphas and names. The whole model is in memory in fp32.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from suri.errors import UsageError
from suri.export.fold import Merge
from suri.model.adapter import Adapter
from suri.model.config import hf_config_of
from suri.model.vector_math import settle


def merged_weights(merge: Merge) -> Mapping[str, Tensor]:
    """The base's names, in its order, with what peft's merge_and_unload makes of them; fp32."""
    merged = _peft_model(merge).merge_and_unload(safe_merge=True).state_dict()
    return {name: merged[name] for name in merge.base}


@torch.no_grad()
def unmerged_logits(merge: Merge, texts: Sequence[Sequence[int]]) -> Tensor:
    """fp32 logits [T, vocab] of token-id lists by peft's model with the adapter beside the base."""
    settle()
    model = _peft_model(merge)
    return torch.cat([model(torch.tensor([list(ids)])).logits[0] for ids in texts])


def _peft_model(merge: Merge) -> Any:
    try:
        import peft
        import transformers
    except ImportError as problem:
        raise UsageError(
            f"merging a DoRA adapter needs the package {problem.name}",
            do='pip install "suri[reference]"',
        ) from None
    raw = dict(merge.base.config.raw or hf_config_of(merge.base.config))
    raw.pop("quantization_config", None)
    raw.pop("auto_map", None)
    config = transformers.AutoConfig.for_model(**raw)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    lost = model.load_state_dict(dict(merge.base), strict=False)
    tied = {"lm_head.weight"} if merge.base.config.tied_head else set()
    assert not set(lost.missing_keys) - tied, lost
    assert not lost.unexpected_keys, lost
    adapter = merge.adapter
    model = peft.get_peft_model(model, _settings(adapter))
    lost = peft.set_peft_model_state_dict(model, _tensors(adapter))
    assert not lost.unexpected_keys, lost
    assert not any("lora_" in name for name in lost.missing_keys), lost
    return model.eval()


def _settings(adapter: Adapter) -> Any:
    """peft's configuration of exactly these modules, each with its rank and alpha."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.alpha,
        use_rslora=adapter.rslora,
        use_dora=bool(adapter.magnitudes),
        target_modules=list(adapter.tensors),
        rank_pattern={name: adapter.rank_of(name) for name in adapter.tensors},
        alpha_pattern=dict(adapter.alphas),
    )


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    """The adapter by peft's names."""
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in adapter.tensors.items():
        prefix = f"base_model.model.{name}."
        tensors |= {f"{prefix}lora_A.weight": a, f"{prefix}lora_B.weight": b}
        tensors[f"{prefix}lora_magnitude_vector"] = adapter.magnitudes[name]
    return tensors
