"""The independent decoder against transformers' Llama, through a state dict made by hand."""

import json

import pytest
import torch
from merges import IDS, KINDS, make_base, reference_logits
from meta_folders import cut, meta_state

from suri.export.meta_decoder import MetaDecoder


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "llama3"), [(1, False), (2, False), (2, True), (4, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind, parts, llama3, tmp_path):
    import transformers

    base = make_base(tmp_path, vocab_size=132, **KINDS[kind])
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    config = model.config
    state = meta_state(model.state_dict(), config)
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
        "use_scaled_rope": kind == "scaled-rope",
    }
    for number, part in enumerate(cut(state, parts, llama3=llama3)):
        torch.save(part, tmp_path / f"consolidated.{number:02}.pth")
    (tmp_path / "params.json").write_text(json.dumps(params))
    texts = [*IDS, list(range(130))]
    expected = reference_logits(model, texts)
    found = MetaDecoder(tmp_path).logits(texts)
    assert found.dtype == torch.float32
    assert expected.std() > 0.05
    assert (found - expected).abs().max() < 2e-5


def test_it_shares_no_code_with_the_decoder():
    import ast
    from pathlib import Path

    from suri.export import meta_decoder

    tree = ast.parse(Path(meta_decoder.__file__).read_text(encoding="utf-8"))
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = [getattr(n, "module", None) or n.names[0].name for n in imports]
    assert names
    assert not [name for name in names if name.startswith("suri")]
