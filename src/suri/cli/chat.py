"""`suri chat` and alpaca-lora's generate.py: a page to talk to a model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from suri.cli.flags import parse
from suri.data.chat_template import ChatPrompt
from suri.data.prompt import find_prompt
from suri.errors import UsageError
from suri.recipe import EMBEDDED
from suri.web.doors import refuse_open_door

if TYPE_CHECKING:
    from suri.infer.engines import Model


@dataclass(frozen=True, kw_only=True)
class Page:
    """Open the page: chat, training and results."""

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
    runs: str = "."
    """Folder of the runs, data and merges that the page shows and makes; it reaches no other."""


def run_page(argv: list[str]) -> None:
    """Parse `suri chat` or alpaca-lora's generate.py, and serve until interrupted."""
    page = parse(Page, argv, "suri chat")
    refuse_open_door("page", page.server_name, page.password, share=page.share_gradio)
    open_page = _page_opener()
    base, adapter = _names(page)
    from suri.infer.served import check_prompt, open_served
    from suri.train.jobs import Runs

    check_prompt(page.prompt_template)  # a wrong name is told before gigabytes are read
    print(f"opening {base.strip()}" + (f" with {adapter.strip()}" if adapter else ""), flush=True)
    served = open_served(
        base,
        lora_weights=adapter,
        load_8bit=page.load_8bit,
        device=page.device,
        prompt=page.prompt_template,
    )
    open_page(
        served,
        Runs(Path(page.runs.strip() or ".")),
        server_name=page.server_name,
        port=page.port,
        share=page.share_gradio,
        password=page.password,
    )


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


def open_named(base: str, adapter: str, load_8bit: bool, device: str, prompt: str) -> "Model":
    """The model, with another prompt where one is named."""
    if prompt and prompt != ChatPrompt.name:
        find_prompt(prompt)  # a wrong name is told before gigabytes are read
    print(f"opening {base.strip()}" + (f" with {adapter.strip()}" if adapter else ""), flush=True)
    from suri.infer.engines import open_model

    model = open_model(base, lora_weights=adapter, load_8bit=load_8bit, device=device)
    return replace(model, prompt=find_prompt(prompt, model.tokenizer)) if prompt else model
