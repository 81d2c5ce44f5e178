"""What the next tool needs beside merged weights: tokenizer, chat template, Modelfile."""

import dataclasses
from pathlib import Path
from typing import Any

from suri.data.chat_template import ChatPrompt
from suri.data.prompt import PROMPT_FILE, Prompt, read_prompt
from suri.export.fold import Merge
from suri.export.gguf_reader import GGUF_FILE
from suri.export.prompt_templates import form_of, go_template, jinja_template
from suri.files import write_text
from suri.model.config import ModelConfig
from suri.model.tokenizer import CHAT_TEMPLATE, Tokenizer
from suri.recipe import Decoding

MODELFILE = "Modelfile"
CONTEXT = 8192
"""Most tokens for which the commands make room: caches for 131,072 do not fit most machines."""


def write_companions(merge: Merge, folder: Path, to: str) -> None:
    """Tokenizer, prompt and chat template; for Ollama, a Modelfile."""
    prompt = prompt_of(merge)
    if prompt is not None:
        prompt.save(folder)
    if merge.tokenizer is None:
        return
    template = template_of(prompt, merge.tokenizer)
    _write_tokenizer(merge.tokenizer, folder, template, in_file=to == "hf")
    if to == "gguf":
        write_text(folder / MODELFILE, modelfile(prompt, merge.tokenizer, merge.base.config))


def prompt_of(merge: Merge) -> Prompt | None:
    """The prompt that the weights know: the adapter's, or the one that a converted folder has."""
    if merge.adapter_folder:
        return read_prompt(merge.adapter_folder)
    folder = merge.base.folder
    return read_prompt(folder) if (folder / PROMPT_FILE).is_file() else None


def template_of(prompt: Prompt | None, tokenizer: Tokenizer) -> str | None:
    """The Jinja template that gives this prompt's text; the base's own stays as it is."""
    if prompt is None:
        return tokenizer.chat_template
    if isinstance(prompt, ChatPrompt):
        return prompt.template
    form = form_of(prompt, tokenizer, bos=True)
    assert form is not None  # a text prompt puts every turn in the same way
    return jinja_template(form)


def _write_tokenizer(
    tokenizer: Tokenizer, folder: Path, template: str | None, *, in_file: bool
) -> None:
    """The tokenizer with this chat template and no other, in a file of its own or its settings."""
    config = {key: value for key, value in tokenizer.config.items() if key != "chat_template"}
    # transformers 5 makes a LlamaTokenizer out of words alone and cuts them in its own way; this
    # class takes tokenizer.json as it is, as training did.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if template and in_file:
        write_text(folder / CHAT_TEMPLATE, template)
    elif template:
        config["chat_template"] = template
    dataclasses.replace(tokenizer, config=config).save(folder)


def sampling() -> dict[str, Any]:
    """How `suri chat` chooses tokens, by the names of generation_config.json."""
    usual = Decoding()
    return {
        "do_sample": usual.temperature > 0,
        "temperature": usual.temperature,
        "top_p": usual.top_p,
        "top_k": usual.top_k,
    }


def context_of(config: ModelConfig) -> int:
    """Tokens of prompt and answer together for which the commands make room."""
    return min(config.max_positions, CONTEXT)


def modelfile(prompt: Prompt | None, tokenizer: Tokenizer, config: ModelConfig) -> str:
    """Ollama's Modelfile. Source: github.com/ollama/ollama, docs/modelfile.md."""
    # Ollama puts BOS in front by itself where the GGUF file says so.
    form = form_of(prompt, tokenizer, bos=False) if prompt else None
    lines = [f"FROM ./{GGUF_FILE}"]
    if form is None and prompt:
        lines.append("# No TEMPLATE: the base's chat template writes each turn in its own way.")
    if form is not None:
        lines.append(f'TEMPLATE """{go_template(form)}"""')
    usual = Decoding()
    lines += [
        f'PARAMETER stop "{tokenizer.names["eos_token"]}"',
        f"PARAMETER num_ctx {context_of(config)}",
        f"PARAMETER temperature {usual.temperature:g}",
        f"PARAMETER top_p {usual.top_p:g}",
        f"PARAMETER top_k {usual.top_k}",
    ]
    return "\n".join(lines) + "\n"
