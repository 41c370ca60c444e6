"""Teacher outputs on disk: a manifest and checksummed Arrow shards, each of them whole or not there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets

from nlpkd.utils.disk.files import digest_of, explain_damage, write_atomic
from nlpkd.utils.disk.full_disk import explain_full_disk
from nlpkd.utils.fingerprints import differences

SCHEMA = 1


MANIFEST = "manifest.json"


MOST_SHARDS = 16_384
"""A shard is a memory map while the cache is open, and Linux lets a process have 65,530 of them."""


_NAME = re.compile(r"shard-(\d{5,})\.([0-9a-f]{16})\.arrow")


_METADATA = b"nlpkd"


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
            shard_rows: of a shard; more, where there would be more than `MOST_SHARDS`.
            parts: what the outputs depend on, by the name that a refusal calls it.
            explanations: what only helps to say why other parts differ, likewise.
        """
        path.mkdir(parents=True, exist_ok=True)
        if (path / MANIFEST).exists():
            return
        manifest = {
            "schema": SCHEMA,
            "rows": rows,
            "shard_rows": max(shard_rows, -(-rows // MOST_SHARDS)),
            "parts": dict(parts),
            "explanations": dict(explanations),
            "versions": {"torch": torch.__version__, "pyarrow": pa.__version__},
        }
        write_atomic(path / MANIFEST, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())

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
            with explain_damage(path / MANIFEST, f"delete the folder {path}"):
                manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
                rows, shard_rows, schema = (int(manifest[name]) for name in ("rows", "shard_rows", "schema"))
                theirs = {**manifest["parts"], **manifest["explanations"]}
                if not 0 < shard_rows or not 0 < -(-rows // shard_rows) <= MOST_SHARDS:
                    raise ValueError(f"{rows} rows in shards of {shard_rows}")
        except FileNotFoundError:
            raise ValueError(
                f"{path / MANIFEST} is missing, which the main process has written: cache_dir must be on a file "
                "system that all processes share"
            ) from None
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
        """Return the rows of a shard."""
        return range(number * self.shard_rows, min((number + 1) * self.shard_rows, self.rows))

    def found(self) -> dict[int, Path]:
        """List the shards that are there, by number."""
        names = sorted(entry.name for entry in self.path.iterdir())
        matches = [match for name in names if (match := _NAME.fullmatch(name))]
        return {int(m[1]): self.path / m[0] for m in reversed(matches) if int(m[1]) < len(self)}

    def problem(self, path: Path) -> str | None:
        """Check a shard's bytes against its checksum, then its origin; return what is wrong, or None."""
        if not path.is_file():
            return f"{path} is no file"
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
        with explain_full_disk(
            self.path, f"{name} was not written. Free some space and run again: other shards are kept"
        ):
            write_atomic(self.path / name, data)

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
