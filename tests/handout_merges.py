"""The two merges of the handout's 2.4, rewritten: the same calls, folders and sizes as arguments.

`python handout_merges.py merge_and_unload|state_dict BASE ADAPTER OUT`
"""

import json
import re
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM, LlamaTokenizer


def merge_and_unload(base: str, adapter: str, out: Path) -> None:
    """2.4.1: peft's own merge in bf16, as a Hugging Face folder."""
    model = LlamaForCausalLM.from_pretrained(
        base, torch_dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    lora = PeftModel.from_pretrained(model, adapter, device_map={"": "cpu"})
    tokenizer = LlamaTokenizer.from_pretrained(base)
    if model.get_input_embeddings().weight.size(0) != len(tokenizer):
        model.resize_token_embeddings(len(tokenizer))
    merged = lora.merge_and_unload()
    tokenizer.save_pretrained(out)
    LlamaForCausalLM.save_pretrained(merged, out)


NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
}


def state_dict(base: str, adapter: str, out: Path) -> None:
    """2.4.2 without load_in_8bit, which transformers 5 refuses: a flag, a table of names."""
    model = LlamaForCausalLM.from_pretrained(
        base, torch_dtype=torch.float16, device_map={"": "cpu"}
    )
    lora = PeftModel.from_pretrained(
        model, adapter, device_map={"": "cpu"}, torch_dtype=torch.float16
    )
    for layer in lora.base_model.model.model.layers:
        layer.self_attn.q_proj.merge_weights = True
        layer.self_attn.v_proj.merge_weights = True
    lora.train(False)
    config = model.config
    width, head = config.hidden_size, config.head_dim
    tensors = {}
    for key, tensor in lora.state_dict().items():
        name = key.replace("base_model.model.", "").replace("base_layer.", "")
        if "lora" in name or name.endswith("rotary_emb.inv_freq"):
            continue
        found = re.fullmatch(r"(?:model\.(layers\.\d+)\.)?(.+)\.weight", name)
        new = ".".join(filter(None, [found[1], NAMES[found[2]], "weight"]))
        if "wq" in new or "wk" in new:
            rows = tensor.view(-1, 2, head // 2, width).transpose(1, 2)
            tensor = rows.reshape(-1, width)
        tensors[new] = tensor
    params = {
        "dim": width, "n_layers": config.num_hidden_layers, "vocab_size": config.vocab_size,
        "n_heads": config.num_attention_heads, "n_kv_heads": config.num_key_value_heads,
        "multiple_of": 8, "norm_eps": config.rms_norm_eps,
    }  # fmt: skip
    out.mkdir()
    torch.save(tensors, out / "consolidated.00.pth")
    (out / "params.json").write_text(json.dumps(params))


if __name__ == "__main__":
    script, base, adapter, out = sys.argv[1:]
    {"merge_and_unload": merge_and_unload, "state_dict": state_dict}[script](
        base, adapter, Path(out)
    )
