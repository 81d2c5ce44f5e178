"""A prompt as other programs want it: a chat template in Jinja, a template of Ollama in Go's."""

import re
from dataclasses import dataclass
from enum import Enum

from suri.data.prompt import Prompt, Special, Turn
from suri.data.records import Record
from suri.errors import UsageError
from suri.model.tokenizer import Tokenizer


class Place(Enum):
    """Where a text of the conversation goes; the value stands for it while a prompt is tried."""

    SYSTEM = "\ue002system\ue003"
    QUESTION = "\ue002question\ue003"
    ANSWER = "\ue002answer\ue003"


Pieces = tuple[str | Place, ...]
ESCAPES = {"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
"""How strings of Jinja and Go write letters that would end a line or begin an escape."""


@dataclass(frozen=True)
class Form:
    """What a prompt writes around the texts of a conversation.

    `opening` is the first question, `with_system` the first one under a system text, `later` every
    further one, `answer` an answer with its end.
    """

    opening: Pieces
    with_system: Pieces
    later: Pieces
    answer: Pieces


def form_of(prompt: Prompt, tokenizer: Tokenizer, *, bos: bool) -> Form | None:
    """The form of a prompt, learned by putting marked texts to it; `bos`: with BOS, if it has one.

    None for a prompt that has no one form for conversations.
    """
    asked, said, system = Place.QUESTION.value, Place.ANSWER.value, Place.SYSTEM.value
    try:
        first, second, third = prompt.turns(Record(asked, "", said, history=((asked, said),) * 2))
        (with_system,) = prompt.turns(Record(asked, "", said, system=system))
    except UsageError:
        return None
    if second != third:
        return None
    written = tokenizer.names.get("bos_token", "") if tokenizer.bos_id is not None else ""
    start = written if bos and prompt.adds_bos else ""
    dropped = "" if bos else written
    return Form(
        opening=_pieces(first, start, dropped),
        with_system=_pieces(with_system, start, dropped),
        later=_pieces(second),
        answer=_cut(first.answer + tokenizer.names["eos_token"]),
    )


def _pieces(turn: Turn, start: str = "", dropped: str = "") -> Pieces:
    """What is asked, after `start`; the special token `dropped`, if it begins so, is left out."""
    asked = turn.asked[1:] if turn.asked[:1] == (Special(dropped),) else turn.asked
    return _cut(start + "".join(p.token if isinstance(p, Special) else p for p in asked))


def _cut(text: str) -> Pieces:
    """The text as literal pieces and places."""
    places = {place.value: place for place in Place}
    parts = re.split(f"({'|'.join(places)})", text)
    return tuple(places.get(part, part) for part in parts if part)


JINJA = """\
{{%- set talk = namespace(next='user', system='', begun=false) -%}}
{{%- for message in messages -%}}
{{%- if loop.first and message['role'] == 'system' -%}}
{{%- set talk.system = message['content'] -%}}
{{%- elif message['role'] != talk.next -%}}
{{{{- raise_exception('after one system text at most, user and assistant take turns') -}}}}
{{%- elif talk.next == 'assistant' -%}}
{answer}
{{%- set talk.next = 'user' -%}}
{{%- else -%}}
{{%- if talk.begun -%}}
{later}
{{%- elif talk.system -%}}
{with_system}
{{%- else -%}}
{opening}
{{%- endif -%}}
{{%- set talk.begun = true -%}}
{{%- set talk.next = 'assistant' -%}}
{{%- endif -%}}
{{%- endfor -%}}
"""


def jinja_template(form: Form) -> str:
    """The form as a chat template, as transformers, vLLM and llama.cpp render it.

    What opens an answer belongs to the question before it, whether a program asks for it or not.
    """
    return JINJA.format(**{name: _jinja(pieces) for name, pieces in vars(form).items()})


def _jinja(pieces: Pieces) -> str:
    names = {
        Place.SYSTEM: "talk.system",
        Place.QUESTION: "message['content']",
        Place.ANSWER: "message['content']",
    }
    # No more escapes than every implementation knows.
    escapes = str.maketrans({"'": r"\'", **ESCAPES})
    texts = (
        names[each] if isinstance(each, Place) else f"'{each.translate(escapes)}'"
        for each in pieces
    )
    return "\n".join(f"{{{{- {text} -}}}}" for text in texts)


GO = """\
{{{{- $system := "" }}}}{{{{- $begun := false }}}}
{{{{- range .Messages }}}}
{{{{- if eq .Role "system" }}}}{{{{- $system = .Content }}}}
{{{{- else if eq .Role "assistant" }}}}{answer}
{{{{- else if eq .Role "user" }}}}
{{{{- if $begun }}}}{later}
{{{{- else if $system }}}}{with_system}
{{{{- else }}}}{opening}
{{{{- end }}}}{{{{- $begun = true }}}}
{{{{- end }}}}
{{{{- end }}}}"""


def go_template(form: Form) -> str:
    """The form as a template of Ollama; it holds no three quotes in a row.

    Source: github.com/ollama/ollama, docs/template.md; pkg.go.dev/text/template.
    """
    return GO.format(**{name: _go(pieces) for name, pieces in vars(form).items()})


def _go(pieces: Pieces) -> str:
    names = {Place.SYSTEM: "$system", Place.QUESTION: ".Content", Place.ANSWER: ".Content"}
    texts = (
        names[each] if isinstance(each, Place) else f'"{"".join(map(_go_escaped, each))}"'
        for each in pieces
    )
    return "".join(f"{{{{- {text} }}}}" for text in texts)


def _go_escaped(letter: str) -> str:
    """A letter in ASCII: Ollama leaves out of a Modelfile what it takes for unprintable."""
    known = {'"': r"\"", **ESCAPES}
    if letter in known:
        return known[letter]
    if " " <= letter <= "~":
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"
