"""One trained adapter gives the same greedy answers in four programs, llama.cpp among them."""

import shutil
import sys
from collections.abc import Iterator
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
def folders(script, shallow, tmp_path_factory) -> Iterator[dict[str, Path]]:
    """A short training and its merges; the script finds the same base again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SURI_CACHE", str(shallow.parent))
        patch.setitem(script.TRAINING, "max_steps", "15")
        patch.setitem(script.TRAINING, "learning_rate", "1e-3")
        yield script.prepare(tmp_path_factory.mktemp("trained"))


def test_four_programs_answer_alike(script, folders):
    found = script.compare(folders, every=3)
    assert found["prompts"] == 7
    assert found["answers_that_training_changed"] >= 4
    assert found["tokens_before_a_tie"] >= 20
    assert {name: reader["same_up_to_a_tie"] for name, reader in found["readers"].items()} == {
        "transformers": 7, "meta_decoder": 7, "llama.cpp": 7
    }  # fmt: skip


def test_another_adapter_answers_otherwise(script, folders, tmp_path, shallow):
    """The comparison can fail: the merges are not of the adapter that they are held against."""
    other = make_adapter(tmp_path / "other", shallow, r=8, lora_alpha=0.5)
    for name in ("held_out.jsonl", "prompt.json", "base.json"):
        shutil.copyfile(folders["adapter"] / name, other / name)
    for reader in script.compare(folders | {"adapter": other}, every=3)["readers"].values():
        assert reader["same_up_to_a_tie"] < 5


def test_llama_cpp_cuts_text_as_the_embedded_base_does(script, tmp_path, shallow):
    adapter = make_adapter(tmp_path / "adapter", shallow, target_modules=["v_proj"], r=2)
    write_gguf(shallow, adapter, tmp_path / "merged")
    texts = [*HARD_TEXTS, *script.QUESTIONS]
    found = read(tmp_path / "merged" / "model.gguf", texts=texts)
    tokenizer = read_tokenizer(shallow)
    for text, tokens in zip(texts, found.tokens, strict=True):
        assert tokens == tokenizer.encode(text), text
