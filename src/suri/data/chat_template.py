"""Chat templates: turns of a conversation in the form that the base itself was trained on."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from suri.data.records import Record
from suri.data.tokenizer import Tokenizer
from suri.errors import UsageError
from suri.files import write_json
from suri.reading import well_formed

PROMPT_FILE = "prompt.json"
MAX_LENGTH = 1_000_000  # of a template: bytes of a file, characters of a text
TIMEOUT = 10.0  # seconds; the sandbox's own limits end sooner
CHECKED_TURNS = 32
OTHERWISE = "choose another prompt template, alpaca for instance"


@dataclass(frozen=True)
class Special:
    """A special token of the tokenizer that a template writes."""

    token: str


@dataclass(frozen=True)
class Turn:
    """What stands before an answer (and after the EOS of the one before), and the answer."""

    asked: tuple[str | Special, ...]
    answer: str


@dataclass(frozen=True)
class ChatPrompt:
    """A base's own chat template, with all that it takes to render it.

    `names` are the template's variables for special tokens (bos_token, eos_token, ...); `today` is
    the date that it writes if it writes one: the day of training, on every later day too.
    """

    template: str = field(repr=False)
    names: tuple[tuple[str, str], ...]
    special_tokens: tuple[str, ...] = field(repr=False)
    today: str
    name: ClassVar[str] = "chat"
    adds_bos: ClassVar[bool] = False

    def turns(self, record: Record) -> list[Turn]:
        """The record's turns; a user's text never becomes a special token.

        Raises UsageError when the template cannot be rendered within the sandbox's limits, is of
        no use for so many turns, or ends answers with another token than the tokenizer's EOS.
        """
        questions = [*(question for question, _ in record.history), question_of(record)]
        answers = [*(answer for _, answer in record.history), record.output]
        size = max(CHECKED_TURNS, 1 << (len(questions) - 1).bit_length())
        form = _form(self, size, with_system=True) if record.system else None
        if form is None:
            form = _form(self, size, with_system=False)
            questions[0] = "\n\n".join(filter(None, [record.system, questions[0]]))
        if form is None:
            raise _unusable("it leaves out what the user says")
        if len(questions) > len(form.asked):
            raise UsageError(
                "the base's chat template cannot be used for conversations of several turns",
                found=form.problem,
                do=f"leave out earlier turns, or {OTHERWISE}",
            )
        texts = {f"q{k}": question for k, question in enumerate(questions)} | {"s": record.system}
        return [
            Turn(_filled(asked, texts), form.before + form.answer.of(answer) + form.after)
            for asked, answer in zip(form.asked, answers, strict=False)
        ]

    def save(self, folder: Path) -> None:
        """Write prompt.json, from which the same turns can be made without the base."""
        value = {"name": self.name, "chat_template": self.template, "names": dict(self.names)}
        rest = {"special_tokens": list(self.special_tokens), "today": self.today}
        write_json(folder / PROMPT_FILE, value | rest)


def chat_prompt(template: str, tokenizer: Tokenizer) -> ChatPrompt:
    """The prompt of a base's template and tokenizer, tried out once; errors as in `turns`."""
    if len(template) > MAX_LENGTH:
        raise _unusable("it is over 1 MB long")
    names = dict(tokenizer.names)
    special = {number: token for token, number in tokenizer.special_tokens.items()}
    names["eos_token"] = special.get(tokenizer.eos_id) or tokenizer.decode([tokenizer.eos_id])
    today = date.today().isoformat()
    prompt = ChatPrompt(template, tuple(sorted(names.items())), tuple(special.values()), today)
    prompt.turns(Record("?", "", ""))
    return prompt


def saved_chat_prompt(value: dict[str, Any], path: Path) -> ChatPrompt:
    """The prompt that `save` wrote; raises Corrupt when the values are no such prompt."""
    with well_formed(path, "a saved chat template"):
        template, names, special = value["chat_template"], value["names"], value["special_tokens"]
        texts = [template, names["eos_token"], *names.keys(), *names.values(), *special]
        today = date.fromisoformat(value["today"]).isoformat()
        are_texts = isinstance(special, list) and all(isinstance(text, str) for text in texts)
        if not are_texts or len(template) > MAX_LENGTH:
            raise ValueError("not a template of at most 1 MB with names of tokens")
    return ChatPrompt(template, tuple(sorted(names.items())), tuple(special), today)


def question_of(record: Record) -> str:
    """What a user of a chat would write: the instruction, and its input below a blank line."""
    return "\n\n".join(filter(None, [record.instruction, record.input]))


@dataclass(frozen=True)
class _Slot:
    """Where a text of a record goes, and whether the template strips it there."""

    key: str
    lstrip: bool
    rstrip: bool

    def of(self, text: str) -> str:
        text = text.lstrip() if self.lstrip else text
        return text.rstrip() if self.rstrip else text


_Parts = tuple[str | Special | _Slot, ...]


@dataclass(frozen=True)
class _Form:
    """What a template makes of every conversation, whatever the texts.

    `before` and `after` are the blank space around an answer (Llama 2 has some), which the model
    has to write. `problem` says why there are not more turns.
    """

    asked: tuple[_Parts, ...]
    before: str
    answer: _Slot
    after: str
    problem: str


# The sentinel of a text (s: system, q0: first question, a0: its answer); templates may strip tabs.
_SENTINEL = "\t\ue000{}\ue001\t"
_FOUND = "(\t?)\ue000({})\ue001(\t?)"
_SLOT = re.compile(_FOUND.format("[a-z0-9]+"))


@lru_cache(maxsize=32)
def _form(prompt: ChatPrompt, size: int, *, with_system: bool) -> _Form | None:
    """The form of conversations of up to `size` turns; None: not every text has a place in it."""
    counts = [*range(1, CHECKED_TURNS + 1), size]
    conversations = [_messages(count, with_system)[:-1] for count in counts]
    answered, *replies = _render(prompt, _messages(1, with_system), *conversations)
    first, second = (reply.get("text", "") for reply in replies[:2])
    expected = [{"q0"} | ({"s"} if with_system else set()), *({f"q{k}"} for k in range(1, size))]
    if _keys(first) != expected[0]:
        if "problem" in replies[0] and not with_system:
            raise _unusable(replies[0]["problem"])
        return None
    history = replies[1] if "a0" in _keys(second) else answered
    before, answer, after = _around_answer(prompt, first, history)
    # Where a template ignores add_generation_prompt, what opens an answer belongs to the prompt.
    header, before = (before, "") if before.strip() else ("", before)
    end = after + dict(prompt.names)["eos_token"]
    answers = rf"{re.escape(before)}\t?\ue000a\d+\ue001\t?{re.escape(end)}"
    prompts = [re.split(answers, reply.get("text", "") + header) for reply in replies]
    asked, problem = prompts[-1], ""
    if [_keys(text) for text in asked] != expected or any(p != asked[: len(p)] for p in prompts):
        asked = [first + header]
        problem = replies[1].get("problem", "it writes earlier turns in another way than the last")
    return _Form(tuple(_parts(prompt, text) for text in asked), before, answer, after, problem)


def _around_answer(prompt: ChatPrompt, asked: str, reply: dict[str, str]) -> tuple[str, _Slot, str]:
    """What stands between the prompt and the answer, the answer's place, blank space up to EOS."""
    text = reply.get("text", "")
    found = re.search(_FOUND.format("a0"), text)
    if found is None:
        raise _unusable(reply.get("problem", "it leaves out what the assistant says"))
    before = text[len(asked) : found.start()] if text.startswith(asked) else ""
    rest, eos = text[found.end() :], dict(prompt.names)["eos_token"]
    if not rest.lstrip().startswith(eos):
        first = next(iter(_parts(prompt, rest.lstrip())), None)
        raise UsageError(
            "the base's chat template does not end an answer as its tokenizer does",
            found=f"{first.token if isinstance(first, Special) else 'no token'} in the template, "
            f"{eos} as the tokenizer's EOS",
            do=f"set eos_token in the base's tokenizer_config.json, or {OTHERWISE}",
        )
    return before, _Slot("a0", not found[1], not found[3]), rest[: rest.index(eos)]


def _messages(turns: int, with_system: bool) -> list[dict[str, str]]:
    keys = [("system", "s")] * with_system
    for turn in range(turns):
        keys += [("user", f"q{turn}"), ("assistant", f"a{turn}")]
    return [{"role": role, "content": _SENTINEL.format(key)} for role, key in keys]


def _render(prompt: ChatPrompt, *conversations: list[dict[str, str]]) -> list[dict[str, str]]:
    """The sandbox's replies; a generation prompt follows every question without an answer."""
    request = {
        "template": prompt.template,
        "names": dict(prompt.names),
        "today": prompt.today,
        "conversations": [
            {"messages": each, "add_generation_prompt": each[-1]["role"] == "user"}
            for each in conversations
        ],
    }
    kept = ("PYTHONPATH", "SYSTEMROOT")  # Python may need them to start
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "suri.data.chat_sandbox"],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=TIMEOUT,
            env={name: os.environ[name] for name in kept if name in os.environ},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _unusable(f"it did not end within {TIMEOUT:.0f} seconds") from None
    if done.returncode < 0:  # killed by the system
        raise _unusable("it takes more time than rendering a conversation may take")
    if done.returncode:
        raise _unusable(done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:300])
    reply = json.loads(done.stdout)
    if "problem" in reply:
        raise _unusable(reply["problem"])
    replies: list[dict[str, str]] = reply["replies"]
    return replies


def _unusable(found: str) -> UsageError:
    return UsageError("the base's chat template cannot be used", found=found, do=OTHERWISE)


def _keys(text: str) -> set[str]:
    return {found[2] for found in _SLOT.finditer(text)}


def _parts(prompt: ChatPrompt, text: str) -> _Parts:
    """Text that a template wrote, cut at its special tokens and at the places of users' texts."""
    longest_first = sorted(prompt.special_tokens, key=len, reverse=True)
    tokens = "|".join(map(re.escape, longest_first)) or "(?!)"
    parts: list[str | Special | _Slot] = []
    start = 0
    for found in re.finditer(f"({tokens})|{_SLOT.pattern}", text):
        token, left, key, right = found.groups()
        place = Special(token) if token else _Slot(key, not left, not right)
        parts += [text[start : found.start()], place]
        start = found.end()
    return tuple(part for part in [*parts, text[start:]] if part)


def _filled(parts: _Parts, texts: dict[str, str]) -> tuple[str | Special, ...]:
    """The parts with a record's texts in their places; neighbouring texts become one."""
    filled: list[str | Special] = []
    for part in parts:
        piece = part.of(texts[part.key]) if isinstance(part, _Slot) else part
        if isinstance(piece, str) and filled and isinstance(filled[-1], str):
            filled[-1] += piece
        elif piece:
            filled.append(piece)
    return tuple(filled)
