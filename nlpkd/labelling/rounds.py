"""The rows that are worth a label, round by round: kept before they are asked about."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nlpkd.utils.disk.files import explain_damage, write_atomic
from nlpkd.utils.fingerprints import differences

_ASKED = "asked"


class RoundFile:
    """The chosen rows of each round, beside what their choice depends on.

    Args:
        path: the file.
        asked: all that the choice depends on, as JSON can hold it.

    Raises:
        ValueError: if the file holds other rounds, or is damaged.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any]):
        self.path = path
        self._asked = json.loads(json.dumps(asked, default=str))
        self._rows: dict[str, Any] = {}
        if not path.is_file():
            return
        with self._explained():
            found = dict(json.loads(path.read_text(encoding="utf-8")))
            differ = differences(dict(found.pop(_ASKED)), self._asked, "the file")
        if differ:
            raise ValueError(f"{path} is of other rounds: {'; '.join(differ)}. Delete it, or give another output")
        self._rows = found

    def rows(self, name: str, count: int, pool: Collection[int]) -> list[int] | None:
        """Return the rows that a round chose; None where it has not chosen yet.

        Args:
            name: of the round.
            count: how many it chooses.
            pool: among which rows.

        Raises:
            ValueError: if what is kept is no such choice.
        """
        if name not in self._rows:
            return None
        with self._explained():
            rows = list(self._rows[name])
            if not (len(rows) == len(set(rows)) == count and set(rows) <= set(pool)):
                raise ValueError(f"round {name!r} must have {count} different rows that no earlier round has")
        return rows

    def keep(self, name: str, rows: list[int]) -> None:
        """Write down what a round chose."""
        self._rows[name] = rows
        write_atomic(self.path, json.dumps({_ASKED: self._asked} | self._rows).encode())

    def _explained(self) -> Any:
        return explain_damage(self.path, "delete it, and the rounds are chosen anew; answers that are kept stay")
