"""The forms that a run's weights can take: which there are, and the merged ones made."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from suri.errors import UsageError
from suri.manifest import changed_files
from suri.study.measures import ADAPTER, BASE, GGUF, HF, META, WAYS, way_label
from suri.study.process import Say, run_module

WORK = "work"
"""Specs, results and terminal output of every process; its presence says that a folder is ours."""
ENGINES = ("suri", "transformers")
DTYPES = ("float32", "bfloat16", "float16")
DEFAULT = (BASE, ADAPTER, HF, META, "int8", "nf4")
MERGED = {form: f"merged-{form}" for form in (HF, META, GGUF, "hf-original")}
ALSO = (ADAPTER, HF, META)
"""The forms that are measured in further engines and number formats."""


@dataclass(frozen=True)
class Way:
    """One form of the weights, in one engine, at one number format."""

    form: str
    engine: str
    dtype: str
    is_main: bool = True
    """Whether engine and number format are those in which the forms are compared."""

    @property
    def name(self) -> str:
        """What it is called in the results."""
        return self.form if self.is_main else f"{self.form}-{self.engine}-{self.dtype}"

    @property
    def label(self) -> str:
        """What people read."""
        return way_label(asdict(self))

    @property
    def stored(self) -> str:
        """The number format of its merged file, which for GGUF is what llama.cpp's users have."""
        return "float16" if self.form == GGUF else self.dtype

    @property
    def model(self) -> str:
        """Which merged folder it needs; "" where none is."""
        return f"{MERGED[self.form]}-{self.stored}" if self.form in MERGED else ""

    def quantize(self, trained: str) -> str:
        """How its base is stored, given how that was stored in training."""
        return {ADAPTER: trained, "int8": "int8-weight", "nf4": "nf4"}.get(self.form, "none")

    @property
    def with_adapter(self) -> bool:
        """Whether the adapter is laid over a base, and not folded into it."""
        return self.form in (ADAPTER, "int8", "nf4")


def ways_of(asked: str, engines: str, dtypes: str, trained: str) -> list[Way]:
    """The ways that a user asked for, in the order of the report.

    Every form runs in the first engine at the first number format; ALSO in each further engine,
    and at each further number format, one change at a time. Raises UsageError for a name that
    does not exist.
    """
    engine, *more_engines = _names("--engines", engines, ENGINES)
    dtype, *more_dtypes = _names("--dtypes", dtypes, DTYPES)
    every = [form for form in WAYS if trained == "nf4" or form != "hf-original"]
    usual = [form for form in DEFAULT if (form, trained) != ("nf4", "nf4")]
    named = {"": ",".join(usual), "all": ",".join(every)}.get(asked, asked)
    forms = [form for form in WAYS if form in _names("--ways", named, every)]
    others = [(name, dtype) for name in more_engines] + [(engine, name) for name in more_dtypes]
    return [Way(form, engine, dtype) for form in forms if _runs(form, engine)] + [
        Way(form, *other, is_main=False)
        for other in others
        for form in forms
        if form in ALSO and _runs(form, other[0])
    ]


def _runs(form: str, engine: str) -> bool:
    """Whether an engine runs a form: transformers reads no Meta folder, and has its own int8."""
    return engine == "suri" or form not in (META, GGUF, "int8")


def _names(flag: str, asked: str, known: Sequence[str]) -> list[str]:
    """The names in a list with commas; at least one, each known."""
    names = list(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UsageError(
            f"{flag} {asked}: {', '.join(unknown) or 'none given'}",
            do=f"choose from {','.join(known)}",
        )
    return names


def merged(way: Way, run: Path, folder: Path, given: str, say: Say) -> Path:
    """The folder of a merged model: the one given, one made before, or a new one below `folder`."""
    if given and not is_merge_of(Path(given), run):
        raise UsageError(f"{given} is not a merge of {run}", do="leave it out, and it is made")
    if given and is_merge_of(Path(given), run, way.stored):
        return Path(given)
    out = folder / way.model
    if is_merge_of(out, run, way.stored):
        say(f"{way.label}: {out} is there already")
        return out
    shutil.rmtree(out, ignore_errors=True)
    say(f"{way.label}: merging into {out}")
    to, _, base = way.form.partition("-")
    flags = ["--to", to, "--output_dir", str(out), "--dtype", way.stored]
    run_module(
        "suri",
        ["merge", str(run), *flags, *(["--merge_base", base] if base else [])],
        what=f"merging to {way.label}",
        do="--ways names what to compare where one cannot be made",
        terminal=folder / WORK / f"merge-{way.name}.txt",
        results=folder,
    )
    if way.form == GGUF:
        from suri.model.weights import find_base

        find_base(str(out))  # read into the cache here, which is no part of what loading takes
    return out


def is_merge_of(folder: Path, run: Path, dtype: str = "") -> bool:
    """Whether a certified folder was made of this run's adapter as it is now, and in this dtype."""
    if not (folder / "certificate.json").is_file():
        return False
    from suri.export.verify import read_certificate  # torch is loaded where it is needed alone

    certificate = read_certificate(folder)
    if certificate["adapter"] is None:  # another format of a whole model
        return False
    files = certificate["adapter"]["files"]
    return not changed_files(run, files, *files) and dtype in ("", certificate["dtype"])
