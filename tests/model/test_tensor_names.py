"""Names and rotary order against hand-written rows and against the rotation itself."""

import pytest
import torch

from suri.errors import Corrupt
from suri.model.tensor_names import (
    NAMES,
    from_gguf,
    from_meta,
    permute,
    to_gguf,
    to_meta,
    unpermute,
)


def test_rows_of_two_heads_move_as_written_by_hand():
    """Head dimension 6: pairs (0,1)(2,3)(4,5) of each head become halves 0,2,4 | 1,3,5."""
    rows = torch.arange(12.0)
    by_hand = torch.tensor([0.0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11])
    assert torch.equal(permute(rows, 2), by_hand)
    assert torch.equal(unpermute(by_hand, 2), rows)


def test_matrix_rows_move_whole_and_come_back():
    matrix = torch.randn(3 * 8, 5)
    moved = permute(matrix, 3)
    assert not torch.equal(moved, matrix)
    assert torch.equal(moved[:, 2], permute(matrix[:, 2], 3))
    assert torch.equal(unpermute(moved, 3), matrix)


def test_half_split_rotation_of_permuted_rows_is_the_interleaved_rotation():
    """The reason for the permutation: q.k must not change when both conventions rotate."""
    heads, head_dim = 3, 8
    w = torch.randn(heads * head_dim, 5, dtype=torch.float64)
    x = torch.randn(5, dtype=torch.float64)
    angles = torch.tensor([0.3, 1.1, 2.0, 0.01], dtype=torch.float64)

    meta = torch.view_as_complex((w @ x).reshape(heads, head_dim // 2, 2))
    meta = torch.view_as_real(meta * torch.polar(torch.ones(4, dtype=torch.float64), angles))

    first, second = (permute(w, heads) @ x).reshape(heads, 2, head_dim // 2).unbind(1)
    hf_first = first * angles.cos() - second * angles.sin()
    hf_second = second * angles.cos() + first * angles.sin()
    assert torch.allclose(meta[..., 0], hf_first)
    assert torch.allclose(meta[..., 1], hf_second)


@pytest.mark.parametrize("pattern", [hf for hf, meta, _ in NAMES if meta])
def test_each_name_comes_back_from_meta(pattern):
    name = f"{pattern.format(17)}.weight"
    assert to_meta(name) != name
    assert from_meta(to_meta(name)) == name


@pytest.mark.parametrize("pattern", [hf for hf, _, _ in NAMES])
def test_each_name_comes_back_from_gguf(pattern):
    for kind in ("weight", "bias"):
        name = f"{pattern.format(17)}.{kind}"
        assert from_gguf(to_gguf(name) or "") == name


def test_names_that_gguf_does_not_have():
    for strange in (
        "model.layers.x.mlp.up_proj.weight",
        "model.norm",
        "model.layers.{}.mlp.up",
        "model.layers.{}.mlp.up_proj.weight",
    ):
        assert to_gguf(strange) is None
    assert from_gguf("blk.3.ffn_gate_exps.weight") is None


def test_the_names_of_the_first_layer_are_metas():
    assert to_meta("model.layers.0.mlp.down_proj.weight") == "layers.0.feed_forward.w2.weight"
    assert from_meta("layers.31.attention.wk.weight") == "model.layers.31.self_attn.k_proj.weight"


@pytest.mark.parametrize("translate", [to_meta, from_meta])
@pytest.mark.parametrize("name", ["self_attn.q_norm.weight", "self_attn.q_proj.bias"])
def test_an_unknown_name_is_named(translate, name):
    with pytest.raises(Corrupt, match=rf"model\.layers\.0\.{name}"):
        translate(f"model.layers.0.{name}")
