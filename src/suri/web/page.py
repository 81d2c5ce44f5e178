"""The chat page: an instruction in, an answer out, in a browser on this machine."""

import hmac
import html
import os
import time
from collections.abc import Iterator
from threading import Event
from typing import Any

# Gradio reads its variables when it is imported and launched; none may open the page or report
# on its use.
for _name in [name for name in os.environ if name.startswith("GRADIO_")]:
    del os.environ[_name]
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr  # noqa: E402

from suri.data.records import Record  # noqa: E402
from suri.errors import SuriError, UsageError  # noqa: E402
from suri.infer.engines import Model  # noqa: E402
from suri.recipe import Decoding  # noqa: E402

MOST_CHARACTERS = 8_000
"""Longest instruction and input together."""
MOST_TOKENS = 2_000
MOST_WAITING = 16
"""Questions that wait for their turn; further ones are refused."""
REFRESH_SECONDS = 0.05

EXAMPLES = [
    ["Name three things that an alpaca likes to eat.", ""],
    ["Sort these words alphabetically.", "pear, apple, fig"],
    ["Write one sentence about the sea.", ""],
    ["What is the plural of this word?", "goose"],
]

SYSTEM_FONT = ("system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "sans-serif")
CSS = """
.gradio-container { width: 100%; max-width: 72rem !important; margin: 0 auto !important; }
#title h1 { font-size: 1.6rem; margin: 0; }
#title p, #facts p { opacity: 0.75; margin: 0; }
#facts p { min-height: 1.5em; }
"""


def open_page(model: Model, *, server_name: str, port: int, share: bool, password: str) -> None:
    """Serve the page until interrupted; with a password only those who know it get in.

    Raises UsageError when the address cannot be used.
    """
    page = build_page(model)
    try:
        _, address, public = page.launch(
            server_name=server_name,
            server_port=port,
            share=share,
            auth=(lambda _name, given: hmac.compare_digest(given.encode(), password.encode()))
            if password
            else None,
            auth_message="Any name will do; the password is the one given with --password.",
            theme=_theme(),
            css=CSS,
            allowed_paths=[],
            blocked_paths=["/"],
            max_file_size=1,
            state_session_capacity=200,
            root_path="",
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as problem:
        raise UsageError(
            f"the page cannot be served on {server_name}:{port}",
            found=str(problem).splitlines()[0],
            do=f"choose another port: --port {port + 1}",
        ) from None
    print(f"Suri answers at {public or address}  (Ctrl-C ends it)", flush=True)
    page.block_thread()


def build_page(model: Model) -> gr.Blocks:
    """The page's elements and what they do; `launch` is left to the caller."""
    desk = Desk(model)
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    with gr.Blocks(title="Suri", analytics_enabled=False) as page:
        gr.HTML(f"<h1>Suri</h1>{_line(model.label)}", elem_id="title")
        with gr.Row():
            with gr.Column():
                instruction = gr.Textbox(label="Instruction", lines=4, elem_id="instruction")
                given = gr.Textbox(label="Input", lines=3, placeholder="none", elem_id="input")
                with gr.Row():
                    answer = gr.Button("Answer", variant="primary", min_width=100, elem_id="answer")
                    stop = gr.Button("Stop", interactive=False, min_width=100, elem_id="stop")
            with gr.Column():
                output = gr.Textbox(
                    label="Output", lines=11, max_lines=24, buttons=["copy"], elem_id="output"
                )
                facts = gr.HTML(_line(""), elem_id="facts")
        with gr.Row():
            with gr.Column():
                gr.Examples(EXAMPLES, [instruction, given], cache_examples=False)
            with gr.Column():
                settings = _settings()
        started = gr.on(
            [answer.click, instruction.submit, given.submit],
            desk.begin, None, [answer, stop, output, facts], queue=False, **quiet,
        )  # fmt: skip
        answered = started.then(
            desk.answer, [instruction, given, *settings], [output, facts], **quiet
        )
        answered.then(desk.end, None, [answer, stop], queue=False, **quiet)
        stop.click(desk.stop, None, None, queue=False, **quiet)
        page.unload(desk.leave)
    page.queue(max_size=MOST_WAITING, default_concurrency_limit=1, api_open=False)
    return page


class Desk:
    """Answers questions of several browser tabs in turn, each of which can stop its own."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.stops: dict[str, Event] = {}

    def begin(self, request: gr.Request) -> tuple[Any, Any, str, str]:
        """Arm the Stop button, also while the question waits for its turn."""
        self.stops[_tab(request)] = Event()
        return gr.update(interactive=False), gr.update(interactive=True), "", _line("…")

    def answer(
        self, instruction: str, given: str, temperature: float, top_p: float, top_k: int,
        beams: int, tokens: int, streaming: bool, request: gr.Request,
    ) -> Iterator[tuple[str, str]]:  # fmt: skip
        """Yield the answer so far and a line of facts; the last one says how fast it was."""
        stop = self.stops.setdefault(_tab(request), Event())
        try:
            decoding = Decoding(
                temperature=temperature,
                top_p=top_p,
                top_k=int(top_k),
                num_beams=int(beams),
                max_new_tokens=min(int(tokens), MOST_TOKENS),
            )
            record = _record(instruction or "", given or "")
            # Beams have no answer before the end.
            in_pieces = streaming and decoding.num_beams == 1
            yield from (self._stream if in_pieces else self._whole)(record, decoding, stop)
        except SuriError as problem:
            yield "", _line(" ".join(line.strip() for line in problem.lines()))

    def end(self) -> tuple[Any, Any]:
        """Make Answer ready again."""
        return gr.update(interactive=True), gr.update(interactive=False)

    def stop(self, request: gr.Request) -> None:
        """End this tab's answer within one token."""
        if event := self.stops.get(_tab(request)):
            event.set()

    def leave(self, request: gr.Request) -> None:
        """A closed tab wants no answer."""
        self.stop(request)
        self.stops.pop(_tab(request), None)

    def _stream(self, record: Record, decoding: Decoding, stop: Event) -> Iterator[tuple[str, str]]:
        began = shown = time.perf_counter()
        text, tokens = "", 0
        for piece in self.model.stream(record, decoding, stop):
            text, tokens = (text + piece).lstrip(), tokens + 1
            if time.perf_counter() - shown >= REFRESH_SECONDS:
                shown = time.perf_counter()
                yield text, _facts(tokens, shown - began, "")
        yield text, _facts(tokens, time.perf_counter() - began, _end(tokens, decoding, stop))

    def _whole(self, record: Record, decoding: Decoding, stop: Event) -> Iterator[tuple[str, str]]:
        began = time.perf_counter()
        (answer,) = self.model.answer([record], decoding, stop)
        seconds = time.perf_counter() - began
        yield (
            answer.text.lstrip(),
            _facts(answer.tokens, seconds, _end(answer.tokens, decoding, stop)),
        )


def _settings() -> list[gr.components.Component]:
    """The controls of decoding, under alpaca-lora's names and in the order of `Desk.answer`."""
    default = Decoding()
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        return [
            gr.Slider(0, 2, default.temperature, step=0.05, label="Temperature",
                      info="0 takes the likeliest token; higher varies more"),
            gr.Slider(0, 1, default.top_p, step=0.01, label="Top p",
                      info="choose among tokens that have this probability together"),
            gr.Slider(0, 100, default.top_k, step=1, label="Top k",
                      info="choose among this many tokens; 0 for all"),
            gr.Slider(1, 4, default.num_beams, step=1, label="Beams",
                      info="above 1: the best of several answers, all at once, nothing random"),
            gr.Slider(1, MOST_TOKENS, default.max_new_tokens, step=1, label="Max tokens"),
            gr.Checkbox(True, label="Stream output"),
        ]  # fmt: skip


def _record(instruction: str, given: str) -> Record:
    """The question, if it is one that can be asked."""
    characters = len(instruction) + len(given)
    if not instruction.strip():
        raise UsageError("Write an instruction first.")
    if characters > MOST_CHARACTERS:
        raise UsageError(
            f"Instruction and input have {characters:,} characters; "
            f"at most {MOST_CHARACTERS:,} are read. Please shorten them."
        )
    return Record(instruction, given, "")


def _facts(tokens: int, seconds: float, end: str) -> str:
    count = f"{tokens} token{'s' * (tokens != 1)}"
    return _line(f"{count} in {seconds:.1f} s, {tokens / max(seconds, 1e-9):.1f} tokens/s{end}")


def _end(tokens: int, decoding: Decoding, stop: Event) -> str:
    if stop.is_set():
        return ", stopped"
    return ", at the limit of Max tokens" if tokens >= decoding.max_new_tokens else ""


def _line(text: str) -> str:
    """A line of HTML that shows the text and nothing else."""
    return f"<p>{html.escape(text)}</p>"


def _tab(request: gr.Request) -> str:
    return str(request.session_hash)


def _theme() -> gr.themes.Base:
    """Fonts of the reader's own system: nothing is fetched from elsewhere."""
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=[gr.themes.Font(name) for name in SYSTEM_FONT],
        font_mono=[gr.themes.Font(name) for name in ("ui-monospace", "monospace")],
    )
    # White on the theme's own teal is hard to read.
    return theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
    )
