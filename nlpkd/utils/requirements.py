"""Whether the packages that nlpkd needs are installed, in versions that it works with."""

from __future__ import annotations

import importlib.metadata
from functools import cache
from shlex import quote

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
