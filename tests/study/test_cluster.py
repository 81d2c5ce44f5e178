"""Studies on real Ray clusters of several nodes on this machine, which are killed."""

import json
import pickle
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
from test_trials import children, wait_for

from conftest import need
from suri.cli.main import main
from suri.data.records import Record, write_records
from suri.errors import UsageError
from suri.recipe import Recipe, settings_of
from suri.study.cluster import share_of
from suri.study.node import look

SRC = Path(__file__).parents[2] / "src"
TOKEN = "4f1c" * 16


def driver(place, *words):
    """`suri study` as a process of its own, its terminal in a file."""
    command = [sys.executable, "-m", "suri", "study", str(place / "plan.toml")]
    with (place / "terminal.txt").open("a") as stream:
        return subprocess.Popen(
            [*command, "--output_dir", str(place / "s"), *words],
            stdout=stream, stderr=stream,
        )  # fmt: skip


def write_plan(place, base, seeds, **settings):
    """A plan of small trials, one for each seed, that save often."""
    write_records(place / "rows.json", [Record("Say it.", f"{n}", f"y{n}") for n in range(9)])
    recipe = Recipe(
        base_model=str(base), data_path=str(place / "rows.json"), val_set_size=3.0, batch_size=3,
        num_epochs=30.0, save_steps=5, eval_steps=200, lora_r=3, lora_alpha=7.0, device="cpu",
    )  # fmt: skip
    table = {"quantize": ["none"], "rows": [6], "seeds": seeds}
    recipe = replace(recipe, **settings)
    (place / "plan.toml").write_text(tomli_w.dumps({"recipe": settings_of(recipe), "study": table}))
    return place


@pytest.fixture
def ray_settings(monkeypatch):
    """Ray's token, for its processes and ours, and this source on every node."""
    need("ray")
    usual = {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    for name, value in usual.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def cluster(ray_settings, monkeypatch):
    """Three nodes of one core each beside a head without any."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)  # ends with this process, too
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


def family(pid):
    """A process and all that it has started."""
    return [pid, *(one for child in children(pid) for one in family(child))]


def listening(pid):
    """The addresses, as the kernel writes them, on which a process takes connections."""
    try:
        links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    except OSError:
        return set()  # it has ended
    inodes = set(re.findall(r"socket:\[(\d+)\]", " ".join(links)))
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


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
    """Four trials, each finished and there once; returns the summary's."""
    summary = json.loads((place / "s" / "summary.json").read_text())
    trials = summary["trials"]
    assert [one["status"] for one in trials] == ["finished"] * 4
    assert [one["seed"] for one in trials] == [0, 1, 2, 3]
    for one in trials:
        run = place / "s" / "trials" / one["name"] / "run"
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        counted = Counter(line["step"] for line in steps if "train/loss" in line)
        assert counted == Counter(range(1, 61)), "each step stands there once"
    ended = Counter(one["trial"] for one in attempts(place) if one["exit_code"] == 0)
    assert set(ended) == {one["name"] for one in trials}
    return trials


@pytest.mark.slow
def test_a_node_dies_another_joins_the_driver_is_killed_and_nothing_is_lost(
    tiny, tmp_path, cluster
):
    study = write_plan(tmp_path, tiny, [0, 1, 2, 3])
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


@pytest.mark.slow
def test_told_to_stop_every_trial_saves_first_and_nothing_listens_beyond_this_machine(
    tiny, tmp_path, ray_settings
):
    study = write_plan(tmp_path, tiny, [0], num_epochs=500.0)
    running = driver(study, "--on", "ray", "--cpus", "1")
    (name,) = wait_for(lambda: with_a_state(study))
    processes = family(running.pid)
    addresses = set().union(*map(listening, processes))
    assert addresses
    assert addresses <= LOOPBACK
    running.send_signal(signal.SIGINT)
    assert running.wait() == 75
    said = " ".join((study / "terminal.txt").read_text().split())
    assert "each saves its state first" in said
    assert "the same command goes on" in said
    run = study / "s" / "trials" / name / "run"
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert (run / "checkpoints" / f"step-{last:06}" / "manifest.json").is_file()
    assert not (run / "result.json").exists()
    assert not claims(study)
    assert [one["exit_code"] for one in attempts(study)] == [75]


def node_with(cpus, gpus=0, alive=True):
    return {"Alive": alive, "Resources": {"CPU": float(cpus)} | ({"GPU": gpus} if gpus else {})}


@pytest.mark.parametrize(
    ("nodes", "device", "cpus", "share"),
    [
        ([node_with(16), node_with(8), node_with(2, alive=False)], "cpu", 0, (0, 8)),
        ([node_with(16), node_with(8)], "auto", 0, (0, 8)),
        ([node_with(16), node_with(8)], "cpu", 3, (0, 3)),
        ([node_with(64, 8), node_with(16, 4), node_with(2)], "auto", 0, (1, 4)),
        ([node_with(64, 8), node_with(2)], "cuda", 6, (1, 6)),
        ([node_with(2, 4)], "cuda", 0, (1, 1)),
        ([node_with(64, 8), node_with(2)], "cpu", 0, (0, 2)),
    ],
)
def test_a_trial_takes_a_gpu_with_its_part_of_the_cores_or_the_smallest_node(
    nodes, device, cpus, share
):
    found = share_of(nodes, device, cpus)
    assert (found["num_gpus"], found["num_cpus"]) == share


@pytest.mark.parametrize(
    ("nodes", "device", "cpus"),
    [([node_with(4)], "cuda", 0), ([node_with(4)], "cpu", 5), ([], "auto", 0)],
)
def test_a_share_that_no_node_has_is_refused(nodes, device, cpus):
    with pytest.raises(UsageError, match="no node of the cluster"):
        share_of(nodes, device, cpus)


def test_a_node_that_does_not_see_the_folder_says_so_and_makes_nothing(tmp_path):
    report = look(tmp_path / "elsewhere")
    problem = pickle.loads(pickle.dumps(report["problem"]))  # as it travels
    assert "does not see the study's folder" in problem.what
    assert "--output_dir" in problem.do
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--on", "ray"], "needs ray"),
        (["--on", "slurm"], "does not run on 'slurm'"),
        (["--cpus", "2"], "--on ray"),
    ],
)
def test_words_that_cannot_work(tiny, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    plan = write_plan(tmp_path, tiny, [0]) / "plan.toml"
    with pytest.raises(SystemExit) as ended:
        main(["study", str(plan), "--output_dir", str(tmp_path / "s"), *words])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
