"""An HTTP API as OpenAI's, over a model and its adapters: the routes, and what they answer."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from suri.data.encode import encode_prompt
from suri.errors import SuriError
from suri.infer.pieces import Pieces
from suri.infer.served import Served
from suri.train.jobs import Runs
from suri.web.api_body import RAW, Asked, Refusal, read_body, read_question
from suri.web.api_guard import Guard, read_raw, refused
from suri.web.api_line import Job, Line, Part
from suri.web.api_metrics import Metrics


@dataclass(frozen=True)
class Limits:
    """How much may be asked for."""

    most_tokens: int
    """Of one answer."""
    most_prompt_tokens: int
    most_requests: int
    """Read, waiting and being answered at once; further ones are refused."""


class Api:
    """Answers requests; the model is used by the line's thread alone."""

    def __init__(self, served: Served, limits: Limits, metrics: Metrics) -> None:
        self.served, self.limits, self.metrics = served, limits, metrics
        self.line = Line(served, metrics)
        self.tokenizing = Lock()
        self.end_page: Callable[[], None] = lambda: None
        self.since = int(time.time())

    def end(self) -> None:
        """End all answers within a token, and what keeps pages connected."""
        self.line.end()
        self.end_page()

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._answer(request, chat=True)

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._answer(request, chat=False)

    async def models(self, _: Request) -> Response:
        """GET /v1/models: all that can be named as `model`."""
        return JSONResponse({"object": "list", "data": [self._card(n) for n in self.served.voices]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        name = request.path_params["name"]
        self._check_model(name)
        return JSONResponse(self._card(name))

    async def health(self, _: Request) -> Response:
        """GET /health: 200 as long as the thread that answers lives."""
        alive = self.line.thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "dead"}, 200 if alive else 500)

    async def show_metrics(self, _: Request) -> Response:
        """GET /metrics."""
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _answer(self, request: Request, *, chat: bool) -> Response:
        raw = await read_raw(request)
        asked, ids = await asyncio.to_thread(self._read, raw, chat)
        parts = _Parts(self, request, asked, ids)
        form = Form(asked, chat, len(ids))
        if asked.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(
                _events(parts, form), media_type="text/event-stream", headers=headers
            )
        async with parts.open() as coming:
            pieces = [part async for part in coming]
        if pieces[-1].finish == "error":
            raise parts.problem()
        text = "".join(part.text for part in pieces)
        return JSONResponse(form.whole(text, pieces[-1].finish, parts.job.tokens))

    def _read(self, raw: bytes, chat: bool) -> tuple[Asked, list[int]]:
        """What the body asks for, and the prompt's tokens."""
        most = self.limits.most_tokens
        seed = secrets.randbelow(2**31)
        asked = read_question(read_body(raw), self.served.default, most, seed, chat=chat)
        self._check_model(asked.model)
        field = "messages" if chat else "prompt"
        prompt = self.served.voices[asked.model].prompt if chat else RAW
        try:
            with self.tokenizing:  # the tokenizer's memory is for one thread at a time
                ids = [int(i) for i in encode_prompt(asked.record, self.served.tokenizer, prompt)]
        except SuriError as problem:
            raise Refusal(400, problem.in_one_line, param=field) from None
        window = self.served.decoder.config.max_positions
        longest = min(window - 1, self.limits.most_prompt_tokens)
        if not 0 < len(ids) <= longest:
            said = f"the prompt has {len(ids)} tokens; 1 to {longest} are read"
            raise Refusal(400, f"{field}: {said}", param=field, code="context_length_exceeded")
        room = min(asked.decoding.max_new_tokens, window - len(ids))
        return replace(asked, decoding=replace(asked.decoding, max_new_tokens=room)), ids

    def _check_model(self, name: str) -> None:
        if name not in self.served.voices:
            there = ", ".join(self.served.voices)
            raise Refusal(
                404, f"there is no model {name[:200]!r}; there is {there}", param="model",
                code="model_not_found",
            )  # fmt: skip

    def _card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.since, "owned_by": "suri"}


class _Parts:
    """The parts of one answer as they come; the job leaves the line when the reader does."""

    def __init__(self, api: Api, request: Request, asked: Asked, ids: list[int]) -> None:
        self.api, self.request = api, request
        self.coming: asyncio.Queue[Part] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(part: Part) -> None:
            with suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(self.coming.put_nowait, part)

        pieces = Pieces(api.served.tokenizer, asked.stops)
        self.job = Job(asked.model, ids, asked.decoding, pieces, deliver)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[Part]]:
        """Join the line, and leave it whatever happens."""
        watch = asyncio.create_task(self._watch())
        self.api.line.join(self.job)
        try:
            yield self._all()
        finally:
            watch.cancel()
            self.api.line.leave(self.job)

    def problem(self) -> Refusal:
        """Why the answer is none."""
        if self.api.line.closed:
            return Refusal(503, "the server is ending")
        return Refusal(500, "the model could not answer; the server's log says why")

    async def _all(self) -> AsyncIterator[Part]:
        while True:
            part = await self.coming.get()
            yield part
            if part.finish:
                return

    async def _watch(self) -> None:
        """Wait until the client is gone; the body has been read, so nothing else comes."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass
        self.api.line.leave(self.job)
        self.coming.put_nowait(Part("", "gone"))


class Form:
    """The forms in which OpenAI sends an answer."""

    def __init__(self, asked: Asked, chat: bool, prompt_tokens: int) -> None:
        self.asked, self.chat, self.prompt_tokens = asked, chat, prompt_tokens
        name = "chat.completion" if chat else "text_completion"
        self.id = ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
        self.kind, self.created = name, int(time.time())

    def whole(self, text: str, finish: str, tokens: int) -> dict[str, Any]:
        """An answer in one piece."""
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return self._with([self._choice(said, finish)], self.kind) | {"usage": self.usage(tokens)}

    def chunk(self, text: str, finish: str = "", *, first: bool = False) -> dict[str, Any]:
        """One piece of a stream."""
        delta = {"role": "assistant"} if first else {}
        if text or first:
            delta["content"] = text
        said: dict[str, Any] = {"delta": delta} if self.chat else {"text": text}
        return self._chunk([self._choice(said, finish)])

    def last(self, tokens: int) -> dict[str, Any]:
        """The piece with the usage, for who asked for it."""
        return self._chunk([]) | {"usage": self.usage(tokens)}

    def usage(self, tokens: int) -> dict[str, int]:
        """How many tokens were read and written."""
        both = {"prompt_tokens": self.prompt_tokens, "completion_tokens": tokens}
        return both | {"total_tokens": self.prompt_tokens + tokens}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self.asked.include_usage else {}
        return self._with(choices, self.kind + ".chunk" * self.chat) | usage

    def _choice(self, said: dict[str, Any], finish: str) -> dict[str, Any]:
        return {"index": 0, **said, "logprobs": None, "finish_reason": finish or None}

    def _with(self, choices: list[dict[str, Any]], kind: str) -> dict[str, Any]:
        facts = {"id": self.id, "object": kind, "created": self.created}
        return facts | {"model": self.asked.model, "choices": choices}


async def _events(parts: _Parts, form: Form) -> AsyncIterator[str]:
    """The answer as server-sent events."""
    async with parts.open() as coming:
        if form.chat:
            yield _event(form.chunk("", first=True))
        async for part in coming:
            if part.finish == "error":
                yield _event(parts.problem().body())
                return
            if part.text:
                yield _event(form.chunk(part.text))
            if part.finish:
                yield _event(form.chunk("", part.finish))
        if form.asked.include_usage:
            yield _event(form.last(parts.job.tokens))
        yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def build_app(
    served: Served, limits: Limits, *, host: str, password: str, runs: Path | None
) -> tuple[Guard, Api]:
    """The application, and what answers in it: close its line in the end.

    With a folder of runs, all other paths show the page.
    """
    metrics = Metrics()
    api = Api(served, limits, metrics)
    handlers: dict[Any, Any] = {Refusal: _refuse, HTTPException: _refuse_path, Exception: _fail}
    app = Starlette(routes=routes(api), exception_handlers=handlers)
    if runs:
        from suri.web.page import mount_page

        api.end_page = mount_page(app, served, Runs(runs), password)
    return Guard(app, metrics, limits.most_requests, host, password, runs is not None), api


def routes(api: Api) -> list[Route]:
    """Every path of the API."""
    return [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.complete, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model),
        Route("/health", api.health),
        Route("/metrics", api.show_metrics),
    ]


async def _refuse(_: Request, problem: Refusal) -> Response:
    return refused(problem)


async def _refuse_path(request: Request, problem: HTTPException) -> Response:
    said = f"{request.method} {request.url.path[:200]}: {problem.detail}"
    return refused(Refusal(problem.status_code, said))


async def _fail(_: Request, __: Exception) -> Response:
    return refused(Refusal(500, "a fault of the server's; its log has the details"))
