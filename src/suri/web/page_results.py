"""The Results tab: runs beside each other, reports to download, and merging with its proof."""

import base64
import html
import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from suri.errors import SuriError, UsageError
from suri.export.verify import read_certificate
from suri.train.jobs import Runs
from suri.train.runs import RunEntry, differing, read_run, readable_figure
from suri.web.page_train import EVERY_SECONDS, METHODS, losses
from suri.web.page_words import AT_ONCE, QUIET, TEXTS, Words, block, curves, line, table

FORMS = ("hf", "meta", "gguf")
SUMMARIES = ("compare.json", "summary.json")
REPORTS = ("report.html", "report-zh.html", *SUMMARIES)


def results_tab(page: gr.Blocks, results: "Results", say: Words) -> None:
    """The tab's elements and what they do."""
    listed = gr.HTML("", elem_id="runs")
    refresh = say.button("refresh", size="sm")
    with gr.Row():
        one, other = (say.box(name, gr.Dropdown, [], min_width=260) for name in ("one", "other"))
    beside = gr.HTML("", elem_id="beside")
    with gr.Row():
        with gr.Column():
            form = say.box("form", gr.Radio, say.choices("form", FORMS), value="hf")
            merge = say.button("merge", variant="primary")
            merged = gr.HTML("", elem_id="merged")
        with gr.Column():
            report = say.box("report", gr.Dropdown, [])
            files = say.box("files", gr.File, file_count="multiple", interactive=False, height=150)
    figures = gr.HTML("", elem_id="figures")
    gr.on(
        [page.load, refresh.click], results.choices, one, [listed, one, other, report], **AT_ONCE
    ).then(say.told(results.beside), [one, other], beside, **QUIET)
    gr.on([one.input, other.input], say.told(results.beside), [one, other], beside, **QUIET)
    chosen = report.change(say.told(results.report), report, [files, figures], **QUIET)
    if say.language:
        # One that is chosen while another is drawn has its turn after it.
        chosen.then(say.told(results.in_chinese), report, figures, trigger_mode="multiple", **QUIET)
    merge.click(say.told(results.merge), [one, form], merged, **QUIET)
    gr.Timer(EVERY_SECONDS).tick(say.told(results.merged), [one, form], merged, **AT_ONCE)


class Results:
    """What lies in the folder of runs, read anew whenever it is asked for."""

    def __init__(self, runs: Runs, say: Words) -> None:
        self.runs, self.say = runs, say

    @cached_property
    def copies(self) -> str:
        """A folder for what is downloaded: made with the first of it, gone when the page ends."""
        folder = tempfile.mkdtemp(prefix="suri-page-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def choices(self, chosen: str) -> list[Any]:
        """The table of runs, and the choices as they are now."""
        found = {}
        for name in self.runs.holding("recipe.toml"):
            with suppress(SuriError):  # no run, or half of one
                found[name] = self._row(name, read_run(self.runs.place(name)))
        shown = self.say.table("run_heads", list(found.values()))
        chosen = chosen if chosen in found else next(iter(found), "")
        names, reports = gr.update(choices=list(found)), self.runs.holding(*REPORTS)
        first = gr.update(choices=list(found), value=chosen or None)
        return [shown or line(self.say("no_runs")), first, names, gr.update(choices=reports)]

    def _row(self, name: str, run: RunEntry) -> list[str]:
        stored = str(run.settings["quantize"])
        method = METHODS.get(stored, stored)
        state = self.say("done" if run.result else "unfinished")
        figures = ("base_loss", "held_out_loss", "train_seconds", "peak_memory_bytes")
        base = Path(str(run.settings["base_model"])).name
        return [name, method, base, state, *(self._figure(run, each) for each in figures)]

    def _figure(self, run: RunEntry, name: str) -> str:
        return self.say.again(readable_figure(name, run.figures.get(name)))

    def beside(self, one: str, other: str) -> str:
        """One run's curves, or two runs' over each other with all in which they differ."""
        runs = {name: read_run(self.runs.place(name)) for name in (one, other) if name}
        drawn = curves([curve for n, run in runs.items() for curve in losses(run, n, self.say)])
        if len(runs) < 2:
            return drawn
        first, second = runs.values()
        rows = [(n, self.say.value(n, a), self.say.value(n, b))
                for n, a, b in differing(first, second)]  # fmt: skip
        both = first.figures | second.figures
        rows += [(n, self._figure(first, n), self._figure(second, n)) for n in both]
        return drawn + table(["", *runs], [(self.say.again(n), *values) for n, *values in rows])

    def report(self, name: str) -> tuple[list[str], str]:
        """Copies of a folder's reports to download, and its figures."""
        reports = self.runs.files(name, "report*.*", *SUMMARIES)
        into = Path(tempfile.mkdtemp(dir=self.copies))
        copies = [str(shutil.copyfile(file, into / file.name)) for file in reports]
        return copies, self._figures(self._own(name) or self.runs.files(name, "figures/*.svg"))

    def in_chinese(self, name: str) -> Any:
        """The figures with Chinese in them, which `suri report` draws where the folder has none."""
        own, data = self._own(name), self.runs.files(name, *SUMMARIES)
        if data and not own:
            into = Path(self.copies, f"{quote(name, safe='')}-{data[0].stat().st_mtime_ns}")
            words = ["report", str(self.runs.place(name)), "--language", "zh"]
            if not into.exists():
                with suppress(UsageError):  # then the English ones stay
                    self.runs.ask([*words, "--formats", "html", "--output_dir", str(into)])
            own = [*into.glob("figures-zh/*.svg")]
        return self._figures(own or self.runs.files(name, "figures/*.svg"))

    def _own(self, name: str) -> list[Path]:
        """The folder's figures in the page's language, where that is not English."""
        return self.runs.files(name, "figures-zh/*.svg") if self.say.language else []

    def _figures(self, pictures: Sequence[Path]) -> str:
        """Figures by their names, those of 64 rows before those of 256."""
        return "".join(self._drawn(picture) for picture in sorted(pictures, key=_pieces)[:20])

    def _drawn(self, picture: Path) -> str:
        """A figure and below it what it shows; one that has no text here is called by its name."""
        coded = base64.b64encode(picture.read_bytes()).decode()
        name = re.sub(r"-\d+$", "", picture.stem)
        rows = picture.stem.removeprefix(name).lstrip("-")
        text = f"figure_{name}"
        said = html.escape(self.say(text, rows=rows) if text in TEXTS else picture.stem)
        image = f'<img src="data:image/svg+xml;base64,{coded}" alt="{said}">'
        return f"<figure>{image}<figcaption>{said}</figcaption></figure>"

    def merge(self, name: str, form: str) -> str:
        """Start a merge, a process of its own."""
        run, out = self.runs.place(name), Path(f"{name}-{form}")
        new = self.runs.new(out.name, out.parent.as_posix())
        words = ["merge", str(run), "--to", form, "--output_dir", str(new)]
        self.runs.start(f"{name} {form}", words)
        return self.merged(name, form)

    def merged(self, name: str, form: str) -> str:
        """How a merge stands: what it says while it runs, then its certificate."""
        if not name:
            return ""
        job, place = f"{name} {form}", self.runs.place(f"{name}-{form}")
        said = block(self.runs.said(job))
        if self.runs.is_running(job):
            return line(self.say("merging")) + said
        try:
            checks = read_certificate(place)["checks"]
        except UsageError:
            return said
        rows = [(self.say.again(c["name"]), self.say.again("PASS" if c["passed"] else "FAIL"),
                 f"{c['figure']:.3g}", c["limit"]) for c in checks]  # fmt: skip
        proved = self.say("certified", folder=place.relative_to(self.runs.root).as_posix())
        return line(proved) + self.say.table("check_heads", rows)


def _pieces(picture: Path) -> list[str | int]:
    """A file's name with its numbers as such."""
    return [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", picture.stem)]
