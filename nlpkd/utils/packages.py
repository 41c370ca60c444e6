"""Packages that nlpkd and its extras need: whether they are installed, and what to type where they are not."""

from __future__ import annotations

import importlib.metadata
from functools import cache
from importlib import import_module
from shlex import quote
from typing import Any

from packaging.requirements import Requirement


def installed_version(package: str) -> str | None:
    """Return a package's installed version, or None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements(distribution: str = "nlpkd") -> list[Requirement]:
    """Return what an installed distribution needs, its extras left out; nothing where it is not installed."""
    try:
        declared = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [needed for needed in map(Requirement, declared) if needed.marker is None or needed.marker.evaluate()]


def unmet(needed: Requirement) -> bool:
    """Check whether a requirement is not installed, or in a version outside of its range."""
    version = installed_version(needed.name)
    return version is None or not needed.specifier.contains(version, prereleases=True)


@cache
def refuse_unmet_requirements() -> None:
    """Refuse to work with versions that nlpkd is not made for, before one of them fails somewhere inside.

    Raises:
        ImportError: if a package is missing or too old or too new; it names all of them and says what to type.
    """
    missing = [needed for needed in requirements() if unmet(needed)]
    if missing:
        found = [f"{needed} ({installed_version(needed.name) or 'nothing'} is installed)" for needed in missing]
        command = " ".join(["pip install", *(quote(str(needed)) for needed in missing)])
        raise ImportError(
            f"nlpkd needs {', '.join(found)}: {command}, or in a clone pip install -c constraints.txt .; all that it "
            "needs: `nlpkd doctor`"
        )


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


_OF_A_MODEL = ("galore", "apollo", "lomo")
"""Optimizers that are made for a model's own modules."""


def refuse_missing_optimizer(args: Any) -> None:
    """Refuse an optimizer that can't be had, which `Trainer` would know when it makes it.

    Args:
        args: `TrainingArguments`, with the optimizer in `optim` and its settings in `optim_args`.

    Raises:
        ValueError: if its package is not installed, or it does not take its settings.
    """
    from transformers import Trainer
    from transformers.training_args import OptimizerNames

    name = OptimizerNames(args.optim).value
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, TypeError, ValueError) as error:
        # Without a model the others can't be made, and that their package is missing is said first.
        if isinstance(error, ImportError) or not any(part in name for part in _OF_A_MODEL):
            settings = f" with optim_args={args.optim_args!r}" if args.optim_args else ""
            raise ValueError(
                f"optim={name!r}{settings} can't be had here ({error}): mend that, or choose another optimizer, such "
                "as 'adamw_torch'"
            ) from error
