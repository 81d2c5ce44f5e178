"""The API's door: who may come in, how much a body may hold, and a count of all that came."""

import asyncio
import hmac
import time

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from suri.web.api_body import Refusal
from suri.web.api_metrics import Metrics
from suri.web.doors import from_elsewhere

MOST_BYTES = 1_000_000
BODY_SECONDS = 30.0
"""Within which a body must have come."""
SEND_SECONDS = 60.0
"""Within which a client must take what it is sent; else it is left."""
RETRY_SECONDS = 2


class Guard:
    """Lets a request through to `app`, or refuses it before anything of its body is read.

    With a page the password is asked for on the API's paths alone: the page asks for it itself.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, most_requests: int, host: str, password: str,
        page: bool = False,
    ) -> None:  # fmt: skip
        self.app, self.metrics, self.most_requests = app, metrics, most_requests
        self.host, self.password, self.page = host, password, page
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entry."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":
            return
        began = time.perf_counter()

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                label = f'status="{message["status"]}"'
                self.metrics.add("suri_requests_total", label=label)
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        try:
            await self._let_in(scope, receive, counting)
        except TimeoutError:  # the server closes the connection
            self.metrics.add("suri_clients_left_total")
        finally:
            self.metrics.add("suri_request_seconds_sum", time.perf_counter() - began)
            self.metrics.add("suri_request_seconds_count")

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        asks = scope["method"] == "POST"
        problem = self._problem(scope, Headers(scope=scope))
        if problem is None and asks and self.inside >= self.most_requests:
            problem = Refusal(429, "the queue is full; please ask again soon", code="queue_full")
        if problem:
            await refused(problem)(scope, receive, send)
            return
        self.inside += asks
        try:
            await self.app(scope, receive, send)
        finally:
            self.inside -= asks

    def _problem(self, scope: Scope, headers: Headers) -> Refusal | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if said := from_elsewhere(host, origin, self.host, self.password):
            return Refusal(403, said)
        if self._asks(scope["path"]) and not self._knows(headers.get("authorization", "")):
            return Refusal(
                401, "the password is missing or wrong: Authorization: Bearer PASSWORD",
                code="invalid_api_key",
            )  # fmt: skip
        return None

    def _asks(self, path: str) -> bool:
        """Whether the password must come with the request."""
        return path.startswith(("/v1", "/metrics")) if self.page else path != "/health"

    def _knows(self, authorization: str) -> bool:
        kind, _, given = authorization.partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self.password.encode())
        return not self.password or (right and kind.lower() == "bearer")


def refused(problem: Refusal) -> Response:
    """The response to a request that is not answered."""
    headers = {429: {"Retry-After": str(RETRY_SECONDS)}, 401: {"WWW-Authenticate": "Bearer"}}
    return JSONResponse(problem.body(), problem.status, headers.get(problem.status))


async def read_raw(request: Request) -> bytes:
    """The body, if it is not too large and comes in time."""
    too_large = Refusal(413, f"the body is larger than {MOST_BYTES:,} bytes")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > MOST_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > MOST_BYTES:
                    raise too_large
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {BODY_SECONDS:.0f} seconds") from None
    except ClientDisconnect:
        raise Refusal(400, "the client left") from None
    return bytes(body)
