"""Starting the processes of a run on this machine, by torch's own launcher."""

import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable

from suri.errors import Lost, UsageError
from suri.recipe import Recipe
from suri.train.run_folder import can_go_on, run_folder_of

SECONDS_TO_SAVE = "600"
"""How long processes that were asked to stop may take before they are killed."""


def launch(recipe: Recipe, words: list[str]) -> None:
    """Run `suri WORDS` in `recipe.gpus` processes; exits as the one that failed first."""
    _check(recipe)
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = max(1, (os.cpu_count() or 1) // recipe.gpus)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SECONDS_TO_SAVE)
    with tempfile.TemporaryDirectory(prefix="suri-ranks-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=recipe.gpus,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            signals_to_handle="SIGTERM,SIGINT,SIGUSR1",
            logs_specs=DefaultLogsSpecs(log_dir=logs),  # its own folder would stay behind
        )
        _carry_out(elastic_launch(config, sys.executable), recipe, words)


def _carry_out(start: Callable[..., object], recipe: Recipe, words: list[str]) -> None:
    """Start the processes and wait for them; exits as the one that failed first."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    folder = run_folder_of(recipe)
    try:
        start("-m", "suri", *words)
    except SignalException as stopped:
        number = int(stopped.sigval)
        sys.exit(75 if can_go_on(folder) else 128 + number)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode > 0:
            sys.exit(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        ended = Lost(
            f"process {rank} of {recipe.gpus} was ended by {name}; the others were stopped",
            do=f"suri train --resume --output_dir {folder}" if can_go_on(folder) else "",
        )
        ended.exit_code = 128 - failure.exitcode
        raise ended from None


def _check(recipe: Recipe) -> None:
    """Raise UsageError where this machine has fewer GPUs than asked for."""
    import torch

    found = torch.cuda.device_count()
    if recipe.device != "cpu" and found < recipe.gpus:
        raise UsageError(
            f"--gpus {recipe.gpus} is more than this machine has",
            found=f"{found} GPUs that torch can use",
            do=f"--gpus {found}" if found else "--device cpu shares the work over processes",
        )
