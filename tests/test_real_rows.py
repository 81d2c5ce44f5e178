"""A LoRA of the embedded base learns real rows, and peft reads it as Suri does."""

import json
from pathlib import Path

import pytest
import torch

from suri.cli.main import main
from suri.data.records import read_records
from suri.infer.engines import open_model
from suri.model.adapter import initial_adapter
from suri.model.attention import PackedAttention
from suri.model.config import read_config
from suri.model.load import load_decoder
from suri.train.loss import summed_loss

pytestmark = pytest.mark.slow

TRAINED, HELD_OUT, SHORT = 40, 10, 200
"""Rows, and the characters that their responses are shorter than."""


@pytest.fixture(scope="module")
def run(real_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA trained on short real rows, others held out."""
    folder = tmp_path_factory.mktemp("path")
    every = json.loads(real_rows.read_text(encoding="utf-8"))
    rows = [row for row in every if len(row["output"]) < SHORT]
    for name, part in (("train", rows[:TRAINED]), ("held", rows[TRAINED : TRAINED + HELD_OUT])):
        (folder / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
    main(
        ["train", "--data_path", str(folder / "train.json"), "--val_set_path",
         str(folder / "held.json"), "--output_dir", str(folder / "run"), "--num_epochs", "1",
         "--batch_size", "4", "--learning_rate", "2e-3", "--cutoff_len", "256",
         "--eval_steps", "10"]
    )  # fmt: skip
    return folder / "run"


def test_held_out_loss_falls_by_five_percent(run: Path) -> None:
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert result["rows"] == TRAINED
    assert result["held_out_loss"] <= 0.95 * result["base_loss"]


def test_an_adapter_of_zeros_scores_exactly_as_the_base(run: Path, embedded: Path) -> None:
    from suri.data.batch import pack
    from suri.data.encode import Rules, encode_records
    from suri.data.prompt import read_prompt
    from suri.model.tokenizer import read_tokenizer

    examples = encode_records(
        read_records(run / "held_out.jsonl")[:4], read_tokenizer(embedded), read_prompt(run),
        Rules(256),
    ).examples  # fmt: skip
    zero = initial_adapter(
        read_config(embedded), r=4, alpha=9.0, targets=("q_proj", "down_proj"), seed=1
    )
    with torch.no_grad():
        losses = [
            summed_loss(load_decoder(embedded, adapter=adapter), pack(examples))
            for adapter in (None, zero)
        ]
    assert torch.equal(*losses)


def test_peft_gives_the_trained_adapters_logits(run: Path, embedded: Path) -> None:
    import transformers
    from peft import PeftModel

    model = open_model(str(run))
    texts = ["### Instruction:\nName a river.\n\n### Response:\n", "The alpaca and the llama"]
    base = transformers.AutoModelForCausalLM.from_pretrained(embedded, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, run).eval()
    for text in texts:
        ids = torch.tensor(model.tokenizer.encode(text))
        with torch.no_grad():
            hidden = model.engine.decoder(ids, torch.arange(len(ids)), PackedAttention([len(ids)]))
            difference = model.engine.decoder.logits(hidden) - theirs(ids[None]).logits[0]
        assert difference.abs().max() <= 2e-4
