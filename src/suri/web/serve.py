"""Runs the API on a port until it is interrupted, and tells how to ask it."""

import json
import shlex
import socket
from pathlib import Path

import uvicorn

from suri.infer.served import Served
from suri.web.api import Api, Limits, build_app
from suri.web.doors import cleaning_up_on_sigterm, unusable

BACKLOG = 256
MOST_CONNECTIONS = 500
"""Idle ones among them; whoever comes then gets a 503."""
GRACE_SECONDS = 10


@cleaning_up_on_sigterm()
def serve_api(
    served: Served, limits: Limits, *, server_name: str, port: int, password: str,
    runs: Path | None = None,
) -> None:  # fmt: skip
    """Serve until interrupted, the page too over a folder of runs; port 0 is any free one.

    Raises UsageError when the address cannot be used.
    """
    listener = _listen(server_name, port)
    host = f"[{server_name}]" if ":" in server_name else server_name
    app, api = build_app(served, limits, host=server_name, password=password, runs=runs)
    # Everything that uvicorn would take from the environment is said here.
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on" if runs else "off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        forwarded_allow_ips="",
        server_header=False,
        workers=1,
        limit_concurrency=MOST_CONNECTIONS,
        env_file=None,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    print(how_to_ask(served, f"http://{host}:{listener.getsockname()[1]}", password), flush=True)
    try:
        _Server(config, api).run(sockets=[listener])
    finally:
        api.line.close()


class _Server(uvicorn.Server):
    """Ends answers under way when it is to end, instead of waiting for them."""

    def __init__(self, config: uvicorn.Config, api: Api) -> None:
        super().__init__(config)
        self.api = api

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, with the answers first."""
        self.api.end()
        await super().shutdown(sockets)


def _listen(server_name: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in server_name else socket.AF_INET
    try:
        return socket.create_server((server_name, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as problem:
        raise unusable("API", server_name, port, problem) from None


def how_to_ask(served: Served, address: str, password: str) -> str:
    """Commands to copy; the password itself is not shown."""
    key = "PASSWORD" if password else "none"
    header = f"-H 'Authorization: Bearer {key}' " if password else ""
    body = {"model": served.default, "messages": [{"role": "user", "content": "Say hello."}]}
    return f"""Suri answers at {address}  (Ctrl-C ends it)
models: {", ".join(served.voices)}

  curl {address}/v1/chat/completions {header}-H 'Content-Type: application/json' \\
    -d '{json.dumps(body, ensure_ascii=False)}'

  from openai import OpenAI
  client = OpenAI(base_url="{address}/v1", api_key="{key}")
  answer = client.chat.completions.create(**{body})

For many users, by vLLM on a GPU:
{for_many_users(served)}
"""


def for_many_users(served: Served) -> str:
    """Commands by which vLLM serves the same: at once, or after each adapter is made ready."""
    base = served.base.folder
    adapters = {name: voice for name, voice in served.voices.items() if voice.pairs}
    if not (base / "config.json").is_file():
        convert = ["suri", "convert", str(base), "--to", "hf", "--output_dir", "base-hf"]
        return f"  {shlex.join(convert)}    # it reads Hugging Face folders alone"
    if not adapters:
        return "  " + shlex.join(
            ["vllm", "serve", str(base), "--served-model-name", served.default]
        )
    merges = [
        shlex.join(["suri", "merge", str(voice.folder), "--to", "vllm", "--output_dir",
                    f"{name}-vllm"])
        for name, voice in adapters.items()
    ]  # fmt: skip
    return "\n".join(f"  {merge}    # prints it" for merge in merges)
