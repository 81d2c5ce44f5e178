"""What a folder holds already: adapters are not added twice, nor to a base that is not theirs."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from merges import (
    adapter,
    base,
    files_in,
    make_adapter,
    make_base,
    merged_by_peft,
    own_cache,
    reference_logits,
    write_gguf,
    write_hf,
    write_meta,
)

from suri.errors import UsageError
from suri.export.fold import open_merge
from suri.export.provenance import held_adapters
from suri.export.verify import verify
from suri.files import write_json
from suri.model.adapter_file import read_adapter, write_adapter
from suri.model.weights import base_identity, find_base
from suri.reading import read_json

WRITERS = {"hf": write_hf, "meta": write_meta, "gguf": write_gguf}


@pytest.fixture(scope="module")
def merged(tmp_path_factory, base, adapter) -> Path:
    folder = tmp_path_factory.mktemp("merges") / "merged"
    write_hf(base, adapter, folder)
    return folder


def trained_on(folder: Path, base: Path, **settings) -> Path:
    """Another adapter, with the identity of the base that it was trained on."""
    make_adapter(folder, base, **{"r": 4, "target_modules": ["v_proj", "up_proj"]} | settings)
    plain = dataclasses.replace(read_adapter(folder), base=base_identity(base, "none"))
    shutil.rmtree(folder)
    folder.mkdir()
    write_adapter(folder, plain)
    return folder


@pytest.mark.parametrize("to", WRITERS)
def test_an_adapter_is_not_added_twice(to, base, adapter, merged, tmp_path):
    with pytest.raises(UsageError, match="holds this adapter already") as caught:
        WRITERS[to](merged, adapter, tmp_path / "twice")
    assert f"--base_model {base}" in caught.value.do
    copied = shutil.copytree(adapter, tmp_path / "copied")
    with pytest.raises(UsageError, match="holds this adapter already"):
        WRITERS[to](merged, copied, tmp_path / "twice")
    assert files_in(tmp_path) == {"copied"}


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [False, True])
def test_another_merge_is_not_the_base(recorded, base, merged, tmp_path):
    """A bare PEFT adapter, and one that records the base before the merge."""
    make = trained_on if recorded else make_adapter
    other = make(tmp_path / "other", base, target_modules=["v_proj", "up_proj"])
    with pytest.raises(UsageError, match="was not trained on it") as caught:
        write_hf(merged, other, tmp_path / "sum")
    assert "is a merged model" in caught.value.what
    assert f"--base_model {base}" in caught.value.do
    assert files_in(tmp_path) == {"other"}
    assert write_hf(base, other, tmp_path / "right").passed


def test_a_merge_that_left_the_sampled_rows_is_still_told_apart(base, tmp_path):
    """The fingerprint reads q_proj and the last norm: both merges share it with their base."""
    first = trained_on(tmp_path / "first", base)
    second = trained_on(tmp_path / "second", base, r=3)
    write_hf(base, first, tmp_path / "merged")
    marks = [base_identity(f, "none")["fingerprint"] for f in (base, tmp_path / "merged")]
    assert marks[0] == marks[1]
    with pytest.raises(UsageError, match="was not trained on it"):
        write_hf(tmp_path / "merged", second, tmp_path / "sum")


@pytest.mark.slow
@pytest.mark.parametrize("targets", [["v_proj", "up_proj"], ["q_proj", "down_proj"]])
def test_what_was_trained_on_a_merge_is_added_to_it(targets, base, tmp_path):
    first = make_adapter(tmp_path / "first", base, target_modules=targets)
    write_hf(base, first, tmp_path / "merged")
    second = trained_on(tmp_path / "second", tmp_path / "merged")
    certificate = write_hf(None, second, tmp_path / "both")
    assert certificate.passed
    assert [each["path"] for each in certificate.record["base"]["holds"]] == [str(first)]
    assert [each["path"] for each in held_adapters(tmp_path / "both")] == [str(first), str(second)]
    for again in (first, second):
        with pytest.raises(UsageError, match="holds this adapter already"):
            open_merge(again, tmp_path / "both")
    assert verify(tmp_path / "both")[0].passed


@pytest.mark.slow
@pytest.mark.parametrize("to", WRITERS)
def test_a_conversion_hands_on_what_its_source_holds(to, base, adapter, merged, tmp_path):
    WRITERS[to](merged, None, tmp_path / "converted", "float32")
    converted = find_base(str(tmp_path / "converted"))
    assert [each["path"] for each in held_adapters(converted)] == [str(adapter)]
    card = (tmp_path / "converted" / "README.md").read_text(encoding="utf-8")
    assert f"which hold `{adapter.name}`" in card
    with pytest.raises(UsageError, match="holds this adapter already"):
        open_merge(adapter, converted)
    other = make_adapter(tmp_path / "other", base, r=3)
    with pytest.raises(UsageError, match="was not trained on it") as caught:
        open_merge(other, converted)
    assert f"--base_model {base}" in caught.value.do


@pytest.mark.slow
def test_a_conversion_of_a_plain_base_is_a_base(base, adapter, tmp_path):
    write_meta(base, None, tmp_path / "meta")
    assert held_adapters(tmp_path / "meta") == []
    assert write_hf(tmp_path / "meta", adapter, tmp_path / "merged").passed
    known = trained_on(tmp_path / "known", base)
    assert write_hf(tmp_path / "meta", known, tmp_path / "known-merged").passed


def test_a_merge_in_place_of_a_run_is_told_what_it_is(base, adapter, merged, tmp_path):
    with pytest.raises(UsageError, match="holds its adapter already") as caught:
        write_meta(base, merged, tmp_path / "out")
    assert caught.value.found == f"merged from {adapter}"
    assert f"suri chat {merged}" in caught.value.do
    assert f"suri convert {merged}" in caught.value.do
    write_hf(base, None, tmp_path / "converted")
    with pytest.raises(UsageError, match="whole model and no adapter") as caught:
        write_meta(None, tmp_path / "converted", tmp_path / "out")
    assert "already" not in caught.value.what


@pytest.mark.slow
@pytest.mark.parametrize("content", [[], {}, {"adapter": {"path": "x"}, "base": {"path": "y"}}])
def test_something_else_of_that_name_hinders_nothing(base, adapter, tmp_path, content):
    folder = shutil.copytree(base, tmp_path / "base")
    write_json(folder / "certificate.json", content)
    assert held_adapters(folder) == []
    assert write_hf(folder, adapter, tmp_path / "merged").passed


def test_the_refused_sum_would_have_been_another_model(base, adapter, merged, tmp_path):
    """Why it is refused: twice is not once, and PEFT adds it without a word."""
    once, twice = (reference_logits(merged_by_peft(f, adapter)) for f in (base, merged))
    assert (once - twice).abs().max() > 0.1
    assert read_json(merged / "certificate.json")["adapter"]["path"] == str(adapter)
