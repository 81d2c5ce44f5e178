"""One measured figure against its limit, and how far numbers may lie from exact ones."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Digits of each format's significand and its smallest normal exponent, as np.frexp counts it.
PRECISION = {"float32": (24, -125), "float16": (11, -13), "bfloat16": (8, -125)}

LARGEST_DIFFERENCE = 1e-3
DIVERGENCE = {"float16": 1e-4, "bfloat16": 1e-3, "q8_0": 5e-3}
SAME_SHARE = {"bfloat16": 0.98, "q8_0": 0.92}
# q8_0: adapters on the embedded base gave up to 0.0014 and at least 0.969
# (benchmarks/gguf_readers.py).
LLAMA_CPP_DIVERGENCE = {"float32": 2e-4, "float16": 5e-4, "bfloat16": 1e-3, "q8_0": 2e-2}
LLAMA_CPP_SAME_SHARE = {"bfloat16": 0.98, "q8_0": 0.88}
# Wider than for readers in fp32: llama.cpp keeps keys and values in fp16, and rounds what it
# multiplies by the weights to their own type. On the embedded base it came to 5e-7, 5e-6, 2e-4 and
# up to 6e-3; the share with q8_0 was at least 0.945 (benchmarks/gguf_readers.py).

Wide = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Check:
    """One measured figure and the limit it must keep."""

    name: str
    figure: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """A figure that is not a number keeps no limit."""
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "ok  " if self.passed else "FAIL"
        return f"{verdict} {self.name}: {self.figure:.3g} (must be {sign} {self.limit:g})"


def compare_logits(
    expected: Tensor, found: Tensor, dtype: str, *, by_llama_cpp: bool = False
) -> tuple[Check, ...]:
    """The checks that this dtype has to pass, of fp32 logits [T, vocab].

    fp32: the largest difference. The others, and fp32 by llama.cpp: KL(expected || found) in nats,
    mean over tokens; bf16 and q8_0 also the share of tokens with the same likeliest successor.
    """
    reader = "llama.cpp: " if by_llama_cpp else ""
    divergence = LLAMA_CPP_DIVERGENCE if by_llama_cpp else DIVERGENCE
    share = LLAMA_CPP_SAME_SHARE if by_llama_cpp else SAME_SHARE
    if dtype not in divergence:
        difference = largest_difference(expected, found)
        return (Check("largest difference of a logit", difference, LARGEST_DIFFERENCE),)
    name = f"{reader}KL divergence of the next token"
    checks = [Check(name, mean_divergence(expected, found), divergence[dtype])]
    if dtype in share:
        name, same = f"{reader}same likeliest next token, share", same_share(expected, found)
        checks.append(Check(name, same, share[dtype], at_least=True))
    return tuple(checks)


def largest_difference(expected: Tensor, found: Tensor) -> float:
    """The largest difference of two logits."""
    return float((expected - found).abs().max())


def mean_divergence(expected: Tensor, found: Tensor) -> float:
    """KL(expected || found) in nats, mean over tokens."""
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def same_share(expected: Tensor, found: Tensor) -> float:
    """The share of tokens with the same likeliest successor."""
    return float((expected.argmax(-1) == found.argmax(-1)).double().mean())


def wide(tensor: Tensor) -> Wide:
    """In fp64, as numpy has it."""
    numbers: Wide = tensor.double().numpy()
    return numbers


def half_spacing(values: Wide, dtype: str) -> Wide:
    """Half the distance between neighbours of `dtype` at each value: the error of one rounding."""
    digits, smallest = PRECISION[dtype]
    exponents = np.maximum(np.frexp(values)[1], smallest)
    half: Wide = np.ldexp(0.5, exponents - digits)
    return half


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """The same dtype, shape and bits."""
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return False
    found, expected = found.contiguous(), expected.contiguous()
    return torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


def block_error(exact: Wide, slack: Wide, scales: Wide, integers: Wide) -> float:
    """How far rows [n, in] are from their q8_0 quantisation, where 1 is what may be.

    `scales` [n, blocks] and `integers` [n, blocks, 32] are those found, `slack` is what fp32 may
    have lost before. A scale, the largest of its block / 127, may lie one spacing of fp16 off; an
    integer is the number / scale, rounded: at a half between two, either of them.
    """
    exact, slack = exact.reshape(integers.shape), slack.reshape(integers.shape)
    largest = np.abs(exact).max(-1)
    scale, unsure = largest / 127, slack.max(-1) / 127
    allowed = 2 * half_spacing(scale, "float16") + unsure
    worst_scale = np.max(np.abs(scales - scale) / allowed)
    divisor = np.where(scale > 0, scale, 1.0)[..., None]
    # fp32 divides, inverts and multiplies: three roundings of numbers up to 127, and one spare.
    lost = slack / divisor + 127 * (unsure[..., None] / divisor + 4 * 2.0**-24)
    worst = np.max(np.abs(integers - exact / divisor) / (0.5 + lost))
    return float(np.maximum(worst_scale, worst))
