"""Llama 3's rotary scaling, found again in the factors that a GGUF file holds in its place."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from suri.errors import UsageError
from suri.model.config import SCALED_ROPE, ModelConfig
from suri.model.decoder import rotary_frequencies

CLOSE = 1e-5
"""How far a factor in fp32 may lie from the one that the scaling gives, relatively."""


def rope_factors(config: ModelConfig) -> Tensor | None:
    """By what Llama 3's scaling divides each frequency, fp32 [head_dim / 2]; None without it."""
    if config.rope_scaling is None or config.rope_scaling["rope_type"] != "llama3":
        return None
    return rotary_frequencies(replace(config, rope_scaling=None)) / rotary_frequencies(config)


def llama3_scaling(factors: Sequence[float], config: ModelConfig, where: str) -> dict[str, Any]:
    """The llama3 settings of config.json whose factors [head_dim / 2] these are.

    Only the products of the original context with both limits show in the factors, so the low
    limit is 1, as every Llama has it. Raises UsageError where no such settings give them.
    """
    wavelengths = [
        2 * math.pi * config.rope_theta ** (2 * i / config.head_dim) for i in range(len(factors))
    ]
    if len(factors) == config.head_dim // 2 and all(0 < f < math.inf for f in factors):
        for settings in _candidates(factors, wavelengths):
            expected = rope_factors(replace(config, rope_scaling=settings))
            assert expected is not None  # every candidate is of that kind
            if torch.allclose(torch.tensor(factors), expected, rtol=CLOSE, atol=0):
                return settings
    raise UsageError(
        f"{where}: its {len(factors)} rotary factors are not Llama 3's scaling",
        do="use the model in Hugging Face's format",
    )


def _candidates(factors: Sequence[float], wavelengths: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Llama 3.1's settings, then those that the blended factors fit, first rounded, then not."""
    factor = float(f"{max(factors):.6g}")

    def settings(high: float, context: float) -> dict[str, Any]:
        own = {"high_freq_factor": high, "original_max_position_embeddings": context}
        return SCALED_ROPE | {"factor": factor} | own

    yield SCALED_ROPE | {"factor": factor}
    # With 1/f = (1 - s)/factor + s, the share s = (context/wavelength - 1)/(high - 1) is a line.
    blended = [
        (1 / length, (1 / f - 1 / factor) / (1 - 1 / factor))
        for f, length in zip(factors, wavelengths, strict=True)
        if 1 + CLOSE < f < factor * (1 - CLOSE)
    ]
    if len(blended) > 1:
        (x, s), (x_last, s_last) = blended[0], blended[-1]
        slope = (s - s_last) / (x - x_last)
        high = 1 - 1 / (s - slope * x)
        yield settings(round(high, 3), round(slope * (high - 1)))
        yield settings(high, slope * (high - 1))
    for x, s in blended[:1]:
        yield settings(4.0, round((1 + 3 * s) / x))
        yield settings(4.0, (1 + 3 * s) / x)
    if not blended:
        yield settings(4.0, 4 * max((w for w, f in zip(wavelengths, factors, strict=True)
                                     if f < factor), default=0.0))  # fmt: skip
