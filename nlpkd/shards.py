"""Teacher outputs on disk: a manifest and checksummed Arrow shards, each of them whole or not there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.disk import digest_of, needing_room, write_whole

SCHEMA = 1
MANIFEST = "manifest.json"

_NAME = re.compile(r"shard-(\d{5,})\.([0-9a-f]{16})\.arrow")
_METADATA = b"nlpkd"
_HASH = re.compile(r"[0-9a-f]{64}")
# What a configuration says without any influence on the outputs, or what is fingerprinted elsewhere.
NO_INFLUENCE = {
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "output_attentions", "output_hidden_states",
    "problem_type", "return_dict", "transformers_version", "use_cache",
}  # fmt: skip


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards: shard k holds the rows from k * shard_rows on, in the data set's order.

    A shard is an Arrow stream called `shard-NUMBER.CHECKSUM.arrow`, the checksum being the first 16 digits of the
    file's SHA-256. It names the manifest that it belongs to, and is never changed once it is there.

    Attributes:
        path: the folder.
        rows: of the data set.
        shard_rows: of a shard; the last one may have fewer.
        key: hash of all that the outputs depend on.
    """

    path: Path
    rows: int
    shard_rows: int
    key: str

    @staticmethod
    def create(
        path: Path, rows: int, shard_rows: int, parts: Mapping[str, Any], explanations: Mapping[str, Any]
    ) -> None:
        """Write the manifest of a new folder; one that is there already stays as it is.

        Args:
            path: the folder, made where missing.
            rows: of the data set.
            shard_rows: of a shard.
            parts: what the outputs depend on, by the name that a refusal calls it.
            explanations: what only helps to say why other parts differ, likewise.
        """
        path.mkdir(parents=True, exist_ok=True)
        if (path / MANIFEST).exists():
            return
        manifest = {
            "schema": SCHEMA,
            "rows": rows,
            "shard_rows": shard_rows,
            "parts": dict(parts),
            "explanations": dict(explanations),
            "versions": {"torch": torch.__version__, "pyarrow": pa.__version__},
        }
        write_whole(path / MANIFEST, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())

    @classmethod
    def open(cls, path: Path, parts: Mapping[str, Any], explanations: Mapping[str, Any]) -> ShardFolder:
        """Open a folder whose manifest belongs to these parts.

        Args:
            path: the folder.
            parts: as in `create`.
            explanations: as in `create`.

        Returns:
            The folder.

        Raises:
            ValueError: if the manifest is missing, broken, or of other parts, which are named.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            rows, shard_rows, schema = (int(manifest[name]) for name in ("rows", "shard_rows", "schema"))
            theirs = {**manifest["parts"], **manifest["explanations"]}
        except FileNotFoundError:
            raise ValueError(
                f"{path / MANIFEST} is missing, which the main process has written: cache_dir must be on a file "
                "system that all processes share"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path / MANIFEST} can't be read ({error!r}): delete the folder {path}") from None
        if schema != SCHEMA:
            raise ValueError(
                f"the cache in {path} has format {schema}, this version reads {SCHEMA}: delete the folder"
            )
        ours = {**parts, **explanations}
        if any(theirs.get(name) != value for name, value in parts.items()) or set(theirs) != set(ours):
            raise ValueError(
                f"the cache in {path} does not belong to this call; what differs: "
                f"{'; '.join(differences(theirs, ours, 'the cache'))}. "
                "Use another cache_dir, or delete the folder to compute it anew"
            )
        key = hashlib.sha256(json.dumps([rows, shard_rows, dict(parts)], sort_keys=True).encode()).hexdigest()
        return cls(path, rows, shard_rows, key)

    def __len__(self) -> int:
        return -(-self.rows // self.shard_rows)

    def span(self, number: int) -> range:
        """Give the rows of a shard."""
        return range(number * self.shard_rows, min((number + 1) * self.shard_rows, self.rows))

    def found(self) -> dict[int, Path]:
        """List the shards that are there, by number."""
        names = sorted(entry.name for entry in self.path.iterdir())
        matches = [match for name in names if (match := _NAME.fullmatch(name))]
        return {int(m[1]): self.path / m[0] for m in reversed(matches) if int(m[1]) < len(self)}

    def problem(self, path: Path) -> str | None:
        """Say what is wrong with a shard, or None: its bytes are held against its checksum, then its origin."""
        match, digest = _NAME.fullmatch(path.name), digest_of(path)[:16]
        if match is None or digest != match[2]:
            return f"{path} is damaged: its checksum is {digest}"
        with pa.memory_map(str(path)) as source:
            metadata = pa.ipc.open_stream(source).schema.metadata or {}
        if metadata.get(_METADATA) != self._label(int(match[1])):
            return f"{path} belongs to another cache"
        return None

    def write(self, number: int, columns: Mapping[str, pa.Array]) -> None:
        """Write a shard under a temporary name, then give it its own in one step.

        Args:
            number: of the shard.
            columns: one entry for each of its rows.
        """
        table = pa.table(dict(columns)).replace_schema_metadata({_METADATA: self._label(number)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        data = memoryview(sink.getvalue())
        name = f"shard-{number:05d}.{hashlib.sha256(data).hexdigest()[:16]}.arrow"
        with needing_room(self.path, f"{name} was not written. Free some space and run again: other shards are kept"):
            write_whole(self.path / name, data)

    def load(self) -> Dataset:
        """Open all shards as one data set, memory-mapped.

        Returns:
            The cached columns, row by row.

        Raises:
            ValueError: if shards are missing.
        """
        found = self.found()
        missing = [number for number in range(len(self)) if number not in found]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self)} shards are missing in {self.path}, the first is {missing[0]}: "
                "cache_dir must be on a file system that all processes share, and nothing else may delete from it"
            )
        return concatenate_datasets([Dataset.from_file(str(found[number])) for number in range(len(self))])

    def _label(self, number: int) -> bytes:
        return json.dumps({"cache": self.key, "shard": number}).encode()


def pack_states(states: Tensor, lengths: Sequence[int], left: bool = False) -> list[bytes]:
    """Cut padding off hidden states, and keep each row's bf16 bits.

    Args:
        states: `(batch, seq, hidden)`.
        lengths: tokens of each row.
        left: whether the padding is on the left.

    Returns:
        For each row the bits of its `(tokens, hidden)`, native byte order.
    """
    bits = states.to(torch.bfloat16).contiguous().view(torch.int16).cpu().numpy()
    width = bits.shape[1]
    spans = [(width - n, width) if left else (0, n) for n in lengths]
    return [row[start:stop].tobytes() for row, (start, stop) in zip(bits, spans, strict=True)]


def pad_states(rows: Sequence[bytes], lengths: Sequence[int], width: int, left: bool = False) -> Tensor:
    """Undo `pack_states`: batch the rows' states, padded with zeros.

    Args:
        rows: as `pack_states` gives them.
        lengths: tokens of each row.
        width: the batch's length, padding included.
        left: whether the padding is on the left.

    Returns:
        bf16 `(batch, width, hidden)`.

    Raises:
        ValueError: if a row's bytes are not so many tokens.
    """
    hidden = len(rows[0]) // (2 * lengths[0])
    states = torch.zeros(len(rows), width, hidden, dtype=torch.bfloat16)
    for number, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        if len(row) != 2 * n * hidden:
            raise ValueError(
                f"row {number} of the batch has cached states of {len(row)} bytes, and {n} tokens of {hidden} values "
                f"take {2 * n * hidden}: its tokens are not those that were cached"
            )
        values = torch.frombuffer(bytearray(row), dtype=torch.bfloat16).view(n, hidden)
        states[number, width - n if left else 0 : width if left else n] = values
    return states


def hash_weights(model: nn.Module) -> str:
    """Hash a model's parameters and buffers: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_configuration(model: nn.Module) -> str:
    """Hash a model's class and its settings: configurations of transformers, adapters, and plain values of others."""
    told: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            settings = module.config.to_dict().items()
            told[f"configuration of {name}"] = {key: value for key, value in settings if key not in NO_INFLUENCE}
        elif hasattr(module, "base_layer"):
            # How strong an adapter is, and whether it is on, is in no weight.
            names = ("scaling", "active_adapters", "disable_adapters")
            told[f"adapter of {name}"] = [getattr(module, attribute, None) for attribute in names]
    for name, module in _down_to_transformers(model):
        told[f"{name}class"] = type(module).__name__
        if not isinstance(module, PreTrainedModel):
            plain = {key: value for key, value in vars(module).items() if _is_plain(value) and not key.startswith("_")}
            told |= {f"{name}{key}": plain[key] for key in plain if key != "training"}
    return hash_value(told)


def _down_to_transformers(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """List modules, but not those within a transformers model, which its configuration tells all about."""
    yield name, model
    if not isinstance(model, PreTrainedModel):
        for child, module in model.named_children():
            yield from _down_to_transformers(module, f"{name}{child}.")


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, (bool, int, float, str))


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what a tokenizer makes of texts; one written in Python is told by its class and size alone."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hash_value([type(tokenizer).__name__, len(tokenizer)])
    return hash_value(json.loads(backend.to_str()) | {"padding": None, "truncation": None})


def hash_value(value: Any) -> str:
    """Hash what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], place: str) -> list[str]:
    """Name what differs between two fingerprints, with both values unless they are hashes.

    Args:
        theirs: those kept on disk, by what a refusal calls them.
        ours: those of this call.
        place: what a refusal calls the place where they were kept.

    Returns:
        A phrase for each difference.
    """
    names = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    pairs = [(name, theirs.get(name), ours.get(name)) for name in names]
    return [
        name if any(_HASH.fullmatch(str(value)) for value in values) else
        f"{name} ({values[0]} in {place}, {values[1]} here)"
        for name, *values in pairs
    ]  # fmt: skip
