"""Saved states of a run: adapter, optimizer and step, complete or not there at all."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from suri.errors import Corrupt, SuriError, UsageError
from suri.files import fault, publishing, write_bytes, write_json
from suri.manifest import check_manifest, write_manifest
from suri.model.adapter import Adapter
from suri.model.adapter_file import read_adapter, write_adapter
from suri.reading import read_object, well_formed

KEPT = 2
"""Complete checkpoints that stay; the older ones are removed after a newer one is complete."""


@dataclass
class Progress:
    """Where a run stands: optimizer steps done, seconds since the start and in steps, best loss."""

    step: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    best_loss: float | None = None
    best_step: int = 0
    base_loss: float | None = None
    evaluated_step: int = -1
    tokens: int = 0
    learned_tokens: int = 0
    micro_batches: int = 0
    skipped: int = 0
    """Steps whose loss or gradient was no number, left out as the user asked."""
    rate_scale: float = 1.0
    """What the learning rate is multiplied by, after steps back to an earlier state."""
    token_budget: int = 0
    """A smaller one than the recipe's, after memory ran out; 0: the recipe's."""


def save_checkpoint(
    run: Path, progress: Progress, adapter: Adapter, optimizer: torch.optim.Optimizer
) -> Path:
    """Write checkpoints/step-N in one atomic step, then remove all but the newest two."""
    from safetensors.torch import save

    folder = run / "checkpoints" / f"step-{progress.step:06d}"
    if folder.exists():
        return folder
    with publishing(folder) as temporary:
        fault("checkpoint.adapter")
        write_adapter(temporary, adapter)
        moments, steps = {}, 0.0
        for number, state in optimizer.state_dict()["state"].items():
            moments[f"{number}.exp_avg"] = state["exp_avg"].cpu().contiguous()
            moments[f"{number}.exp_avg_sq"] = state["exp_avg_sq"].cpu().contiguous()
            steps = float(state["step"])
        fault("checkpoint.optimizer")
        write_bytes(temporary / "optimizer.safetensors", save(moments))
        fault("checkpoint.state")
        write_json(temporary / "state.json", {"progress": vars(progress), "adam_steps": steps})
        fault("checkpoint.manifest")
        write_manifest(temporary)
    fault("checkpoint.clean")
    for old in _folders(run)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_checkpoint(folder: Path, optimizer: torch.optim.Optimizer) -> tuple[Progress, Adapter]:
    """Check a checkpoint against its manifest and restore the optimizer from it."""
    from safetensors.torch import load_file

    check_manifest(folder)
    state = read_object(folder / "state.json")
    moments = load_file(folder / "optimizer.safetensors")
    # Whole, it may still be another version's, or of other settings.
    with well_formed(folder / "state.json"):
        progress, steps = Progress(**state["progress"]), float(state["adam_steps"])
    if steps:
        if not _belong(moments, optimizer):
            raise Corrupt(f"{folder}: the optimizer's state is of another adapter")
        restored = optimizer.state_dict()
        restored["state"] = {
            number: {
                "step": torch.tensor(steps),
                "exp_avg": moments[f"{number}.exp_avg"],
                "exp_avg_sq": moments[f"{number}.exp_avg_sq"],
            }
            for number in range(len(moments) // 2)
        }
        optimizer.load_state_dict(restored)
    return progress, read_adapter(folder, dora=True)


def _belong(moments: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> bool:
    """Whether these are the two moments of each of its parameters, in the parameter's shape."""
    groups = optimizer.param_groups
    shapes = {
        f"{number}.{moment}": parameter.shape
        for number, parameter in enumerate(p for group in groups for p in group["params"])
        for moment in ("exp_avg", "exp_avg_sq")
    }
    return {name: moment.shape for name, moment in moments.items()} == shapes


def find_checkpoint(place: Path) -> tuple[Path, list[str]]:
    """The newest whole checkpoint of a run folder, or the one named; and what was passed over.

    One of a run folder that is not what was written is set aside under the name step-N.corrupt:
    it would count as one of those that are kept.
    """
    named = (place / "state.json").is_file()
    passed_over: list[str] = []
    for folder in [place] if named else list(reversed(_folders(place))):
        try:
            check_manifest(folder)
            return folder, passed_over
        except SuriError as problem:
            passed_over.append(f"{folder.name} passed over: {problem.found or problem.what}")
        if not named:
            shutil.rmtree(folder.with_suffix(".corrupt"), ignore_errors=True)
            folder.rename(folder.with_suffix(".corrupt"))
    raise UsageError(
        f"{place} holds no whole checkpoint to go on from",
        found="; ".join(passed_over),
        do="start anew with --overwrite",
    )


def _folders(run: Path) -> list[Path]:
    """Checkpoints by their steps, whatever the files' times; links are nobody's checkpoint."""
    found = [
        folder
        for folder in (run / "checkpoints").glob("step-*")
        if re.fullmatch(r"step-\d+", folder.name) and folder.is_dir() and not folder.is_symlink()
    ]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("step-")))
