"""The Chat tab: one question to up to four models, each answer beside the others."""

import time
from collections.abc import Iterator
from threading import Event
from typing import Any

import gradio as gr

from suri.data.chat_template import question_of
from suri.data.records import Record
from suri.errors import SuriError, UsageError
from suri.infer.engines import Model
from suri.infer.shelf import Shelf
from suri.recipe import Decoding
from suri.web.page_words import AT_ONCE, QUIET, Words, line

MOST_CHARACTERS = 8_000
"""Longest instruction and input together, and longest conversation before them."""
MOST_BESIDE = 4
REFRESH_SECONDS = 0.05
SETTINGS = {
    "temperature": (0, 2, 0.05), "top_p": (0, 1, 0.01), "top_k": (0, 100, 1),
    "num_beams": (1, 4, 1), "max_new_tokens": (1, 2_000, 1), "seed": (0, 10_000, 1),
}  # fmt: skip
"""Least, most and step of each control of decoding, under alpaca-lora's names."""

Talk = list[tuple[str, dict[str, str]]]
"""Earlier questions, each with the answers of the models by name."""


def chat_tab(page: gr.Blocks, shelf: Shelf, say: Words) -> None:
    """The tab's elements and what they do."""
    desk = Desk(shelf, say)
    talk: gr.State = gr.State([])
    with gr.Row():
        with gr.Column():
            names = say.box("models", gr.Dropdown, shelf.names(), value=[shelf.served.default],
                            multiselect=True, max_choices=MOST_BESIDE)  # fmt: skip
            turns = say.box("talk", gr.Chatbot, visible=False, render_markdown=False,
                            height=320, buttons=["copy"])  # fmt: skip
            asked = say.box("instruction", gr.Textbox, lines=4)
            given = say.box("input", gr.Textbox, lines=2, placeholder=say("none"))
            remember = say.box("remember", gr.Checkbox, False)
            with gr.Row():
                answer = say.button("answer", variant="primary")
                stop = say.button("stop", interactive=False)
            gr.Examples(say("examples").splitlines(), asked, label=say("try"), cache_examples=False)
        with gr.Column():
            columns, boxes = _columns(say)
            with gr.Accordion(say("settings"), open=False, elem_id="settings"):
                settings = [
                    say.box(name, gr.Slider, low, high, getattr(Decoding(), name), step=step)
                    for name, (low, high, step) in SETTINGS.items()
                ]
                stream = say.box("stream", gr.Checkbox, True)
    gr.on([answer.click, asked.submit, given.submit], desk.begin, names,
          [answer, stop, *columns, *boxes], **AT_ONCE).then(
        desk.answer, [names, remember, talk, asked, given, stream, *settings],
        [*boxes, talk, turns], concurrency_id="model", **QUIET,
    ).then(lambda: _buttons(ready=True), None, [answer, stop], **AT_ONCE)  # fmt: skip
    turns.clear(lambda: [], None, talk, **AT_ONCE)
    stop.click(desk.stop, None, None, **AT_ONCE)
    page.load(lambda: gr.update(choices=shelf.names()), None, names, **AT_ONCE)
    page.unload(desk.leave)


def _columns(say: Words) -> tuple[list[gr.Column], list[Any]]:
    """The answers' columns, and their boxes: text and facts of each in turn."""
    columns, boxes = [], []
    with gr.Row():
        for place in ("", "-2", "-3", "-4"):
            with gr.Column(visible=not place, min_width=260) as column:
                boxes.append(gr.Textbox(label=say("output"), lines=11, max_lines=24,
                                        buttons=["copy"], elem_id=f"output{place}"))  # fmt: skip
                boxes.append(gr.HTML(line(""), elem_id=f"facts{place}", elem_classes="facts"))
            columns.append(column)
    return columns, boxes


class Desk:
    """Answers questions of several browser tabs in turn, each of which can stop its own."""

    def __init__(self, shelf: Shelf, say: Words) -> None:
        self.shelf, self.say = shelf, say
        self.stops: dict[str, Event] = {}

    def begin(self, names: list[str], request: gr.Request) -> list[Any]:
        """Arm the Stop button, also while the question waits for its turn."""
        self.stops[str(request.session_hash)] = Event()
        labels = [*names, *[self.say("output")] * MOST_BESIDE][:MOST_BESIDE]
        columns = [gr.update(visible=not n or n < len(names)) for n in range(MOST_BESIDE)]
        boxes = [box for name in labels for box in (gr.update(value="", label=name), line("…"))]
        return [*_buttons(ready=False), *columns, *boxes]

    def answer(
        self, request: gr.Request, names: list[str], remember: bool, talk: Talk, instruction: str,
        given: str, streaming: bool, *settings: Any,
    ) -> Iterator[list[Any]]:  # fmt: skip
        """Yield the boxes as they fill, model by model, and in the end the conversation."""
        stop = self.stops.setdefault(str(request.session_hash), Event())
        place, said, talk = 0, {}, talk if remember else []
        try:
            decoding = Decoding(**dict(zip(SETTINGS, settings, strict=True)))
            record = self._record(instruction or "", given or "")
            for place, name in enumerate(names[:MOST_BESIDE] or [self.shelf.served.default]):
                yield _shown(place, "", line(self.say("asking", name=name)))
                model, asked = self.shelf.take(name), _going_on(record, talk, name)
                for text, facts in self._texts(model, asked, decoding, stop, streaming):
                    said[name] = text
                    yield _shown(place, text, facts)
            talk = [*talk, (question_of(record), said)] if remember else []
            turns = gr.update(value=_conversation(talk), visible=bool(talk))
            yield [*[gr.skip()] * 2 * MOST_BESIDE, talk, turns]
        except SuriError as problem:
            yield _shown(place, "", line(problem.in_one_line))

    def stop(self, request: gr.Request) -> None:
        """End this tab's answers within one token."""
        if event := self.stops.get(str(request.session_hash)):
            event.set()

    def leave(self, request: gr.Request) -> None:
        """A closed tab wants no answer."""
        self.stop(request)
        self.stops.pop(str(request.session_hash), None)

    def _texts(
        self, model: Model, record: Record, decoding: Decoding, stop: Event, streaming: bool
    ) -> Iterator[tuple[str, str]]:
        """An answer as it grows, with how many tokens and how fast, and lastly what ended it."""
        began = shown = time.perf_counter()
        text, tokens = "", 0
        for tokens, piece in enumerate(model.stream(record, decoding, stop), 1):
            text, now = (text + piece).lstrip(), time.perf_counter()
            if streaming and now - shown >= REFRESH_SECONDS:
                shown = now
                yield text, self._facts(tokens, now - began)
        end = "stopped" if stop.is_set() else "at_the_limit" * (tokens >= decoding.max_new_tokens)
        yield text, self._facts(tokens, time.perf_counter() - began, end)

    def _facts(self, tokens: int, seconds: float, end: str = "") -> str:
        speed = f"{tokens / max(seconds, 1e-9):.1f}"
        facts = self.say("facts", count=tokens, seconds=f"{seconds:.1f}", speed=speed)
        return line(facts + (self.say(end) if end else ""))

    def _record(self, instruction: str, given: str) -> Record:
        """The question, if it is one that can be asked."""
        if not instruction.strip():
            raise UsageError(self.say("write_first"))
        if (characters := len(instruction) + len(given)) > MOST_CHARACTERS:
            count, most = f"{characters:,}", f"{MOST_CHARACTERS:,}"
            raise UsageError(self.say("too_long", count=count, most=most))
        return Record(instruction, given, "")


def _going_on(record: Record, talk: Talk, name: str) -> Record:
    """The question after the last turns that this model answered, as many as are not too long."""
    turns = [(question, said[name]) for question, said in talk if said.get(name)]
    while sum(len(text) for turn in turns for text in turn) > MOST_CHARACTERS:
        del turns[0]
    return Record(record.instruction, record.input, "", history=tuple(turns))


def _conversation(talk: Talk) -> list[dict[str, str]]:
    """Earlier questions and answers as the messages of a Chatbot."""
    turns = []
    for question, said in talk:
        turns.append({"role": "user", "content": question})
        turns += [{"role": "assistant", "content": f"{n}: {text}"} for n, text in said.items()]
    return turns


def _buttons(*, ready: bool) -> list[Any]:
    """Answer and Stop, of which one can be pressed."""
    return [gr.update(interactive=ready), gr.update(interactive=not ready)]


def _shown(place: int, text: str, facts: str) -> list[Any]:
    """All boxes, of which one model's change."""
    boxes: list[Any] = [gr.skip()] * (2 * MOST_BESIDE + 2)
    boxes[2 * place : 2 * place + 2] = text, facts
    return boxes
