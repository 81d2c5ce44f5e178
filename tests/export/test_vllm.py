"""What is exported for vLLM meets what its loader asks for; vLLM itself has not run here.

Its rules are those of its vllm/lora/peft_helper.py, vllm/lora/utils.py and vllm/config/lora.py.
"""

import json
import re
import shlex

import peft
import pytest
import torch
import transformers
from merges import IDS, make_adapter, make_base, write_hf
from safetensors.torch import load_file

from suri.cli.main import main
from suri.data.encode import encode_prompt
from suri.data.prompt import find_prompt, read_prompt
from suri.data.records import Record
from suri.errors import UsageError
from suri.export.vllm import write_vllm
from suri.files import write_json
from suri.model.tokenizer import read_tokenizer
from suri.reading import read_json

PATTERNS = {
    "rank_pattern": {"k_proj": 2, r"layers\.1\.mlp\.down_proj": 7},
    "alpha_pattern": {"layers.1.self_attn.q_proj": 3.5},
}
KINDS = {"plain": {}, "patterns": PATTERNS, "rslora": PATTERNS | {"use_rslora": True}}
SERVED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
FUSED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module", params=list(KINDS))
def exported(request, tmp_path_factory):
    """A base, a peft adapter with the alpaca prompt, and what was written for vLLM."""
    place = tmp_path_factory.mktemp(request.param)
    base = make_base(place / "base")
    adapter = make_adapter(place / "adapter", base, **KINDS[request.param])
    find_prompt("alpaca").save(adapter)
    lines = write_vllm(base, adapter, place / "my lora")
    return base, adapter, place / "my lora", lines


def logits(base, adapter):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        return torch.cat([model(torch.tensor([ids])).logits[0] for ids in IDS])


@pytest.mark.slow
def test_peft_gives_the_logits_of_the_adapter_it_was_made_of(exported):
    base, adapter, out, _ = exported
    torch.testing.assert_close(logits(base, out), logits(base, adapter), atol=1e-4, rtol=1e-4)


def test_it_is_an_adapter_as_every_version_of_vllm_reads_it(exported):
    _, _, out, lines = exported
    config = read_json(out / "adapter_config.json")
    assert config["bias"] == "none"
    assert not config["modules_to_save"]
    never = ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "layer_replication")
    assert not any(config.get(name) for name in never)
    assert set(config["target_modules"]) <= FUSED
    words = shlex.split(lines[1])
    limit = int(words[words.index("--max-lora-rank") + 1])
    assert limit in (1, 8, 16, 32, 64, 128, 256, 320, 512)
    assert config["r"] <= limit
    for key, tensor in load_file(out / "adapter_model.safetensors").items():
        found = re.fullmatch(r"base_model\.model\.model\.layers\.\d+\.\w+\.(\w+)\.lora_([AB])\.weight", key)  # fmt: skip  # noqa: E501
        assert found, key
        assert found[1] in config["target_modules"]
        assert tensor.shape[0 if found[2] == "A" else 1] == config["r"]


def test_the_command_names_what_is_there_and_the_tokenizer_asks_as_in_training(exported):
    base, adapter, out, lines = exported
    words = shlex.split(lines[1])
    assert words[:3] == ["vllm", "serve", str(base)]
    assert words[words.index("--lora-modules") + 1] == f"my lora={out}"
    assert lines[1] in (out / "README.md").read_text()
    tokenizer = transformers.AutoTokenizer.from_pretrained(words[words.index("--tokenizer") + 1])
    asked = [{"role": "user", "content": "Name a river."}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    record = Record("Name a river.", "", "")
    assert ids == encode_prompt(record, read_tokenizer(base), read_prompt(adapter)).tolist()


@pytest.mark.slow
def test_a_merged_folder_has_what_vllm_opens(exported, tmp_path):
    base, adapter, _, _ = exported
    write_hf(base, adapter, tmp_path / "merged", "float32")
    assert read_json(tmp_path / "merged" / "config.json")["architectures"][0] in SERVED
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert "### Instruction" in tokenizer.chat_template
    assert (tmp_path / "merged" / "generation_config.json").is_file()


def test_what_vllm_does_not_serve_is_refused_with_what_does(tmp_path):
    base = make_base(tmp_path / "base")
    dora = make_adapter(tmp_path / "dora", base, use_dora=True)
    with pytest.raises(UsageError, match="suri merge"):
        write_vllm(base, dora, tmp_path / "out")
    plain = make_adapter(tmp_path / "plain", base)
    words = ["convert", str(base), "--to", "meta", "--output_dir", str(tmp_path / "meta")]
    main(words)
    with pytest.raises(UsageError, match="suri convert"):
        write_vllm(tmp_path / "meta", plain, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    large = make_adapter(tmp_path / "large", base, r=600)
    with pytest.raises(UsageError, match="above 512"):
        write_vllm(base, large, tmp_path / "out")


def test_the_verb_says_what_was_checked_and_ends_in_pass(tmp_path, capsys):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    find_prompt("alpaca").save(adapter)
    write_json(adapter / "base.json", {"path": str(base), "quantize": "nf4"})
    main(["merge", str(adapter), "--to", "vllm", "--output_dir", str(tmp_path / "out")])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("ok ")
    assert said[1].startswith("vllm serve ")
    assert "in nf4" in said[2]
    assert said[-1] == f"PASS vllm {tmp_path / 'out'}"
    assert json.loads((tmp_path / "out" / "base.json").read_text())["quantize"] == "nf4"


def test_the_embedded_base_is_a_folder_that_vllm_opens(embedded):
    assert read_json(embedded / "config.json")["architectures"][0] in SERVED
    assert list(embedded.glob("*.safetensors"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded)
    assert tokenizer("A river.")["input_ids"] == read_tokenizer(embedded).encode("A river.")
