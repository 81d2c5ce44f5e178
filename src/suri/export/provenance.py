"""Which adapters a model folder holds already, by its certificate, and what may be added to it."""

from pathlib import Path
from typing import Any

from suri.errors import UsageError
from suri.manifest import changed_files
from suri.model.adapter import Adapter
from suri.model.adapter_file import CONFIG_FILE, WEIGHTS_FILE, is_adapter
from suri.model.weights import base_identity
from suri.reading import read_json

FILE = "certificate.json"


def held_adapters(folder: Path) -> list[dict[str, Any]]:
    """Path and files of each adapter in a folder's weights, and the base each was added to.

    Empty for a folder without a certificate: of that nothing is known.
    """
    if not (folder / FILE).is_file():
        return []
    record = read_json(folder / FILE)
    try:
        held = list(record["base"].get("holds", []))
        if record["adapter"]:
            held.append(record["adapter"] | {"onto": record["base"]["path"]})
        for each in held:
            _ = each["path"], each["onto"], each["files"].items()
    except (KeyError, TypeError, AttributeError):  # something else of that name
        return []
    return held


def check_is_no_merge(folder: Path) -> None:
    """Raise UsageError where a merged model is given in place of an adapter."""
    if is_adapter(folder) or not (folder / FILE).is_file():
        return
    held = [each["path"] for each in held_adapters(folder)]
    raise UsageError(
        f"{folder} is a whole model and no adapter"
        + (": it holds its adapter already" if held else ""),
        found=f"merged from {', '.join(held)}" if held else f"no {CONFIG_FILE} in it",
        do=f"`suri chat {folder}` talks to it, `suri convert {folder}` writes its other formats",
    )


def check_holds_no_other(base: Path, adapter_folder: Path, adapter: Adapter) -> None:
    """Raise UsageError for a base that holds this adapter, or one that this was not trained on."""
    held = held_adapters(base)
    if not held:
        return
    first = held[0]["onto"]
    if any(_is_of(each["files"], adapter_folder) for each in held):
        raise UsageError(
            f"{base} holds this adapter already, and would get it twice",
            found=f"its {FILE} names the weights of {adapter_folder}",
            do=f"use {base} as it is, or name the base before the merge: --base_model {first}",
        )
    if not _trained_on(adapter, base, [each["onto"] for each in held]):
        raise UsageError(
            f"{base} is a merged model, and this adapter was not trained on it",
            found=f"merged from {', '.join(each['path'] for each in held)}",
            do=f"name the base that the adapter was trained on: --base_model {first}",
        )


def _is_of(files: dict[str, str], adapter_folder: Path) -> bool:
    """Whether these checksums are of this adapter's weights."""
    return WEIGHTS_FILE in files and not changed_files(adapter_folder, files, WEIGHTS_FILE)


def _trained_on(adapter: Adapter, folder: Path, before: list[str]) -> bool:
    """Whether the adapter records this merged folder, and none of the bases before it.

    The fingerprint reads a few rows of one q_proj. A merge that left them as they were shares it
    with its base; then the recorded place decides.
    """
    recorded = adapter.base.get("fingerprint")
    if not recorded or recorded != base_identity(folder, "none")["fingerprint"]:
        return False
    place = str(adapter.base.get("path") or "")
    return place not in [str(Path(path).resolve()) for path in before]
