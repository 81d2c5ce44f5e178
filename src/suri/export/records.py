"""What certificate.json records of a merge's sources and files."""

import os
from pathlib import Path
from typing import Any

from suri.export.fold import Merge
from suri.export.provenance import held_adapters
from suri.manifest import fingerprint
from suri.model.adapter_file import CONFIG_FILE, WEIGHTS_FILE
from suri.model.tokenizer import tokenizer_file


def sources_of(merge: Merge) -> dict[str, Any]:
    """Base and adapter with their places and checksums; no adapter for a conversion.

    `holds` are the adapters that were merged into the base before.
    """
    base, adapter = merge.base.folder, merge.adapter_folder
    held = {"holds": held} if (held := held_adapters(base)) else {}
    return {
        "base": {
            "path": str(base.absolute()),
            "quantize": merge.quantize,
            "files": hashes(base, _base_files(merge)),
            **held,
        },
        "adapter": adapter
        and {
            "path": str(adapter.absolute()),
            "files": hashes(adapter, [CONFIG_FILE, WEIGHTS_FILE]),
        },
    }


def hashes(folder: Path, names: list[str]) -> dict[str, str]:
    """The fingerprints of these files of a folder."""
    return {name: fingerprint(folder / name) for name in names}


def _base_files(merge: Merge) -> list[str]:
    """The base's files that decide what the merge is: weights, configuration, tokenizer."""
    folder = merge.base.folder
    beside = ("config.json", "params.json", "tokenizer.json", "tokenizer.model")
    names = [name for name in beside if (folder / name).is_file()]
    tokenizer = tokenizer_file(folder)
    if tokenizer and not any((folder / name).is_file() for name in beside[2:]):
        names.append(os.path.relpath(tokenizer, folder))  # Llama 1's, one folder above
    return [file.name for file in merge.base.files] + names
