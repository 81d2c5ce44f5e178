"""Tiny bases written by transformers and adapters written by peft, for the tests of this room."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from conftest import make_model, write_tokenizer
from suri.export.publish import write_merge
from suri.files import write_json
from suri.reading import read_json

write_hf, write_meta, write_gguf = (partial(write_merge, to) for to in ("hf", "meta", "gguf"))

SCALED_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
KINDS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True, "num_attention_heads": 12, "num_key_value_heads": 2},
    "scaled-rope": {"rope_parameters": SCALED_ROPE, "num_key_value_heads": 3},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 70_000.0}},
    "every-head-its-own": {"num_key_value_heads": 6, "hidden_size": 72, "rms_norm_eps": 1e-6},
}
"""What Meta's format holds; hidden size and heads differ from each other throughout."""

IDS = [[5, 99, 7, 7, 23, 64, 128, 1, 40], [11, 3, 77, 2, 130, 58]]


def make_base(
    folder: Path, model_type: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """A tiny random model of that dtype with a tokenizer."""
    make_model(folder, model_type, **changes)
    file = folder / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    name = str(dtype).removeprefix("torch.")
    write_json(folder / "config.json", read_json(folder / "config.json") | {"dtype": name})
    return write_tokenizer(folder)


def make_adapter(folder: Path, base: Path, **settings: Any) -> Path:
    """An adapter of peft's own making, A and B random, alpha != r, on four of the linears."""
    peft_model(base, **settings).save_pretrained(folder)
    return folder


def peft_model(base: Path, **settings: Any) -> peft.PeftModel:
    torch.manual_seed(5)
    plan = {
        "r": 5,
        "lora_alpha": 12,
        "target_modules": ["q_proj", "k_proj", "o_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
        "init_lora_weights": False,
    }
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(**plan | settings))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                tensor.normal_(std=0.2)
    return model


def merged_by_peft(base: Path, adapter: Path) -> torch.nn.Module:
    """The referee: peft's merge of the same two folders, in fp32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()


def reference_logits(model: torch.nn.Module, texts: list[list[int]] | None = None) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(torch.tensor([ids])).logits[0] for ids in texts or IDS])


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny base for all tests of a module."""
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base) -> Path:
    """An adapter for it."""
    return make_adapter(tmp_path_factory.mktemp("adapter"), base)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What is made of GGUF files and kept, each test for itself."""
    monkeypatch.setenv("SURI_CACHE", str(tmp_path / "cache"))
