"""The Results tab: runs beside each other, reports to download, and merging with its proof."""

import base64
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import gradio as gr

from suri.errors import SuriError, UsageError
from suri.export.certify import read_certificate
from suri.files import readable_bytes, readable_seconds
from suri.train.jobs import Runs
from suri.train.runs import RunEntry, differing, read_run
from suri.web.page_train import EVERY_SECONDS, METHODS, losses
from suri.web.page_words import Words, block, curves, line, table, told

REPORTS = ("report.html", "report-zh.html", "compare.json", "summary.json")
MOST_FIGURES = 8


def results_tab(page: gr.Blocks, runs: Runs, say: Words) -> None:
    """The tab's elements and what they do."""
    results = Results(runs, say)
    listed = gr.HTML("", elem_id="runs")
    refresh = gr.Button(say("refresh"), size="sm", elem_id="refresh")
    with gr.Row():
        one = gr.Dropdown([], label=say("run"), elem_id="one")
        other = gr.Dropdown([], label=say("beside"), info=say("beside_info"), elem_id="other")
    beside = gr.HTML("", elem_id="beside")
    with gr.Row():
        with gr.Column():
            form = gr.Radio(["hf", "meta", "gguf"], value="hf", label=say("merge_to"),
                            info=say("merge_info"), elem_id="form")  # fmt: skip
            merge = gr.Button(say("merge"), variant="primary", elem_id="merge")
            merged = gr.HTML("", elem_id="merged")
        with gr.Column():
            report = gr.Dropdown([], label=say("report"), info=say("report_info"),
                                 elem_id="report")  # fmt: skip
            files = gr.File(label=say("files"), file_count="multiple", interactive=False,
                            elem_id="files", height=150)  # fmt: skip
    figures = gr.HTML("", elem_id="figures")
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    gr.on(
        [page.load, refresh.click], results.choices, one, [listed, one, other, report],
        queue=False, **quiet,
    ).then(told(results.beside), [one, other], beside, **quiet)  # fmt: skip
    gr.on([one.input, other.input], told(results.beside), [one, other], beside, **quiet)
    report.change(told(results.report), report, [files, figures], **quiet)
    merge.click(told(results.merge), [one, form], merged, **quiet)
    gr.Timer(EVERY_SECONDS).tick(told(results.merged), [one, form], merged, queue=False, **quiet)


class Results:
    """What lies in the folder of runs, read anew whenever it is asked for."""

    def __init__(self, runs: Runs, say: Words) -> None:
        self.runs, self.say = runs, say
        self.copies = tempfile.mkdtemp(prefix="suri-page-")
        weakref.finalize(self, shutil.rmtree, self.copies, ignore_errors=True)

    def choices(self, chosen: str) -> list[Any]:
        """The table of runs, and the choices as they are now."""
        names, rows = [], []
        for name in self.runs.holding("recipe.toml"):
            try:
                rows.append(self._row(name, read_run(self.runs.place(name))))
            except SuriError:
                continue
            names.append(name)
        shown = table(self.say("run_heads").split("|"), rows) if rows else line(self.say("no_runs"))
        reports = self.runs.holding(*REPORTS)
        chosen = chosen if chosen in names else next(iter(names), "")
        first = gr.update(choices=names, value=chosen or None)
        return [shown, first, gr.update(choices=names), gr.update(choices=reports)]

    def _row(self, name: str, run: RunEntry) -> list[str]:
        figures, settings = run.figures, run.settings
        methods = {value: key for key, value in METHODS.items()}
        return [
            name, methods.get(settings["quantize"], ""), Path(str(settings["base_model"])).name,
            self.say("done" if run.result else "unfinished"),
            *(f"{figures[key]:.3f}" if key in figures else "–"
              for key in ("base_loss", "held_out_loss")),
            readable_seconds(figures["train_seconds"]) if "train_seconds" in figures else "–",
            readable_bytes(figures["peak_memory_bytes"]) if "peak_memory_bytes" in figures else "–",
        ]  # fmt: skip

    def beside(self, one: str, other: str) -> str:
        """One run's curves, or two runs' over each other with all in which they differ."""
        there = [(name, read_run(self.runs.place(name))) for name in (one, other) if name]
        drawn = curves([curve for name, run in there for curve in losses(run, name, self.say)])
        if len(there) < 2:
            return drawn
        (_, first), (_, second) = there
        rows = [(n, str(a), str(b)) for n, a, b in differing(first, second)]
        both = dict.fromkeys([*first.figures, *second.figures])
        figures = [{n: _figure(n, value) for n, value in run.figures.items()} for _, run in there]
        rows += [(n, figures[0].get(n, "–"), figures[1].get(n, "–")) for n in both]
        return drawn + table(["", one, other], rows)

    def report(self, name: str) -> tuple[list[str], str]:
        """Copies of a folder's reports to download, and its figures."""
        folder = self.runs.place(name or "")
        into = Path(tempfile.mkdtemp(dir=self.copies))
        found = [*folder.glob("report*.*"), *(folder / n for n in ("compare.json", "summary.json"))]
        copies = [shutil.copyfile(self._inside(f), into / f.name) for f in found if f.is_file()]
        pictures = sorted(folder.glob("figures/*.svg"))[:MOST_FIGURES]
        coded = [base64.b64encode(self._inside(p).read_bytes()).decode() for p in pictures]
        shown = "".join(f'<img src="data:image/svg+xml;base64,{text}">' for text in coded)
        return [str(copy) for copy in copies], shown

    def _inside(self, file: Path) -> Path:
        return self.runs.place(file.relative_to(self.runs.root).as_posix())

    def merge(self, name: str, form: str) -> str:
        """Start a merge, a process of its own."""
        run = self.runs.place(name or "")
        out = self.runs.new(*_out(name, form))
        words = ["merge", str(run), "--to", form, "--output_dir", str(out)]
        self.runs.start(f"{name} {form}", words)
        return self.merged(name, form)

    def merged(self, name: str, form: str) -> str:
        """How a merge stands: what it says while it runs, then its certificate."""
        if not name:
            return ""
        job, place = f"{name} {form}", self.runs.place(f"{name}-{form}")
        if self.runs.is_running(job):
            return line(self.say("merging")) + block(self.runs.said(job))
        if not place.is_dir():
            return block(self.runs.said(job))
        try:
            checks = read_certificate(place)["checks"]
        except UsageError:
            return ""
        rows = [(c["name"], "PASS" if c["passed"] else "FAIL", f"{c['figure']:.3g}", c["limit"])
                for c in checks]  # fmt: skip
        said = self.say("certified", folder=place.relative_to(self.runs.root).as_posix())
        return line(said) + table(self.say("check_heads").split("|"), rows)


def _figure(name: str, value: float) -> str:
    return readable_bytes(value) if name.endswith("_bytes") else f"{value:,.4g}"


def _out(name: str, form: str) -> tuple[str, str]:
    """The name of a merge beside its run, and the folder of both."""
    place = Path(f"{name}-{form}")
    return place.name, place.parent.as_posix()
