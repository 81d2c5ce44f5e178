"""Small real models and real rows that the tests share."""

import importlib.util
import json
import os
import re
import shutil
import sys
from ctypes.util import find_library
from pathlib import Path
from typing import NoReturn

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
from suri.cli.main import THREADS

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several test processes: a core for each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# As the command line sets them; torch reads them when it is loaded.
os.environ.update({name: os.environ.get(name, value) for name, value in THREADS.items()})

import torch

REAL_ROWS = Path(__file__).parents[2] / "shared" / "data" / "alpaca_en_999.json"

SHALLOW = 4
"""Layers of the embedded base that `shallow` keeps."""

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole commands and the page come first: the longest shall not be waited for at the end."""
    first = [Path(__file__).parent, Path(__file__).parent / "web"]
    items.sort(key=lambda item: first.index(item.path.parent) if item.path.parent in first else 2)


def missing(reason: str) -> NoReturn:
    """Skip with the reason; where tests run unattended everything has to be there, and it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)


def lacks(library: str) -> str:
    """Why an optional library cannot be used here; "" where it can."""
    if importlib.util.find_spec(library) is None:
        return f"{library} is not installed here (pip install {library})"
    if library in ("numba", "xllamacpp") and sys.platform == "linux" and not find_library("gomp"):
        return f"{library} finds no OpenMP here (apt-get install libgomp1)"
    return ""


def need(library: str) -> None:
    """Skip, or fail, where an optional library cannot be used."""
    if reason := lacks(library):
        missing(reason)


@pytest.fixture
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample answers of a run are real, and short: for tests in which they decide nothing."""
    monkeypatch.setattr("suri.train.run.SAMPLE_TOKENS", 3)


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The folder of the embedded base."""
    from suri.model.embedded import embedded_base

    return embedded_base()


@pytest.fixture(scope="session")
def shallow(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base with only the first of its 30 layers, alone in a folder for SURI_CACHE.

    The real tokenizer and words at a fifth of the work, where sensible answers decide nothing.
    """
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("cache") / embedded.name
    shutil.copytree(embedded, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    deeper = re.compile(rf"model\.layers\.(?!([0-{SHALLOW - 1}])\.)")
    tensors = load_file(embedded / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not deeper.match(name)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = SHALLOW
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def real_rows() -> Path:
    """Real Alpaca rows; their licence keeps them out of the repository."""
    if not REAL_ROWS.is_file():
        missing(f"the Alpaca rows are not at {REAL_ROWS.name} beside the checkout")
    return REAL_ROWS


def make_model(folder: Path, model_type: str = "llama", **changes: object) -> Path:
    """Save a tiny random model with transformers; every size differs from every other."""
    import transformers

    settings: dict[str, object] = {
        "vocab_size": 131,
        "hidden_size": 48,
        "intermediate_size": 88,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
    }
    settings |= changes
    config = transformers.AutoConfig.for_model(model_type, **settings)
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            # Norms start at 1 and biases at 0; neither shows a mistake.
            if tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * 0.2)
            elif "embed" not in name:
                tensor.mul_(4)
    model.save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer that knows ASCII and ends texts with `</s>`.

    Its one merge joins what no text is cut into: GGUF files hold no tokenizer without any.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = [chr(i) for i in range(33, 127)] + ["Ġ", "Ċ"]
    vocab = {"<s>": 0, "</s>": 1} | {letter: i + 2 for i, letter in enumerate(letters)}
    vocab["<s></s>"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("<s>", "</s>")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "</s>", "bos_token": "<s>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a tokenizer, in fp32."""
    folder = tmp_path_factory.mktemp("tiny")
    make_model(folder, head_dim=10)
    as_fp32(folder)
    return write_tokenizer(folder)


def as_fp32(folder: Path) -> None:
    """Store a saved model in fp32, as most are that people have."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file({k: v.float() for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
