"""Building the decoder from a base's weights, on the device and in the storage asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from suri.errors import Corrupt, UsageError
from suri.model.adapter import Adapter
from suri.model.attention import PackedAttention
from suri.model.config import ModelConfig, read_config
from suri.model.decoder import Decoder, Layer, rotary_frequencies, rotation_of
from suri.model.elementwise import Norm
from suri.model.kernels import product
from suri.model.linear import Linear
from suri.model.storage import STORAGE, Int8, Unread, Watched, nf4_roundtrip
from suri.model.vector_math import settle
from suri.model.weights import check_layers, open_weights

HEAD_ROWS = 4096
"""Rows of the head that are in fp32 at once where a model is not held as a whole."""


def choose_device(asked: str) -> str:
    """`cpu`, or `cuda` where torch can use a GPU; one that it cannot use is an error."""
    if asked == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda" or Path("/proc/driver/nvidia/version").is_file():
        raise UsageError(
            "torch cannot use a GPU here",
            found=f"torch {torch.__version__}",
            do="install a CUDA build of torch that fits the driver, or ask for --device cpu",
        )
    return "cpu"


def load_decoder(
    folder: Path,
    *,
    quantize: str = "none",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    adapter: Adapter | None = None,
    weights: Mapping[str, Tensor] | None = None,
    probe: Tensor | None = None,
    only_layers: int | None = None,
    each_layer: Callable[[Layer], None] | None = None,
) -> Decoder:
    """Build the decoder of `folder`, its linears stored as `quantize` says, adapter attached.

    Norms, embedding and head stay in `dtype`; an adapter stays in fp32. Layers are quantised one
    after the other, so that one of them at most is held in `dtype`. `probe`, ids int64 [T], flow
    through the layers of an int8 model as it is built: inputs that they show to be outliers stay
    exact. `only_layers`: the first ones alone, to time them. `each_layer` is given every layer
    before the next one is read.
    """
    config = read_config(folder)
    weights = weights or open_weights(folder)
    check_layers(weights, config, folder)
    if only_layers is not None:
        config = replace(config, num_layers=min(only_layers, config.num_layers))
    source = _Typed(weights, config, folder, dtype, device)
    embedding = source("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
    made: Iterator[Layer] = (
        _layer(number, source, quantize) for number in range(config.num_layers)
    )
    if quantize == "int8" and probe is not None:
        made = _calibrated_layers(source, F.embedding(probe, embedding))
    layers = []
    for layer in made:
        layers.append(layer)
        if each_layer is not None:
            each_layer(layer)
    head = embedding
    if not config.tied_head:
        head = source("lm_head.weight", (config.vocab_size, config.hidden_size))
    norm = Norm(source("model.norm.weight", (config.hidden_size,)), config.norm_eps)
    scorer = STORAGE[quantize]([head]) if quantize.startswith("int8") else None
    decoder = Decoder(config, embedding, layers, norm, head, scorer)
    if adapter is not None:
        adapter.attach(decoder)
    return decoder


@torch.no_grad()
def layered_logits(
    folder: Path,
    texts: Sequence[Sequence[int]],
    *,
    quantize: str = "none",
    adapter: Adapter | None = None,
    weights: Mapping[str, Tensor] | None = None,
    config: ModelConfig | None = None,
) -> Tensor:
    """fp32 logits [T, vocab] of token-id lists, one after the other, T tokens in all.

    As `load_decoder`'s decoder gives them, with one weight in memory at a time.
    """
    config, ids = config or read_config(folder), torch.tensor([i for text in texts for i in text])
    weights = weights or open_weights(folder)
    source = _Deferring(weights, config, folder, roundtrip=quantize == "nf4")
    lengths = [len(text) for text in texts]
    positions = torch.cat([torch.arange(length) for length in lengths])
    if adapter is not None:
        adapter.check_fits(config)
    settle()
    words = (config.vocab_size, config.hidden_size)
    x = source.stored("model.embed_tokens.weight", words)[ids].float()
    attend = PackedAttention(lengths, config.sliding_window)
    rotation = rotation_of(positions, rotary_frequencies(config), x.dtype)
    for number in range(config.num_layers):
        layer = _layer(number, source, "deferred")
        for name, fused, part in layer.linears() if adapter else ():
            if adapter and name in adapter.tensors:
                adapter.attach_to(name, fused, part)
        x = layer(x, rotation, attend, config.head_dim)
    x = Norm(source("model.norm.weight", (config.hidden_size,)), config.norm_eps)(x)
    head = "model.embed_tokens.weight" if config.tied_head else "lm_head.weight"
    parts = source.stored(head, words).split(HEAD_ROWS)
    return torch.cat([product(x, part.float()) for part in parts], dim=1)


@dataclass(frozen=True)
class _Typed:
    """Tensors of a base, checked for shape and brought to dtype and device."""

    weights: Mapping[str, Tensor]
    config: ModelConfig
    folder: Path
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.stored(name, shape).to(device=self.device, dtype=self.dtype)

    def linear(self, name: str, shape: tuple[int, ...]) -> Tensor | Unread:
        """The weight of a linear."""
        return self(name, shape)

    def stored(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor as the base has it."""
        if name not in self.weights:
            raise Corrupt(f"{self.folder}: the weights lack {name}")
        tensor = self.weights[name]
        if not tensor.is_floating_point():
            raise Corrupt(f"{self.folder}: {name} holds no weights", found=str(tensor.dtype))
        if tuple(tensor.shape) != shape:
            raise Corrupt(
                f"{self.folder}: {name} does not fit the configuration",
                found=f"{list(tensor.shape)} where {list(shape)} is needed",
            )
        return tensor


@dataclass(frozen=True)
class _Deferring(_Typed):
    """The same, with the weights of linears read when they are multiplied with."""

    roundtrip: bool = False
    """Whether they pass through nf4 and back."""

    def linear(self, name: str, shape: tuple[int, ...]) -> Unread:
        """The weight of a linear, to be read."""

        def read() -> Tensor:
            weight = self(name, shape)
            return nf4_roundtrip(weight) if self.roundtrip else weight

        return Unread(shape[0], read)


@torch.no_grad()
def _calibrated_layers(source: _Typed, x: Tensor) -> Iterator[Layer]:
    """Layers in int8, each quantised after x [T, hidden] went through it as it was."""
    attend = PackedAttention([len(x)], source.config.sliding_window)
    positions = torch.arange(len(x), device=x.device)
    frequencies = rotary_frequencies(source.config).to(x.device)
    rotation = rotation_of(positions, frequencies, x.dtype)
    for number in range(source.config.num_layers):
        layer = _layer(number, source, "watched")
        x = layer(x, rotation, attend, source.config.head_dim)
        for linear in (layer.qkv, layer.o, layer.gate_up, layer.down):
            watched = cast(Watched, linear.base)
            linear.base = Int8([watched.weight], watched.largest)
        yield layer


def _layer(number: int, source: _Typed, quantize: str) -> Layer:
    config, prefix = source.config, f"model.layers.{number}."
    shapes = config.linear_shapes()

    def linear(owner: str, parts: list[str], bias: bool) -> Linear:
        names = [f"{owner}.{part}" for part in parts]
        weights = [source.linear(f"{prefix}{name}.weight", shapes[name]) for name in names]
        biases = [source(f"{prefix}{name}.bias", shapes[name][:1]) for name in names if bias]
        return Linear(parts, weights, torch.cat(biases) if bias else None, quantize)

    def norm(name: str, size: int) -> Norm:
        return Norm(source(f"{prefix}{name}.weight", (size,)), config.norm_eps)

    norms = {
        name: norm(name, config.hidden_size)
        for name in ("input_layernorm", "post_attention_layernorm")
    }
    if config.qk_norm:
        for name in ("self_attn.q_norm", "self_attn.k_norm"):
            norms[name] = norm(name, config.head_dim)
    linears = {
        "qkv": linear("self_attn", ["q_proj", "k_proj", "v_proj"], config.qkv_bias),
        "o": linear("self_attn", ["o_proj"], config.o_bias),
        "gate_up": linear("mlp", ["gate_proj", "up_proj"], config.mlp_bias),
        "down": linear("mlp", ["down_proj"], config.mlp_bias),
    }
    return Layer(number, linears, norms)
