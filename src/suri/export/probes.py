"""The texts on which a merge's logits are compared."""

import numpy as np

from suri.export.fold import Merge

PROBE_TOKENS = 64
"""Tokens of each probe: with four, a few near-ties that bf16 turns round do not reach 2 %."""

PROBES = (
    "The river leaves the mountains near a small town whose bridge was built four hundred years "
    "ago. Every spring the water rises by almost two metres, and the people who live beside it "
    "carry their boats into the square before the first of May. In summer the same square is "
    "full of tables, and children fish from the lowest arch.",
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nSort these numbers from the smallest to the largest.\n\n"
    "### Input:\n17, 4, 256, -3, 80\n\n### Response:\n-3, 4, 17, 80, 256",
    "def area(width: float, height: float) -> float:\n"
    '    """The area of a rectangle in square metres."""\n'
    "    if width < 0 or height < 0:\n"
    '        raise ValueError("a side cannot be negative")\n'
    "    return width * height\n\n\nprint(area(3, 4), area(0.5, 12))\n",
    "Water boils at 100 degrees Celsius at sea level, but at 90 degrees on a mountain of three "
    "thousand metres, because the air presses less on its surface. Cooks who live there boil "
    "potatoes longer; can you say why a lid helps? Answer: it keeps the steam, and the heat that "
    "the steam carries, inside the pot.",
)
"""English of four kinds: a story, a prompt with its answer, a program, a question."""


def probe_ids(merge: Merge) -> list[list[int]]:
    """Fixed texts as token ids; for a base without a tokenizer, fixed ids."""
    tokenizer = merge.tokenizer
    if tokenizer is None:
        shape = (len(PROBES), PROBE_TOKENS)
        ids = np.random.default_rng(0).integers(merge.base.config.vocab_size, size=shape)
        return [[int(i) for i in row] for row in ids]
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [(start + tokenizer.encode(text))[:PROBE_TOKENS] for text in PROBES]
