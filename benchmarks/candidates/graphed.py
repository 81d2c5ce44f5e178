"""Greedy decoding as one CUDA graph: the host starts a step instead of a thousand kernels.

Everything of a step has a fixed place and size: the tokens, their positions, a cache as long as the
longest answer, a mask over all of it. Without a CUDA device the same step runs without a graph.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from suri.model.decoder import Decoder
from suri.model.kv_cache import KVCache


class _Fixed:
    """Attention of one token per row over the whole cache, those after it masked."""

    def __init__(self, cache: KVCache, positions: Tensor) -> None:
        self.cache, self.positions = cache, positions
        self.rows = torch.arange(len(positions), device=positions.device)
        self.places = torch.arange(cache.keys.shape[3], device=positions.device)

    def prepare(self) -> None:
        """The mask [rows, 1, 1, keys] of this step, of all layers."""
        self.mask = (self.places <= self.positions[:, None])[:, None, None]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.rows, :, self.positions] = k
        values[self.rows, :, self.positions] = v
        group = q.shape[1] != k.shape[1]
        mixed = F.scaled_dot_product_attention(
            q.unsqueeze(2), keys, values, attn_mask=self.mask, enable_gqa=group
        )
        return mixed.squeeze(2)


class Steps:
    """Steps of decoding after a prompt; `scores` [rows, vocab] are those after the last token."""

    @torch.no_grad()
    def __init__(self, decoder: Decoder, prompts: list[list[int]], most: int) -> None:
        self.decoder, device = decoder, decoder.embedding.device
        counts = [len(prompt) for prompt in prompts]
        self.cache = KVCache(
            decoder.config, len(prompts), max(counts) + most, decoder.embedding.dtype, device
        )
        ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)
        places = torch.cat([torch.arange(count) for count in counts]).to(device)
        hidden = decoder(ids, places, self.cache.extend(counts))
        last = torch.tensor(counts, device=device).cumsum(0) - 1
        self.scores = decoder.logits(hidden[last])
        self.tokens = self.scores.argmax(dim=-1)
        self.positions = torch.tensor(counts, device=device)
        self.attend = _Fixed(self.cache, self.positions)
        self.graph = self._captured() if device.type == "cuda" else None

    def step(self) -> None:
        """Read `tokens`; leave the scores after them, and the likeliest next ones as `tokens`."""
        if self.graph is None:
            self._step()
        else:
            self.graph.replay()

    @torch.no_grad()
    def _step(self) -> None:
        self.attend.prepare()
        hidden = self.decoder(self.tokens, self.positions, self.attend)
        self.scores.copy_(self.decoder.logits(hidden))
        self.tokens.copy_(self.scores.argmax(dim=-1))
        self.positions.add_(1)

    def _captured(self) -> torch.cuda.CUDAGraph:
        kept = [tensor.clone() for tensor in (self.tokens, self.positions, self.scores)]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries make their workspaces outside the graph
            self._step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        # The cache's places that this wrote are written again before they are seen.
        for tensor, before in zip((self.tokens, self.positions, self.scores), kept, strict=True):
            tensor.copy_(before)
        return graph
