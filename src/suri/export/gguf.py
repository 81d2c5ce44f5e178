"""Writing a merge as one GGUF file, the format of llama.cpp, tensor after tensor.

Source: github.com/ggml-org/ggml, docs/gguf.md; what llama.cpp expects of each architecture:
its convert_hf_to_gguf.py.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from suri.errors import UsageError
from suri.export.companions import prompt_of, template_of
from suri.export.fold import Merge, Report, fold, silent
from suri.export.gguf_reader import GGUF_FILE
from suri.export.gguf_vocabulary import Vocabulary, vocabulary_of
from suri.model.gguf_rope import rope_factors
from suri.model.tensor_names import (
    ARCHITECTURES,
    ROPE_FACTORS,
    rotary_heads,
    to_gguf,
    unpermute,
)
from suri.model.tokenizer import Tokenizer

log = logging.getLogger(__name__)

FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32, "q8_0": 7}
"""general.file_type (gguf-py, LlamaFileType: all F32, mostly F16, mostly BF16, mostly Q8_0)."""

TENSOR_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
SUMMED_IN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""How the sum is rounded; for Q8_0, which quantises fp32, not at all."""
BLOCK = 32
"""Numbers of one block of Q8_0."""
ROWS = 4096
"""Rows that are quantised at once: gguf holds several copies of them in fp32."""

QUANTIZATION_VERSION = 2


def write_gguf(merge: Merge, folder: Path, report: Report = silent) -> None:
    """Write model.gguf, its header from the shapes alone, then each tensor as it comes.

    Raises UsageError for a model or tokenizer that llama.cpp's architectures cannot hold.
    """
    from gguf import GGUFWriter

    if problems := list(_unknown_to_gguf(merge)):
        raise UsageError(
            "llama.cpp's architectures cannot hold this model",
            found="; ".join(problems),
            do="use --to hf",
        )
    config, tokenizer = merge.base.config, merge.tokenizer
    vocabulary = vocabulary_of(tokenizer, config.vocab_size) if tokenizer else None
    writer = GGUFWriter(folder / GGUF_FILE, ARCHITECTURES[config.model_type])
    _add_settings(writer, merge)
    if vocabulary and tokenizer:
        _add_vocabulary(writer, vocabulary, tokenizer)
        if template := template_of(prompt_of(merge), tokenizer):
            writer.add_chat_template(template)
    else:
        writer.add_tokenizer_model("none")
    shapes = {_name(name): merge.base.shape(name) for name in merge.base}
    if rope_factors(config) is not None:
        shapes[ROPE_FACTORS] = (config.head_dim // 2,)
    kinds = {name: _kind(merge, shape) for name, shape in shapes.items()}
    _announce(writer, shapes, kinds)
    if merge.rounded_to and (left := list(kinds.values()).count("F16")):
        log.warning("%d tensors stay in float16: their rows are not made of blocks of 32", left)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in gguf_tensors(merge, report):
            writer.write_tensor_data(_stored(tensor, kinds[name]))
    finally:
        writer.close()


def _unknown_to_gguf(merge: Merge) -> Iterator[str]:
    config = merge.base.config
    if config.model_type not in ARCHITECTURES:
        yield f"it is of type {config.model_type}"
    if config.o_bias or config.mlp_bias or (config.qkv_bias and config.model_type != "qwen2"):
        yield "its linears have biases"
    if config.sliding_window is not None:
        yield f"its attention ends after {config.sliding_window} tokens"
    if unknown := [name for name in merge.base if to_gguf(name) is None]:
        yield f"it has the tensor {unknown[0]}"


def gguf_tensors(merge: Merge, report: Report = silent) -> Iterator[tuple[str, Tensor]]:
    """GGUF names with merged tensors; norms and biases in fp32, as llama.cpp computes them.

    Its architecture llama turns neighbours (2i, 2i + 1) of each head, as Meta does, and wants the
    rows of q and k in that order; qwen2 and qwen3 turn halves, as HF does.
    """
    config = merge.base.config
    turned = ARCHITECTURES[config.model_type] == "llama"
    for done, name in enumerate(merge.base, 1):
        weight = {name: merge.base[name]}
        dtype = SUMMED_IN.get(_kind(merge, merge.base.shape(name)), torch.float32)
        ((_, tensor),) = fold(weight, merge.adapter, dtype)
        heads = rotary_heads(name, config) if turned else 0
        yield _name(name), unpermute(tensor, heads) if heads else tensor
        report("folding", done, len(merge.base))
    if (factors := rope_factors(config)) is not None:
        yield ROPE_FACTORS, factors


def _name(name: str) -> str:
    found = to_gguf(name)
    assert found is not None  # _unknown_to_gguf has asked for each
    return found


def _kind(merge: Merge, shape: tuple[int, ...]) -> str:
    """GGML's type of a tensor: vectors stay in fp32, rows that make no whole blocks in fp16."""
    if len(shape) == 1:
        return "F32"
    kind = TENSOR_TYPES[merge.dtype_name]
    return "F16" if kind == "Q8_0" and shape[-1] % BLOCK else kind


def _announce(writer: Any, shapes: dict[str, tuple[int, ...]], kinds: dict[str, str]) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for name, shape in shapes.items():
        kind = GGMLQuantizationType[kinds[name]]
        block, size = GGML_QUANT_SIZES[kind]
        # Of the numpy type it is asked only whether it is uint8, and then takes shapes for bytes.
        count = torch.Size(shape).numel() // block * size
        writer.add_tensor_info(name, shape, np.dtype(np.int32), count, raw_dtype=kind)


def _stored(tensor: Tensor, kind: str) -> npt.NDArray[Any]:
    """The tensor's bytes as the file holds them."""
    if kind in SUMMED_IN:
        content: npt.NDArray[Any] = tensor.contiguous().view(torch.uint8).numpy()
        return content
    from gguf import GGMLQuantizationType, quants

    parts = (part.contiguous().numpy() for part in tensor.split(ROWS))
    return np.concatenate([quants.quantize(part, GGMLQuantizationType[kind]) for part in parts])


def _add_settings(writer: Any, merge: Merge) -> None:
    from gguf import RopeScalingType

    config = merge.base.config
    writer.add_name(merge.title)
    writer.add_file_type(FILE_TYPES[merge.dtype_name])
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.rope_scaling and config.rope_scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(config.rope_scaling["factor"]))


def _add_vocabulary(writer: Any, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    tokens, kinds, scores = zip(*vocabulary.pieces, strict=True)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if vocabulary.model == "llama":
        writer.add_token_scores(scores)
    writer.add_token_merges(vocabulary.merges)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    for name, add in (("bos", writer.add_bos_token_id), ("unk", writer.add_unk_token_id)):
        number = tokenizer.backend.token_to_id(tokenizer.names.get(f"{name}_token", ""))
        if number is not None:
            add(number)
    writer.add_add_bos_token(tokenizer.bos_id is not None)
    writer.add_add_eos_token(False)
