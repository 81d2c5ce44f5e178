"""What training.py gives to every way: the same encoded rows, start, bases; a tiny model too."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

TINY_SIZES = {
    "vocab_size": 98, "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}  # fmt: skip


def tiny_base(folder: Path) -> Path:
    """A tiny random Llama whose tokens are single ASCII letters."""
    import torch
    import transformers

    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model("llama", **TINY_SIZES)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """One of 98 tokens: two special ones and single ASCII letters."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = ["Ġ", "Ċ", *map(chr, range(33, 127))]
    vocab = {word: place for place, word in enumerate(["<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "add_bos_token": False}
    names |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")


def draw(rows: list[Any], train: int, held_out: int, work: Path) -> Path:
    """Rows to train and others to hold out, drawn with a fixed seed, as two files in `work`."""
    if len(rows) < train + held_out:
        raise SystemExit(f"{train + held_out} rows are needed, and there are {len(rows)}")
    chosen = random.Random(0).sample(rows, train + held_out)
    work.mkdir(parents=True)
    for name, part in (("train", chosen[:train]), ("held_out", chosen[train:])):
        (work / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
    return work


def encode(recipe: Any, work: Path) -> dict[str, int]:
    """Encode the two files of `work` for the peers, in the order in which `suri train` learns.

    Writes encoded.json, and the folder `start` with the adapter that a training starts from.
    """
    from suri.data.encode import Rules, encode_records
    from suri.data.prompt import find_prompt
    from suri.data.records import read_records
    from suri.model.adapter import initial_adapter
    from suri.model.adapter_file import write_adapter
    from suri.model.config import read_config
    from suri.model.tokenizer import read_tokenizer
    from suri.model.weights import find_base
    from suri.train.plan import Plan

    base = find_base(recipe.base_model)
    tokenizer = read_tokenizer(base)
    prompt = find_prompt(recipe.prompt_template_name, tokenizer)
    rules = Rules(recipe.cutoff_len, recipe.train_on_inputs, recipe.overlong)
    parts = {
        name: encode_records(read_records(work / f"{name}.json"), tokenizer, prompt, rules).examples
        for name in ("train", "held_out")
    }
    plan = Plan(recipe, parts["train"].lengths)
    order = [i for step in range(1, plan.steps_per_epoch + 1) for i in plan.examples(step)]
    parts["train"] = [parts["train"][i] for i in order]
    rows = {
        name: [{"input_ids": e.ids.tolist(), "labels": e.labels.tolist()} for e in part]
        for name, part in parts.items()
    }
    (work / "encoded.json").write_text(json.dumps(rows), encoding="utf-8")
    start = initial_adapter(
        read_config(base), r=recipe.lora_r, alpha=recipe.lora_alpha,
        targets=recipe.lora_target_modules, seed=recipe.seed, base={"path": str(base)},
    )  # fmt: skip
    (work / "start").mkdir()
    write_adapter(work / "start", start)
    return {
        "rows": len(rows["train"]),
        "tokens": sum(len(row["input_ids"]) for row in rows["train"]),
        "learned_tokens": sum(x != -100 for row in rows["train"] for x in row["labels"]),
        "held_out_rows": len(rows["held_out"]),
        "held_out_learned_tokens": sum(x != -100 for r in rows["held_out"] for x in r["labels"]),
    }


def nf4_base(base: Path, folder: Path) -> Path:
    """The base that an adapter trained in nf4 belongs to: its linears through nf4 and back."""
    from safetensors.torch import save_file

    from suri.export.fold import MergeBase

    weights = MergeBase(base, dequantized=True)
    folder.mkdir()
    tensors = {name: weights[name].float().contiguous() for name in weights}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(base / "config.json", folder / "config.json")
    return folder


def bundled_rows(count: int, seed: int, file: Path) -> Path:
    """The rows of `--data_path bundled:COUNT` as a file."""
    from suri.data.records import as_row
    from suri.data.skills import draw_rows

    rows = [as_row(record) for record in draw_rows(count, seed)]
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file
