"""Runs that do not fit: refused before they start, or healed where memory runs out on the way."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import metrics, no_answers, recipe_for, silent, write_rows
from safetensors.torch import load_file

from suri.errors import DoesNotFit
from suri.train import engine as engine_module
from suri.train import fit, machine, prepare
from suri.train.budget import HEADROOM, Memory
from suri.train.run import train


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path)


class SmallMemory(engine_module.SuriEngine):
    """The real engine on a device that holds no more than so many tokens at once."""

    most = 10_000
    error: type[BaseException] = torch.OutOfMemoryError

    def loss(self, batch, step):
        if len(batch.ids) > self.most:
            if torch.is_grad_enabled():  # what was done before memory ran out must go
                super().loss(batch, step).backward()
            raise self.error("can't allocate memory: you tried to allocate 123 bytes")
        return super().loss(batch, step)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "held_out"), [(torch.OutOfMemoryError, 0), (RuntimeError, 0), (MemoryError, 5)]
)
def test_what_ran_out_of_memory_gives_the_same_result_in_smaller_pieces(
    tiny: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type,
    held_out: int,
) -> None:
    """In a step where nothing is held out, else in the first evaluation."""
    recipe = recipe_for(
        tiny, rows, tmp_path / "whole", token_budget=4000, num_epochs=2, val_set_size=held_out
    )
    train(recipe, silent, no_answers)
    monkeypatch.setattr("suri.train.run.SuriEngine", SmallMemory)
    monkeypatch.setattr(SmallMemory, "most", 300)
    monkeypatch.setattr(SmallMemory, "error", error)
    said: list[str] = []

    def listen(event: str, numbers: dict) -> None:
        if event == "note":
            said.append(numbers["text"])

    train(replace(recipe, output_dir=str(tmp_path / "healed")), listen, no_answers)
    assert any("memory ran out" in text for text in said)
    name = "adapter_model.safetensors"
    whole, healed = (load_file(tmp_path / way / name) for way in ("whole", "healed"))
    for key, tensor in whole.items():
        assert torch.allclose(tensor, healed[key], rtol=1e-3, atol=1e-5), key
    for figure in ("train/loss", "eval/loss", "train/learned_tokens"):
        ours = metrics(tmp_path / "healed", figure)
        assert ours == pytest.approx(metrics(tmp_path / "whole", figure), rel=1e-4)


@pytest.mark.slow
def test_a_smaller_budget_outlives_a_resume(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("suri.train.run.SuriEngine", SmallMemory)
    monkeypatch.setattr(SmallMemory, "most", 300)
    recipe = recipe_for(tiny, rows, tmp_path / "run", token_budget=4000, save_steps=2)
    train(recipe, silent, no_answers)
    states = sorted((tmp_path / "run" / "checkpoints").glob("*/state.json"))
    budget = json.loads(states[0].read_text(encoding="utf-8"))["progress"]["token_budget"]
    assert 0 < budget <= 300
    (tmp_path / "run" / "result.json").unlink()
    said: list[str] = []
    resumed = replace(recipe, resume_from_checkpoint=str(states[0].parent))
    train(resumed, lambda event, numbers: said.append(str(numbers.get("text"))), no_answers)
    assert not any("memory ran out" in text for text in said)


@pytest.mark.slow
def test_one_row_that_does_not_fit_ends_the_run_with_its_state_saved(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("suri.train.run.SuriEngine", SmallMemory)
    monkeypatch.setattr(SmallMemory, "most", 150)
    recipe = recipe_for(tiny, rows, tmp_path / "run", val_set_size=0)
    with pytest.raises(DoesNotFit, match="single row") as caught:
        train(recipe, silent, no_answers)
    assert caught.value.exit_code == 4
    assert "row " in caught.value.found
    assert list((tmp_path / "run" / "checkpoints").glob("step-*/manifest.json"))


def test_another_error_is_not_taken_for_want_of_memory(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(SmallMemory):
        def loss(self, batch, step):
            raise RuntimeError("shapes do not match")

    monkeypatch.setattr("suri.train.run.SuriEngine", Broken)
    with pytest.raises(RuntimeError, match="shapes"):
        train(recipe_for(tiny, rows, tmp_path / "run"), silent, no_answers)


def test_a_run_that_cannot_fit_is_refused_before_its_folder_exists(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "free_memory_bytes", lambda device: 50_000_000)
    monkeypatch.setattr(fit, "held_memory_bytes", lambda: 290_000_000)
    with pytest.raises(DoesNotFit, match="of memory"):
        train(recipe_for(tiny, rows, tmp_path / "run"), silent, no_answers)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_budget_is_settled_recorded_and_estimated(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    result = train(recipe_for(tiny, rows, tmp_path / "run"), silent, no_answers)
    assert "token_budget = 512" in (tmp_path / "run" / "recipe.toml").read_text(encoding="utf-8")
    assert result["memory_estimate"]["total"] >= sum(result["memory_estimate"]["parts"].values())
    assert result["memory_estimate"]["parts"]["base"] > 0
    made = prepare.prepare(recipe_for(tiny, rows, tmp_path / "other"))
    unlimited = Memory("cpu", process=290_000_000)
    need = fit.fit(made, unlimited).estimate.total
    with pytest.raises(DoesNotFit):
        fit.fit(made, replace(unlimited, free=int(0.99 * need / HEADROOM)))
    found = fit.fit(made, replace(unlimited, free=int(1.01 * need / HEADROOM)))
    # The largest micro-batch, laid out as the run lays it out.
    largest = max(metrics(tmp_path / "run", "train/learned_tokens"))
    assert largest <= found.estimate.tokens <= 512


def test_timing_two_layers_leaves_the_model_as_it_was(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    made = prepare.prepare(recipe_for(tiny, rows, tmp_path / "run"))
    planned = fit.fit_here(made)
    from suri.model.load import load_decoder

    decoder = load_decoder(tiny)
    prepare.start_adapter(planned.made).attach(decoder, trainable=True)
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    assert "seconds" in fit.expected_time(planned.made, decoder)
    assert len(decoder.layers) == made.config.num_layers == 3
    assert all(parameter.grad is None for parameter in decoder.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in decoder.state_dict().items())


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = machine.free_memory_bytes("cpu")
    (tmp_path / "memory.max").write_text("3000000000\n", encoding="ascii")
    (tmp_path / "memory.current").write_text("1000000000\n", encoding="ascii")
    monkeypatch.setattr(machine, "CONTAINER", tmp_path)
    assert machine.free_memory_bytes("cpu") == min(2_000_000_000, whole)
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert machine.free_memory_bytes("cpu") > 2_000_000_000
