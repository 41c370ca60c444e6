"""What runs the models that are measured, and the files that they are read from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nlpkd.evaluation.records import ONNX_RUNTIME
from nlpkd.models.limits import ONNX_FOLDER
from nlpkd.models.onnx_classifier import OnnxClassifier


def runtime_of(parts: Mapping[str, nn.Module]) -> str:
    """Name what runs a candidate.

    Args:
        parts: the models that it consists of.

    Returns:
        Its name, of several kinds both.
    """
    named = (ONNX_RUNTIME if isinstance(model, OnnxClassifier) else "torch" for model in parts.values())
    return " and ".join(dict.fromkeys(named))


def file_sha256(parts: Mapping[str, nn.Module]) -> str | None:
    """Hash the ONNX files of a candidate.

    Args:
        parts: the models that it consists of.

    Returns:
        The SHA-256 of each; None without any.
    """
    return (
        " ".join(model.sha256[model.path.name] for model in parts.values() if isinstance(model, OnnxClassifier))
        or None
    )


def with_files(run: Mapping[str, Any], models: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Add to what made the student the SHA-256 of its files in the folder `onnx`.

    Args:
        run: what made it, entries of `RunRecord`.
        models: the student and the candidates that are files of it, by name.

    Returns:
        The entries with `files_sha256` of the student, by candidate and path.
    """
    found = {
        name: {f"{ONNX_FOLDER}/{file}": digest for file, digest in model.sha256.items()}
        for name, model in models.items()
        if isinstance(model, OnnxClassifier) and model.path.absolute().parent.name == ONNX_FOLDER
    }
    return {**run, "student": {**run.get("student", {}), "files_sha256": found}} if found else dict(run)
