"""What a request's body asks for, checked field by field; what is wrong is named."""

import json
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from suri.data.prompt import TextPrompt
from suri.data.records import Record
from suri.recipe import Decoding

MOST_MESSAGES = 200
MOST_STOPS = 4
LONGEST_STOP = 200
SEEDS = 2**53
"""JSON's numbers are whole up to here everywhere."""

RAW = TextPrompt("raw", "{instruction}{input}", "{instruction}")
"""The prompt of /v1/completions: the text as it was sent, after BOS where the model has one."""


class Refusal(Exception):
    """A request that is not answered: the HTTP status, and OpenAI's fields of an error."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        kind = "server_error" if self.status >= 500 else kind
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


@dataclass(frozen=True)
class Asked:
    """One request: the model's name, what is put to it, and how the answer is to be."""

    model: str
    record: Record
    decoding: Decoding
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool


class Range(NamedTuple):
    """What a number may be."""

    kind: type[int] | type[float]
    low: float
    high: float


NUMBERS = {
    "temperature": Range(float, 0, 2),
    "top_p": Range(float, 0, 1),
    "top_k": Range(int, 0, 1_000_000),
    "repetition_penalty": Range(float, 0.1, 10),
    "seed": Range(int, -SEEDS, SEEDS),
}
ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "logprobs": (False, 0), "top_logprobs": (0,), "echo": (False,),
    "suffix": ("",), "logit_bias": ({},), "presence_penalty": (0,), "frequency_penalty": (0,),
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "function_call": ("none", "auto"), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "audio": (),
}  # fmt: skip
"""Fields that would change the answer in ways that are not there, with the values that do not."""


def read_body(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body."""
    try:
        body = json.loads(raw)
        # A lone half of a surrogate pair is in JSON, and in no text.
        json.dumps(body, ensure_ascii=False).encode()
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply") from None
    except ValueError as problem:
        raise Refusal(400, f"the body is not JSON: {str(problem)[:200]}") from None
    if not isinstance(body, dict):
        raise Refusal(400, "the body is not a JSON object")
    return {name: value for name, value in body.items() if value is not None}


def read_question(
    body: dict[str, Any], default_model: str, most_tokens: int, seed: int, *, chat: bool
) -> Asked:
    """What `body` asks for; without a seed of its own, sampling takes `seed`.

    Settings that it leaves out are those of `suri chat`. Raises Refusal naming the field.
    """
    for name, allowed in ONLY.items():
        if name in body and body[name] not in allowed:
            shown = " or ".join(json.dumps(value) for value in allowed)
            only = f"; only {shown} is" if shown else ""
            raise Refusal(400, f"{name}: this value is not supported{only}", param=name)
    model = body.get("model", default_model)
    if not isinstance(model, str):
        raise _wrong("model", "is the name of a model")
    stream = _flag(body, "stream", "stream")
    options = body.get("stream_options", {})
    if not isinstance(options, dict) or (options and not stream):
        raise _wrong("stream_options", "is an object, given with stream: true")
    numbers = {
        name: _number(name, body[name], allowed)
        for name, allowed in NUMBERS.items()
        if name in body
    }
    numbers.setdefault("seed", seed)
    if numbers.get("temperature") == 0:
        numbers["seed"] = 0  # nothing is drawn
    settings: dict[str, Any] = numbers | {"max_new_tokens": _most_tokens(body, most_tokens)}
    return Asked(
        model=model,
        record=_conversation(body.get("messages")) if chat else _text(body.get("prompt")),
        decoding=Decoding(**settings),
        stops=_stops(body.get("stop", [])),
        stream=stream,
        include_usage=_flag(options, "include_usage", "stream_options"),
    )


def _wrong(field: str, what: str) -> Refusal:
    return Refusal(400, f"{field} {what}", param=field)


def _flag(body: dict[str, Any], name: str, field: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise _wrong(field, f"{name} is true or false".removeprefix(f"{field} "))
    return value


def _number(name: str, value: Any, allowed: Range) -> int | float:
    kinds = (int, float) if allowed.kind is float else (int,)
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not allowed.low <= value <= allowed.high:
        what = "whole number" if allowed.kind is int else "number"
        raise _wrong(name, f"must be a {what} from {allowed.low:.15g} to {allowed.high:.15g}")
    number: int | float = allowed.kind(value)
    return number


def _most_tokens(body: dict[str, Any], most: int) -> int:
    """The smaller of the field's old and new name, or all that the server gives."""
    names = [name for name in ("max_tokens", "max_completion_tokens") if name in body]
    return min([int(_number(name, body[name], Range(int, 1, most))) for name in names] or [most])


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(stop, str) and 0 < len(stop) <= LONGEST_STOP for stop in stops)
    ):
        each = f"of 1 to {LONGEST_STOP} characters"
        raise _wrong("stop", f"is a text {each}, or a list of up to {MOST_STOPS}")
    return tuple(stops)


def _text(prompt: Any) -> Record:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise _wrong("prompt", "is one text (token ids and several prompts are not supported)")
    return Record(prompt, "", "")


def _conversation(messages: Any) -> Record:
    """The record of [system,] user, assistant, ..., user; neighbours of one role are one turn."""
    if not isinstance(messages, list) or not 0 < len(messages) <= MOST_MESSAGES:
        raise _wrong("messages", f"is a list of 1 to {MOST_MESSAGES} messages")
    turns: list[tuple[str, str]] = []
    for number, message in enumerate(messages):
        role, text = _message(message, f"messages[{number}]")
        if turns and turns[-1][0] == role:
            text = f"{turns.pop()[1]}\n\n{text}"
        turns.append((role, text))
    system = turns.pop(0)[1] if turns[0][0] == "system" else ""
    roles = [role for role, _ in turns]
    if len(roles) % 2 != 1 or roles != [("user", "assistant")[i % 2] for i in range(len(roles))]:
        raise _wrong("messages", "are system (if any), then user and assistant in turn, user last")
    texts = [text for _, text in turns]
    history = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
    return Record(texts[-1], "", "", history=history, system=system)


def _message(message: Any, place: str) -> tuple[str, str]:
    """Role and text of one message."""
    if not isinstance(message, dict):
        raise Refusal(400, f"{place} is an object with role and content", param=place)
    roles = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in roles:
        raise Refusal(400, f"{place}: role is one of {', '.join(roles)}", param=f"{place}.role")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        known = [text for text in texts if isinstance(text, str)]
        content = "".join(known) if len(known) == len(content) else None
    if not isinstance(content, str):
        raise Refusal(
            400, f"{place}: content is a text, or a list of parts of text", param=f"{place}.content"
        )
    return roles[role], content
