"""`suri serve`: an HTTP API as OpenAI's, over a model and any number of adapters."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tyro

from suri.cli.chat import model_names
from suri.cli.flags import parse
from suri.errors import UsageError
from suri.web.doors import refuse_open_door


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Answer HTTP requests as OpenAI's API does."""

    model: tyro.conf.Positional[str] = ""
    """Run, adapter, or model folder in HF's or Meta's format ("": the embedded base)."""
    base_model: str = ""
    """Folder of the base under --lora_weights, or of a whole model."""
    lora_weights: str = ""
    """Folder of the adapter."""
    adapter: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=FOLDER of a further adapter over the same base; may be given again and again."""
    load_8bit: bool = False
    """Store the linear layers as int8: less memory, a little less exact."""
    prompt_template: str = ""
    """Name or file of a prompt template ("": the one saved with each model, else alpaca)."""
    server_name: str = "127.0.0.1"
    """Address to listen on; any but this machine's own needs --password."""
    port: int = 8000
    """Port of the API (0: any free one)."""
    password: str = ""
    """What clients must send as their API key."""
    max_tokens: int = 512
    """Most tokens of one answer; requests for more are refused."""
    max_prompt_tokens: int = 8192
    """Most tokens of one prompt, within the model's window."""
    queue: int = 64
    """Requests waiting and being answered at once; further ones are refused (429)."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where torch can use one."""
    page: bool = True
    """Show the page of `suri chat` at / too, where gradio is installed."""
    runs: str = "."
    """Folder of the runs, data and merges that the page shows and makes; it reaches no other."""


def run(argv: list[str]) -> None:
    """Parse `suri serve`, and serve until interrupted."""
    asked = parse(Serve, argv, "suri serve")
    refuse_open_door("API", asked.server_name, asked.password)
    numbers = (("max_tokens", 1), ("max_prompt_tokens", 1), ("queue", 1), ("port", 0))
    low = [f"{name} is at least {least}" for name, least in numbers if getattr(asked, name) < least]
    if low or asked.max_tokens > 100_000:
        raise UsageError(f"this cannot work: {', '.join(low) or 'max_tokens is at most 100000'}")
    model, adapter = model_names(asked.model, asked.base_model, asked.lora_weights)
    adapters = _adapters(asked.adapter)
    serve_api, limits = _server(asked)
    from suri.infer.served import check_prompt, open_served

    check_prompt(asked.prompt_template)
    print(f"opening {model}" + (f" with {adapter}" if adapter else ""), flush=True)
    served = open_served(
        model,
        lora_weights=adapter,
        adapters=adapters,
        load_8bit=asked.load_8bit,
        device=asked.device,
        prompt=asked.prompt_template,
    )
    serve_api(
        served,
        limits,
        server_name=asked.server_name,
        port=asked.port,
        password=asked.password,
        runs=Path(asked.runs.strip() or ".") if asked.page and find_spec("gradio") else None,
    )


def _adapters(words: tuple[str, ...]) -> dict[str, str]:
    adapters: dict[str, str] = {}
    for word in words:
        name, _, folder = word.partition("=")
        if not name.strip() or not folder.strip() or name.strip() in adapters:
            raise UsageError(
                f"--adapter {word} is not a new name and a folder",
                do="write --adapter NAME=FOLDER, each name once",
            )
        adapters[name.strip()] = folder.strip()
    return adapters


def _server(asked: Serve) -> tuple[Any, Any]:
    try:
        from suri.web.api import Limits
        from suri.web.serve import serve_api
    except ImportError as problem:
        if problem.name not in ("starlette", "uvicorn"):
            raise
        raise UsageError(
            f"the API needs the package {problem.name}", do='pip install "suri[serve]"'
        ) from None
    return serve_api, Limits(asked.max_tokens, asked.max_prompt_tokens, asked.queue)
