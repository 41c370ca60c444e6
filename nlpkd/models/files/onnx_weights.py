"""Which files hold the weights of an ONNX file, as the file itself says."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

from nlpkd.utils.disk.links import inside, refuse_links

# An entry `location` of a tensor whose numbers lie in another file: key, tag and length of the file's name. The
# package onnx, which not everybody has who loads such files, writes and reads it so.
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x80-\xff]?[\x00-\x7f])")


def named_weights(path: Path) -> list[Path]:
    """List the files beside an ONNX file that it says to have weights in, whatever they are called.

    Args:
        path: the ONNX file.

    Returns:
        The files in order, whether they are there or not.

    Raises:
        ValueError: if it names a file outside of its own folder.
    """
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = [(each.end(), each[1]) for each in _LOCATION.finditer(content)]
            # The length has 7 bits a byte, the lowest first.
            sizes = [sum((byte & 0x7F) << 7 * place for place, byte in enumerate(length)) for _, length in found]
            names = {content[at : at + size] for (at, _), size in zip(found, sizes, strict=True)}
    return sorted(inside(path.parent, name.decode(errors="replace")) for name in names)


def external_weights(path: Path) -> list[Path]:
    """List the files of `named_weights` that are there."""
    return [each for each in named_weights(path) if each.is_file()]


def external_weights_in(folder: Path) -> set[Path]:
    """Collect the external weights of all ONNX files of a model, some of which may share theirs.

    Args:
        folder: the model's.

    Returns:
        The files.

    Raises:
        ValueError: if one is named that lies outside of the ONNX file's own folder, or behind a link to a folder.
    """
    files = [*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")]
    found = {each for file in files for each in external_weights(file)}
    for each in found:
        refuse_links(folder, *each.relative_to(folder).parents[:-1])
    return found
