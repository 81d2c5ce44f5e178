"""The sandbox: a process of its own that renders chat templates, which are code from outside.

`python -m suri.data.chat_sandbox` reads a request from stdin and writes a reply to stdout, both as
JSON. The request holds `template`, `names` (variables of the template, such as bos_token), `today`
and `conversations`, each the variables `messages` and `add_generation_prompt`. The reply holds
`replies`, a `text` or a `problem` for each conversation, or one `problem` for all of them.
"""

import json
import math
import sys
import time
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 0.8  # at least; the system counts whole seconds
MEMORY = 256 << 20  # bytes of address space
MAX_TEXT = 1_000_000  # characters


class _Generation(Extension):
    """transformers' {% generation %} around an answer; it marks text and changes none."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Its body, as if the tags were not there."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def main() -> None:
    """Answer the one request on stdin."""
    request = json.load(sys.stdin)
    # A string and an error, for which Python and jinja2 open files of their own.
    with suppress(TemplateError):
        _compile("{{ raise_exception('\\n') }}", request["today"]).render()
    _limit()
    try:
        reply = _reply(request)
    except MemoryError as problem:
        reply = {"problem": str(problem) or f"it needs over {MEMORY >> 20} MiB of memory"}
    except Exception as problem:  # whatever code from outside stumbles over
        reply = {"problem": _explained(problem)}
    json.dump(reply, sys.stdout)


def _limit() -> None:
    """From here on: little time and memory, no file opened or written, no core dump."""
    try:
        import resource as r
    except ImportError:  # not a Unix: the parent's timeout is the only limit
        return
    seconds = math.ceil(time.process_time() + CPU_SECONDS)
    limits = {r.RLIMIT_CPU: seconds, r.RLIMIT_AS: MEMORY}
    limits |= {r.RLIMIT_NOFILE: 0, r.RLIMIT_FSIZE: 0, r.RLIMIT_CORE: 0}
    for kind, limit in limits.items():
        with suppress(ValueError, OSError):  # macOS refuses some
            r.setrlimit(kind, (limit, limit))


def _reply(request: dict[str, Any]) -> dict[str, Any]:
    template = _compile(request["template"], request["today"])
    replies = []
    for conversation in request["conversations"]:
        try:
            replies.append({"text": _render(template, request["names"] | conversation)})
        except MemoryError:
            raise
        except Exception as problem:  # as in main
            replies.append({"problem": _explained(problem)})
    return {"replies": replies}


def _compile(source: str, today: str) -> Template:
    """The template, with what transformers (utils/chat_template_utils.py) offers to templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = datetime.fromisoformat(today).strftime
    return environment.from_string(source)


def _to_json(value: Any, **settings: Any) -> str:
    return json.dumps(value, **({"ensure_ascii": False} | settings))


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _render(template: Template, variables: dict[str, Any]) -> str:
    pieces, length = [], 0
    for piece in template.generate(tools=None, documents=None, **variables):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_TEXT:
            raise MemoryError(f"it writes over {MAX_TEXT:,} characters for one short conversation")
    text = "".join(pieces)
    text.encode()  # half of a surrogate pair is no text
    return text


def _explained(problem: Exception) -> str:
    return " ".join(f"{type(problem).__name__}: {problem}".split())[:300]


if __name__ == "__main__":
    main()
