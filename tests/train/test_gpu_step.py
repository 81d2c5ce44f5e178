"""A training step on the way that a GPU takes, on torch's device without numbers.

Reading any number back, or mixing devices, is an error there: a step that runs waits for nothing.
"""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from suri.data.batch import Batch, micro_batches
from suri.model.adapter import initial_adapter
from suri.model.attention import PackedAttention
from suri.model.config import config_from_hf
from suri.model.decoder import Decoder
from suri.model.load import load_decoder
from suri.recipe import LINEARS, Recipe
from suri.train.budget import Memory, estimate
from suri.train.loss import summed_loss
from suri.train.optimizer import make_optimizer

META = torch.device("meta")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's 7B shape, rows and estimate; attention takes the GPU's way."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(PackedAttention, "__call__", lambda self, _, q, k, v: self._varlen(q, k, v))
    from gpu_rows import model

    return model


def seven_billion(model: Any, folder: Path, layers: int) -> Decoder:
    shape = model.SHAPE_7B | {"num_hidden_layers": layers}
    config = config_from_hf(shape)
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    weights = {
        name: torch.empty(size, dtype=torch.bfloat16, device=META)
        for name, size in model._shapes(config)
    }
    decoder = load_decoder(folder, dtype=torch.bfloat16, device=META, weights=weights)
    adapter = initial_adapter(config, r=16, alpha=32.0, targets=LINEARS, seed=1)
    adapter.attach(decoder, trainable=True)
    return decoder


def alpaca(model: Any, tokens: int, *, shares: bool) -> Batch:
    class Full:
        tiny = False

    rows = model.examples(Full, 2 * tokens)
    return micro_batches(rows, max_rows=0, token_budget=tokens, share_prefix=shares)[0]


class Allocated(TorchDispatchMode):
    """Bytes of the tensors that operators made and that are still alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: set[int] = set()
        self.now = self.most = 0

    def __torch_dispatch__(self, operator: Any, _: Any, args: Any = (), options: Any = None) -> Any:
        result = operator(*args, **(options or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor) and tensor.device == META:
                self.note(tensor.untyped_storage())
        return result

    def note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.alive:
            self.alive.add(storage._cdata)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())

    def gone(self, place: int, size: int) -> None:
        self.alive.remove(place)
        self.now -= size


@pytest.mark.slow
@pytest.mark.parametrize("shares", [True, False])
def test_a_step_reads_nothing_back_and_its_memory_is_as_estimated(
    model: Any, tmp_path: Path, shares: bool
) -> None:
    decoder = seven_billion(model, tmp_path, layers=8)
    batch = alpaca(model, 8192, shares=shares)
    assert bool(batch.prefix) == shares
    parameters = [p for pair in decoder.pairs().values() for p in (pair.a, pair.b)]
    optimizer = make_optimizer(Recipe(), parameters, [])
    with Allocated() as allocated:
        for tensor in (*decoder.buffers(), *parameters):
            allocated.note(tensor.untyped_storage())
        for _ in range(2):  # the optimizer's state is there from the second step on
            allocated.most = allocated.now
            (summed_loss(decoder, batch) / batch.learned_tokens).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    recipe = Recipe(lora_r=16, lora_alpha=32.0)
    planned = estimate(decoder.config, recipe, len(batch.ids), Memory("cuda")).total
    assert allocated.most == pytest.approx(planned, rel=0.05)
