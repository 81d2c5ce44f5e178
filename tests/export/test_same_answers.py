"""One trained adapter gives the same greedy answers in four programs, llama.cpp among them."""

import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from merges import make_adapter, write_gguf
from test_llama_cpp import HARD_TEXTS

from conftest import need
from suri.export.llama_cpp import read
from suri.model.tokenizer import read_tokenizer

need("xllamacpp")
pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    import same_answers

    sys.path.remove(str(BENCHMARKS))
    return same_answers


@pytest.fixture(scope="module")
def folders(script, tmp_path_factory) -> dict[str, Path]:
    return script.prepare(tmp_path_factory.mktemp("trained"))


def test_four_programs_answer_alike(script, folders):
    found = script.compare(folders, every=3)
    assert found["prompts"] == 7
    assert found["answers_that_training_changed"] >= 4
    assert found["tokens_before_a_tie"] >= 20
    assert {name: reader["same_up_to_a_tie"] for name, reader in found["readers"].items()} == {
        "transformers": 7, "meta_decoder": 7, "llama.cpp": 7
    }  # fmt: skip


def test_another_adapter_answers_otherwise(script, folders, tmp_path, embedded):
    """The comparison can fail: the merges are not of the adapter that they are held against."""
    other = make_adapter(tmp_path / "other", embedded, r=8, lora_alpha=0.5)
    for name in ("held_out.jsonl", "prompt.json", "base.json"):
        shutil.copyfile(folders["adapter"] / name, other / name)
    for reader in script.compare(folders | {"adapter": other}, every=3)["readers"].values():
        assert reader["same_up_to_a_tie"] < 5


def test_llama_cpp_cuts_text_as_the_embedded_base_does(script, tmp_path, embedded):
    adapter = make_adapter(tmp_path / "adapter", embedded, target_modules=["v_proj"], r=2)
    write_gguf(embedded, adapter, tmp_path / "merged")
    texts = [*HARD_TEXTS, *script.QUESTIONS]
    found = read(tmp_path / "merged" / "model.gguf", texts=texts)
    tokenizer = read_tokenizer(embedded)
    for text, tokens in zip(texts, found.tokens, strict=True):
        assert tokens == tokenizer.encode(text), text
