"""A server's doors: who reaches it, who must know a password, and how it is closed."""

import ipaddress
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from suri.errors import UsageError


def is_loopback(name: str) -> bool:
    """Whether an address or name is this machine's own, for itself alone."""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def refuse_open_door(what: str, server_name: str, password: str, *, share: bool = False) -> None:
    """Raise UsageError where others would reach a server that asks for no password."""
    if password or not (share or not is_loopback(server_name)):
        return
    reach = "through a public link" if share else f"on {server_name}"
    raise UsageError(
        f"the {what} would be open to everybody who reaches it {reach}",
        do="add --password WORD, or leave out --server_name" + " and --share_gradio" * share,
    )


def from_elsewhere(host: str, origin: str | None, server_name: str, password: str) -> str:
    """What speaks for a request that a page of another site made a reader's browser send; or "".

    It carries that site as `origin`, or, where its name was turned to this machine's address, as
    `host` (without a password: nobody else knows that).
    """
    name = _name(host)
    if not (password or is_loopback(name) or name == server_name.lower()):
        return f"this server is not {host[:200]!r}"
    if origin is not None and (not host or _place(origin) != host.lower()):
        return "requests from pages of other sites are refused"
    return ""


class SameSite:
    """An ASGI application whose requests come from its own pages alone."""

    def __init__(self, app: Callable[..., Any], server_name: str, password: str) -> None:
        self.app, self.server_name, self.password = app, server_name, password

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI's entry."""
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        said = from_elsewhere(host, origin, self.server_name, self.password)
        if scope["type"] != "http" or not said:
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 403, "headers": []})
        await send({"type": "http.response.body", "body": said.encode()})


def same_site(server_name: str, password: str) -> dict[str, Any]:
    """`SameSite` as FastAPI is given it."""
    from starlette.middleware import Middleware

    return {"middleware": [Middleware(SameSite, server_name=server_name, password=password)]}


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _place(origin: str) -> str | None:
    """HOST:PORT of an origin; None where it is none."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") else None


@contextmanager
def cleaning_up_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end what runs here as an error does; by itself it leaves temporary files."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def unusable(what: str, server_name: str, port: int, problem: Exception) -> UsageError:
    """The error for an address that cannot be listened on."""
    return UsageError(
        f"the {what} cannot be served on {server_name}:{port}",
        # What Gradio says after that names its own settings, not our flags.
        found=str(problem).splitlines()[0].partition(". ")[0],
        do=f"choose another port: --port {port + 1}",
    )
