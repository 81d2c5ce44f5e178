"""The API's door, with servers that a client can hardly bring about in a test's time."""

import asyncio
import signal

import pytest
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from suri.web import api_guard
from suri.web.api import _fail
from suri.web.api_guard import Guard
from suri.web.api_metrics import Metrics
from suri.web.doors import _place, cleaning_up_on_sigterm

SCOPE = {
    "type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")],
    "query_string": b"", "http_version": "1.1", "scheme": "http", "asgi": {"spec_version": "2.3"},
}  # fmt: skip


def ask(app, send, metrics=None):
    """One request to `app` behind a guard; gives the guard."""
    guard = Guard(app, metrics or Metrics(), 1, "127.0.0.1", "")

    async def receive():
        await asyncio.sleep(60)

    asyncio.run(guard(dict(SCOPE), receive, send))
    return guard


async def endless(_request):
    async def pieces():
        while True:
            yield b"x"

    return StreamingResponse(pieces())


def test_who_takes_nothing_is_left(monkeypatch):
    monkeypatch.setattr(api_guard, "SEND_SECONDS", 0.1)
    metrics, taken = Metrics(), []

    async def send(message):
        taken.append(message)
        if len(taken) == 3:
            await asyncio.sleep(60)

    app = Starlette(routes=[Route("/", endless, methods=["POST"])])
    guard = ask(app, send, metrics)
    assert len(taken) == 3
    assert "suri_clients_left_total 1" in metrics.text()
    assert guard.inside == 0  # the next one may come in


def test_a_fault_is_told_as_an_error_and_the_next_request_comes_in():
    async def broken(_request):
        raise ZeroDivisionError

    app = Starlette(
        routes=[Route("/", broken, methods=["POST"])], exception_handlers={Exception: _fail}
    )
    sent = []

    async def send(message):
        sent.append(message)

    with pytest.raises(ZeroDivisionError):  # which the server logs
        ask(app, send)
    assert sent[0]["status"] == 500
    assert b'"type":"server_error"' in sent[1]["body"]


@pytest.mark.parametrize(
    "origin, place",
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("https://A.example", "a.example"),
        ("null", None),
        ("", None),
        ("file://", None),
        ("http://[", None),
    ],
)
def test_places_of_origins(origin, place):
    assert _place(origin) == place


def test_sigterm_ends_a_server_as_an_error_does_and_nothing_after_it():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, cleaning_up_on_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
