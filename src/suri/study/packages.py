"""The packages that reports alone need, loaded where they are used."""

from importlib import import_module
from typing import Any

from suri.errors import UsageError


def package(module: str, purpose: str, name: str = "") -> Any:
    """The module of a package; raises UsageError, with what needs it, where it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise UsageError(
            f"{purpose} the package {name or module}", do="pip install 'suri[report]'"
        ) from None
