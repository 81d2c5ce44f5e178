"""`suri chat` and alpaca-lora's generate.py open the page; `suri generate` answers a file."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from suri.cli.flags import parse
from suri.data.chat_template import ChatPrompt
from suri.data.prompt import find_prompt
from suri.data.records import Record, read_records
from suri.errors import UsageError
from suri.files import make_folder, write_text
from suri.recipe import EMBEDDED, Decoding
from suri.web.doors import refuse_open_door

if TYPE_CHECKING:
    from suri.infer.engines import Model

AT_ONCE = 16
"""Rows answered between two lines of progress."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Open the chat page."""

    model: tyro.conf.Positional[str] = ""
    """Run, adapter, or model folder in HF's or Meta's format ("": the embedded base)."""
    base_model: str = ""
    """Folder of the base under --lora_weights, or of a whole model."""
    lora_weights: str = ""
    """Folder of the adapter."""
    load_8bit: bool = False
    """Store the linear layers as int8: less memory, a little less exact."""
    prompt_template: str = ""
    """Name or file of a prompt template ("": the one saved with the model, else alpaca)."""
    server_name: str = "127.0.0.1"
    """Address to listen on; any but this machine's own needs --password."""
    port: int = 7860
    """Port of the page."""
    share_gradio: bool = False
    """Make a public link through Gradio's servers; needs --password."""
    password: str = ""
    """What visitors must know."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where torch can use one."""


@dataclass(frozen=True, kw_only=True)
class File:
    """Answer a file of instructions."""

    file: tyro.conf.Positional[Path]
    """JSON list or JSONL of instructions, in Alpaca format; `output` may be missing."""
    model: str = EMBEDDED
    """Run folder, adapter folder, or model folder; with --lora_weights the base."""
    lora_weights: str = ""
    """Folder of the adapter."""
    load_8bit: bool = False
    """Store the linear layers as int8: less memory, a little less exact."""
    output_path: str = ""
    """File for the answers, one JSON object on each line ("": FILE.answers.jsonl)."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where torch can use one."""
    decoding: tyro.conf.OmitArgPrefixes[Decoding] = field(default_factory=Decoding)


def run_page(argv: list[str]) -> None:
    """Parse `suri chat` or alpaca-lora's generate.py, and serve until interrupted."""
    page = parse(Page, argv, "suri chat")
    refuse_open_door("page", page.server_name, page.password, share=page.share_gradio)
    open_page = _page_opener()
    base, adapter = _names(page)
    open_page(
        _open(base, adapter, page.load_8bit, page.device, page.prompt_template),
        server_name=page.server_name,
        port=page.port,
        share=page.share_gradio,
        password=page.password,
    )


def run_generate(argv: list[str]) -> None:
    """Parse `suri generate FILE` and write one line {instruction, input, answer} for each row."""
    asked = parse(File, argv, "suri generate")
    records = read_records(asked.file, need_output=False)
    out = Path(asked.output_path.strip() or asked.file.with_suffix(".answers.jsonl"))
    if out.exists():
        raise UsageError(
            f"{out} exists already", do="choose another --output_path, or remove that file first"
        )
    make_folder(out.parent)
    model = _open(asked.model, asked.lora_weights, asked.load_8bit, asked.device, "")
    rows = list(_answers(model, records, asked.decoding))
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"{len(rows)} answers: {out}")


def _answers(
    model: "Model", records: Sequence[Record], decoding: Decoding
) -> Iterator[dict[str, str]]:
    """Answer in the order of the file, and print how far it is."""
    began, tokens = time.perf_counter(), 0
    for start in range(0, len(records), AT_ONCE):
        batch = records[start : start + AT_ONCE]
        for record, answer in zip(batch, model.answer(batch, decoding), strict=True):
            tokens += answer.tokens
            row = {"instruction": record.instruction, "input": record.input}
            yield row | {"answer": answer.text}
        done, seconds = start + len(batch), time.perf_counter() - began
        left = seconds / done * (len(records) - done)
        speed = f"{tokens / seconds:.1f} tokens/s, {left:.0f} s left"
        print(f"{done}/{len(records)} rows, {speed}", flush=True)


def _names(page: Page) -> tuple[str, str]:
    return model_names(page.model, page.base_model, page.lora_weights)


def model_names(model: str, base: str, adapter: str) -> tuple[str, str]:
    """The model to open and the adapter on it, from MODEL, --base_model and --lora_weights."""
    model, base, adapter = (name.strip() for name in (model, base, adapter))
    if model and base and adapter:
        raise UsageError(
            f"three models are named: {model}, {base} and {adapter}",
            do="give MODEL alone, or --base_model with --lora_weights",
        )
    if base:
        return base, adapter or model
    return (model, adapter) if model else (adapter or EMBEDDED, "")


def _page_opener() -> Any:
    try:
        from suri.web.page import open_page
    except ImportError as problem:
        if not str(problem.name).startswith("gradio"):
            raise
        raise UsageError(
            "the page needs the package gradio", do='pip install "suri[chat]"'
        ) from None
    return open_page


def _open(base: str, adapter: str, load_8bit: bool, device: str, prompt: str) -> "Model":
    """The model, with another prompt where one is named."""
    if prompt and prompt != ChatPrompt.name:
        find_prompt(prompt)  # a wrong name is told before gigabytes are read
    print(f"opening {base.strip()}" + (f" with {adapter.strip()}" if adapter else ""), flush=True)
    from suri.infer.engines import open_model

    model = open_model(base, lora_weights=adapter, load_8bit=load_8bit, device=device)
    return replace(model, prompt=find_prompt(prompt, model.tokenizer)) if prompt else model
