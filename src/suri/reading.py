"""Reading JSON and TOML so that whatever a damaged file holds ends in one message."""

import json
import math
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from suri.errors import Corrupt, UsageError


def read_json(path: Path) -> Any:
    """Read a JSON file that a program wrote; raises Corrupt when it is not JSON.

    Not-a-number, infinity and halves of a character are refused: they could not be written again.
    """
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise no_such(path, "file") from None
    except (ValueError, RecursionError) as problem:
        raise Corrupt(f"{path}: not readable as JSON", found=str(problem)) from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object; raises Corrupt when it holds anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise Corrupt(f"{path} does not hold one JSON object", found=type(value).__name__)
    return value


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file that this program wrote; none where there is no file.

    A last line without its end was cut while it was written, and counts as not written.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    with well_formed(path):
        return [dict(_parsed(line.decode())) for line in lines if line]


def read_toml(path: Path, what: str, *tables: str) -> dict[str, Any]:
    """Read a TOML file that a person wrote, in which `tables` are tables where they are there.

    Raises UsageError, naming the file as `what` it should be.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise no_such(path, what) from None
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{path}: not a TOML file", found=str(problem)) from None
    for name in tables:
        if not isinstance(found.get(name, {}), dict):
            raise UsageError(f"{path}: {name} must be a table, [{name}]")
    return found


@contextmanager
def well_formed(path: Path, what: str = "what was written") -> Iterator[None]:
    """Turn what fails over missing or odd values that were read from `path` into one Corrupt."""
    odd = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
    try:
        yield
    except odd as problem:
        raise Corrupt(f"{path} is not {what}", found=repr(problem)[:200]) from problem


def no_such(path: Path, what: str) -> UsageError:
    """What is said of a path that leads nowhere: also from where it was followed."""
    return UsageError(f"{path}: no such {what}", do=f"check the path; it means {path.absolute()}")


def _parsed(text: str) -> Any:
    value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    if "\\ud" in text.lower():  # an escaped half of a character, if it has no other half
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number")
    return number


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none's."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
