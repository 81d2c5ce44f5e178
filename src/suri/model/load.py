"""Opening the weights of a base, whatever its format, and building the decoder from them."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suri.errors import Corrupt, UsageError
from suri.files import read_json
from suri.model.adapter import Adapter, base_of
from suri.model.config import ModelConfig, read_config
from suri.model.decoder import Decoder, Layer, Norm
from suri.model.embedded import embedded_base
from suri.model.linear import Linear
from suri.model.meta_names import permute, to_hf
from suri.recipe import EMBEDDED

IGNORED = "rotary_emb.inv_freq"
"""Buffers that folders of 2023 carry beside the weights; they follow from the configuration."""


class Weights(Mapping[str, Tensor]):
    """The tensors of a base by HF name; each is read when it is asked for."""

    def __init__(self, readers: dict[str, Callable[[], Tensor]], files: list[Path]) -> None:
        self._readers = {n: read for n, read in readers.items() if not n.endswith(IGNORED)}
        self.files = files

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILES = ("*.json", "*.jinja", "tokenizer.model")


def find_base(name: str) -> Path:
    """The folder of a base: `embedded`, a path, or a hub id; spaces around it are ignored."""
    if name.strip() == EMBEDDED:
        return embedded_base()
    folder = Path(name.strip()).expanduser()
    if folder.is_dir():
        return folder
    if HUB_ID.fullmatch(name.strip()):
        return _from_hub(name.strip())
    raise UsageError(
        f"{folder}: no such model folder",
        do="give a folder with config.json and weights, a hub id, or `embedded`",
    )


def _from_hub(name: str) -> Path:
    """The snapshot of a hub id, from the local cache or downloaded; no code of it is fetched."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(
                snapshot_download(name, allow_patterns=[*HUB_FILES, "pytorch_model*.bin"])
            )
    except Exception as problem:  # network, names, rights: the library has an error for each
        raise UsageError(
            f"{name}: no such folder here, and it could not be had from the hub",
            found=str(problem).splitlines()[0][:200],
            do="check the name and the network, or give the folder of a model",
        ) from None
    return folder


def recorded_base(adapter_folder: Path) -> Path:
    """The base that an adapter names; the embedded one is found wherever it lies now."""
    recorded = base_of(adapter_folder)
    path = str(recorded.get("path") or "")
    if path and Path(path).is_dir():
        return Path(path)
    if EMBEDDED in (path, recorded.get("name")):
        return embedded_base()
    raise UsageError(
        f"the base of the adapter {adapter_folder} is not here",
        found=f"recorded as {path}" if path else "the adapter names none",
        do="name its folder with --base_model (to chat, add --lora_weights for the adapter)",
    )


def base_identity(folder: Path, quantize: str, name: str = "") -> dict[str, Any]:
    """What an adapter records of its base: name, where it was, what it is, how it was stored.

    The fingerprint is the sha256 of every tensor's name and shape, and of the bytes of the last
    norm and of eight rows of the first q_proj; it is the same in every file format.
    """
    weights = open_weights(folder)
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {list(weights[name].shape)}\n".encode())
    for name, rows in (("model.norm.weight", None), ("model.layers.0.self_attn.q_proj.weight", 8)):
        if name in weights:
            sample = weights[name][:rows].contiguous()
            digest.update(sample.view(torch.uint8).numpy().tobytes())
    return {
        "name": name,
        "path": str(folder.resolve()),
        "fingerprint": digest.hexdigest(),
        "quantize": quantize,
    }


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


def open_weights(folder: Path) -> Weights:
    """Map a base's tensors by HF name, from safetensors, `.bin` shards or Meta's `.pth`."""
    if files := _shards(folder, "model", "safetensors"):
        return Weights(_safetensors_readers(files), files)
    if files := _shards(folder, "pytorch_model", "bin"):
        return Weights(_torch_readers(files), files)
    if (folder / "consolidated.00.pth").is_file():
        return _open_meta(folder)
    raise UsageError(
        f"{folder} holds no weights",
        found=", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "an empty folder",
        do="it needs model*.safetensors, pytorch_model*.bin or consolidated.00.pth",
    )


def _shards(folder: Path, stem: str, ending: str) -> list[Path]:
    """The files that an index names, or the single file, or nothing."""
    index = folder / f"{stem}.{ending}.index.json"
    if not index.is_file():
        single = folder / f"{stem}.{ending}"
        return [single] if single.is_file() else []
    names = sorted(set(read_json(index)["weight_map"].values()))
    outside = [name for name in names if Path(name).name != name]
    missing = [name for name in names if not (folder / name).is_file()]
    if outside or missing:
        raise Corrupt(
            f"{index} names files that are not in its folder", found=", ".join(outside or missing)
        )
    return [folder / name for name in names]


def _safetensors_readers(files: list[Path]) -> dict[str, Callable[[], Tensor]]:
    from safetensors import SafetensorError, safe_open

    readers: dict[str, Callable[[], Tensor]] = {}
    for file in files:
        try:
            handle = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as problem:
            raise Corrupt(f"{file} is not a whole safetensors file", found=str(problem)) from None
        for name in list(handle.offset_keys()):
            readers[name] = partial(handle.get_tensor, name)
    return readers


def _torch_readers(files: list[Path]) -> dict[str, Callable[[], Tensor]]:
    readers: dict[str, Callable[[], Tensor]] = {}
    for file in files:
        for name, tensor in load_torch_file(file).items():
            readers[name] = partial(_given, tensor)
    return readers


def _given(tensor: Tensor) -> Tensor:
    return tensor


def load_torch_file(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin` or `.pth` file, memory mapped; nothing in it is executed."""
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as problem:  # torch raises many kinds for a broken archive
        raise Corrupt(
            f"{file} is not a file of plain tensors",
            found=str(problem).splitlines()[0][:200],
            do="get the file again; a file in the format before torch 1.6 must be saved anew",
        ) from None
    if not isinstance(content, dict):
        raise Corrupt(f"{file} holds no table of tensors", found=type(content).__name__)
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _open_meta(folder: Path) -> Weights:
    """Meta's names and rotary order, given as HF's."""
    config = read_config(folder)
    heads = {"q_proj.weight": config.num_heads, "k_proj.weight": config.num_kv_heads}
    file = folder / "consolidated.00.pth"
    readers: dict[str, Callable[[], Tensor]] = {}
    for meta_name, tensor in load_torch_file(file).items():
        if meta_name.startswith("rope."):
            continue
        name = to_hf(meta_name)
        kind = name.rpartition("self_attn.")[2]
        if kind in heads:
            readers[name] = partial(permute, tensor, heads[kind])
        else:
            readers[name] = partial(_given, tensor)
    return Weights(readers, [file])


def load_decoder(
    folder: Path,
    *,
    quantize: str = "none",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    adapter: Adapter | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Decoder:
    """Build the decoder of `folder`, its linears stored as `quantize` says, adapter attached.

    Norms, embedding and head stay in `dtype`; an adapter stays in fp32.
    """
    config = read_config(folder)
    source = _Typed(weights or open_weights(folder), config, folder, dtype, device)
    layers = [_layer(number, source, quantize) for number in range(config.num_layers)]
    embedding = source("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
    head = embedding
    if not config.tied_head:
        head = source("lm_head.weight", (config.vocab_size, config.hidden_size))
    norm = Norm(source("model.norm.weight", (config.hidden_size,)), config.norm_eps)
    decoder = Decoder(config, embedding, layers, norm, head)
    if adapter is not None:
        adapter.attach(decoder)
    return decoder


class _Typed:
    """Tensors of a base, checked for shape and brought to dtype and device."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        config: ModelConfig,
        folder: Path,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.weights, self.config, self.folder = weights, config, folder
        self.dtype, self.device = dtype, device

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self.weights:
            raise Corrupt(f"{self.folder}: the weights lack {name}")
        tensor = self.weights[name]
        if tuple(tensor.shape) != shape:
            raise Corrupt(
                f"{self.folder}: {name} does not fit the configuration",
                found=f"{list(tensor.shape)} where {list(shape)} is needed",
            )
        return tensor.to(device=self.device, dtype=self.dtype)


def _layer(number: int, source: _Typed, quantize: str) -> Layer:
    config, prefix = source.config, f"model.layers.{number}."
    shapes = config.linear_shapes()

    def linear(owner: str, parts: list[str], bias: bool) -> Linear:
        names = [f"{owner}.{part}" for part in parts]
        weights = [source(f"{prefix}{name}.weight", shapes[name]) for name in names]
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
