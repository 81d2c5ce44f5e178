"""The Chat tab: one question to up to four models, each answer beside the others."""

import html
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
from suri.web.page_words import Words, line, message

MOST_CHARACTERS = 8_000
"""Longest instruction and input together, and longest conversation before them."""
MOST_TOKENS = 2_000
MOST_BESIDE = 4
REFRESH_SECONDS = 0.05
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

Talk = list[tuple[str, dict[str, str]]]
"""Earlier questions, each with the answers of the models by name."""


def chat_tab(page: gr.Blocks, shelf: Shelf, say: Words) -> None:
    """The tab's elements and what they do."""
    desk = Desk(shelf, say)
    talk: gr.State = gr.State([])
    with gr.Row():
        with gr.Column():
            names = gr.Dropdown(shelf.names(), value=[shelf.served.default], multiselect=True,
                                max_choices=MOST_BESIDE, label=say("models"),
                                info=say("models_info"), elem_id="models")  # fmt: skip
            shown_talk = gr.HTML("", elem_id="talk")
            asked = gr.Textbox(label=say("instruction"), lines=4, elem_id="instruction")
            given = gr.Textbox(
                label=say("input"), lines=2, placeholder=say("none"), elem_id="input"
            )
            remember = gr.Checkbox(False, label=say("remember"), elem_id="remember")
            with gr.Row():
                answer = gr.Button(say("answer"), variant="primary", min_width=90, elem_id="answer")
                stop = gr.Button(say("stop"), interactive=False, min_width=90, elem_id="stop")
            gr.Examples(say("examples").splitlines(), asked, label=say("try"), cache_examples=False)
        with gr.Column():
            columns, outputs = _columns(say)
            settings = _settings(say)
    started = gr.on(
        [answer.click, asked.submit, given.submit], desk.begin, names,
        [answer, stop, *outputs, *columns], queue=False, **QUIET,
    )  # fmt: skip
    started.then(
        desk.answer, [names, remember, talk, asked, given, *settings],
        [*outputs, talk, shown_talk], concurrency_id="model", concurrency_limit=1, **QUIET,
    ).then(desk.end, None, [answer, stop], queue=False, **QUIET)  # fmt: skip
    stop.click(desk.stop, None, None, queue=False, **QUIET)
    names.change(desk.columns, names, columns, queue=False, **QUIET)
    page.load(lambda: gr.update(choices=shelf.names()), None, names, queue=False, **QUIET)
    page.unload(desk.leave)


def _columns(say: Words) -> tuple[list[gr.Column], list[Any]]:
    """The answers' columns, and their boxes: text and facts of each in turn."""
    columns, boxes = [], []
    with gr.Row():
        for number in range(MOST_BESIDE):
            place = f"-{number + 1}" if number else ""
            with gr.Column(visible=not number, min_width=260) as column:
                boxes.append(gr.Textbox(label=say("output"), lines=11, max_lines=24,
                                        buttons=["copy"], elem_id=f"output{place}"))  # fmt: skip
                boxes.append(gr.HTML(line(""), elem_id=f"facts{place}", elem_classes="facts"))
            columns.append(column)
    return columns, boxes


def _settings(say: Words) -> list[gr.components.Component]:
    """The controls of decoding, under alpaca-lora's names and in the order of `Desk.answer`."""
    default = Decoding()
    sliders = {
        "temperature": (0, 2, 0.05), "top_p": (0, 1, 0.01), "top_k": (0, 100, 1),
        "num_beams": (1, 4, 1), "max_new_tokens": (1, MOST_TOKENS, 1),
    }  # fmt: skip
    with gr.Accordion(say("settings"), open=False, elem_id="settings"):
        return [
            *(
                gr.Slider(low, high, getattr(default, name), step=step, label=say(name),
                          info=say(f"{name}_info"))
                for name, (low, high, step) in sliders.items()
            ),
            gr.Number(0, precision=0, minimum=0, label=say("seed"), info=say("seed_info")),
            gr.Checkbox(True, label=say("stream")),
        ]  # fmt: skip


class Desk:
    """Answers questions of several browser tabs in turn, each of which can stop its own."""

    def __init__(self, shelf: Shelf, say: Words) -> None:
        self.shelf, self.say = shelf, say
        self.stops: dict[str, Event] = {}

    def begin(self, names: list[str], request: gr.Request) -> list[Any]:
        """Arm the Stop button, also while the question waits for its turn."""
        self.stops[_tab(request)] = Event()
        boxes: list[Any] = []
        for place in range(MOST_BESIDE):
            name = names[place] if place < len(names) else self.say("output")
            boxes += [gr.update(value="", label=name), line("…")]
        buttons = [gr.update(interactive=False), gr.update(interactive=True)]
        return [*buttons, *boxes, *self.columns(names)]

    def columns(self, names: list[str]) -> list[Any]:
        """One column for each model."""
        return [gr.update(visible=not n or n < len(names)) for n in range(MOST_BESIDE)]

    def answer(
        self, names: list[str], remember: bool, talk: Talk, instruction: str, given: str,
        temperature: float, top_p: float, top_k: int, beams: int, tokens: int, seed: int,
        streaming: bool, request: gr.Request,
    ) -> Iterator[list[Any]]:  # fmt: skip
        """Yield the boxes as they fill, model by model, and in the end the conversation."""
        stop = self.stops.setdefault(_tab(request), Event())
        place, said = 0, {}
        talk = talk if remember else []
        try:
            decoding = Decoding(
                temperature=temperature, top_p=top_p, top_k=int(top_k), num_beams=int(beams),
                max_new_tokens=min(int(tokens), MOST_TOKENS), seed=int(seed or 0),
            )  # fmt: skip
            record = self._record(instruction or "", given or "")
            for place, name in enumerate(names[:MOST_BESIDE] or [self.shelf.served.default]):
                if not self.shelf.is_open(name):
                    yield _shown(place, "", line(self.say("opening", name=name)))
                model, asked = self.shelf.take(name), _going_on(record, talk, name)
                # Beams have no answer before the end.
                in_pieces = streaming and decoding.num_beams == 1
                answers = self._stream if in_pieces else self._whole
                for text, facts in answers(model, asked, decoding, stop):
                    said[name] = text
                    yield _shown(place, text, facts)
            talk = [*talk, (question_of(record), said)] if remember else []
            yield [*[gr.skip()] * 2 * MOST_BESIDE, talk, _conversation(talk)]
        except SuriError as problem:
            yield _shown(place, "", line(message(problem)))

    def end(self) -> tuple[Any, Any]:
        """Make Answer ready again."""
        return gr.update(interactive=True), gr.update(interactive=False)

    def stop(self, request: gr.Request) -> None:
        """End this tab's answers within one token."""
        if event := self.stops.get(_tab(request)):
            event.set()

    def leave(self, request: gr.Request) -> None:
        """A closed tab wants no answer."""
        self.stop(request)
        self.stops.pop(_tab(request), None)

    def _stream(
        self, model: Model, record: Record, decoding: Decoding, stop: Event
    ) -> Iterator[tuple[str, str]]:
        began = shown = time.perf_counter()
        text, tokens = "", 0
        for piece in model.stream(record, decoding, stop):
            text, tokens = (text + piece).lstrip(), tokens + 1
            if time.perf_counter() - shown >= REFRESH_SECONDS:
                shown = time.perf_counter()
                yield text, self._facts(tokens, shown - began)
        yield text, self._facts(tokens, time.perf_counter() - began, decoding, stop)

    def _whole(
        self, model: Model, record: Record, decoding: Decoding, stop: Event
    ) -> Iterator[tuple[str, str]]:
        began = time.perf_counter()
        (answer,) = model.answer([record], decoding, stop)
        seconds = time.perf_counter() - began
        yield answer.text.lstrip(), self._facts(answer.tokens, seconds, decoding, stop)

    def _facts(
        self, tokens: int, seconds: float, decoding: Decoding | None = None,
        stop: Event | None = None,
    ) -> str:  # fmt: skip
        """How many and how fast; with the decoding, what ended it."""
        end = ""
        if stop and stop.is_set():
            end = self.say("stopped")
        elif decoding and tokens >= decoding.max_new_tokens:
            end = self.say("at_the_limit")
        speed = f"{tokens / max(seconds, 1e-9):.1f}"
        count = self.say("one_token" if tokens == 1 else "tokens", count=tokens)
        return line(self.say("facts", count=count, seconds=f"{seconds:.1f}", speed=speed) + end)

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
    history: list[tuple[str, str]] = []
    for question, said in reversed(talk):
        turn = (question, said.get(name, ""))
        if not turn[1] or sum(map(len, [*turn, *sum(history, ())])) > MOST_CHARACTERS:
            break
        history.insert(0, turn)
    return Record(record.instruction, record.input, "", history=tuple(history))


def _conversation(talk: Talk) -> str:
    """Earlier questions and answers as HTML that shows text alone."""
    turns = []
    for question, said in talk:
        answers = [
            f"<p><b>{html.escape(n)}</b> {html.escape(text)}</p>" for n, text in said.items()
        ]
        turns.append(f"<div class='turn'><p class='asked'>{html.escape(question)}</p>")
        turns.append("".join(answers) + "</div>")
    return "".join(turns)


def _shown(place: int, text: str, facts: str) -> list[Any]:
    """All boxes, of which one model's change."""
    boxes: list[Any] = [gr.skip()] * (2 * MOST_BESIDE + 2)
    boxes[2 * place : 2 * place + 2] = text, facts
    return boxes


def _tab(request: gr.Request) -> str:
    return str(request.session_hash)
