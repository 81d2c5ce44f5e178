import json
from dataclasses import replace

import pytest
import torch

from suri.cli.main import main as suri
from suri.data.encode import encode_prompt
from suri.data.prompt import read_prompt
from suri.data.records import Record, write_records
from suri.model.tokenizer import read_tokenizer
from suri.study.measure import main, measure
from suri.study.process import Spec, as_program

RECORDS = [
    Record("Say the word.", "fig", "fig"),
    Record("Count to three, slowly and with care.", "", "1, 2, 3"),
    Record("Say nothing.", "", "."),
]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A short training of the tiny model whose adapter changes its answers."""
    folder = tmp_path_factory.mktemp("measured")
    write_records(folder / "rows.json", RECORDS * 3)
    write_records(folder / "held_out.jsonl", RECORDS)
    suri(
        ["train", "--base_model", str(tiny), "--data_path", str(folder / "rows.json"),
         "--val_set_path", str(folder / "held_out.jsonl"), "--output_dir", str(folder / "run"),
         "--num_epochs", "2", "--batch_size", "4", "--learning_rate", "2e-2", "--device", "cpu",
         "--lora_r", "3", "--lora_alpha", "7"]
    )  # fmt: skip
    return folder / "run"


@pytest.fixture
def spec(run, tmp_path):
    return Spec(
        run=str(run),
        way="base",
        device="cpu",
        rows=str(run / "held_out.jsonl"),
        max_new_tokens=5,
        reference=str(tmp_path / "adapter.npy"),
    )


def reference_model(tiny, run=None):
    """The same weights in transformers, with the adapter by peft where asked for."""
    import transformers
    from peft import PeftModel

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    return PeftModel.from_pretrained(model, run) if run else model


@torch.no_grad()
def reference_scores(model, tokenizer, prompt):
    """Of every record the log-probabilities at its response, and the tokens that stand there."""
    for record in RECORDS:
        start = len(encode_prompt(record, tokenizer, prompt))
        ids = tokenizer.encode(prompt.render(record) + record.output)
        ids = torch.tensor([[*ids, tokenizer.eos_id]])
        yield model(ids).logits[0, start - 1 : -1].log_softmax(-1), ids[0, start:]


def reference_losses(model, tokenizer, prompt):
    for scores, targets in reference_scores(model, tokenizer, prompt):
        yield -float(scores.gather(1, targets[:, None]).sum()), len(targets)


@pytest.mark.slow
def test_losses_are_those_of_transformers_and_peft(tiny, run, spec):
    tokenizer, prompt = read_tokenizer(tiny), read_prompt(run)
    for way, model in (("adapter", reference_model(tiny, run)), ("base", reference_model(tiny))):
        found = measure(replace(spec, way=way, with_adapter=way == "adapter", parts=("losses",)))[
            "losses"
        ]
        expected = list(reference_losses(model, tokenizer, prompt))
        assert [one["row"] for one in found] == [0, 1, 2]
        assert [one["learned_tokens"] for one in found] == [count for _, count in expected]
        sums = [one["loss_sum"] for one in found]
        assert sums == pytest.approx([total for total, _ in expected], rel=1e-4)
        if way == "adapter":
            result = json.loads((run / "result.json").read_text())
            mean = sum(sums) / sum(count for _, count in expected)
            assert mean == pytest.approx(result["held_out_loss"], rel=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_answers_are_the_greedy_ones_of_transformers(tiny, run, spec):
    tokenizer, prompt = read_tokenizer(tiny), read_prompt(run)
    model = reference_model(tiny, run)
    found = measure(replace(spec, way="adapter", with_adapter=True, parts=("answers",)))["answers"]
    for record, answer in zip(RECORDS, found, strict=True):
        ids = [int(token) for token in encode_prompt(record, tokenizer, prompt)]
        expected = []
        while len(expected) < 5 and tokenizer.eos_id not in expected:
            expected.append(int(model(torch.tensor([ids + expected])).logits[0, -1].argmax()))
        stopped = expected[-1] == tokenizer.eos_id
        assert answer["stopped"] == stopped
        assert answer["ids"] == (expected[:-1] if stopped else expected)
        assert answer["text"] == tokenizer.decode(answer["ids"]).strip()


def test_distributions_are_held_against_the_adapters(tiny, run, spec):
    own = measure(replace(spec, way="adapter", with_adapter=True, parts=("losses",)))["probe"]
    tokens = sum(len(record.output) + 1 for record in RECORDS)
    assert own == {"tokens": tokens, "mean_kl": 0.0, "max_kl": 0.0, "top1_agreement": 1.0}
    found = measure(replace(spec, parts=("losses",)))["probe"]
    tokenizer, prompt = read_tokenizer(tiny), read_prompt(run)
    adapter, base = (
        torch.cat([scores for scores, _ in reference_scores(model, tokenizer, prompt)]).double()
        for model in (reference_model(tiny, run), reference_model(tiny))
    )
    kl = torch.nn.functional.kl_div(base, adapter, log_target=True, reduction="none").sum(-1)
    assert found["mean_kl"] == pytest.approx(float(kl.mean()), rel=1e-3)
    assert found["max_kl"] == pytest.approx(float(kl.max()), rel=1e-3)
    same = (adapter.argmax(-1) == base.argmax(-1)).double().mean()
    assert found["top1_agreement"] == pytest.approx(float(same))
    assert found["top1_agreement"] < 1


@pytest.mark.slow
def test_speed_memory_and_disk_are_measured(tiny, run, spec):
    found = measure(replace(spec, parts=("speed",)))
    speed = found["speed"]
    assert found["environment"]["device"] == "cpu"
    assert found["environment"]["load_average"] >= 0
    assert all(value > 0 for value in speed.values())
    assert 5e7 < speed["peak_memory_bytes"] < 2e10
    base = sum(path.stat().st_size for path in tiny.rglob("*") if path.is_file())
    assert speed["bytes_on_disk"] == base
    adapted = measure(replace(spec, way="adapter", with_adapter=True, parts=("speed",)))["speed"]
    weights = (run / "adapter_model.safetensors").stat().st_size
    assert adapted["bytes_on_disk"] == base + weights


def test_a_users_mistake_is_printed_and_passed_on(spec, tmp_path, capsys):
    plain = vars(replace(spec, rows=str(tmp_path / "none.jsonl")))
    (tmp_path / "spec.json").write_text(json.dumps(plain))
    words = [str(tmp_path / "spec.json"), str(tmp_path / "out.json")]
    assert as_program(main, words) == 2
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
