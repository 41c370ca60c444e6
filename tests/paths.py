"""Where the repository and its tests lie, and the paths that lead to a file."""

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


def ways_to(file: Path) -> list[Path]:
    """Return paths to a file: its own, a relative one, one through its folder's parent, and links made for it."""
    link, hard = file.with_name(f"link{file.suffix}"), file.with_name(f"hard{file.suffix}")
    link.symlink_to(file)
    hard.hardlink_to(file)
    return [file, Path(os.path.relpath(file)), file.parent / ".." / file.parent.name / file.name, link, hard]
