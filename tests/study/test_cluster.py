"""Studies on real Ray clusters of several nodes on this machine, which are killed."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import tomli_w
from test_trials import children, wait_for

from conftest import need
from suri.data.records import Record, write_records
from suri.recipe import Recipe, settings_of

SRC = Path(__file__).parents[2] / "src"
TOKEN = "4f1c" * 16


def driver(place, *words, env=None):
    """`suri study` as a process of its own, its terminal in a file."""
    command = [sys.executable, "-m", "suri", "study", str(place / "plan.toml")]
    with (place / "terminal.txt").open("a") as stream:
        return subprocess.Popen(
            [*command, "--output_dir", str(place / "s"), *words],
            stdout=stream, stderr=stream, env={**os.environ, **(env or {})},
        )  # fmt: skip


@pytest.fixture
def study(tiny, tmp_path):
    """A plan of six small trials that save often."""
    write_records(tmp_path / "rows.json", [Record("Say it.", f"{n}", f"y{n}") for n in range(9)])
    recipe = Recipe(
        base_model=str(tiny), data_path=str(tmp_path / "rows.json"), val_set_size=3.0, batch_size=3,
        num_epochs=15.0, save_steps=5, eval_steps=60, lora_r=3, lora_alpha=7.0, device="cpu",
    )  # fmt: skip
    table = {"quantize": ["none"], "rows": [6], "seeds": [0, 1, 2, 3, 4, 5]}
    (tmp_path / "plan.toml").write_text(
        tomli_w.dumps({"recipe": settings_of(recipe), "study": table})
    )
    return tmp_path


@pytest.fixture
def cluster(monkeypatch):
    """Three nodes of one core each beside a head without any, and Ray's token for all of them."""
    need("ray")
    usual = {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    for name, value in usual.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True, shutdown_at_exit=False,
        head_node_args={"num_cpus": 0, "include_dashboard": False},
    )  # fmt: skip
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    try:
        for _ in range(3):
            nodes.add_node(num_cpus=1)
        yield nodes
    finally:
        nodes.shutdown()


def claims(place):
    """Whoever holds a trial, by its name."""
    found = {}
    for file in (place / "s" / "trials").glob("*/claim.json"):
        try:
            found[file.parent.name] = json.loads(file.read_text())
        except FileNotFoundError:
            continue
    return found


def with_a_state(place):
    """Trials that are held and have saved a state, and have not finished."""
    trials = place / "s" / "trials"
    return [
        name
        for name in claims(place)
        if list((trials / name / "run" / "checkpoints").glob("step-*/manifest.json"))
        and not (trials / name / "run" / "result.json").exists()
    ]


def parent(pid):
    """The process that started this one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def node_of(cluster, pid):
    """The node whose raylet started this worker."""
    raylet = parent(pid)
    return next(
        node
        for node in cluster.worker_nodes
        if any(one.process.pid == raylet for one in node.all_processes["raylet"])
    )


def attempts(place):
    return [json.loads(line) for line in (place / "s" / "attempts.jsonl").read_text().splitlines()]


def check_complete(place):
    """Six trials, each finished and there once; returns the summary's."""
    summary = json.loads((place / "s" / "summary.json").read_text())
    trials = summary["trials"]
    assert [one["status"] for one in trials] == ["finished"] * 6
    assert [one["seed"] for one in trials] == [0, 1, 2, 3, 4, 5]
    for one in trials:
        run = place / "s" / "trials" / one["name"] / "run"
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        counted = Counter(line["step"] for line in steps if "train/loss" in line)
        assert counted == Counter(range(1, 31)), "each step stands there once"
    ended = Counter(one["trial"] for one in attempts(place) if one["exit_code"] == 0)
    assert set(ended) == {one["name"] for one in trials}
    return trials


@pytest.mark.slow
def test_a_node_dies_another_joins_the_driver_is_killed_and_nothing_is_lost(study, cluster):
    running = driver(study, "--on", "ray://auto")
    (killed, *_) = wait_for(lambda: with_a_state(study))
    pid = claims(study)[killed]["pid"]
    node = node_of(cluster, pid)
    trainers = children(pid)
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    wait_for(lambda: not any(Path(f"/proc/{one}").exists() for one in trainers))
    wait_for(lambda: "its node is lost" in (study / "terminal.txt").read_text())
    wait_for(lambda: with_a_state(study))

    running.send_signal(signal.SIGKILL)
    running.wait()
    again = driver(study, "--on", "ray://auto")
    assert again.wait() == 0, (study / "terminal.txt").read_text()

    trials = check_complete(study)
    place = study / "s" / "trials" / killed
    assert "going on after step" in (place / "terminal-2.txt").read_text()
    by_name = {one["name"]: one for one in trials}
    assert by_name[killed]["attempts"] >= 2
    lost = [one for one in attempts(study) if one["exit_code"] is None]
    assert killed in {one["trial"] for one in lost}
    assert not claims(study)
    assert not (study / "s" / ".cluster").exists()
