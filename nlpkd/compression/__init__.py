"""Make a distilled model smaller still: a model in, a model and a record of what it cost out."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Each kind of compression is imported with its first name, since some need packages of their own.
_HOMES = {
    "INT8_FILE": "nlpkd.compression.int8",
    "OnnxRecord": "nlpkd.compression.onnx",
    "export_int8": "nlpkd.compression.int8",
    "LiteRTRecord": "nlpkd.compression.litert",
    "export_litert": "nlpkd.compression.litert",
    "export_onnx": "nlpkd.compression.onnx",
    "CompressionRecord": "nlpkd.compression.record",
    "factorize_embeddings": "nlpkd.compression.low_rank",
    "factorize_linear": "nlpkd.compression.low_rank",
    "measure_change": "nlpkd.compression.record",
    "prune_heads": "nlpkd.compression.prune",
    "prune_neurons": "nlpkd.compression.prune",
    "quantize_dynamic": "nlpkd.compression.int8",
    "to_half": "nlpkd.compression.half",
    "trim_vocabulary": "nlpkd.compression.vocabulary",
}

# The whole job, from a saved model and data to a saved smaller one, uses rooms above this one (hub, for the saving),
# so that an import of it would point upwards. Its public name is here all the same, as a string resolved on use.
_HOMES |= {"compress": "nlpkd.pipeline.compress", "CompressResult": "nlpkd.pipeline.compress"}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nlpkd.compression' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
