"""The shape of a Llama-family model, read from the configuration beside its weights."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suri.errors import UsageError
from suri.reading import read_object

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
MOST_LAYERS, MOST = 10_000, 2**31
"""Far beyond any model: larger numbers are damage, and nothing is sized by them."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the decoder needs to know; `raw` is config.json, as it was or as it would be."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None = None
    max_positions: int
    tied_head: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    dtype: str = "float32"
    raw: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError for a shape that no model can have."""
        wrong = [f"{name} = {number!r:.80}" for name, number in vars(self).items()
                 if type(number) is int and not 1 <= number <= MOST]  # fmt: skip
        if not (0 <= self.norm_eps < 1 and 0 < self.rope_theta < math.inf):
            wrong.append(f"eps {self.norm_eps} and theta {self.rope_theta}")
        if self.num_layers > MOST_LAYERS:
            wrong.append(f"{self.num_layers} layers")
        if not wrong and (self.num_heads % self.num_kv_heads or self.head_dim % 2):
            wrong.append(f"{self.num_kv_heads} for {self.num_heads} heads of {self.head_dim}")
        if wrong:
            raise ValueError(", ".join(wrong))

    def modules(self) -> dict[str, tuple[int, int]]:
        """The shape [out, in] of each linear of the model, by its HF name."""
        return {
            f"model.layers.{number}.{module}": shape
            for number in range(self.num_layers)
            for module, shape in self.linear_shapes().items()
        }

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """The shape [out, in] of each linear of a layer, by its name inside the layer."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }


def read_config(folder: Path) -> ModelConfig:
    """Read config.json of an HF folder, or params.json of a Meta folder."""
    if (folder / "config.json").is_file():
        return config_from_hf(read_object(folder / "config.json"), str(folder))
    if (folder / "params.json").is_file():
        return _config_from_meta(read_object(folder / "params.json"), folder)
    raise UsageError(
        f"{folder} holds no model",
        found="neither config.json nor params.json in it" if folder.is_dir() else "no such folder",
        do="give the folder of a model, or `embedded` for the one that comes with Suri",
    )


def config_from_hf(raw: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """Translate config.json of transformers 4 or 5; `where` names it in errors."""
    try:
        return config_of(raw, where)
    except UNREADABLE as problem:
        raise UsageError(
            f"{where}: not a model's configuration", found=repr(problem)[:200]
        ) from None


def config_of(raw: dict[str, Any], where: str) -> ModelConfig:
    """The same, of any format's settings by the names of config.json; raises UNREADABLE as well."""
    model_type = raw.get("model_type", "llama")
    if model_type not in MODEL_TYPES:
        raise UsageError(
            f"{where}: models of type {model_type} are not of the Llama family",
            do=f"one of {', '.join(MODEL_TYPES)} trains here; others with --engine reference",
        )
    heads = whole(raw["num_attention_heads"])
    rope = rope_parameters(raw)
    return ModelConfig(
        model_type=model_type,
        vocab_size=whole(raw["vocab_size"]),
        hidden_size=whole(raw["hidden_size"]),
        num_layers=whole(raw["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=whole(raw.get("num_key_value_heads") or heads),
        head_dim=whole(raw.get("head_dim") or raw["hidden_size"] // heads),
        intermediate_size=whole(raw["intermediate_size"]),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        rope_scaling=None if rope.get("rope_type", "default") == "default" else rope,
        max_positions=whole(raw.get("max_position_embeddings", 2048)),
        tied_head=_flag(raw, "tie_word_embeddings"),
        qkv_bias=model_type == "qwen2" or _flag(raw, "attention_bias"),
        o_bias=model_type != "qwen2" and _flag(raw, "attention_bias"),
        mlp_bias=_flag(raw, "mlp_bias"),
        qk_norm=model_type == "qwen3",
        sliding_window=_sliding_window(raw, model_type),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        raw=raw,
    )


UNREADABLE = (KeyError, TypeError, ValueError, ArithmeticError)
"""What a table with missing or odd values raises while a configuration is made of it."""


def whole(value: Any) -> int:
    """A whole number as JSON has it; raises ValueError for anything that would be rounded."""
    if isinstance(value, bool) or int(value) != float(value):
        raise ValueError(f"{value!r:.80} is no whole number")
    return int(value)


def _flag(raw: dict[str, Any], name: str) -> bool:
    value = raw.get(name) or False
    if not isinstance(value, bool):
        raise ValueError(f"{name} = {value!r:.80}")
    return value


def rope_parameters(raw: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings: `rope_parameters` (transformers 5), or theta and scaling apart (4)."""
    settings = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    settings.setdefault("rope_type", settings.pop("type", "default"))
    settings.setdefault("rope_theta", raw.get("rope_theta", 10000.0))
    if settings["rope_type"] not in ROPE_SETTINGS:
        raise UsageError(
            f"rotary scaling of type {settings['rope_type']!r:.80} is not supported",
            do="default, linear and llama3 are; --engine reference trains the others",
        )
    return _checked_rope(settings)


ROPE_SETTINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    ),
}  # fmt: skip


SCALED_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""The one rotary scaling that Meta's code knows: `use_scaled_rope` switches it on (Llama 3.1)."""


def _checked_rope(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings; raises ValueError where the numbers of their kind are none or cannot work."""
    numbers = {name: float(settings[name]) for name in ROPE_SETTINGS[settings["rope_type"]]}
    between = numbers.get("high_freq_factor", 1.0) > numbers.get("low_freq_factor", 0.0)
    if not (between and all(0 < number < math.inf for number in numbers.values())):
        raise ValueError(f"rotary scaling by {numbers}")
    return settings


def _sliding_window(raw: dict[str, Any], model_type: str) -> int | None:
    """Mistral's window is always on; Qwen's only where use_sliding_window says so."""
    window = raw.get("sliding_window")
    if window is None or model_type == "llama":
        return None
    if model_type.startswith("qwen"):
        if not _flag(raw, "use_sliding_window"):
            return None
        raise UsageError("Qwen with use_sliding_window mixes two kinds of layers: not supported")
    return whole(window)


def _config_from_meta(params: dict[str, Any], where: Path) -> ModelConfig:
    """Translate Meta's params.json; the inner size follows the formula of Meta's FeedForward."""
    try:
        dim, heads = whole(params["dim"]), whole(params["n_heads"])
        theta = float(params.get("rope_theta", 10000.0))
        rope = {"rope_type": "default", "rope_theta": theta}
        if _flag(params, "use_scaled_rope"):
            rope = SCALED_ROPE | (params.get("rope_scaling") or {}) | {"rope_theta": theta}
        raw = {
            "architectures": [class_of("llama")],
            "model_type": "llama",
            "vocab_size": _meta_vocabulary(params, where, dim),
            "hidden_size": dim,
            "num_hidden_layers": whole(params["n_layers"]),
            "num_attention_heads": heads,
            "num_key_value_heads": whole(params.get("n_kv_heads") or heads),
            "head_dim": dim // heads,
            "intermediate_size": meta_inner_size(
                dim, whole(params.get("multiple_of", 256)), params.get("ffn_dim_multiplier")
            ),
            "rms_norm_eps": float(params.get("norm_eps", 1e-5)),
            "max_position_embeddings": _meta_positions(params),
            "tie_word_embeddings": False,
            "rope_theta": theta,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "dtype": "float32",
            "rope_parameters": rope,
        }
        return config_of(raw, str(where))
    except UNREADABLE as problem:
        raise UsageError(f"{where}: params.json is incomplete", found=repr(problem)[:200]) from None


def _meta_vocabulary(params: dict[str, Any], where: Path, dim: int) -> int:
    """How many tokens there are; Llama 1 and 2 say -1, and the embedding tells."""
    if params.get("vocab_size", -1) != -1:
        return whole(params["vocab_size"])
    from suri.model.meta_shards import embedding_rows

    if rows := embedding_rows(where, dim):
        return rows
    raise UsageError(
        f"{where}: params.json leaves the vocabulary's size open (vocab_size -1)",
        do="put its consolidated.*.pth beside it, where the embedding tells the size",
    )


def _meta_positions(params: dict[str, Any]) -> int:
    """How long a text the model was trained on; params.json does not say, its rotary settings hint.

    Source: transformers' convert_llama_weights_to_hf.py, by release: Llama 3.1, Code Llama, Llama
    3, Llama 1. Llama 2, trained on 4096, has the settings of Llama 1.
    """
    if _flag(params, "use_scaled_rope"):
        known = 131072
    else:
        known = {1_000_000.0: 16384, 500_000.0: 8192}.get(
            float(params.get("rope_theta", 0.0)), 2048
        )
    return whole(params.get("max_seq_len", known))


def meta_inner_size(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Meta's rule: 2/3 of 4*dim, times `multiplier`, rounded up to a multiple of `multiple_of`."""
    inner = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        inner = int(multiplier * inner)
    return multiple_of * ((inner + multiple_of - 1) // multiple_of)


def class_of(model_type: str) -> str:
    """What transformers calls the class of such models."""
    return f"{model_type.capitalize()}ForCausalLM"
