"""Dashboards that a run reports its figures to, where the user asked for one."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from suri.errors import UsageError
from suri.recipe import Recipe, settings_of
from suri.train.loop import Listener

LIBRARIES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}
"""The module that is imported for each value of report_to; its package has the value's name."""


@contextmanager
def reporting(recipe: Recipe, listen: Listener) -> Iterator[Listener]:
    """Yield a listener that tells `listen` everything, and every tracker the numbers.

    A library that is not installed is a UsageError at once; the trackers are opened when the run
    starts, and closed when the block ends. They get the names of metrics.jsonl, never any text.
    One that fails in the run is told of and left; the training is not its business.
    """
    libraries = {name: _library(name) for name in recipe.report_to}
    trackers: list[Any] = []

    def tell(event: str, numbers: dict[str, Any]) -> None:
        if event == "start":
            for name, library in libraries.items():
                trackers.append(OPENERS[name](library, recipe, numbers["step"]))
        figures = {
            name: x for name, x in numbers.items() if "/" in name and type(x) in (int, float)
        }
        for tracker in list(trackers) if figures else ():
            try:
                tracker.log(figures, step=numbers["step"])
            except Exception as problem:  # whatever a dashboard's library does, the run goes on
                trackers.remove(tracker)
                text = f"{type(tracker).__name__} gets no more figures: {problem}"
                listen("note", {"text": f"{text}; metrics.jsonl has them all"})
        listen(event, numbers)

    try:
        yield tell
    finally:
        for tracker in trackers:
            with suppress(Exception):
                tracker.finish()


def _library(name: str) -> Any:
    try:
        return import_module(LIBRARIES[name])
    except ImportError as problem:
        raise UsageError(
            f"--report_to {name} needs the package {name}",
            found=str(problem),
            do=f"pip install {name}",
        ) from None


class EventFiles:
    """TensorBoard's files, in the run folder; what they hold beyond `step` is taken back."""

    def __init__(self, library: Any, recipe: Recipe, step: int) -> None:
        folder = Path(recipe.output_dir) / "tensorboard"
        self.writer = library.SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def log(self, figures: dict[str, float], step: int) -> None:
        """Write the figures of one step."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """Write what is left."""
        self.writer.close()


def _wandb_run(library: Any, recipe: Recipe, _step: int) -> Any:
    try:
        return library.init(
            project=recipe.wandb_project or None,
            dir=recipe.output_dir,
            settings=library.Settings(console="off"),  # figures only, not what the screen shows
            **_described(recipe),
        )
    except library.errors.Error as problem:
        raise UsageError(
            "Weights & Biases could not be reached",
            found=str(problem),
            do="`wandb login`, or WANDB_MODE=offline; then the same command with --overwrite",
        ) from None


def _trackio_run(library: Any, recipe: Recipe, _step: int) -> Any:
    quiet = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
    return library.init(project=recipe.wandb_project or "suri", **quiet, **_described(recipe))


def _described(recipe: Recipe) -> dict[str, Any]:
    name = recipe.wandb_run_name or Path(recipe.output_dir).name
    return {"name": name, "config": settings_of(recipe)}


OPENERS = {"tensorboard": EventFiles, "wandb": _wandb_run, "trackio": _trackio_run}
"""What opens each tracker: called with its library, the recipe and the step the run starts at."""
