"""`suri chat` (alpaca-lora's generate.py) and `suri serve`: a model on a port, as page or API."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import tyro

from suri.cli.flags import parse
from suri.errors import UsageError
from suri.recipe import EMBEDDED, refuse_outside
from suri.web.doors import refuse_open_door

if TYPE_CHECKING:
    from suri.infer.served import Served


PORTS = (0, 65_535)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which model is opened, and who may reach it."""

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="[MODEL]")]] = ""
    """Run, adapter, model folder, GGUF file or hub id ("": the embedded base)."""
    base_model: str = ""
    """The base under --lora_weights, or a whole model."""
    lora_weights: str = ""
    """Folder of the adapter."""
    load_8bit: bool = False
    """Store the linear layers as int8: less memory, a little less exact."""
    prompt_template: str = ""
    """Name or file of a prompt template ("": the one saved with each model, else alpaca)."""
    server_name: str = "127.0.0.1"
    """Address to listen on; any but this machine's own needs --password."""
    password: str = ""
    """What visitors must know, and programs must send as their API key."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where torch can use one."""
    runs: str = "."
    """Folder of the runs, data and merges that the page shows and makes; it reaches no other."""

    @property
    def runs_folder(self) -> Path:
        """What `runs` names."""
        return Path(self.runs or ".")


@dataclass(frozen=True, kw_only=True)
class Chat(Asked):
    """Open the page: chat, training and results."""

    port: int = 7860
    """Port of the page."""
    share_gradio: bool = False
    """Make a public link through Gradio's servers; needs --password."""


@dataclass(frozen=True, kw_only=True)
class Serve(Asked):
    """Answer HTTP requests as OpenAI's API does."""

    adapter: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=FOLDER of a further adapter over the same base; may be given again and again."""
    port: int = 8000
    """Port of the API (0: any free one)."""
    max_tokens: int = 512
    """Most tokens of one answer; requests for more are refused."""
    max_prompt_tokens: int = 8192
    """Most tokens of one prompt, within the model's window."""
    queue: int = 64
    """Requests waiting and being answered at once; further ones are refused (429)."""
    page: bool = True
    """Show the page of `suri chat` at / too, where gradio is installed."""


def run_chat(argv: list[str]) -> None:
    """Parse `suri chat` or alpaca-lora's generate.py, and serve until interrupted."""
    asked = parse(Chat, argv, "suri chat")
    refuse_open_door("page", asked.server_name, asked.password, share=asked.share_gradio)
    refuse_outside(asked, {"port": PORTS})
    try:
        from suri.web.page import open_page
    except ImportError as problem:
        _explain(problem, "the page", "chat")
    from suri.train.jobs import Runs

    open_page(
        _opened(asked),
        Runs(asked.runs_folder),
        server_name=asked.server_name,
        port=asked.port,
        share=asked.share_gradio,
        password=asked.password,
    )


def run_serve(argv: list[str]) -> None:
    """Parse `suri serve`, and serve until interrupted."""
    asked = parse(Serve, argv, "suri serve")
    refuse_open_door("API", asked.server_name, asked.password)
    limits = {
        "max_tokens": (1, 100_000), "max_prompt_tokens": (1, 10_000_000), "queue": (1, 1_000_000),
        "port": PORTS,
    }  # fmt: skip
    refuse_outside(asked, limits)
    adapters = _adapters(asked.adapter)
    try:
        from suri.web.api import Limits
        from suri.web.serve import serve_api
    except ImportError as problem:
        _explain(problem, "the API", "serve")
    served = _opened(asked, adapters)
    with suppress(KeyboardInterrupt):  # the end that was announced
        serve_api(
            served,
            Limits(asked.max_tokens, asked.max_prompt_tokens, asked.queue),
            server_name=asked.server_name,
            port=asked.port,
            password=asked.password,
            runs=asked.runs_folder if asked.page and find_spec("gradio") else None,
        )


def model_names(asked: Asked) -> tuple[str, str]:
    """The model to open and the adapter on it, from MODEL, --base_model and --lora_weights."""
    model, base, adapter = asked.model, asked.base_model, asked.lora_weights
    if model and base and adapter:
        raise UsageError(
            f"three models are named: {model}, {base} and {adapter}",
            do="give MODEL alone, or --base_model with --lora_weights",
        )
    if base:
        return base, adapter or model
    return (model, adapter) if model else (adapter or EMBEDDED, "")


def _opened(asked: Asked, adapters: Mapping[str, str] | None = None) -> "Served":
    """The model that the words name, with further adapters by their names."""
    from suri.infer.served import check_prompt, open_served

    model, adapter = model_names(asked)
    check_prompt(asked.prompt_template)
    print(f"opening {model}" + (f" with {adapter}" if adapter else ""), flush=True)
    return open_served(
        model,
        lora_weights=adapter,
        adapters=adapters,
        load_8bit=asked.load_8bit,
        device=asked.device,
        prompt=asked.prompt_template,
    )


def _adapters(words: tuple[str, ...]) -> dict[str, str]:
    adapters: dict[str, str] = {}
    for word in words:
        name, folder = (part.strip() for part in word.partition("=")[::2])
        if not name or not folder or name in adapters:
            raise UsageError(
                f"--adapter {word} is not a new name and a folder",
                do="write --adapter NAME=FOLDER, each name once",
            )
        adapters[name] = folder
    return adapters


def _explain(problem: ImportError, what: str, extra: str) -> NoReturn:
    """Name the package that is missing, and what installs it; a fault of our own stays one."""
    package = str(problem.name).partition(".")[0]
    if package not in ("gradio", "starlette", "uvicorn"):
        raise problem
    install = f'pip install "suri[{extra}]"'
    raise UsageError(f"{what} needs the package {package}", do=install) from None
