"""A small real example of every format that is read from outside or read back, and its reader."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from children import run
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from torch import nn

from suri.cli.curve import two_curves
from suri.cli.runs import _row
from suri.data.prompt import find_prompt, read_prompt
from suri.data.records import Record, write_records
from suri.export.certify import verify
from suri.export.hf import write_hf
from suri.files import read_json, write_json
from suri.model.adapter import read_adapter
from suri.model.attention import PackedAttention
from suri.model.config import read_config
from suri.model.gguf_base import convert
from suri.model.gguf_names import to_gguf
from suri.model.load import load_decoder
from suri.model.meta_names import to_meta, unpermute
from suri.model.tokenizer import read_tokenizer
from suri.model.weights import find_base, recorded_base
from suri.recipe import Recipe, recipe_from_toml
from suri.study.forms import is_merge_of
from suri.study.plan import read_plan
from suri.study.report import build
from suri.study.runs import differing, read_run
from suri.study.trials import collect
from suri.train.checkpoint import find_checkpoint, load_checkpoint

ROOT = Path(__file__).parents[2]
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "base.json")


@dataclass(frozen=True)
class Format:
    """A folder, the files in it that are damaged, and what reading it gives: its meaning.

    `exact`: checksums cover it, so that nothing but the meaning it had may come of it. Where there
    are none, `keeps` is the part of the meaning that must stay.
    """

    folder: Path
    files: tuple[str, ...]
    read: Callable[[Path], object]
    exact: bool = False
    keeps: Callable[[Any], object] = lambda _: None


def bits(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        assert bool(torch.isfinite(tensor).all()), f"{name} holds what is no number"
        digest.update(f"{name} {tensor.shape} {tensor.dtype}".encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def adapter_of(folder: Path) -> object:
    adapter = read_adapter(folder)
    pairs = {f"{name} {i}": t for name, ab in adapter.tensors.items() for i, t in enumerate(ab)}
    assert 0 < adapter.scaling < float("inf")
    base = recorded_base(folder)
    adapter.attach(load_decoder(base, only_layers=3))
    shapes = {name: tensor.shape for name, tensor in pairs.items()}
    return (adapter.r, adapter.targets, shapes), adapter.scaling, bits(pairs), base


def checkpoint_of(folder: Path) -> object:
    place, passed_over = find_checkpoint(folder)
    adapter = read_adapter(place)
    names = [
        f"model.layers.{n}.{m}" for n in range(2) for m in ("self_attn.q_proj", "mlp.down_proj")
    ]
    parameters = [nn.Parameter(t.clone()) for name in names for t in adapter.tensors[name]]
    optimizer = torch.optim.AdamW(parameters)
    progress, adapter = load_checkpoint(place, parameters, optimizer)
    assert not passed_over
    pairs = {f"{name} {i}": t for name, ab in adapter.tensors.items() for i, t in enumerate(ab)}
    state = optimizer.state_dict()["state"]
    moments = {f"{number} {n}": t for number, each in state.items() for n, t in each.items()}
    return progress, adapter.scaling, bits(pairs), bits(moments)


def base_of(folder: Path) -> tuple[object, ...]:
    config = read_config(folder)
    decoder = load_decoder(find_base(str(folder)))
    ids = torch.arange(5) % config.vocab_size
    with torch.no_grad():
        hidden = decoder(ids, torch.arange(5), PackedAttention([5], config.sliding_window))
        shown = decoder.logits(hidden)
    kept = config.linear_shapes(), config.num_layers, config.vocab_size, config.num_kv_heads
    return kept, config, hashlib.sha256(shown.numpy().tobytes()).hexdigest()


def gguf_of(folder: Path) -> object:
    with tempfile.TemporaryDirectory() as place:
        convert(folder / "model.gguf", Path(place), [])
        tokenizer = read_tokenizer(Path(place))
        weights = bits(load_file(Path(place) / "model.safetensors"))
        return *base_of(Path(place)), weights, tokenizer.encode("to be")


def tokenizer_of(folder: Path) -> object:
    tokenizer = read_tokenizer(folder)
    texts = ["to be or</s> not", "", "12 to 345\n\nbe?", "\u00e9\u4e16"]
    ids = [list(each) for each in tokenizer.encode_many(texts)]
    assert ids == [tokenizer.encode(text) for text in texts]
    special = (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id, tokenizer.names)
    return ids, special, tokenizer.special_tokens, tokenizer.chat_template, [
        tokenizer.decode(each) for each in ids
    ]  # fmt: skip


def prompt_of(folder: Path) -> object:
    prompt = read_prompt(folder)
    return prompt, prompt.name if "chat" in prompt.name else prompt.turns(Record("a", "b", "c"))


def run_of(folder: Path) -> object:
    entry = read_run(folder)
    lines = two_curves(entry.metrics, entry.metrics, width=30, ascii_only=True)
    return _row(entry, folder)[2:], entry.figures, list(lines), differing(entry, entry)


def trial_of(folder: Path) -> object:
    return collect(folder, read_json(folder.parent / "judged" / "measured.json"))


def merge_of(folder: Path) -> object:
    certificate, left_out = verify(folder)
    return certificate.passed, certificate.to, not left_out


def report_of(folder: Path) -> object:
    # matplotlib's drawing takes a second.
    with patch("suri.study.figures._svg", lambda plt, figure: plt.close(figure) or ""):
        return [part.title for part in build([folder], "en").parts]


CONFIG = {
    "model_type": "llama", "vocab_size": 131, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 256, "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    },
    "dtype": "float32", "eos_token_id": 1, "attention_bias": False,
}  # fmt: skip


def make_base(folder: Path) -> dict[str, torch.Tensor]:
    """A base of two layers in two shards, with a byte-level tokenizer that has merges."""
    folder.mkdir()
    write_json(folder / "config.json", CONFIG)
    config, generator = read_config(folder), torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {"model.norm": (16,), "lm_head": (131, 16)}
    shapes["model.embed_tokens"] = (131, 16)
    for number in range(2):
        layer = f"model.layers.{number}"
        shapes |= {f"{layer}.{name}": shape for name, shape in config.linear_shapes().items()}
        shapes |= {f"{layer}.{n}_layernorm": (16,) for n in ("input", "post_attention")}
    tensors = {f"{n}.weight": torch.randn(s, generator=generator) for n, s in shapes.items()}
    names = sorted(tensors)
    places = {n: f"model-0000{1 + (i > 9)}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(places.values()):
        save_file({n: tensors[n] for n in names if places[n] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    write_json(folder / "model.safetensors.index.json", index)
    write_tokenizer(folder)
    return tensors


def write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: number for number, token in enumerate(vocabulary())}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("t", "o"), ("b", "e"), ("\u0120", "to")]))
    split = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}{1,3}|\s+|[^\s]"), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "eos_token": {"content": "</s>", "lstrip": False}, "bos_token": "<s>", "pad_token": None,
        "add_bos_token": True, "model_max_length": 10**30,
        "chat_template": [{"name": "default", "template": "{{ messages }}"}],
    }  # fmt: skip
    write_json(folder / "tokenizer_config.json", config)


def vocabulary() -> list[str]:
    letters = [chr(i) for i in range(33, 127)] + ["\u0120", "\u010a"]
    return ["<s>", "</s>", *letters, "to", "be", "\u0120to"]


def write_meta_folder(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    turned = {
        to_meta(n): unpermute(t, 4 if "q_proj" in n else 2)
        if ("q_proj" in n or "k_proj" in n)
        else t
        for n, t in tensors.items()
    }
    params = {
        "dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 131,
        "multiple_of": 24, "ffn_dim_multiplier": 0.5, "norm_eps": 1e-5, "rope_theta": 10000.0,
        "use_scaled_rope": True, "rope_scaling": {"factor": 8.0}, "max_seq_len": 128,
    }  # fmt: skip
    torch.save(turned, folder / "consolidated.00.pth")
    write_json(folder / "params.json", params)


def write_gguf_file(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    file.parent.mkdir()
    writer = GGUFWriter(file, "llama")
    writer.add_embedding_length(16)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(4)
    writer.add_feed_forward_length(24)
    writer.add_context_length(256)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    words = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word in ("<s>", "</s>") else 1 for word in words])
    writer.add_token_merges(["t o", "b e", "\u0120 to"])
    writer.add_eos_token_id(1)
    for name, tensor in tensors.items():
        heads = 4 if "q_proj" in name else 2
        turned = unpermute(tensor, heads) if "q_proj" in name or "k_proj" in name else tensor
        writer.add_tensor(
            to_gguf(name) or "", (turned if tensor.dim() == 1 else turned.half()).numpy()
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


RECIPE = """[recipe]
base_model = "embedded"
learning_rate = 3e-4
lora_target_modules = ["q_proj", "v_proj"]
val_set_size = 0.25
seed = 7
use_rslora = false
"""
PLAN = (
    RECIPE
    + """
[study]
quantize = ["none", "nf4"]
rows = [2, 4]
seeds = [0, 1]
lora_r = [4, 8]
lora_target_modules = [["q_proj"], ["k_proj", "v_proj"]]
"""
)


CHAT = {
    "name": "chat", "chat_template": "{{ messages }}", "names": {"eos_token": "</s>"},
    "special_tokens": ["<s>", "</s>"], "today": "2026-01-02",
}  # fmt: skip
JUDGED = {
    "losses": [{"row": row, "loss_sum": 4.5 + row, "learned_tokens": 4} for row in range(3)],
    "answers": [{"text": "x1 y", "ids": [3, 1], "stopped": True} for _ in range(3)],
    "environment": {"device": "cpu", "cores": 2},
}


def train_in(place: Path) -> Path:
    """A finished run over place/base with two saved states, below a trial's folder."""
    write_records(place / "rows.json", [Record("Say it.", f"{n}", f"x{n} y") for n in range(7)])
    recipe = Recipe(
        base_model=str(place / "base"), data_path=str(place / "rows.json"), val_set_size=3.0,
        num_epochs=2.0, batch_size=2, lora_r=3, lora_alpha=7.0, save_steps=2, device="cpu",
        lora_target_modules=("q_proj", "down_proj"), output_dir=str(place / "trial" / "run"),
        learning_rate=0.05, token_budget=512,
    )  # fmt: skip
    (place / "trial").mkdir()
    assert run(recipe) == 0
    write_json(place / "trial" / "judged" / "measured.json", JUDGED)
    return place / "trial" / "run"


def make_formats(place: Path) -> dict[str, Format]:
    """Every format, below a place."""
    tensors = make_base(place / "base")
    trained = train_in(place)
    (place / "adapter").mkdir()
    for name in ADAPTER:
        shutil.copyfile(trained / name, place / "adapter" / name)
    write_meta_folder(place / "meta", tensors)
    write_gguf_file(place / "gguf" / "model.gguf", tensors)
    write_hf(place / "base", place / "adapter", place / "merged")
    for name in ("text", "chat"):
        (place / name).mkdir()
    find_prompt("alpaca").save(place / "text")
    write_json(place / "chat" / "prompt.json", CHAT)
    (place / "text" / "recipe.toml").write_text(RECIPE)
    (place / "text" / "plan.toml").write_text(PLAN)
    for number in (1, 2):
        shutil.copytree(ROOT / "docs" / "results" / f"task{number}", place / f"task{number}",
                        ignore=shutil.ignore_patterns("report*", "figures"))  # fmt: skip
    state = sorted((trained / "checkpoints").iterdir())[-1]
    weights = tuple(p.name for p in sorted((place / "base").glob("*.safetensors")))
    return {
        "adapter": Format(place / "adapter", ADAPTER, adapter_of, keeps=itemgetter(0)),
        "adapter in its run": Format(trained, (*ADAPTER, "manifest.json"), adapter_of, exact=True),
        "checkpoint": Format(
            state, tuple(p.name for p in sorted(state.iterdir())), checkpoint_of, exact=True
        ),
        "model": Format(
            place / "base", ("config.json", "model.safetensors.index.json", *weights), base_of,
            keeps=itemgetter(0),
        ),
        "tokenizer": Format(
            place / "base", ("tokenizer.json", "tokenizer_config.json", "config.json"), tokenizer_of
        ),
        "Meta model": Format(place / "meta", ("params.json",), base_of, keeps=itemgetter(0)),
        "GGUF": Format(place / "gguf", ("model.gguf",), gguf_of, keeps=itemgetter(0)),
        "merge": Format(
            place / "merged", ("model.safetensors", "config.json", "tokenizer.json"), merge_of,
            exact=True,
        ),
        "certificate": Format(
            place / "merged", ("certificate.json",),
            lambda f: (merge_of(f), is_merge_of(f, trained)),
        ),
        "prompt": Format(place / "text", ("prompt.json",), prompt_of),
        "chat prompt": Format(place / "chat", ("prompt.json",), prompt_of),
        "recipe": Format(
            place / "text", ("recipe.toml",), lambda f: recipe_from_toml(f / "recipe.toml")
        ),
        "plan": Format(place / "text", ("plan.toml",), lambda f: read_plan(f / "plan.toml")),
        "run": Format(
            trained, ("recipe.toml", "result.json", "metrics.jsonl", "environment.json"), run_of
        ),
        "trial": Format(trained, ("result.json", "metrics.jsonl", "held_out.jsonl"), trial_of,
                        exact=True),
        "judged trial": Format(
            place / "trial" / "judged", ("measured.json",), lambda f: trial_of(f.parent / "run")
        ),
        "comparison": Format(place / "task1", ("compare.json", "answers.jsonl"), report_of),
        "study": Format(place / "task2", ("summary.json",), report_of),
    }  # fmt: skip
