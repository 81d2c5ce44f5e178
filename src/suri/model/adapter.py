"""The adapter: low-rank pairs by module, what they add, and where they belong in a decoder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from suri.errors import UsageError
from suri.model.config import ModelConfig
from suri.model.decoder import Decoder
from suri.model.linear import Linear, LowRank
from suri.model.lora import initial_pair, low_rank, scaling_of


@dataclass(frozen=True)
class Adapter:
    """Low-rank pairs by HF module name: A [r, in] and B [out, r], fp32.

    `r` and `alpha` are those of most modules; a pair's own rank is its shape's, and `alphas` holds
    the modules with an alpha of their own. `magnitudes` are DoRA's (arXiv:2402.09353): the length
    [out] of every row of the result. Nothing here computes with them.
    """

    r: int
    alpha: float
    targets: tuple[str, ...]
    tensors: Mapping[str, tuple[Tensor, Tensor]]
    dropout: float = 0.0
    rslora: bool = False
    base: dict[str, Any] = field(default_factory=dict)
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def scaling_of(self, module: str) -> float:
        """The scaling of one module, by its own rank and alpha."""
        return scaling_of(self.alpha_of(module), self.rank_of(module), self.rslora)

    def alpha_of(self, module: str) -> float:
        """The module's own alpha, or that of most."""
        return self.alphas.get(module, self.alpha)

    def rank_of(self, module: str) -> int:
        """The rank of a module's pair."""
        return len(self.tensors[module][0])

    def weight_delta(
        self, module: str, rows: slice = slice(None), onto: Tensor | None = None
    ) -> Tensor:
        """Scaling * B A for these rows of a module's weight, fp32 [rows, in]; added to `onto`."""
        assert not self.magnitudes, "a DoRA adapter is no sum"
        a, b = self.tensors[module]
        return low_rank(b[rows].float(), a.float().t(), self.scaling_of(module), onto)

    def attach(self, decoder: Decoder, *, trainable: bool = False) -> None:
        """Put the pairs into the decoder's linears; raises UsageError listing all misfits."""
        assert not self.magnitudes, "a DoRA adapter is no sum"
        self.check_fits(decoder.config)
        for number, (name, fused, part) in enumerate(decoder.linears()):
            if name in self.tensors:
                self.attach_to(name, fused, part, number).requires_grad_(trainable)

    def attach_to(self, name: str, fused: Linear, part: str, number: int = 0) -> LowRank:
        """Put a module's pair into that part of a linear; `number` marks its dropout."""
        a, b = (tensor.detach().clone().to(fused.device) for tensor in self.tensors[name])
        fused.pairs[part] = pair = LowRank(a, b, self.scaling_of(name), number)
        return pair

    def check_fits(self, config: ModelConfig) -> None:
        """Raise UsageError naming every pair whose module or shape the base does not have."""
        shapes = config.modules()
        wrong = []
        for name, (a, b) in self.tensors.items():
            if name not in shapes:
                wrong.append(f"{name}: the base has {config.num_layers} layers")
            elif (b.shape[0], a.shape[1]) != shapes[name]:
                out_features, in_features = shapes[name]
                wrong.append(f"{name}: {b.shape[0]}x{a.shape[1]} for {out_features}x{in_features}")
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UsageError(
                "the adapter does not fit this base",
                found="; ".join(wrong[:3]) + more,
                do="give the base it was trained on"
                + (f": {self.base['path']}" if self.base.get("path") else ""),
            )


def initial_adapter(
    config: ModelConfig, *, r: int, alpha: float, targets: tuple[str, ...], seed: int,
    dropout: float = 0.0, rslora: bool = False, base: dict[str, Any] | None = None,
) -> Adapter:  # fmt: skip
    """A new adapter whose delta is zero; the same seed gives the same tensors everywhere."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        module: initial_pair(shape, r, generator)
        for module, shape in config.modules().items()
        if module.rpartition(".")[2] in targets
    }
    return Adapter(r, alpha, targets, tensors, dropout, rslora, base or {})
