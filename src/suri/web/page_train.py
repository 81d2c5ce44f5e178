"""The Train tab: rows looked at, a run started as a process of its own and watched by its files."""

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import gradio as gr

from suri.data.check import Report, check_rows
from suri.data.encode import Rules, encode_records
from suri.data.findings import KINDS, Findings
from suri.data.preview import marked, pieces_of
from suri.data.prompt import find_prompt
from suri.data.records import Record, stream_records
from suri.data.split import load_rows
from suri.infer.served import Served
from suri.infer.shelf import MODEL_FILES
from suri.model.tokenizer import read_tokenizer
from suri.model.weights import find_base
from suri.recipe import EMBEDDED, Recipe, with_settings
from suri.train.jobs import Runs
from suri.train.runs import RunEntry, steps_planned
from suri.web.page_words import AT_ONCE, QUIET, Points, Words, block, curves, line, table
from suri.wording import readable_bytes, readable_seconds

BUNDLED_ROWS = ("bundled:32", "bundled:300", "bundled:2000", "bundled:300:zh")
METHODS = {"none": "LoRA", "int8": "int8", "nf4": "QLoRA"}
"""What people call a run, by how it stores the base."""
NUMBERS = ("max_steps", "num_epochs", "learning_rate", "cutoff_len", "lora_r")
DATA = "data"
SHOWN_ROWS = 3
EVERY_SECONDS = 2


def train_tab(page: gr.Blocks, trainer: "Trainer", say: Words) -> None:
    """The tab's elements and what they do."""
    with gr.Row():
        with gr.Column():
            base = say.box("base_model", gr.Dropdown, [])
            rows = say.box("data_path", gr.Dropdown, [])
            file = say.box("file", gr.File, height=150,
                           file_types=[".json", ".jsonl", ".csv", ".parquet"])  # fmt: skip
            method = say.box("method", gr.Radio, say.choices("quantize", METHODS), value="none")
            name = say.box("name", gr.Textbox, "my-lora", max_lines=1)
            with gr.Accordion(say("more_settings"), open=False, elem_id="more"), gr.Row():
                numbers = [say.box(n, gr.Number, getattr(Recipe(), n)) for n in NUMBERS]
            with gr.Row():
                look, fit = say.button("look"), say.button("fit")
                start = say.button("start", variant="primary")
        with gr.Column():
            watched = say.box("watched", gr.Dropdown, [])
            with gr.Row():
                stop, resume = say.button("stop_run"), say.button("resume")
            view = gr.HTML("", elem_id="view")
            seen = gr.HTML(line(say("seen")), elem_id="seen")
    given = [base, rows, method, *numbers]
    slow = {"api_visibility": "private", "concurrency_limit": 1}
    look_at: dict[str, Any] = {
        "fn": say.told(trainer.look),
        "inputs": given,
        "outputs": seen,
        **slow,
    }
    file.upload(say.told(trainer.keep), file, rows, **slow).success(**look_at)
    look.click(**look_at)
    fit.click(say.told(trainer.fit), given, seen, **slow)
    start.click(say.told(trainer.start), [name, *given], watched, **QUIET)
    stop.click(say.told(trainer.runs.stop), watched, None, **QUIET)
    resume.click(say.told(trainer.resume), watched, None, **QUIET)
    watched.change(say.told(trainer.view), watched, view, **QUIET)
    gr.Timer(EVERY_SECONDS).tick(say.told(trainer.view), watched, view, **AT_ONCE)
    page.load(trainer.choices, None, [base, rows, watched], **AT_ONCE)


class Trainer:
    """What the tab's buttons do; it remembers nothing, all is in the folder of runs."""

    def __init__(self, served: Served, runs: Runs, say: Words) -> None:
        self.served, self.runs, self.say = served, runs, say

    def rows(self) -> list[str]:
        """Files that were dropped, and the bundled sets."""
        files = sorted((self.runs.root / DATA).glob("[!.]*"))
        return [*(f"{DATA}/{file.name}" for file in files), *BUNDLED_ROWS]

    def choices(self) -> list[Any]:
        """Bases, rows and runs as they are now; the newest run is watched."""
        own = next(name for name, voice in self.served.voices.items() if not voice.pairs)
        bases = list(dict.fromkeys([own, EMBEDDED, *self.runs.holding(*MODEL_FILES)]))
        found = [bases, self.rows(), self.runs.holding("recipe.toml")]
        return [gr.update(choices=names, value=next(iter(names), None)) for names in found]

    def settings(self, base: str, rows: str, method: str, *numbers: float) -> dict[str, Any]:
        """The recipe's settings; raises UsageError for what cannot be, or lies elsewhere."""
        voice = self.served.voices.get(base)
        folder = voice.folder if voice else self.runs.place(base)
        found: dict[str, Any] = {
            "base_model": EMBEDDED if base == EMBEDDED else str(folder),
            "data_path": rows if rows in BUNDLED_ROWS else str(self.runs.place(rows)),
            "quantize": method,
        }
        for name, number in zip(NUMBERS, numbers, strict=True):
            found[name] = type(getattr(Recipe(), name))(number or 0)
        with_settings(Recipe(), found, "page")  # says what cannot work before anything starts
        return found

    def keep(self, file: str) -> Any:
        """Keep a dropped file beside the runs, so that they can go on with it."""
        return gr.update(value=self.runs.keep(Path(file), DATA), choices=self.rows())

    def look(self, *given: Any) -> str:
        """What is wrong with the rows, and which of the first rows' tokens are learned."""
        recipe = with_settings(Recipe(), self.settings(*given), "page")
        tokenizer = read_tokenizer(find_base(recipe.base_model))
        prompt = find_prompt(recipe.prompt_template_name, tokenizer)
        rows: Iterable[tuple[object, Record]]
        if recipe.data_path in BUNDLED_ROWS:
            said, rows = line(self.say("made_here")), load_rows(recipe).train
        else:
            report = check_rows(recipe.data_path, tokenizer=tokenizer, prompt=prompt)
            said, rows = self._checked(report), stream_records(recipe.data_path, Findings())
        first = [record for _, record in islice(rows, SHOWN_ROWS)]
        rules = Rules(recipe.cutoff_len, recipe.train_on_inputs, recipe.overlong)
        examples = encode_records(first, tokenizer, prompt, rules).examples
        shown = (marked(pieces_of(example, tokenizer)) for example in examples)
        tokens = "".join(f"<pre class='tokens'>{row}</pre>" for row in shown)
        return said + line(self.say("coloured")) + tokens

    def _checked(self, report: Report) -> str:
        """How many rows can be used, and the first problems of the others."""
        found, say = report.findings, self.say
        text = say("checked", rows=found.rows, usable=report.usable, problems=found.fatal,
                   odd=found.warned)  # fmt: skip
        first = [*found.first(fatal=True), *found.first(fatal=False)]
        rows = [(say.again(f.place or "the file"), f.field, say.again(KINDS[f.kind].says), f.found)
                for f in first]  # fmt: skip
        return line(text) + say.table("finding_heads", rows)

    def fit(self, *given: Any) -> str:
        """What `suri fit` says, which opens the base in a process of its own."""
        words = ["fit", *_flags(self.settings(*given))]
        return line(self.say("fits")) + self._parts(self.runs.ask(words).splitlines())

    def _parts(self, said: Sequence[str]) -> str:
        """A printed table of three columns, two blanks apart at least, and the sentences below."""
        cells = [[self.say.again(cell) for cell in re.split(" {2,}", row.rstrip())] for row in said]
        head, *rows = [row for row in cells if len(row) == 3] or [[]]
        rest = [line(" ".join(row)) for row in cells if len(row) != 3]
        return table(head, rows) + "".join(rest)

    def start(self, name: str, *given: Any) -> Any:
        """Start a run; it is watched from then on."""
        words = _flags(self.settings(*given))
        folder = self.runs.new(name)
        self.runs.start(folder.name, ["train", *words, "--output_dir", str(folder)])
        choices = [folder.name, *self.runs.holding("recipe.toml")]
        return gr.update(choices=choices, value=folder.name)

    def resume(self, name: str) -> None:
        """Go on with a run that was stopped."""
        self.runs.start(name, ["train", "--resume", "--output_dir", str(self.runs.place(name))])

    def view(self, name: str) -> str:
        """The run as its files tell it: state, losses, sample answers, what went wrong."""
        if not name:
            return line(self.say("no_runs"))
        state, run = self.runs.state(name)
        said = block(self.runs.said(name))
        if not run:
            return line(self.say(state)) + said
        shown = line(self.say(state) + self._progress(run, state))
        shown += curves(losses(run, "", self.say))
        names = ("instruction", "input", "answer", "expected")
        shown += self.say.table("sample_heads", [[s[n] for n in names] for s in run.samples])
        return shown + ("" if run.result else said)

    def _progress(self, run: RunEntry, state: str) -> str:
        last = next((m for m in reversed(run.metrics) if "train/loss" in m), None)
        if not last:
            return ""
        all_steps = steps_planned(run)
        left = readable_seconds((all_steps - last["step"]) * last["seconds"] / max(1, last["step"]))
        return self.say(
            "progress", step=last["step"], steps=all_steps, loss=f"{last['train/loss']:.3f}",
            speed=f"{last['train/tokens_per_second']:.0f}",
            left="" if state != "running" else self.say("left", time=self.say.again(left)),
            memory=readable_bytes(last["memory/peak_bytes"]),
        )  # fmt: skip


def losses(run: RunEntry, name: str, say: Words) -> list[tuple[str, Points]]:
    """A run's two curves."""
    kinds = {"train/loss": "training_loss", "eval/loss": "held_out_loss"}
    return [(f"{name} {say(kind)}".strip(), run.points(key)) for key, kind in kinds.items()]


def _flags(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]
