"""LoRA: a frozen weight W plus a product of two thin matrices, W + scaling * B A.

        x [T, in] ──┬── W [out, in] ───────────────► + ──► y [T, out]
                    └── A [r, in] ── B [out, r] ─ * ─┘
                                               scaling = alpha / r, or alpha / sqrt(r)

Hu et al., 2021 (arXiv:2106.09685). With in = 4096, out = 4096, r = 8 the two thin matrices hold
65,536 numbers where W holds 16.8 million. B starts at zero, so training starts at the base.
"""

import math

import torch
from torch import Tensor


def low_rank(projected: Tensor, b: Tensor, scaling: float, onto: Tensor | None = None) -> Tensor:
    """The delta, for activations and for weights: scaling * projected B^T, [..., out].

    `projected` is x A^T, shape [..., r], and `b` is [out, r]. For the delta of the weight itself
    they are B [out, r] and A^T [in, r]: scaling * B A. With `onto` the delta is added to it in
    place.
    """
    if onto is not None:
        return onto.addmm_(projected, b.t(), alpha=scaling)
    return (projected @ b.t()) * scaling


def initial_pair(
    shape: tuple[int, int], r: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A [r, in] uniform within 1/sqrt(in), as PEFT's Kaiming start, and B [out, r] zero; fp32."""
    out_features, in_features = shape
    bound = 1 / math.sqrt(in_features)
    a = torch.empty(r, in_features).uniform_(-bound, bound, generator=generator)
    return a, torch.zeros(out_features, r)
