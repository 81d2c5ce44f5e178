"""The model card of a merge: where it comes from, how it was checked, the next tools' commands."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from suri.errors import SuriError
from suri.export.certify import Certificate
from suri.export.companions import MODELFILE, context_of, prompt_of
from suri.export.fold import Merge, name_of
from suri.export.gguf_reader import GGUF_FILE
from suri.export.provenance import held_adapters
from suri.files import write_text
from suri.model.adapter import Adapter
from suri.reading import read_json
from suri.recipe import Recipe, recipe_from_toml

README = "README.md"
LIBRARIES = {"hf": "transformers", "gguf": "gguf", "meta": "pytorch"}
NOT_RECORDED = "not recorded; see where it comes from"

CARD = """\
---
library_name: {library}
pipeline_tag: text-generation
tags: [{tags}]
---

# {title}

{what}

## Use

Inside this folder:

```bash
{commands}
```

{prompt}

## Where it comes from

{origin}

## How it was checked

After the files were written they were read back by {reader}:

| check | figure | limit |
|---|--:|--:|
{checks}

`certificate.json` holds the same with the checksums of {sources} and every file here but this
one, which is for people to edit. `suri verify .` checks them again.
"""


def write_card(merge: Merge, certificate: Certificate, folder: Path, name: str) -> None:
    """Write README.md of a certified folder that will be called `name`."""
    adapter, base = merge.adapter, name_of(merge.base.folder)
    title = f"{base}, in another format"
    if merge.adapter_folder:
        title = f"{base} + {name_of(merge.adapter_folder)}, merged"
    card = CARD.format(
        library=LIBRARIES[certificate.to],
        tags="lora, merged" if adapter else "converted",
        title=title,
        what=_merged(merge, adapter) if adapter else _converted(merge),
        commands="\n".join(_commands(merge, certificate.to, name)),
        prompt=_prompt(merge, certificate.to),
        origin="\n".join(f"- {line}" for line in _origin(merge)),
        reader=" and ".join(certificate.readers),
        checks="\n".join(_rows(certificate)),
        sources="base, adapter" if adapter else "the source",
    )
    write_text(folder / README, card)


def _merged(merge: Merge, adapter: Adapter) -> str:
    assert merge.adapter_folder
    quantized = " W is the base after nf4 and back, as in training."
    r, alpha = (_spread(adapter, of) for of in (adapter.rank_of, adapter.alpha_of))
    return (
        f"The weights of `{name_of(merge.base.folder)}` with the LoRA adapter "
        f"`{name_of(merge.adapter_folder)}` (r {r}, alpha {alpha}, on "
        f"{', '.join(adapter.targets)})\nmerged into them: {_formula(adapter)} in fp32, rounded "
        f"once to {merge.dtype_name}.{quantized if merge.quantize == 'nf4' else ''}"
    )


def _converted(merge: Merge) -> str:
    held = [f"`{Path(each['path']).name}`" for each in held_adapters(merge.base.folder)]
    holding = f", which hold {' and '.join(held)}" if held else ""
    return (
        f"The weights of `{name_of(merge.base.folder)}`{holding}, every tensor of them, in "
        f"{merge.dtype_name}.\nNothing was trained or added here."
    )


def _formula(adapter: Adapter) -> str:
    """What was made of a weight W, as text."""
    scaling = _spread(adapter, adapter.scaling_of)
    if adapter.magnitudes:
        return f"DoRA's m (W + s B A) / |W + s B A| by row, s {scaling}, by peft"
    return f"W + s B A, s {scaling} by module," if " to " in scaling else f"W + {scaling} B A"


def _spread(adapter: Adapter, of: Callable[[str], float]) -> str:
    """One number, or from the least to the largest of the adapter's modules."""
    numbers = sorted({of(module) for module in adapter.tensors})
    return " to ".join(f"{number:g}" for number in (numbers[:1] + numbers[1:][-1:]))


def _commands(merge: Merge, to: str, name: str) -> list[str]:
    """What opens the folder, each line to be typed as it stands."""
    context = context_of(merge.base.config)
    served = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "merged"
    others = {
        "hf": [f"vllm serve . --served-model-name {served} --max-model-len {context}"],
        "gguf": [
            f"llama-cli -m {GGUF_FILE} --jinja -c {context}",
            f"llama-server -m {GGUF_FILE} --jinja -c {context}",
            f"ollama create {served} -f {MODELFILE} && ollama run {served}",
        ],
        "meta": [],
    }
    usable = others[to] if merge.tokenizer else []
    return ["suri chat .", *usable, "suri verify ."]


def _prompt(merge: Merge, to: str) -> str:
    """Which prompt the model knows, and what other programs make of it."""
    prompt = prompt_of(merge)
    if prompt is None:
        return "Its chat template, where it has one, is that of its source."
    text = f"The prompt that it was trained with, `{prompt.name}`, "
    places = {
        "hf": "`chat_template.jinja`",
        "gguf": f"`{GGUF_FILE}` (llama.cpp), `{MODELFILE}` (Ollama)",
    }
    if to not in places or merge.tokenizer is None:
        return text + "is in `prompt.json`."
    return (
        f"{text}is in `prompt.json` and, as a chat template,\nin {places[to]}. Text like "
        f"`{merge.tokenizer.names['eos_token']}` in a message stays text in Suri alone; other\n"
        "programs take it for the token."
    )


def _origin(merge: Merge) -> list[str]:
    """Base, settings and rows, as far as the two folders tell."""
    name, folder = name_of(merge.base.folder), merge.adapter_folder
    lines = [f"Base: `{name}`. Licence of the base: {_base_licence(merge.base.folder)}."]
    if folder is None:
        return lines
    result, recipe = _json(folder / "result.json"), _recipe(folder / "recipe.toml")
    if result and recipe:
        lines.append(
            f"Training: {result.get('steps')} steps of {recipe.batch_size} rows, "
            f"{result.get('rows')} rows in all, learning rate {recipe.learning_rate:g}, rank "
            f"{recipe.lora_r}, alpha {recipe.lora_alpha:g}, base stored as "
            f"{'given' if recipe.quantize == 'none' else recipe.quantize}."
        )
    data = _json(folder / "data.json")
    if digest := data.get("sha256"):
        lines.append(f"Data: sha256 `{digest}`.")
    lines.append(f"Licence of the data: {data.get('licence') or NOT_RECORDED}.")
    return lines


def _base_licence(folder: Path) -> str:
    """The licence that the base's folder names: ours in source.json, others in a model card."""
    if named := _json(folder / "source.json").get("licence"):
        return str(named)
    if not (folder / README).is_file():
        return NOT_RECORDED
    card = (folder / README).read_text(encoding="utf-8", errors="replace")
    front = card.split("\n---", 1)[0] if card.startswith("---\n") else ""
    found = re.search(r"^license(?:_name)?:[ \t]*([\w.+-]+)[ \t]*$", front, flags=re.MULTILINE)
    return found[1] if found else NOT_RECORDED


def _rows(certificate: Certificate) -> list[str]:
    return [
        f"| {check.name} | {check.figure:.3g} | {'>=' if check.at_least else '<='} "
        f"{check.limit:g} |"
        for check in certificate.checks
    ]


def _json(file: Path) -> dict[str, Any]:
    value = read_json(file) if file.is_file() else {}
    return value if isinstance(value, dict) else {}


def _recipe(file: Path) -> Recipe | None:
    """The settings of a run of ours; None where there are none, or those of another version."""
    try:
        return recipe_from_toml(file) if file.is_file() else None
    except SuriError:
        return None
