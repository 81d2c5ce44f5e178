"""The Train tab: rows looked at, a run started as a process of its own and watched by its files."""

import filecmp
import html
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import gradio as gr

from suri.data.check import check_rows
from suri.data.encode import Rules, encode_records
from suri.data.findings import Findings
from suri.data.preview import marked, pieces_of
from suri.data.prompt import find_prompt
from suri.data.records import stream_records
from suri.data.split import load_rows
from suri.errors import UsageError
from suri.files import LOCK, make_folder, readable_bytes, readable_seconds
from suri.infer.shelf import MODEL_FILES, Shelf
from suri.locks import is_held
from suri.model.tokenizer import read_tokenizer
from suri.model.weights import find_base
from suri.reading import read_object
from suri.recipe import EMBEDDED, Recipe, with_settings
from suri.train.jobs import Runs
from suri.train.plan import Plan
from suri.train.run_folder import can_go_on
from suri.train.runs import RunEntry, read_run
from suri.web.page_words import Points, Words, block, curves, line, table, told

BUNDLED_ROWS = ("bundled:32", "bundled:300", "bundled:2000", "bundled:300:zh")
METHODS = {"LoRA": "none", "int8": "int8", "QLoRA": "nf4"}
KINDS = [".json", ".jsonl", ".csv", ".parquet"]
DATA = "data"
LOOKED_AT = 3
FIT_SECONDS = 300
EVERY_SECONDS = 2


def train_tab(page: gr.Blocks, shelf: Shelf, runs: Runs, say: Words) -> None:
    """The tab's elements and what they do."""
    trainer = Trainer(shelf, runs, say)
    with gr.Row():
        with gr.Column():
            base = gr.Dropdown(trainer.bases(), label=say("base"), elem_id="base")
            rows = gr.Dropdown(trainer.rows(), label=say("rows"), info=say("rows_info"),
                               elem_id="rows")  # fmt: skip
            file = gr.File(label=say("drop"), file_types=KINDS, elem_id="file", height=150)
            method = gr.Radio(list(METHODS), value="LoRA", label=say("method"),
                              info=say("method_info"), elem_id="method")  # fmt: skip
            name = gr.Textbox("my-lora", label=say("name"), max_lines=1, elem_id="name")
            with gr.Accordion(say("more_settings"), open=False, elem_id="more"), gr.Row():
                numbers = trainer.numbers()
            with gr.Row():
                look = gr.Button(say("look"), min_width=90, elem_id="look")
                fit = gr.Button(say("fit"), min_width=90, elem_id="fit")
                start = gr.Button(say("start"), variant="primary", min_width=90, elem_id="start")
        with gr.Column():
            watched = gr.Dropdown([], label=say("watched"), info=say("watched_info"),
                                  elem_id="watched")  # fmt: skip
            with gr.Row():
                stop = gr.Button(say("stop_run"), min_width=90, elem_id="stop_run")
                resume = gr.Button(say("resume"), min_width=90, elem_id="resume")
            view = gr.HTML("", elem_id="view")
            seen = gr.HTML(line(say("seen")), elem_id="seen")
    given = [base, rows, method, *numbers]
    quiet: dict[str, Any] = {"api_visibility": "private"}
    still = quiet | {"show_progress": "hidden"}
    file.upload(told(trainer.keep), file, rows, **quiet).success(
        told(trainer.look), given, seen, **quiet
    )
    look.click(told(trainer.look), given, seen, **quiet)
    fit.click(told(trainer.fit), given, seen, concurrency_limit=1, **quiet)
    start.click(told(trainer.start), [name, *given], watched, **still)
    stop.click(told(runs.stop), watched, None, **still)
    resume.click(told(trainer.resume), watched, None, **still)
    watched.change(told(trainer.view), watched, view, **still)
    gr.Timer(EVERY_SECONDS).tick(told(trainer.view), watched, view, queue=False, **still)
    page.load(trainer.choices, None, [base, rows, watched], queue=False, **still)


class Trainer:
    """What the tab's buttons do; it remembers nothing, all is in the folder of runs."""

    def __init__(self, shelf: Shelf, runs: Runs, say: Words) -> None:
        self.served, self.runs, self.say = shelf.served, runs, say

    def bases(self) -> list[str]:
        """The base of the start, the embedded one, and models in the folder of runs."""
        own = next(n for n, voice in self.served.voices.items() if not voice.pairs)
        return list(dict.fromkeys([own, EMBEDDED, *self.runs.holding(*MODEL_FILES)]))

    def rows(self) -> list[str]:
        """The bundled sets, and files that were dropped."""
        place = self.runs.root / DATA
        files = [f"{DATA}/{file.name}" for file in sorted(place.glob("[!.]*"))]
        return [*files, *BUNDLED_ROWS]

    def choices(self) -> list[Any]:
        """The choices as they are now; the newest run is watched."""
        there = self.runs.holding("recipe.toml")
        newest = gr.update(choices=there, value=next(iter(there), None))
        return [gr.update(choices=self.bases()), gr.update(choices=self.rows()), newest]

    def numbers(self) -> list[gr.components.Component]:
        """Controls of the settings that `settings` reads, in its order."""
        default = Recipe()
        return [
            gr.Number(getattr(default, name), label=self.say(name), info=self.say(f"{name}_info"),
                      elem_id=name)
            for name in ("max_steps", "num_epochs", "learning_rate", "cutoff_len", "lora_r")
        ]  # fmt: skip

    def settings(self, base: str, rows: str, method: str, *numbers: float) -> dict[str, Any]:
        """The recipe's settings; raises UsageError for what cannot be, or lies elsewhere."""
        voice = self.served.voices.get(base)
        folder = str(voice.folder) if voice else str(self.runs.place(base or ""))
        steps, epochs, rate, cutoff, rank = (number or 0 for number in numbers)
        found = {
            "base_model": EMBEDDED if base == EMBEDDED else folder,
            "data_path": rows if rows in BUNDLED_ROWS else str(self.runs.place(rows or "")),
            "quantize": METHODS[method], "max_steps": int(steps), "num_epochs": float(epochs),
            "learning_rate": float(rate), "cutoff_len": int(cutoff), "lora_r": int(rank),
        }  # fmt: skip
        with_settings(Recipe(), found, "page")  # says what cannot work before anything starts
        return found

    def keep(self, file: str) -> Any:
        """Keep a dropped file beside the runs, so that they can go on with it."""
        make_folder(self.runs.root / DATA)
        there = self.runs.root / DATA / Path(file).name
        if not (there.is_file() and filecmp.cmp(file, there, shallow=False)):
            shutil.copyfile(file, self.runs.new(Path(file).name, DATA))
        return gr.update(choices=self.rows(), value=f"{DATA}/{there.name}")

    def look(self, *given: Any) -> str:
        """What is wrong with the rows, and which of the first rows' tokens are learned."""
        asked = with_settings(Recipe(), self.settings(*given), "page")
        tokenizer = read_tokenizer(find_base(asked.base_model))
        prompt = find_prompt(asked.prompt_template_name, tokenizer)
        if asked.data_path in BUNDLED_ROWS:
            text, found = self.say("made_here"), []
            first = [record for _, record in islice(load_rows(asked).train, LOOKED_AT)]
        else:
            report = check_rows(asked.data_path, tokenizer=tokenizer, prompt=prompt)
            problems, odd = report.findings.fatal, report.findings.warned
            text = self.say("checked", rows=report.findings.rows, usable=report.usable,
                            problems=problems, odd=odd)  # fmt: skip
            found = [*report.findings.first(fatal=True), *report.findings.first(fatal=False)]
            rows = stream_records(asked.data_path, Findings())
            first = [record for _, record in islice(rows, LOOKED_AT)]
        rules = Rules(asked.cutoff_len, asked.train_on_inputs, asked.overlong)
        encoded = encode_records(first, tokenizer, prompt, rules)
        shown = [f"<pre class='tokens'>{marked(pieces_of(row, tokenizer))}</pre>"
                 for row in encoded.examples]  # fmt: skip
        listed = "".join(f"<li>{html.escape(str(each))}</li>" for each in found)
        return f"{line(text)}<ul>{listed}</ul>{line(self.say('coloured'))}{''.join(shown)}"

    def fit(self, *given: Any) -> str:
        """What `suri fit` says, which opens the base in a process of its own."""
        words = [sys.executable, "-m", "suri", "fit", *_flags(self.settings(*given))]
        try:
            ended = subprocess.run(words, capture_output=True, text=True, timeout=FIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise UsageError(self.say("fit_too_long")) from None
        return line(self.say("fits")) + block(ended.stdout + ended.stderr)

    def start(self, name: str, *given: Any) -> Any:
        """Start a run; it is watched from then on."""
        words = _flags(self.settings(*given))
        folder = self.runs.new(name)
        self.runs.start(folder.name, ["train", *words, "--output_dir", str(folder)])
        there = self.runs.holding("recipe.toml")
        return gr.update(choices=[folder.name, *there], value=folder.name)

    def resume(self, name: str) -> None:
        """Go on with a run that was stopped."""
        place = self.runs.place(name or "")
        self.runs.start(name, ["train", "--resume", "--output_dir", str(place)])

    def view(self, name: str) -> str:
        """The run as its files tell it: state, losses, sample answers, what went wrong."""
        if not name:
            return line(self.say("no_runs"))
        folder = self.runs.place(name)
        # Runs that somebody started in a terminal hold their folder alone.
        running = self.runs.is_running(name) or is_held(folder / LOCK)
        try:
            run = read_run(folder)
        except UsageError:
            state = self.say("begins" if running else "did_not_start")
            return line(state) + block(self.runs.said(name))
        state = "running" if running else "resumable" if can_go_on(folder) else "ended"
        state = "finished" if run.result else state
        parts = [
            line(f"{self.say(state)} {self._progress(run)}"),
            curves(losses(run, "", self.say)),
        ]
        evaluated = [found["eval/samples"] for found in run.metrics if "eval/samples" in found]
        names = ("instruction", "input", "answer", "expected")
        rows = [[sample[name] for name in names] for each in evaluated[-1:] for sample in each]
        parts += [table(self.say("sample_heads").split("|"), rows)] if rows else []
        return "".join(parts) + ("" if run.result else block(self.runs.said(name)))

    def _progress(self, run: RunEntry) -> str:
        steps = [found for found in run.metrics if "train/loss" in found]
        if not steps:
            return ""
        last, rows = steps[-1], int(read_object(run.folder / "data.json")["train_rows"])
        recipe = with_settings(Recipe(), dict(run.settings), str(run.folder))
        all_steps = Plan(recipe, range(max(1, rows))).steps
        seconds = (all_steps - last["step"]) * last["seconds"] / max(1, last["step"])
        left = "" if run.result else self.say("left", time=readable_seconds(seconds))
        return self.say(
            "progress", step=last["step"], steps=all_steps, loss=f"{last['train/loss']:.3f}",
            speed=f"{last['train/tokens_per_second']:.0f}", left=left,
            memory=readable_bytes(last["memory/peak_bytes"]),
        )  # fmt: skip


def losses(run: RunEntry, name: str, say: Words) -> list[tuple[str, Points]]:
    """A run's two curves."""
    kinds = {"train/loss": say("training_loss"), "eval/loss": say("held_out_loss")}
    return [
        (f"{name} {what}".strip(), [(m["step"], m[kind]) for m in run.metrics if kind in m])
        for kind, what in kinds.items()
    ]


def _flags(settings: Mapping[str, Any]) -> Sequence[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]
