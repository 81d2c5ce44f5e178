"""Which forms of the weights are compared, and in which number format each is written."""

import pytest

from suri.study.forms import DEFAULT, ways_of


def test_gguf_belongs_to_all_and_not_to_the_usual_ones():
    assert "gguf" not in DEFAULT
    assert "gguf" not in [way.form for way in ways_of("", "suri", "float32", "none")]
    assert "gguf" in [way.form for way in ways_of("all", "suri", "float32", "none")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gguf_is_written_in_float16_and_run_in_the_ways_format(dtype):
    hf, gguf = ways_of("hf,gguf", "suri", dtype, "none")
    assert (gguf.label, gguf.dtype, gguf.stored) == ("merged GGUF", dtype, "float16")
    assert gguf.model == "merged-gguf-float16"
    assert (hf.stored, hf.model) == (dtype, f"merged-hf-{dtype}")
    assert gguf.quantize("nf4") == "none"
    assert not gguf.with_adapter


def test_gguf_runs_in_suris_engine_alone():
    ways = ways_of("hf,gguf", "suri,transformers", "float32", "none")
    assert [way.name for way in ways] == ["hf", "gguf", "hf-transformers-float32"]
