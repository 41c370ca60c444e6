"""Import a package of an extra."""

from __future__ import annotations

from importlib import import_module
from typing import Any


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
        raise ImportError(f'{package} is missing ({error}): pip install "nlpkd[{extra}]"') from error
