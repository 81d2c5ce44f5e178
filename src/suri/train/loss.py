"""The loss: summed cross-entropy of learned tokens, one function for training and evaluation."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from suri.data.batch import Batch
from suri.model.attention import PackedAttention
from suri.model.decoder import Decoder
from suri.model.kernels import product
from suri.model.linear import Dropout
from suri.model.storage import Dense, Storage
from suri.train.budget import CHUNK_BYTES

MULTIPLE = 16
"""Streams are as many tokens long, or a multiple of it."""


def summed_loss(decoder: Decoder, batch: Batch, dropout: Dropout | None = None) -> Tensor:
    """Cross-entropy (natural log) summed over the batch's learned tokens.

    Only the rows of learned tokens reach the last norm and the head.
    """
    learned, targets = learned_rows(batch, decoder.embedding.device)
    hidden = hidden_states(decoder, batch, dropout, learned)
    return head_loss(decoder.norm(hidden), decoder.head, targets, decoder.scorer)


def hidden_states(
    decoder: Decoder, batch: Batch, dropout: Dropout | None = None, kept: Tensor | None = None
) -> Tensor:
    """Hidden states [T, hidden] of a packed batch, each document by itself; of `kept` alone [N].

    The stream gets some tokens more, as one more document, and `kept` its last one again, until
    their numbers are multiples of 16: oneDNN makes and keeps code for every shape it meets. Not
    with dropout, which is drawn for the rows' own tokens.
    """
    device = decoder.embedding.device
    ids, positions = (torch.from_numpy(x).to(device) for x in (batch.ids, batch.positions))
    spare = -len(ids) % MULTIPLE if dropout is None else 0
    lengths = (*batch.lengths, spare) if spare else batch.lengths
    attend = PackedAttention(lengths, decoder.config.sliding_window, batch.prefix)
    count = len(ids) if kept is None else len(kept)
    if kept is not None and count:
        kept = F.pad(kept[None], (0, -count % MULTIPLE), mode="replicate")[0]
    ids, positions = F.pad(ids, (0, spare)), F.pad(positions, (0, spare))
    return cast(Tensor, decoder(ids, positions, attend, dropout, kept))[:count]


def learned_rows(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices int64 [N] of the tokens whose successor is learned, and those successors' ids."""
    learned = (batch.targets >= 0).nonzero()[0]
    places, targets = torch.from_numpy(learned), torch.from_numpy(batch.targets[learned])
    return places.to(device), targets.to(device)


def head_loss(
    normed: Tensor, head: Tensor, targets: Tensor, scorer: Storage | None = None
) -> Tensor:
    """Summed cross-entropy of the scores normed [N, hidden] @ head^T [hidden, vocab]; fp32.

    `scorer` may be the head in another storage that makes the scores; their gradient goes back
    through `head` itself, since most of its entries are too small for 8 bits.
    """
    scorer = scorer or Dense([head])
    return cast(Tensor, _HeadLoss.apply(normed, head, targets, scorer))  # type: ignore[no-untyped-call]


class _HeadLoss(torch.autograd.Function):
    """Scores in chunks, never all at once; the gradient is made in the forward pass.

    d loss / d scores = softmax(scores) - onehot(target), so nothing but [N, hidden] is kept.
    """

    @staticmethod
    def forward(ctx: Any, normed: Tensor, head: Tensor, targets: Tensor, scorer: Storage) -> Tensor:
        chunk = max(1, CHUNK_BYTES // (4 * head.shape[0]))
        wide = torch.float64 if normed.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=wide, device=normed.device)
        gradient = torch.empty_like(normed) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            wanted = targets[part].unsqueeze(1)
            scores = scorer.product(normed[part]).to(wide)
            likeliest, place = scores.max(dim=1, keepdim=True)
            asked = scores.gather(1, wanted)
            chances = torch.softmax(scores, dim=1, out=scores)
            # ln sum exp(s) = max - ln p(max): p(max) is never so small that its logarithm is lost.
            total += (likeliest - chances.gather(1, place).log() - asked).sum()
            if gradient is not None:
                chances.scatter_add_(1, wanted, chances.new_full(wanted.shape, -1.0))
                gradient[part] = product(chances.to(head.dtype), head.t())
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None, None
