"""Adapters that are no sum of products: DoRA (arXiv:2402.09353), merged by peft in fp32.

The model is built from the checked base and the pairs that were read; nothing of the adapter's
configuration reaches peft but ranks, alphas and names. The whole model is in memory in fp32.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from suri.errors import Corrupt, UsageError
from suri.export.fold import Merge
from suri.model.adapter import Adapter
from suri.model.adapter_file import peft_tensors
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
    assert merge.adapter is not None
    try:
        import peft
        import transformers  # noqa: F401
    except ImportError as problem:
        raise UsageError(
            f"merging a DoRA adapter needs the package {problem.name}",
            do='pip install "suri[reference]"',
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's own, under this transformers
        model = peft.get_peft_model(_base_model(merge), _settings(merge.adapter))
    lost = peft.set_peft_model_state_dict(model, peft_tensors(merge.adapter))
    assert not lost.unexpected_keys, lost
    assert not any("lora_" in name for name in lost.missing_keys), lost
    return model.eval()


def _base_model(merge: Merge) -> Any:
    """transformers' model of the base's family with these very weights, in fp32."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    raw = dict(merge.base.config.raw)
    raw.pop("quantization_config", None)
    raw.pop("auto_map", None)
    config = transformers.AutoConfig.for_model(**raw)
    family = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type])
    # Copies, because the model takes them as its own and the merge is made in place.
    weights = {name: merge.base[name].to(torch.float32, copy=True) for name in merge.base}
    with no_bars():
        model, found = family.from_pretrained(
            None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
        )
    if wrong := {name: kind for name, kind in found.items() if kind}:
        raise Corrupt(
            f"transformers does not take the weights of {merge.base.folder} as they are",
            found=str(wrong)[:200],
        )
    return model


@contextmanager
def no_bars() -> Iterator[None]:
    """While it lasts, transformers draws no bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


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
