"""Compare the forms of a run's weights on the same held-out rows: measure, judge, write."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suri.data.records import Record, read_records, write_records
from suri.data.skills import is_correct
from suri.errors import UsageError
from suri.files import write_json, write_text
from suri.reading import read_object
from suri.recipe import recipe_from_toml, settings_of
from suri.study.browser import picture_of_chat
from suri.study.compare_summary import summarise_ways
from suri.study.forms import WORK, Way, merged, ways_of
from suri.study.measures import ADAPTER, HF, META
from suri.study.plan import what_it_is
from suri.study.process import Say, Spec, busiest, measure, open_results
from suri.study.report import ANSWERS, COMPARE, TRAINING, write_report
from suri.study.scores import bleu, chrf, rouge_l
from suri.study.statements import threats


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Base, adapter and merged models, side by side."""

    run: Path
    """Run folder of a finished training,
    or a TOML file with [recipe], that trains one, and [compare]."""
    ways: str = ""
    """What to compare, with commas between
    ("": base,adapter,hf,meta,int8,nf4; all: every way there is)."""
    engines: str = "suri"
    """What runs them: the first runs all ways, the others (transformers) adapter and merged HF."""
    dtypes: str = "float32"
    """Number format: of all ways the first, of adapter and merged models also the others.
    Only float32 can show two ways to be equal."""
    output_dir: str = ""
    """Folder for the results ("": beside the run, its name and -compare)."""
    prompts: int = 24
    """Held-out rows to use, the first ones."""
    max_new_tokens: int = 32
    """Most tokens in an answer."""
    data_path: str = ""
    """File of rows to compare on ("": those that the run held out)."""
    merged_hf: str = ""
    """Folder of an HF model that `suri merge` wrote; used where its number format is asked for."""
    merged_meta: str = ""
    """The same for a Meta model."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where torch can use one."""
    repeats: int = 1
    """Processes that each way is timed in, in turns; 3 or more support claims about speed."""

    @property
    def folder(self) -> Path:
        """Where the results go."""
        if self.run.suffix == ".toml":
            return Path(self.output_dir or self.run.stem)
        return Path(self.output_dir or f"{self.run.resolve()}-compare")


def compare(comparison: Comparison, say: Say) -> Path:
    """Measure every way and write compare.json, answers.jsonl and report.html; returns the report.

    `say` is told what is being done. Raises UsageError for a folder that is not a finished run or
    holds no rows, and Failed where a merge or a measurement fails.
    """
    run, folder = comparison.run, comparison.folder
    if not (run / "result.json").is_file():
        raise UsageError(
            f"{run} is not the folder of a finished run",
            found="no result.json in it" if run.is_dir() else "no such folder",
            do="give the output_dir of `suri train`",
        )
    if comparison.prompts < 1 or comparison.repeats < 1 or comparison.max_new_tokens < 4:
        raise UsageError("--prompts and --repeats must be 1 or more, --max_new_tokens 4 or more")
    trained = read_object(run / "result.json").get("quantize", "none")
    ways = ways_of(comparison.ways, comparison.engines, comparison.dtypes, trained)
    records = _held_out(comparison)
    open_results(folder, WORK)
    work = folder.absolute() / WORK
    models = _merged(comparison, ways, say)
    write_records(work / "rows.jsonl", records)
    measured = _measure_all(comparison, ways, models, trained, say)
    entries = judge(records, {way: found[0] for way, found in measured.items()})
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    write_text(folder / ANSWERS, "".join(lines))
    if (run / "metrics.jsonl").is_file():
        shutil.copyfile(run / "metrics.jsonl", folder / TRAINING)
    write_json(folder / COMPARE, _summary(comparison, ways, models, measured, entries))
    if missing := picture_of_chat(run, records[0], folder):
        say(f"no picture of the chat page: {missing}")
    return write_report(folder)[0]


def _held_out(comparison: Comparison) -> list[Record]:
    path = Path(comparison.data_path or comparison.run / "held_out.jsonl")
    if not path.is_file() or not path.stat().st_size:
        raise UsageError(
            f"{path} holds no rows to compare on",
            do="give a file of rows that were not trained on with --data_path",
        )
    return read_records(path)[: comparison.prompts]


def _merged(comparison: Comparison, ways: Sequence[Way], say: Say) -> dict[str, Path]:
    """The folders of all merged models, by the names of their ways."""
    run, folder = comparison.run, comparison.folder
    given = {HF: comparison.merged_hf, META: comparison.merged_meta}
    return {
        way.name: merged(way, run, folder, given.get(way.form, ""), say)
        for way in ways
        if way.model
    }


def _measure_all(
    comparison: Comparison, ways: Sequence[Way], models: dict[str, Path], trained: str, say: Say
) -> dict[str, list[dict[str, Any]]]:
    """All measurements of each way; the repeats go round the ways, so that slow minutes hit all."""
    measured: dict[str, list[dict[str, Any]]] = {way.name: [] for way in ways}
    recipe = recipe_from_toml(comparison.run / "recipe.toml")
    work = comparison.folder.absolute() / WORK
    reference = work / "adapter.npy"
    reference.unlink(missing_ok=True)
    # The adapter first: the others are held against its distributions.
    order = sorted(ways, key=lambda way: way.name != ADAPTER)
    for repeat in range(comparison.repeats):
        for way in order:
            spec = Spec(
                run=str(comparison.run.absolute()),
                way=way.name,
                model=str(models[way.name].absolute()) if way.name in models else "",
                with_adapter=way.with_adapter,
                quantize=way.quantize(trained),
                engine=way.engine,
                dtype=way.dtype,
                device=comparison.device,
                rows=str(work / "rows.jsonl"),
                max_new_tokens=comparison.max_new_tokens,
                cutoff_len=recipe.cutoff_len,
                parts=("speed",) if repeat else ("speed", "answers", "losses"),
                reference=str(reference) if order[0].name == ADAPTER else "",
            )
            say(f"{way.label}: measuring" + (f" again ({repeat + 1})" if repeat else ""))
            place = work / (f"{way.name}-{repeat}" if repeat else way.name)
            what = f"measuring {way.label}"
            found = measure(spec, place, what=what, results=comparison.folder)
            measured[way.name].append(found)
    reference.unlink(missing_ok=True)
    return measured


def judge(records: Sequence[Record], measured: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each row: what was expected, what each way answered, and how good that is."""
    losses = {way: {one["row"]: one for one in found["losses"]} for way, found in measured.items()}
    return [
        {
            "row": row,
            "instruction": record.instruction,
            "input": record.input,
            "expected": record.output,
            "skill": record.skill,
            "answers": {
                way: _judged(record, found["answers"][row], losses[way].get(row, {}))
                for way, found in measured.items()
            },
        }
        for row, record in enumerate(records)
    ]


def _judged(record: Record, answer: dict[str, Any], loss: dict[str, Any]) -> dict[str, Any]:
    """An answer, its scores, and the loss of what was expected; 0 where nothing was to learn."""
    text = answer["text"]
    return {
        "text": text,
        "ids": answer["ids"],
        "tokens": len(answer["ids"]),
        "stopped": answer["stopped"],
        "correct": is_correct(record, text),
        "rouge_l": rouge_l(record.output, text),
        "chrf": chrf(record.output, text),
        "bleu": bleu(record.output, text),
        "loss_sum": loss.get("loss_sum", 0.0),
        "learned_tokens": loss.get("learned_tokens", 0),
    }


def _summary(
    comparison: Comparison,
    ways: Sequence[Way],
    models: dict[str, Path],
    measured: dict[str, list[dict[str, Any]]],
    entries: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    from suri.export.verify import read_certificate

    certificates = {way: read_certificate(folder) for way, folder in models.items()}
    recipe = what_it_is(settings_of(recipe_from_toml(comparison.run / "recipe.toml")))
    place = busiest(one["environment"] for found in measured.values() for one in found)
    settings = ("prompts", "max_new_tokens", "data_path", "engines", "dtypes", "repeats")
    return {
        "kind": "compare",
        "run": comparison.run.name,
        "rows": len(entries),
        "settings": {name: getattr(comparison, name) for name in settings},
        "recipe": recipe,
        "result": read_object(comparison.run / "result.json"),
        "environment": read_object(comparison.run / "environment.json"),
        "measured_in": place,
        "threats": threats(recipe, len(entries), place, seeds=1),
        "certificates": {
            way: {name: found[name] for name in ("passed", "checks")}
            for way, found in certificates.items()
        },
        **summarise_ways(entries, ways, measured),
    }
