"""Compare base, adapter and both merges on the same held-out rows: measure, judge, write."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suri.data.records import Record, read_records, write_records
from suri.data.skills import is_correct
from suri.errors import UsageError
from suri.files import make_folder, read_json, sha256, write_json, write_text
from suri.recipe import recipe_from_toml, settings_of
from suri.study.process import busiest, measure, run_module
from suri.study.report import ANSWERS, COMPARE, TRAINING, write_report
from suri.study.scores import rouge_l, shared_prefix
from suri.study.summary import ADAPTER, HF, META, WAYS, summarise_ways

Say = Callable[[str], None]
WORK = "work"
"""Specs, results and terminal output of every process; its presence says that a folder is ours."""
MERGED = {HF: "merged-hf", META: "merged-meta"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Base, adapter and merged models, side by side."""

    run: Path
    """Run folder of a finished training."""
    ways: str = ",".join(WAYS)
    """What to compare, with commas between."""
    output_dir: str = ""
    """Folder for the results ("": beside the run, its name and -compare)."""
    prompts: int = 24
    """Held-out rows to use, the first ones."""
    max_new_tokens: int = 32
    """Most tokens in an answer."""
    data_path: str = ""
    """File of rows to compare on ("": those that the run held out)."""
    merged_hf: str = ""
    """Folder of an HF model that `suri merge` wrote ("": it is made)."""
    merged_meta: str = ""
    """Folder of a Meta model that `suri merge` wrote ("": it is made)."""
    dtype: str = "float32"
    """Number format of every way; only float32 can show two ways to be equal."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    repeats: int = 1
    """Processes that each way is timed in, in turns; 3 or more support claims about speed."""

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return Path(self.output_dir.strip() or f"{self.run.resolve()}-compare")

    @property
    def chosen(self) -> list[str]:
        """The ways, in the order of the report; raises UsageError for one that does not exist."""
        asked = [way.strip() for way in self.ways.split(",") if way.strip()]
        unknown = [way for way in asked if way not in WAYS]
        if unknown or not asked:
            raise UsageError(
                f"--ways {self.ways}: {', '.join(unknown) or 'none given'}",
                do=f"choose from {','.join(WAYS)}",
            )
        return [way for way in WAYS if way in asked]


def compare(comparison: Comparison, say: Say) -> Path:
    """Measure every way and write compare.json, answers.jsonl and report.html; returns the report.

    `say` is told what is being done. Raises UsageError for a folder that is not a finished run or
    holds no rows, and Failed where a merge or a measurement fails.
    """
    run, ways, folder = comparison.run, comparison.chosen, comparison.folder
    if not (run / "result.json").is_file():
        raise UsageError(
            f"{run} is not the folder of a finished run",
            found="no result.json in it" if run.is_dir() else "no such folder",
            do="give the output_dir of `suri train`",
        )
    if comparison.prompts < 1 or comparison.repeats < 1 or comparison.max_new_tokens < 2:
        raise UsageError("--prompts and --repeats must be 1 or more, --max_new_tokens 2 or more")
    records = _held_out(comparison)
    _open_folder(folder)
    merged = {way: _merged(comparison, way, say) for way in ways if way in MERGED}
    rows = (folder / WORK / "rows.jsonl").absolute()
    write_records(rows, records)
    measured = _measure_all(comparison, ways, merged, rows, say)
    entries = judge(records, {way: found[0] for way, found in measured.items()})
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    write_text(folder / ANSWERS, "".join(lines))
    if (run / "metrics.jsonl").is_file():
        shutil.copyfile(run / "metrics.jsonl", folder / TRAINING)
    write_json(folder / COMPARE, _summary(comparison, merged, measured, entries))
    return write_report(folder)


def _held_out(comparison: Comparison) -> list[Record]:
    path = Path(comparison.data_path.strip() or comparison.run / "held_out.jsonl")
    if not path.is_file() or not path.stat().st_size:
        raise UsageError(
            f"{path} holds no rows to compare on",
            do="give a file of rows that were not trained on with --data_path",
        )
    return read_records(path)[: comparison.prompts]


def _open_folder(folder: Path) -> None:
    """Make the folder; one that exists must be of an earlier comparison."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / WORK).is_dir():
        raise UsageError(
            f"{folder} exists and holds something else", do="choose another --output_dir"
        )
    make_folder(folder / WORK)


def _merged(comparison: Comparison, way: str, say: Say) -> Path:
    """The folder of a merged model: the one given, one of an earlier comparison, or a new one."""
    given = {HF: comparison.merged_hf, META: comparison.merged_meta}[way].strip()
    if given:
        if not _is_merge_of(Path(given), comparison.run):
            raise UsageError(
                f"{given} is not a merge of {comparison.run}", do="leave it out, and it is made"
            )
        return Path(given)
    folder = comparison.folder / MERGED[way]
    if _is_merge_of(folder, comparison.run, comparison.dtype):
        say(f"{WAYS[way]}: {folder} is there already")
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    say(f"{WAYS[way]}: merging into {folder}")
    flags = {"--to": way, "--output_dir": str(folder), "--dtype": comparison.dtype}
    run_module(
        "suri",
        ["merge", str(comparison.run), *(word for flag in flags.items() for word in flag)],
        what=f"merging to {way}",
        do="--ways names what to compare where one cannot be made",
        terminal=comparison.folder / WORK / f"merge-{way}.txt",
    )
    return folder


def _is_merge_of(folder: Path, run: Path, dtype: str = "") -> bool:
    """Whether a certified folder was made of this run's adapter as it is now, and in this dtype."""
    if not (folder / "certificate.json").is_file():
        return False
    certificate = read_json(folder / "certificate.json")
    same = all(
        (run / name).is_file() and sha256(run / name) == checksum
        for name, checksum in certificate["adapter"]["files"].items()
    )
    return same and dtype in ("", certificate["dtype"])


def _measure_all(
    comparison: Comparison, ways: Sequence[str], merged: dict[str, Path], rows: Path, say: Say
) -> dict[str, list[dict[str, Any]]]:
    """All measurements of each way; the repeats go round the ways, so that slow minutes hit all."""
    measured: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    quantize = read_json(comparison.run / "result.json").get("quantize", "none")
    recipe = recipe_from_toml(comparison.run / "recipe.toml")
    work = comparison.folder.absolute() / WORK
    # The adapter first: the others are held against its distributions.
    order = sorted(ways, key=lambda way: way != ADAPTER)
    for repeat in range(comparison.repeats):
        for way in order:
            spec = {
                "run": str(comparison.run.absolute()),
                "way": way,
                "model": str(merged[way].absolute()) if way in merged else "",
                "quantize": quantize if way == ADAPTER else "none",
                "dtype": comparison.dtype,
                "device": comparison.device,
                "rows": str(rows),
                "max_new_tokens": comparison.max_new_tokens,
                "cutoff_len": recipe.cutoff_len,
                "parts": ["speed"] if repeat else ["speed", "answers", "losses"],
                "reference": str(work / "adapter.npy") if ADAPTER in ways else "",
            }
            say(f"{WAYS[way]}: measuring" + (f" again ({repeat + 1})" if repeat else ""))
            place = work / (f"{way}-{repeat}" if repeat else way)
            measured[way].append(measure(spec, place, what=f"measuring {WAYS[way]}"))
    (work / "adapter.npy").unlink(missing_ok=True)
    return measured


def judge(records: Sequence[Record], measured: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each row: what was expected, what each way answered, and how good that is."""
    losses = {way: {one["row"]: one for one in found["losses"]} for way, found in measured.items()}
    entries = []
    for row, record in enumerate(records):
        answers = {}
        for way, found in measured.items():
            answer = found["answers"][row]
            loss = losses[way].get(row, {"loss_sum": 0.0, "learned_tokens": 0})
            answers[way] = {
                "text": answer["text"],
                "tokens": len(answer["ids"]),
                "stopped": answer["stopped"],
                "correct": is_correct(record, answer["text"]),
                "rouge_l": rouge_l(record.output, answer["text"]),
                "loss_sum": loss["loss_sum"],
                "learned_tokens": loss["learned_tokens"],
            }
            if ADAPTER in measured:
                ids = measured[ADAPTER]["answers"][row]["ids"]
                answers[way]["same_as_adapter"] = answer["ids"] == ids
                answers[way]["shared_prefix"] = shared_prefix(answer["ids"], ids)
        entries.append(
            {
                "row": row,
                "instruction": record.instruction,
                "input": record.input,
                "expected": record.output,
                "skill": record.skill,
                "answers": answers,
            }
        )
    return entries


def _summary(
    comparison: Comparison,
    merged: dict[str, Path],
    measured: dict[str, list[dict[str, Any]]],
    entries: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    speeds = {way: [one["speed"] for one in found] for way, found in measured.items()}
    probes = {way: found[0].get("probe") for way, found in measured.items()}
    certificates = {way: read_json(folder / "certificate.json") for way, folder in merged.items()}
    return {
        "kind": "compare",
        "run": str(comparison.run),
        "rows": len(entries),
        "settings": {
            name: getattr(comparison, name)
            for name in ("ways", "prompts", "max_new_tokens", "data_path", "dtype", "repeats")
        },
        "recipe": settings_of(recipe_from_toml(comparison.run / "recipe.toml")),
        "result": read_json(comparison.run / "result.json"),
        "environment": read_json(comparison.run / "environment.json"),
        "measured_in": busiest(one["environment"] for found in measured.values() for one in found),
        "certificates": {
            way: {name: found[name] for name in ("passed", "checks")}
            for way, found in certificates.items()
        },
        **summarise_ways(entries, speeds, probes),
    }
