"""What others rely on, frozen: a change of it is a change for them, and belongs in the changelog.

`PYTHONPATH=tests python tests/test_surface.py` writes the list anew.
"""

import json
import sys
from pathlib import Path

from suri import errors
from suri.cli.data import VERBS as DATA_VERBS
from suri.cli.main import HIDDEN, VERBS

ROOT = Path(__file__).parents[1]
FROZEN = Path(__file__).with_suffix(".json")
sys.path.insert(0, str(ROOT / "tools"))
import make_reference as reference  # noqa: E402


def surface() -> dict[str, object]:
    """Verbs with their flags and defaults, the API's paths, and what exit codes mean."""
    verbs = [[verb] for verb in sorted(VERBS.keys() | HIDDEN.keys() - {"data"}) if verb != "data"]
    verbs += [["data", verb] for verb in sorted(DATA_VERBS)]
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return {
        "verbs": {" ".join(verb): flags(verb) for verb in verbs},
        "paths": paths(),
        "exit_codes": {kind.__name__: kind.exit_code for kind in kinds},
    }


def flags(verb: list[str]) -> dict[str, str]:
    parsed = reference.parse_only(verb, words=False)
    return {flag.name: flag.default for flag in reference.flags_of(parsed)}


def paths() -> list[str]:
    from suri.web.api import Api, routes

    return sorted(route.path for route in routes(object.__new__(Api)))


def test_the_surface_is_the_frozen_one() -> None:
    assert surface() == json.loads(FROZEN.read_text(encoding="utf-8"))


if __name__ == "__main__":
    text = json.dumps(surface(), indent=1, ensure_ascii=False) + "\n"
    FROZEN.write_text(text, encoding="utf-8")
