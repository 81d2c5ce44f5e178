"""A study on a Ray cluster: a task for every trial, and what is lost with a node done again."""

import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from suri.errors import Preempted, SuriError, UsageError
from suri.files import write_text
from suri.study import node
from suri.study.claims import holder
from suri.study.plan import Trial
from suri.study.process import Say, note_process
from suri.study.trials import (
    Executor,
    attempt,
    failed,
    is_done,
    note_attempt,
    run_trial,
)
from suri.study.watch import Row, row_of
from suri.train.interrupts import stop_requests
from suri.wording import counted

OTHER_NODES = 3
"""How many times a trial is begun again because its node was lost; then it counts as failed."""
LOOK_SECONDS = 1.0
SAVING_SECONDS = 300.0
"""How long the driver waits for its trials' last states when it is told to stop."""
LOCAL_STORE_BYTES = 100_000_000
"""Ray's shared memory on one machine; a trial hands back less than a megabyte."""

Show = Callable[[Sequence[Row]], None]


@contextmanager
def ray_executor(on: str, cpus: int, show: Show) -> Iterator["RayExecutor"]:
    """Connect to the cluster that `on` names, or start one of this machine alone.

    `on` is `ray`, `ray://auto` for the cluster that this machine belongs to, or
    `ray://HOST:PORT` of Ray's client server. Raises UsageError for anything else.
    """
    ray = _ray(on)
    cluster: dict[str, Any] = {"address": "auto" if on == "ray://auto" else on}
    if on == "ray":
        cluster = {
            "address": "local", "include_dashboard": False,
            "object_store_memory": LOCAL_STORE_BYTES,
        }  # fmt: skip
    try:
        ray.init(**cluster, log_to_driver=False, logging_level="ERROR")
    except Exception as problem:  # ray raises many kinds of them
        raise UsageError(
            f"no Ray cluster answers at {on}",
            found=str(problem).strip().splitlines()[0][:300],
            do="`ray status` on its head node says whether it runs; the token and the versions "
            "of Python and ray must be the same here (docs/cluster.md)",
        ) from None
    executor = RayExecutor(ray, cpus, show)
    try:
        yield executor
    finally:
        executor.end()
        ray.shutdown()


class RayExecutor(Executor):
    """Carries out trials as tasks of Ray, each in processes of its own on one node."""

    def __init__(self, ray: Any, cpus: int, show: Show) -> None:
        self.ray, self.cpus, self.show = ray, cpus, show
        self.key = uuid.uuid4().hex
        self.sign: Path | None = None

    def budget(self, trials: Sequence[Trial], folder: Path) -> dict[str, Any]:
        """Look at every node first; then reckon on one that would run a trial."""
        folder = folder.absolute()
        self.sign = folder / node.SIGN
        write_text(self.sign, self.key)
        self._look_around(folder)
        for _ in range(1 + OTHER_NODES):
            report = self._report(self._start(node.reckon, trials[0], trials, folder, Path.cwd()))
            if report is not None:
                found: dict[str, Any] = self._found(report, folder)
                return found
        raise SuriError("every node that reckoned the study's budget was lost")

    def carry_out(
        self, trials: Sequence[Trial], folder: Path, say: Say
    ) -> Iterator[dict[str, Any]]:
        """Finished ones first, then as they end; one is begun again where its node was lost.

        Raises Preempted when a trial, or the study, is told to stop: after all have saved theirs.
        """
        folder = folder.absolute()
        for trial in filter(is_done, trials):
            say(f"{trial.name}:")
            yield run_trial(trial, folder, say, partial(note_attempt, folder))
        lost: Counter[str] = Counter()
        running = dict(self._begin(one, folder) for one in trials if not is_done(one))
        with stop_requests() as stop:
            while running and not stop.is_set():
                for ref in self._ended(running):
                    trial, started = running.pop(ref)
                    report = self._report(ref)
                    if report is None:
                        lost[trial.name] += 1
                        report = _lost(trial, started, lost[trial.name])
                    one, where = self._found(report, folder), report["where"]
                    if one is not None:
                        reason = one["reason"] and f": {one['reason']}"
                        say(f"{trial.name}: {one['status']} on {where}{reason}")
                        yield one
                    elif report["again"]:
                        say(f"{trial.name}: its node is lost ({where}); it goes on elsewhere")
                        running |= [self._begin(trial, folder)]
                    else:
                        say(f"{trial.name}: told to stop on {where}")
                        stop.set()
            if stop.is_set():
                self._stop(running, folder, say)

    def end(self) -> None:
        """Leave the folder; whatever still runs there saves its state and stops."""
        if self.sign is not None:
            self.sign.unlink(missing_ok=True)

    def _begin(self, trial: Trial, folder: Path) -> tuple[Any, tuple[Trial, float]]:
        ref = self._start(node.carry_out, trial, trial, folder, self.key, Path.cwd())
        return ref, (trial, time.time())

    def _start(self, work: Callable[..., Any], like: Trial, *arguments: Any) -> Any:
        """Begin `work` on a node, with the share that a trial like this one has."""
        share = share_of(self.ray.nodes(), like.recipe.device, self.cpus)
        # A lost task is begun again by us and not by Ray, so that the attempt is recorded.
        task = self.ray.remote(work).options(**share, max_retries=0)
        return task.remote(*arguments)

    def _look_around(self, folder: Path) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look = self.ray.remote(node.look)
        refs = [
            look.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(one["NodeID"], False)
            ).remote(folder)
            for one in self.ray.nodes()
            if one["Alive"]
        ]
        for report in filter(None, map(self._report, refs)):  # a node may be lost meanwhile
            if problem := report.get("problem"):
                raise problem
            if report["suri"] != version("suri"):
                raise UsageError(
                    f"{report['where']} has Suri {report['suri']}, and here it is "
                    f"{version('suri')}",
                    do="install the same version on every node",
                )

    def _ended(self, running: Mapping[Any, tuple[Trial, float]]) -> list[Any]:
        """What has ended within a second; all others are shown."""
        done, _ = self.ray.wait(
            list(running), num_returns=len(running), timeout=LOOK_SECONDS, fetch_local=False
        )
        self.show([row_of(trial) for trial, _ in running.values()])
        return list(done)

    def _report(self, ref: Any) -> node.Report | None:
        """What a task handed back; None where its process or its node is lost."""
        errors = self.ray.exceptions
        try:
            report: node.Report = self.ray.get(ref)
        except errors.RayTaskError:
            raise  # a fault of ours
        except errors.RayError:
            return None
        return report

    def _found(self, report: node.Report, folder: Path) -> Any:
        """What a node found, after its notes were added to the study's."""
        for entry in report.get("records", []):
            note_process(folder, entry)
        for entry in report.get("notes", []):
            note_attempt(folder, entry)
        if problem := report.get("problem"):
            raise problem
        return report["found"]

    def _stop(self, running: Mapping[Any, tuple[Trial, float]], folder: Path, say: Say) -> None:
        """Wait until the trials under way have saved their states; raises Preempted."""
        if self.sign is not None:
            write_text(self.sign, "stop")
        say(f"stopping {counted(len(running), 'trial|trials')}; each saves its state first")
        done, _ = (
            self.ray.wait(list(running), num_returns=len(running), timeout=SAVING_SECONDS)
            if running
            else ([], [])
        )
        for report in filter(None, map(self._report, done)):
            self._found(report, folder)
        raise Preempted("the study was told to stop", do="the same command goes on")


def share_of(nodes: Sequence[Mapping[str, Any]], device: str, cpus: int) -> dict[str, int]:
    """What of a node one trial takes: a GPU and its part of the cores, or `cpus` cores.

    With `cpus` 0 a trial has as many cores as the smallest node, so that none runs beside it and
    its times are its own. Raises UsageError where no node has so much.
    """
    alive = [one["Resources"] for one in nodes if one["Alive"] and one["Resources"].get("CPU")]
    with_gpu = [one for one in alive if one.get("GPU")]
    on_gpu = device.startswith("cuda") or (device == "auto" and bool(with_gpu))
    able = with_gpu if on_gpu else alive
    most = max((int(one["CPU"]) for one in able), default=0)
    if most < max(cpus, 1):
        cores = "core|cores"
        raise UsageError(
            f"no node of the cluster has {'a GPU' if on_gpu else counted(max(cpus, 1), cores)}"
            f"{f' and {counted(cpus, cores)}' if on_gpu and cpus else ''}",
            found=f"{len(alive)} nodes with cores, {len(with_gpu)} with GPUs",
            do="start such a node, or choose another device or fewer --cpus",
        )
    whole = min(int(one["CPU"] // max(one.get("GPU", 0) * on_gpu, 1)) for one in able)
    return {"num_gpus": int(on_gpu), "num_cpus": cpus or max(whole, 1)}


def _ray(on: str) -> Any:
    """The module ray, set up to be quiet and closed; raises UsageError where it is missing."""
    if on != "ray" and not on.startswith("ray://"):
        raise UsageError(
            f"a study does not run on {on!r}",
            do="--on ray (this machine), ray://auto (the cluster it belongs to) or ray://HOST:PORT",
        )
    usual = {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TQDM_PATCH_PRINT": "0",
    }
    if on == "ray":
        usual["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on every system: loopback alone
    for name, value in usual.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise UsageError(
            f"--on {on} needs ray, which is not installed",
            do='pip install "suri[cluster]", here and on every node; without --on the trials run '
            "here, one after the other",
        ) from None
    return ray


def _lost(trial: Trial, started: float, times: int) -> node.Report:
    """The report of a trial whose node was lost, so many times by now."""
    where = str(holder(trial.place).get("host", "a node"))
    report: node.Report = {
        "found": None,
        "again": times <= OTHER_NODES,
        "where": where,
        "notes": [attempt(trial, started, None) | {"where": where}],
    }
    if not report["again"]:
        reason = f"every node that it ran on was lost, {times} in all"
        report["found"] = failed(trial, reason, 1)
    return report
