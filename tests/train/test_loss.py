"""The loss against torch's own cross-entropy, its gradient, and its independence of batching."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import make_model
from suri.data.batch import micro_batches, pack
from suri.data.examples import Example
from suri.model.adapter import initial_adapter
from suri.model.config import read_config
from suri.model.decoder import Decoder
from suri.model.linear import Dropout
from suri.model.load import load_decoder
from suri.train import loss as loss_module
from suri.train.loss import head_loss, summed_loss


def ragged_examples(count: int = 9) -> list[Example]:
    """Rows of 3 to 29 tokens whose last few are learned."""
    random = np.random.default_rng(4)
    examples = []
    for row in range(count):
        length = int(random.integers(3, 30))
        ids = random.integers(2, 131, length).astype(np.int32)
        labels = ids.copy()
        labels[: int(random.integers(1, length - 1))] = -100
        examples.append(Example(ids=ids, labels=labels, row=row))
    return examples


def trainable(folder: Path) -> Decoder:
    adapter = initial_adapter(
        read_config(folder), r=5, alpha=12.0, targets=("q_proj", "v_proj", "up_proj"), seed=1
    )
    for _, b in adapter.tensors.values():
        b.normal_(generator=torch.Generator().manual_seed(2)).mul_(0.1)
    decoder = load_decoder(folder)
    adapter.attach(decoder, trainable=True)
    return decoder


def gradients(
    decoder: Decoder, rows: int, dropout: float = 0.0
) -> tuple[float, list[torch.Tensor]]:
    examples = ragged_examples()
    batches = micro_batches(examples, max_rows=rows, token_budget=10_000)
    learned = sum(batch.learned_tokens for batch in batches)
    total = 0.0
    for batch in batches:
        mask = Dropout(dropout, 3, 8, batch.rows, batch.lengths) if dropout else None
        part = summed_loss(decoder, batch, mask) / learned
        part.backward()
        total += float(part.detach())
    found = [p.grad.clone() for pair in decoder.pairs().values() for p in (pair.a, pair.b)]
    decoder.zero_grad()
    return total, found


@pytest.mark.parametrize("chunk_bytes", [1, 5 * 4 * 131, 64_000_000])
def test_head_loss_and_gradient_equal_torchs(
    chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", chunk_bytes)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(17, 48, generator=generator, dtype=torch.float64)
    head = torch.randn(131, 48, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 131, (17,), generator=generator)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss = head_loss(ours, head, targets)
    wanted = F.cross_entropy(theirs @ head.t(), targets, reduction="sum")
    (loss * 0.3).backward()
    (wanted * 0.3).backward()
    assert torch.allclose(loss, wanted, rtol=1e-12)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_cutting_a_batch_changes_nothing(tiny: Path, dropout: float) -> None:
    decoder = trainable(tiny)
    whole_loss, whole = gradients(decoder, 0, dropout)
    for rows in (1, 4):
        loss, parts = gradients(decoder, rows, dropout)
        assert loss == pytest.approx(whole_loss, rel=1e-6)
        for part, wanted in zip(parts, whole, strict=True):
            assert (part - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_dropout_changes_the_loss_and_a_step_changes_the_masks(tiny: Path) -> None:
    decoder, batch = trainable(tiny), pack(ragged_examples())
    losses = [
        summed_loss(decoder, batch, Dropout(0.3, 3, step, batch.rows, batch.lengths)).item()
        for step in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]
    assert losses[0] != summed_loss(decoder, batch).item()


def test_packed_loss_equals_padded_rows_of_transformers(tiny: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    total = 0.0
    for example in ragged_examples():
        ids, labels = (torch.from_numpy(x.astype(np.int64)) for x in (example.ids, example.labels))
        with torch.no_grad():
            scores = model(ids[None]).logits[0, :-1]
        total += float(F.cross_entropy(scores, labels[1:], ignore_index=-100, reduction="sum"))
    batch = pack(ragged_examples())
    ours, learned = summed_loss(load_decoder(tiny), batch), batch.learned_tokens
    assert learned == sum(int((e.labels[1:] >= 0).sum()) for e in ragged_examples())
    assert float(ours) == pytest.approx(total, rel=1e-5)


@pytest.mark.slow
def test_the_packed_loss_is_that_of_the_rows_one_by_one(tiny: Path) -> None:
    decoder = trainable(tiny)
    rows = st.tuples(st.integers(1, 24), st.integers(0, 24), st.integers(0, 999))

    @settings(max_examples=25, deadline=None)
    @given(st.lists(rows, min_size=1, max_size=6), st.integers(0, 9), st.integers(1, 60))
    def any_rows(shapes: list[tuple[int, int, int]], start: int, budget: int) -> None:
        examples = []
        for row, (length, asked, seed) in enumerate(shapes):
            ids = np.random.default_rng(seed).integers(2, 131, length).astype(np.int32)
            ids = np.concatenate([np.arange(40, 40 + start, dtype=np.int32), ids])
            asked += start
            length += start
            labels = np.where(np.arange(length) < asked, np.int32(-100), ids)
            examples.append(Example(ids, labels, row))
        with torch.no_grad():
            alone = sum(float(summed_loss(decoder, pack([each]))) for each in examples)
            for share in (False, True):
                batches = micro_batches(
                    examples, max_rows=0, token_budget=budget, share_prefix=share
                )
                packed = sum(float(summed_loss(decoder, batch)) for batch in batches)
                assert packed == pytest.approx(alone, rel=1e-5, abs=1e-5)

    any_rows()


@pytest.mark.parametrize("window", [None, 7])
def test_a_shared_prefix_gives_the_same_gradients(tmp_path: Path, window: int | None) -> None:
    kind = {"sliding_window": window} if window else {}
    folder = make_model(tmp_path / "model", "mistral" if window else "llama", **kind)
    decoder = trainable(folder)
    examples = []
    for row, example in enumerate(ragged_examples(5)):
        ids = np.concatenate([np.arange(50, 61, dtype=np.int32), example.ids])
        labels = np.concatenate([np.full(11, -100, np.int32), example.labels])
        examples.append(Example(ids, labels, row))
    found = []
    for share in (False, True):
        (batch,) = micro_batches(examples, max_rows=0, token_budget=999, share_prefix=share)
        assert batch.prefix == (11 if share else 0)
        summed_loss(decoder, batch).backward()
        pairs = decoder.pairs().values()
        found.append([p.grad.clone() for pair in pairs for p in (pair.a, pair.b)])
        decoder.zero_grad()
    for plain, shared in zip(*found, strict=True):
        assert (plain - shared).abs().max() <= 1e-4 * plain.abs().max() > 0
