"""What people install holds what the program reads: the package's files, the wheel, the sdist."""

import email
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from conftest import need

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "suri"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BUILD = """
from setuptools import build_meta
import sys
getattr(build_meta, "build_" + sys.argv[1])(sys.argv[2])
"""


def files_of(folder: Path) -> set[str]:
    """Every file below the folder but what Python compiled."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)) for file in files if "__pycache__" not in file.parts}


def test_every_file_of_the_package_is_declared_and_every_folder_of_modules_is_a_package() -> None:
    declared = PROJECT["tool"]["setuptools"]["package-data"]["suri"]
    for pattern in declared:
        assert list(PACKAGE.glob(pattern)), f"{pattern} names nothing"
    packed = {str(file.relative_to(PACKAGE)) for one in declared for file in PACKAGE.glob(one)}
    assert {name for name in files_of(PACKAGE) if not name.endswith(".py")} == packed
    for module in PACKAGE.rglob("*.py"):
        assert (module.parent / "__init__.py").is_file(), module


def test_the_release_is_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)\n\n(\d{4}-\d\d-\d\d)", changes, flags=re.MULTILINE)
    assert newest is not None
    assert newest[1] == version
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in citation
    assert f'\ndate-released: "{newest[2]}"\n' in citation
    howto = (ROOT / "docs" / "howto.md").read_text(encoding="utf-8")
    assert set(re.findall(r"suri-([\d.]+)-py3", howto)) == {version}


def test_the_container_copies_what_exists_and_installs_extras_that_are_there() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    sources = [word for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)
               for word in line.split()]  # fmt: skip
    assert "pyproject.toml" in sources
    let_in = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    assert set(sources) == let_in
    assert all((ROOT / name).exists() for name in sources)
    extras = re.search(r"\"\.\[([\w,-]+)\]\"", text)
    assert extras is not None
    assert set(extras[1].split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
    assert text.index("USER suri") < text.index('ENTRYPOINT ["suri"]')


def build(kind: str, source: Path, target: Path) -> Path:
    """The one file of this kind, built from the source in a process of its own."""
    target.mkdir()
    done = subprocess.run([sys.executable, "-c", BUILD, kind, str(target)], cwd=source, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (made,) = target.iterdir()
    return made


@pytest.mark.slow
def test_sdist_and_wheel_hold_the_whole_package_and_nothing_else(tmp_path: Path) -> None:
    """The wheel is built from the sdist, as an installer would build it."""
    need("setuptools")
    checkout = tmp_path / "checkout"
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "results")
    shutil.copytree(ROOT, checkout, ignore=ignore)
    sdist = build("sdist", checkout, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    inside = files_of(unpacked)
    assert {"constraints.txt", "finetune.py", "generate.py", "mini_data.json", "LICENSE",
            "recipes/task1.toml", "recipes/shapes/llama-7b/config.json"} <= inside  # fmt: skip
    assert {name for name in inside if name.startswith(("tests/", "docs/", "benchmarks/"))} == set()
    wheel = zipfile.ZipFile(build("wheel", unpacked, tmp_path / "wheel"))
    names = set(wheel.namelist())
    about = f"suri-{PROJECT['project']['version']}.dist-info/"
    assert {name for name in names if not name.startswith(about)} == {
        f"suri/{name}" for name in files_of(PACKAGE)
    }
    assert f"{about}licenses/LICENSE" in names
    metadata = email.message_from_bytes(wheel.read(f"{about}METADATA"))
    assert (metadata["Name"], metadata["Version"]) == ("suri", PROJECT["project"]["version"])
    assert metadata["Requires-Python"] == PROJECT["project"]["requires-python"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {*metadata.get_all("Provides-Extra", [])} == {
        *PROJECT["project"]["optional-dependencies"]
    }
    assert "suri = suri.cli.main:main" in wheel.read(f"{about}entry_points.txt").decode()
