"""The command line's edge: finds the verb, tidies its flags, turns errors into exit codes."""

import importlib
import logging
import os
import re
import sys
from collections.abc import Callable
from itertools import pairwise

from suri.errors import SuriError

VERBS = {
    "demo": ("demo:run", "the whole path on what comes with the installation, ending in a report"),
    "train": ("train:run", "fine-tune a model with LoRA or QLoRA"),
    "fit": ("fit:run", "whether a training fits, here or elsewhere, and how long it takes"),
    "chat": ("serve:run_chat", "open a page in the browser and talk to a model"),
    "serve": ("serve:run_serve", "answer HTTP requests as OpenAI's API does"),
    "generate": ("generate:run_generate", "answer a file of instructions"),
    "merge": ("merge:run_merge", "fold an adapter into HF, Meta or GGUF weights, with proof"),
    "convert": ("merge:run_convert", "write a whole model in another format, with proof"),
    "verify": ("merge:run_verify", "check a merge or a conversion again"),
    "runs": ("runs:run", "what was trained, and how it went; two runs side by side"),
    "compare": ("study:run_compare", "base, adapter, merges, 8 and 4 bits side by side"),
    "study": ("study:run_study", "LoRA, 8-bit and QLoRA over sizes of data"),
    "report": ("study:run_report", "write a comparison's or a study's report again"),
    "doctor": ("doctor:run", "what this machine can do, and what would mend what it cannot"),
    "data": ("data:run", "check rows, see what is learned of them, make the bundled ones"),
}
THREADS = {
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "20000",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
}
"""How OpenMP's threads wait for work, unless the user says otherwise: spinning for some 20
microseconds, then asleep. Spinning on starves everybody on a shared or virtual machine; sleeping at
once makes the thousands of small operations of a step a fifth slower. And for how many shapes
oneDNN keeps the code that it made: with its own 1,024, memory grew by 10 MB a micro-batch."""
HIDDEN = {"finetune": "train:run_finetune"}
WITHOUT_TRUE = ("--help", "--recipe")
"""Flags of which a bare one does not mean True."""


def main(argv: list[str] | None = None) -> None:
    """Run `suri VERB ...`; exits with the codes that `suri.errors` gives."""
    argv = sys.argv[1:] if argv is None else argv
    os.environ.update({name: os.environ.get(name, value) for name, value in THREADS.items()})
    logging.basicConfig(format="note: %(message)s", level=logging.WARNING)
    # The one warns of an optional kernel collection that is not used here, the other prints itself.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub").propagate = False
    try:
        _answer(argv)
    except SuriError as problem:
        complain("" if problem.told else "\n".join(problem.lines()))
        sys.exit(problem.exit_code)
    except KeyboardInterrupt:
        complain("stopped; nothing that was complete is lost")
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output, `head` say, has enough; the interpreter's last flush has not.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as problem:
        if problem.filename is None:
            raise
        complain(f"{problem.filename}: {problem.strerror}")
        sys.exit(2)


def _answer(argv: list[str]) -> None:
    """Do what was asked; all that was printed goes out while a closed pipe is still caught."""
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(overview())
        elif argv[0] == "--version":
            from importlib.metadata import version

            print(f"suri {version('suri')}")
        else:
            find_verb(argv[0])(tidy(argv[1:]))
    finally:
        print(end="", flush=True)


def overview() -> str:
    """What `suri --help` prints."""
    verbs = "\n".join(f"  {verb:<9} {text}" for verb, (_, text) in VERBS.items())
    return (
        "suri: fine-tune Llama-family models, chat with them, merge them with proof, compare.\n\n"
        f"{verbs}\n\n`suri VERB --help` tells a verb's flags."
    )


def find_verb(verb: str) -> Callable[[list[str]], None]:
    """The function of a verb; only its module is imported."""
    place = VERBS[verb][0] if verb in VERBS else HIDDEN.get(verb)
    if place is None:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, n=1)
        complain(f"there is no verb {verb}" + (f"; did you mean {near[0]}?" if near else ""))
        print(overview(), file=sys.stderr)
        sys.exit(2)
    module, _, name = place.partition(":")
    function: Callable[[list[str]], None] = getattr(
        importlib.import_module(f"suri.cli.{module}"), name
    )
    return function


def tidy(argv: list[str]) -> list[str]:
    """Flags as every program of this family writes them, in the one form that the parser takes.

    `--flag-name` and `--flag=x` become `--flag_name x`; a bare `--flag` becomes `--flag True`;
    `'[q_proj,v_proj]'` becomes two values.
    """
    words: list[str] = []
    for word in argv:
        if re.match(r"--[A-Za-z]", word):
            flag, equals, value = word.partition("=")
            words.append(flag.replace("-", "_").replace("__", "--", 1))
            words += _values(value) if equals else []
        else:
            words += _values(word)
    tidied = []
    for word, following in pairwise([*words, "--"]):
        tidied.append(word)
        if word.startswith("--") and following.startswith("--") and word not in WITHOUT_TRUE:
            tidied.append("True")
    return tidied


def _values(word: str) -> list[str]:
    """The values in a word, without blanks around them: one, or those of a list in brackets."""
    word = word.strip()
    if not re.fullmatch(r"\[.*\]", word):
        return [word]
    return [part.strip(" '\"") for part in word[1:-1].split(",") if part.strip(" '\"")]


def complain(text: str) -> None:
    """Print an error for a person, in red where the terminal has colours; an empty one not."""
    if not text:
        return
    colours = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    start, end = ("\033[31m", "\033[0m") if colours else ("", "")
    first, _, rest = text.partition("\n")
    print(f"{start}error: {first}{end}" + (f"\n{rest}" if rest else ""), file=sys.stderr)
