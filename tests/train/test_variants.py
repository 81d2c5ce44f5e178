"""DoRA, PiSSA and OLoRA: what is saved equals what was trained, as peft reads it."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import metrics, no_answers, recipe_for, silent, write_rows
from safetensors.torch import load_file
from torch import Tensor

from suri.cli.main import main
from suri.errors import Preempted, UsageError
from suri.infer.engines import open_model
from suri.model.adapter import initial_adapter
from suri.model.adapter_file import WEIGHTS_FILE, read_adapter, write_adapter
from suri.model.attention import PackedAttention
from suri.model.config import read_config
from suri.model.weights import base_identity
from suri.recipe import Recipe
from suri.train.optimizer import make_optimizer
from suri.train.reference import ReferenceEngine
from suri.train.run import train

TARGETS = ("q_proj", "v_proj", "down_proj")
QUERY = "model.layers.1.self_attn.q_proj"
VARIANTS = [
    {"lora_variant": "dora"},
    {"lora_variant": "dora", "use_rslora": True},
    {"lora_variant": "pissa"},
    {"lora_variant": "pissa", "use_rslora": True},
    {"lora_variant": "olora"},
]


pytestmark = pytest.mark.usefixtures("short_answers")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path)


def engine_of(tiny: Path, changes: dict[str, Any]) -> ReferenceEngine:
    recipe = Recipe(engine="reference", lora_target_modules=TARGETS, **changes)
    start = initial_adapter(
        read_config(tiny), r=3, alpha=8.0, targets=TARGETS, seed=5, rslora=recipe.use_rslora,
        base=base_identity(tiny, "none"),
    )  # fmt: skip
    return ReferenceEngine(recipe, tiny, start, "cpu")


IDS = torch.randint(0, 131, (2, 21), generator=torch.Generator().manual_seed(3))


def logits(model: Any) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(IDS).logits


def trained(engine: ReferenceEngine) -> ReferenceEngine:
    """A few steps far from the start, towards the ids themselves."""
    optimizer = make_optimizer(Recipe(learning_rate=0.02), engine.parameters, [])
    for _ in range(6):
        engine.model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return engine


def weight_of(tiny: Path, module: str) -> Tensor:
    return load_file(tiny / "model.safetensors")[f"{module}.weight"]


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS)
def test_peft_gives_the_trained_models_logits(
    tiny: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    import transformers
    from peft import PeftModel

    engine = engine_of(tiny, changes)
    start = logits(engine.model)
    wanted = logits(trained(engine).model)
    write_adapter(tmp_path, engine.adapter())
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    assert (logits(base) - start).abs().max() <= 2e-4
    assert (wanted - start).abs().max() > 1
    assert (logits(PeftModel.from_pretrained(base, tmp_path)) - wanted).abs().max() <= 2e-4


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS[2:])
def test_our_decoder_reads_pissa_and_olora_as_plain_adapters(
    tiny: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    engine = trained(engine_of(tiny, changes))
    write_adapter(tmp_path, engine.adapter())
    decoder = open_model(str(tiny), lora_weights=str(tmp_path)).engine.decoder
    count = IDS.shape[1]
    with torch.no_grad():
        hidden = decoder(IDS[0], torch.arange(count), PackedAttention([count]))
        ours = decoder.logits(hidden)
    assert (ours - logits(engine.model)[0]).abs().max() <= 2e-4
    assert read_adapter(tmp_path).r == 6


def test_each_variant_starts_as_its_paper_says(tiny: Path) -> None:
    weight = weight_of(tiny, QUERY)
    dora = engine_of(tiny, {"lora_variant": "dora"}).adapter()
    assert torch.allclose(dora.magnitudes[QUERY], weight.norm(dim=1), rtol=1e-5)
    pissa = engine_of(tiny, {"lora_variant": "pissa"}).taken_out[QUERY]
    u, s, v = torch.linalg.svd(weight)
    largest = u[:, :3] @ torch.diag(s[:3]) @ v[:3]
    assert torch.allclose(8 / 3 * pissa[1] @ pissa[0], largest, atol=1e-4)
    olora = engine_of(tiny, {"lora_variant": "olora"}).taken_out[QUERY]
    q, r = torch.linalg.qr(weight)
    assert torch.allclose(olora[1] @ olora[0], q[:, :3] @ r[:3], atol=1e-4)
    assert torch.allclose(olora[1].t() @ olora[1], torch.eye(3), atol=1e-5)


@pytest.mark.slow
def test_dora_learns_its_magnitudes(tiny: Path) -> None:
    engine = trained(engine_of(tiny, {"lora_variant": "dora"}))
    learned = engine.adapter().magnitudes
    assert len(learned) == 9
    for module, magnitude in learned.items():
        assert (magnitude - weight_of(tiny, module).norm(dim=1)).abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS[::2])
def test_a_run_goes_on_bit_for_bit(
    tiny: Path, rows: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = {"engine": "reference", "max_steps": 8, "save_steps": 3, **changes}
    settings |= {"loraplus_lr_ratio": 2.0, "learning_rate": 1e-3}
    whole = train(recipe_for(tiny, rows, tmp_path / "whole", **settings), silent, no_answers)
    assert whole["held_out_loss"] < whole["base_loss"]

    def stop(event: str, numbers: dict[str, Any]) -> None:
        if event == "step" and numbers["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        train(recipe_for(tiny, rows, tmp_path / "cut", **settings), stop, no_answers)
    train(Recipe(output_dir=str(tmp_path / "cut"), resume=True), silent, no_answers)
    first, second = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("whole", "cut"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert metrics(tmp_path / "cut", "train/loss") == metrics(tmp_path / "whole", "train/loss")


@pytest.mark.slow
def test_a_dora_run_names_the_way_to_use_it_and_the_way_works(
    tiny: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(["train", "--base_model", str(tiny), "--data_path", str(rows), "--val_set_size", "2",
          "--max_steps", "2", "--engine", "reference", "--lora_variant", "dora",
          "--output_dir", str(run)])  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert f"suri merge {run} --to hf --output_dir {run}-hf" in said
    assert f"suri chat {run}-hf" in said
    assert f"suri chat {run} " not in said
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "suri merge DIR --to hf" in card
    assert "suri chat DIR" not in card
    with pytest.raises(UsageError, match="DoRA") as caught:
        open_model(str(run))
    assert f"suri merge {run} --to hf" in caught.value.do
    with pytest.raises(SystemExit) as ended:
        main(["merge", str(run), "--to", "meta", "--output_dir", str(tmp_path / "meta")])
    assert ended.value.code == 2
    assert "--to hf" in capsys.readouterr().err
    main(["merge", str(run), "--to", "hf", "--output_dir", f"{run}-hf"])
    main(["verify", f"{run}-hf"])
    assert open_model(f"{run}-hf").engine


@pytest.mark.slow
def test_a_pissa_run_merges_with_a_certificate(tiny: Path, rows: Path, tmp_path: Path) -> None:
    recipe = recipe_for(
        tiny, rows, tmp_path / "run", engine="reference", lora_variant="pissa", max_steps=6
    )
    train(recipe, silent, no_answers)
    main(["merge", str(tmp_path / "run"), "--to", "hf", "--output_dir", str(tmp_path / "merged")])
    main(["verify", str(tmp_path / "merged")])


def test_variants_that_cannot_be_are_refused(tiny: Path, rows: Path, tmp_path: Path) -> None:
    recipe = recipe_for(
        tiny, rows, tmp_path / "run", engine="reference", lora_variant="dora", quantize="nf4",
        device="cpu",
    )  # fmt: skip
    with pytest.raises(UsageError, match="needs a GPU"):
        train(recipe, silent, no_answers)
    with pytest.raises(UsageError, match="--engine reference"):
        Recipe(lora_variant="dora")
    with pytest.raises(UsageError, match="quantize must be none"):
        Recipe(lora_variant="pissa", engine="reference", quantize="nf4")
    with pytest.raises(UsageError, match="lora_variant = vera must be one of"):
        Recipe(lora_variant="vera", engine="reference")
