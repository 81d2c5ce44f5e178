"""One run over several processes: the same result as in one, whatever happens to any of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import places, run_ranks
from runs import metrics, no_answers, recipe_for, silent, write_rows
from safetensors.torch import load_file

from conftest import make_model, missing
from suri.cli.main import main
from suri.model.adapter_file import WEIGHTS_FILE
from suri.recipe import Recipe, settings_of
from suri.train import engine
from suri.train.run import train
from suri.train.run_folder import can_go_on

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked here")
SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def alone(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of the run of one process, by how its base is stored."""
    made: dict[str, Path] = {}

    def run(quantize: str = "none") -> Path:
        if quantize not in made:
            made[quantize] = tmp_path_factory.mktemp("alone") / quantize
            recipe = recipe_for(tiny, rows, made[quantize], device="cpu", quantize=quantize)
            train(recipe, silent, no_answers)
        return made[quantize]

    return run


def farthest(one: Path, other: Path) -> float:
    """The largest difference of two adapters' numbers."""
    first, second = load_file(one / WEIGHTS_FILE), load_file(other / WEIGHTS_FILE)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def assert_same(run: Path, alone: Path) -> None:
    for name in ("train/loss", "eval/loss", "train/grad_norm", "train/learned_tokens"):
        assert metrics(run, name) == pytest.approx(metrics(alone, name), rel=1e-5), name
    assert farthest(run, alone) < 1e-5
    facts = [json.loads((each / "result.json").read_text())["facts"] for each in (run, alone)]
    for name in ("rows_seen", "learned_tokens", "steps", "initial_adapter"):
        assert facts[0][name] == facts[1][name], name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "quantize", "shard_base"),
    [
        (2, "none", False),
        (2, "nf4", True),
        pytest.param(4, "nf4", False, marks=pytest.mark.slow),
        pytest.param(4, "none", True, marks=pytest.mark.slow),
    ],
)
def test_any_number_of_processes_gives_the_result_of_one(
    tiny: Path, rows: Path, tmp_path: Path, alone: Any,
    count: int, quantize: str, shard_base: bool,
) -> None:  # fmt: skip
    # 18 rows in steps of 4: the last step of an epoch leaves some of four processes without rows.
    recipe = recipe_for(
        tiny, rows, tmp_path / "run", device="cpu", quantize=quantize, shard_base=shard_base,
        token_budget=150,
    )  # fmt: skip
    assert run_ranks(count, lambda _: train(recipe, silent, no_answers)) == [0] * count
    assert_same(tmp_path / "run", alone(quantize))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["facts"]["processes"] == count


@pytest.mark.slow
def test_int8_is_the_same_as_far_as_it_rounds(
    tiny: Path, rows: Path, tmp_path: Path, alone: Any
) -> None:
    recipe = recipe_for(
        tiny, rows, tmp_path / "run", device="cpu", quantize="int8", shard_base=True
    )
    assert run_ranks(2, lambda _: train(recipe, silent, no_answers)) == [0, 0]
    ours, theirs = metrics(tmp_path / "run", "train/loss"), metrics(alone("int8"), "train/loss")
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    # Later a last bit decides how an input rounds, as it does with other micro-batches.
    assert ours == pytest.approx(theirs, rel=5e-3)


@pytest.mark.slow
def test_a_request_to_one_stops_all_and_other_numbers_go_on(
    tiny: Path, rows: Path, tmp_path: Path, alone: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    recipe = recipe_for(tiny, rows, folder, device="cpu", save_steps=3)
    loss = engine.SuriEngine.loss

    def work(rank: int) -> None:
        def stop_at_seven(self: Any, batch: Any, step: int | None) -> Any:
            if step == 7 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)  # as it comes from a launcher and a system
            return loss(self, batch, step)

        engine.SuriEngine.loss = stop_at_seven  # type: ignore[method-assign]
        train(replace(recipe, micro_batch_size=1), silent, no_answers)

    assert run_ranks(2, work) == [75, 75]
    said = capfd.readouterr()
    assert said.out.count("error: stopped after step 6 of 20; the state is saved") == 1
    assert "Traceback" not in said.out + said.err
    for count in (1, 4):
        again = tmp_path / str(count)
        shutil.copytree(folder, again)
        resumed = Recipe(output_dir=str(again), resume=True, device="cpu")
        assert run_ranks(count, lambda _, r=resumed: train(r, silent, no_answers)) == [0] * count
        assert_same(again, alone())


@pytest.mark.slow
@pytest.mark.parametrize("shard_base", [False, True])
def test_a_stop_of_a_cut_base_waits_for_nobody(
    tiny: Path, rows: Path, tmp_path: Path, shard_base: bool
) -> None:
    recipe = recipe_for(tiny, rows, tmp_path / "run", device="cpu", shard_base=shard_base)

    def work(rank: int) -> None:
        def stop(event: str, numbers: dict[str, Any]) -> None:
            if rank == 0 and event == "step" and numbers["step"] == 3:
                os.kill(os.getpid(), signal.SIGUSR1)

        train(recipe, stop, no_answers)

    assert run_ranks(2, work) == [75, 75]
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000003"]


@pytest.mark.slow
def test_memory_that_runs_out_in_one_makes_all_of_them_smaller(
    tiny: Path, rows: Path, tmp_path: Path, alone: Any
) -> None:
    recipe = recipe_for(tiny, rows, tmp_path / "run", device="cpu")
    loss = engine.SuriEngine.loss

    def work(rank: int) -> None:
        def full(self: Any, batch: Any, step: int | None) -> Any:
            if rank == 1 and step and step > 2 and len(batch.rows) > 1:
                raise MemoryError
            return loss(self, batch, step)

        engine.SuriEngine.loss = full  # type: ignore[method-assign]
        train(recipe, silent, no_answers)

    assert run_ranks(2, work) == [0, 0]
    assert_same(tmp_path / "run", alone())
    saved = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1] / "state.json"
    assert 0 < json.loads(saved.read_text())["progress"]["token_budget"] < 512


@pytest.mark.slow
def test_what_is_exchanged_is_the_adapters_gradient(tiny: Path, rows: Path, tmp_path: Path) -> None:
    recipe = recipe_for(tiny, rows, tmp_path / "run", device="cpu", val_set_size=0, max_steps=5)

    def work(rank: int) -> None:
        reduce, sizes = torch.distributed.all_reduce, []

        def counted(tensor: torch.Tensor, *rest: Any) -> Any:
            sizes.append(tensor.numel() * tensor.element_size())
            return reduce(tensor, *rest)

        torch.distributed.all_reduce = counted
        train(recipe, silent, no_answers)
        (tmp_path / f"{rank}.json").write_text(json.dumps(sizes))

    assert run_ranks(2, work) == [0, 0]
    weights = load_file(tmp_path / "run" / WEIGHTS_FILE)
    adapter = sum(4 * tensor.numel() for tensor in weights.values())
    sizes = json.loads((tmp_path / "0.json").read_text())
    assert [size for size in sizes if size > 100] == [adapter] * 5
    assert sum(size for size in sizes if size <= 100) < 1000


LOADING = """
import json, re, sys
from pathlib import Path
import torch
from suri.model.attention import PackedAttention
from suri.model.kernels import giving_memory_back
from suri.model.load import load_decoder
from suri.train.distributed import joined, sharder

base, shard_base, told = Path(sys.argv[1]), sys.argv[2] == "True", Path(sys.argv[3])

def anonymous():
    # Bytes held, without mapped files, which the system takes back when it likes.
    return 1024 * int(re.findall(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[0])

with joined("cpu"):
    shard = sharder("cpu")  # also where it is not used: its imports are as large
    held, ids = [anonymous()], torch.arange(20)
    with giving_memory_back():
        decoder = load_decoder(base, each_layer=shard if shard_base else None)
    for layer in decoder.layers:
        layer.register_forward_hook(lambda *_: held.append(anonymous()))
    with torch.no_grad():
        decoder(ids, ids, PackedAttention([20]))
    told.write_text(json.dumps(max(held) - held[0]))
"""


@pytest.mark.slow
def test_a_share_of_the_base_takes_less_memory(tmp_path: Path) -> None:
    # Weights of more than 8 MB, which the C library gives back, as those of real models are; in
    # new processes, for what earlier tests have freed would take the weights unseen.
    sizes = {"hidden_size": 600, "intermediate_size": 4000, "num_hidden_layers": 6}
    base = make_model(tmp_path / "base", **sizes)
    linears = 4 * 6 * (600 * (600 + 2 * 200) + 600 * 600 + 3 * 600 * 4000)

    def most_held(shard_base: bool) -> list[int]:
        files = [tmp_path / f"{shard_base}{rank}.json" for rank in range(2)]
        ranks = []
        for place, file in zip(places(2), files, strict=True):
            words = [sys.executable, "-c", LOADING, str(base), str(shard_base), str(file)]
            ranks.append(launched(words, place))
        for process in ranks:
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
        return [json.loads(file.read_text()) for file in files]

    if not Path("/proc/self/status").is_file():
        missing("the system shows no memory in /proc here")
    for whole, share in zip(most_held(False), most_held(True), strict=True):
        assert whole - share > 0.25 * linears  # half of it, less a layer or two that are whole


def command(recipe: Recipe, *more: str) -> list[str]:
    import tomli_w

    file = Path(recipe.output_dir).parent / "recipe-asked.toml"
    file.write_text(tomli_w.dumps(settings_of(recipe)), encoding="utf-8")
    return [sys.executable, "-m", "suri", "train", "--recipe", str(file), *more]


def launched(words: list[str], place: dict[str, str] | None = None) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(SRC), os.environ.get("PYTHONPATH", "")])
    names = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        words, env=os.environ | names | (place or {}), stdout=pipe, stderr=pipe, text=True
    )


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for file in found for word in file.read_text().split()]


def wait_for_step(folder: Path, step: int) -> None:
    until = time.monotonic() + 120
    while not (folder / "checkpoints" / f"step-{step:06d}").is_dir():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
def test_the_launcher_stops_all_when_one_is_killed_or_it_is_asked_to(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    for number, code in ((signal.SIGKILL, 137), (signal.SIGTERM, 75)):
        folder = tmp_path / number.name / "run"
        folder.parent.mkdir()
        recipe = recipe_for(tiny, rows, folder, device="cpu", save_steps=2, num_epochs=300, gpus=2)
        temporary = folder.parent / "temporary"
        temporary.mkdir()
        process = launched(command(recipe), {"TMPDIR": str(temporary)})
        wait_for_step(folder, 4)
        ranks = children(process.pid)
        assert len(ranks) == 2
        began = time.monotonic()
        os.kill(ranks[1] if number == signal.SIGKILL else process.pid, number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, out + err
        assert time.monotonic() - began < 60  # the promise itself
        assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
        said = "was ended by SIGKILL" if number == signal.SIGKILL else "the state is saved"
        assert err.count("error:") == 1, err
        assert said in err
        assert "Traceback" not in err
        saved = len(metrics(folder, "train/loss"))
        assert saved >= 4
        assert can_go_on(folder)
        assert not list(temporary.glob("suri-ranks-*"))
        assert not list(temporary.glob("torchelastic_*"))


@pytest.mark.slow
def test_a_mistake_is_said_once_and_its_code_comes_through(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_for(tiny, tmp_path / "none.json", tmp_path / "run", device="cpu", gpus=2)
    process = launched(command(recipe))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, out + err
    assert err.count("error:") == 1
    assert "Traceback" not in err


@pytest.mark.slow
def test_processes_that_are_started_again_go_on(
    tiny: Path, rows: Path, tmp_path: Path, alone: Any
) -> None:
    recipe = recipe_for(tiny, rows, tmp_path / "run", device="cpu", save_steps=3)
    file = tmp_path / "work.py"
    file.write_text(
        "import os, signal, sys\n"
        "from suri.cli.main import main\n"
        "from suri.train import engine\n"
        "loss = engine.SuriEngine.loss\n"
        "def dies(self, batch, step):\n"
        "    if step == 8 and os.environ['RANK'] == '1':\n"
        "        if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return loss(self, batch, step)\n"
        "engine.SuriEngine.loss = dies\n"
        "main(sys.argv[1:])\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc_per_node", "2", "--max_restarts", "1", str(file)]
    process = launched(torchrun + command(recipe)[3:])
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert "going on after step 6" in out
    assert_same(tmp_path / "run", alone())


def test_more_gpus_than_there_are_is_one_message(
    tiny: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_for(tiny, rows, tmp_path / "run", gpus=99)
    with pytest.raises(SystemExit) as ended:
        main(command(recipe)[3:])
    assert ended.value.code == 2
    assert "--gpus 99 is more than this machine has" in capsys.readouterr().err
