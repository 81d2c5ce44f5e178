"""4-bit NormalFloat without bitsandbytes: blocks of 64, scales in fp32, two codes to a byte."""

import importlib.util
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suri.model.storage import NF4_BLOCK

LEVELS = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip
"""The 16 values of arXiv:2305.14314, appendix E."""


def has_kernel(cuda: bool) -> bool:
    """Whether the Triton way exists here."""
    return cuda and importlib.util.find_spec("triton") is not None


class Looked(nn.Module):
    """A frozen weight in nf4; each byte is looked up in a table of pairs of values."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        weight = torch.cat([*weights]) if len(weights) > 1 else weights[0]
        self.shape, self.dtype = weight.shape, weight.dtype
        self.packed, self.scale = pack(weight)
        levels = torch.tensor(LEVELS, device=weight.device)
        codes = torch.arange(256, device=weight.device)
        self.pairs = torch.stack([levels[codes >> 4], levels[codes & 15]], dim=1).to(self.dtype)
        self.levels = levels

    def dense(self) -> Tensor:
        """The weight [out, in] as it is multiplied."""
        values = F.embedding(self.packed.int(), self.pairs).view(-1, NF4_BLOCK)
        return values.mul_(self.scale.to(self.dtype).unsqueeze(1)).view(self.shape)

    def product(self, x: Tensor) -> Tensor:
        """As in Storage."""
        return F.linear(x, self.dense())

    def pullback(self, gradient: Tensor) -> Tensor:
        """As in Storage."""
        return gradient @ self.dense()


class Unpacked(Looked):
    """The same, unpacked by one Triton kernel."""

    def dense(self) -> Tensor:
        """As in Looked."""
        from candidates.triton_kernels import unpack_nf4

        return unpack_nf4(self.packed, self.scale, self.levels, self.shape, self.dtype)


def pack(weight: Tensor, rows: int = 1024) -> tuple[Tensor, Tensor]:
    """Codes uint8 [n / 2], the first in the high half, and scales fp32 [n / 64]."""
    levels = torch.tensor(LEVELS, device=weight.device)
    middles = (levels[1:] + levels[:-1]) / 2
    codes, scales = [], []
    for part in weight.split(rows):  # the codes of a whole weight would take eight times its bytes
        blocks = part.float().reshape(-1, NF4_BLOCK)
        scale = blocks.abs().amax(dim=1).clamp_(min=1e-12)
        code = torch.bucketize(blocks.div_(scale.unsqueeze(1)), middles, out_int32=True)
        pairs = code.view(-1, 2)
        codes.append((pairs[:, 0] << 4 | pairs[:, 1]).to(torch.uint8))
        scales.append(scale)
    return torch.cat(codes), torch.cat(scales)
