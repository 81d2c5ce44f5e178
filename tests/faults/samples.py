"""A tiny base with a tokenizer, in the formats of Hugging Face, Meta and llama.cpp."""

from pathlib import Path

import torch
from gguf import GGUFWriter
from safetensors.torch import save_file

from suri.files import write_json
from suri.model.config import read_config
from suri.model.tensor_names import to_gguf, to_meta, unpermute

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
