"""The packages of nlpkd's extras: imported, or what to type where they are missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def pip_install(extra: str) -> str:
    """Return the command that adds an extra to the nlpkd that is installed, be it from a clone or from PyPI."""
    return f'pip install "nlpkd[{extra}]"'


def how_to_install(extra: str) -> str:
    """Return what to type for an extra: for the nlpkd that is installed, and in a clone, with the tested versions."""
    return f'{pip_install(extra)}, or in a clone pip install -c constraints.txt ".[{extra}]"'


def require(package: str, extra: str = "export") -> Any:
    """Import a package of an extra.

    Args:
        package: the package, or a module in it.
        extra: which one installs it.

    Returns:
        The module.

    Raises:
        ImportError: if it is not installed; it says what to type.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(f"{package} is missing ({error}): {how_to_install(extra)}") from error
