"""The classes of a task: their names, their order, and where another holder of the same classes has each of them."""

from __future__ import annotations

import functools
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import ClassLabel, List, Value
from scipy.special import logit

from nlpkd.data.splits.plain_text import INVISIBLE
from nlpkd.tasks import REGRESSION, SINGLE_LABEL, task_of
from nlpkd.utils.field_types import are_numbers

logger = logging.getLogger(__name__)

_INVISIBLE = re.compile(f"[{INVISIBLE}]")


_NUMBERED = re.compile(r"(?:label[_ ]?)?(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Classes:
    """The classes, or labels, of a task in the order of their ids.

    Attributes:
        names: the name of each id from 0.
        problem_type: the task that they are classes of; None where the holder does not say.

    Raises:
        ValueError: if a reader could not tell two names apart.
    """

    names: tuple[str, ...]
    problem_type: str | None = None

    def __post_init__(self) -> None:
        refuse_look_alikes(self.names, "one model or data set")
        if twins := [name for name, times in Counter(self.names).items() if times > 1]:
            raise ValueError(f"Two labels of one model or data set have the same name, {twins[0]!r:.80}. Rename one.")

    @classmethod
    def of(cls, names: Mapping[int, str] | Sequence[str], problem_type: str | None = None) -> Classes:
        """Read classes from their names in order, or from an `id2label`.

        Raises:
            ValueError: if the ids of an `id2label` do not count from 0, or one text stands for the names.
        """
        if isinstance(names, str):
            raise ValueError(f"label names must be a list, or a mapping from ids to names, got the text {names!r:.80}")
        if not isinstance(names, Mapping):
            return cls(tuple(map(str, names)), problem_type)
        # JSON has no other keys than texts.
        names = {int(number) if str(number).isdecimal() else number: name for number, name in names.items()}
        if set(names) != set(range(len(names))):
            listed = ", ".join(f"{number}: {name!r}" for number, name in names.items())
            raise ValueError(f"label ids must count from 0 without gaps, got {listed}: mend config.id2label")
        return cls(tuple(str(names[number]) for number in range(len(names))), problem_type)

    @classmethod
    def of_config(cls, config: Any) -> Classes | None:
        """Read the classes of a model and their task from its config; None where it has no `id2label`."""
        id2label = getattr(config, "id2label", None)
        return cls.of(id2label, getattr(config, "problem_type", None)) if id2label else None

    @classmethod
    def of_feature(cls, feature: Any) -> Classes | None:
        """Read the classes that a column of a data set names: a `ClassLabel`, or a list with a number for each."""
        if isinstance(feature, ClassLabel):
            return cls.of(feature.names, SINGLE_LABEL)
        names = getattr(getattr(feature, "feature", None), "id", None)
        return cls.of(json.loads(names)) if names and names.startswith("[") else None

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        return ", ".join(f"{number}: {name!r}" for number, name in enumerate(self.names))

    @property
    def id2label(self) -> dict[int, str]:
        """The names by id."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """The ids by name."""
        return {name: number for number, name in enumerate(self.names)}

    @property
    def is_generic(self) -> bool:
        """Whether the names only count the ids (`LABEL_0`, `1`), as many checkpoints have them."""
        found = [_NUMBERED.fullmatch(name) for name in self.names]
        return all(match and int(match[1]) == number for number, match in enumerate(found))

    @property
    def counted(self) -> Classes:
        """The same classes in the order that their names count, where they do: by it others know them by place."""
        found = [_NUMBERED.fullmatch(name) for name in self.names]
        numbers = [int(match[1]) for match in found if match]
        if len(numbers) < len(self):
            return self
        return replace(self, names=tuple(name for _, name in sorted(zip(numbers, self.names, strict=True))))

    @property
    def vector_feature(self) -> List:
        """The feature of a column with a float32 number for each class, which carries their names."""
        return List(Value("float32", id=json.dumps(self.names)), length=len(self))

    def positions_in(self, other: Classes) -> list[int] | None:
        """Find each of these classes among those of another holder, by name.

        Args:
            other: the classes of a model, a data set, a list of weights.

        Returns:
            `order` with `other.names[order[k]]` the same name as `names[k]` to a reader (`plain_name`); None
            where names say nothing: both sides' only count, or one side's are numbers that the other does not know.

        Raises:
            ValueError: if the numbers of classes or the tasks differ, or the names contradict each other.
        """
        if len(other) != len(self):
            raise ValueError(f"different numbers of labels: {len(other)} ({other}) and {len(self)} ({self})")
        tasks = {self.problem_type, other.problem_type} - {None}
        if len(tasks) > 1:
            raise ValueError(
                f"different tasks: {other.problem_type} ({other}) and {self.problem_type} ({self}). If they mean the "
                "same, set config.problem_type of one model to the other's"
            )
        if self.is_generic and other.is_generic:
            return None
        index, wanted = dict(zip(other._keys, range(len(other)), strict=True)), self._keys
        if len(index) == len(other) and set(index) == set(wanted):
            return [index[key] for key in wanted]
        if self._is_numbered or other._is_numbered:
            return None
        raise ValueError(
            f"label names contradict each other: {other} and {self}. If they mean the same, set config.id2label of "
            "one model to the other's names, in its own order"
        )

    def positions_of(self, fewer: Classes) -> list[int] | None:
        """Find the id that each class of rows has here, where rows may lack some of these classes.

        Args:
            fewer: the classes of the rows.

        Returns:
            The id here of each of their classes; None where names say nothing.

        Raises:
            ValueError: if the rows have a class that is not one of these.
        """
        index = dict(zip(self._keys, range(len(self)), strict=True))
        known = [index.get(key) for key in fewer._keys]
        if len(fewer) < len(self) and not self.is_generic and None not in known and len(set(known)) == len(fewer):
            return known  # type: ignore[return-value]
        order = self.positions_in(fewer)
        return None if order is None else [order.index(number) for number in range(len(order))]

    @property
    def _keys(self) -> list[str]:
        """What each name is compared by: what a reader sees of it, of numbered ones the number."""
        found = [_NUMBERED.fullmatch(name) for name in self.names]
        return [str(int(match[1])) for match in found if match] if all(found) else list(map(plain_name, self.names))

    @property
    def _is_numbered(self) -> bool:
        return all(_NUMBERED.fullmatch(name) for name in self.names)


class NamesOfModel(tuple[str, ...]):
    """Names of a model's classes, whose order gold labels check; names that a user gives say what ids mean."""


def plain_name(name: str) -> str:
    """Reduce a name to what a reader sees of it: without case, invisible characters, blanks and Unicode's forms."""
    visible = _INVISIBLE.sub("", unicodedata.normalize("NFKC", name))
    return " ".join(unicodedata.normalize("NFKC", visible.casefold()).split())


def thresholds_of(config: Any, order: Sequence[int] | None = None) -> list[float] | None:
    """Return the thresholds of a multi-label model in the order of its labels; None where it has none.

    Args:
        config: its `thresholds` are a mapping from the labels' names, or a list in the order of their ids.
        order: the labels to give them of, by their ids; all in their order if None.

    Raises:
        ValueError: if they are not of the model's labels.
    """
    given, classes = getattr(config, "thresholds", None), Classes.of_config(config)
    if given is None or classes is None or task_of(config) in (SINGLE_LABEL, REGRESSION):
        return None
    values: Any = given.values() if isinstance(given, Mapping) else given
    fit = isinstance(values, Collection) and len(values) == len(classes) and are_numbers(*values)
    named = not isinstance(given, Mapping) or set(given) == set(classes.names)
    if not (fit and named and all(0 <= each <= 1 for each in values)):
        raise ValueError(
            f"config.thresholds are {given!r:.80}, and the labels are {list(classes.names)}: give one a label, from 0 "
            "to 1"
        )
    own = [given[name] for name in classes.names] if isinstance(given, Mapping) else list(given)
    return own if order is None else [own[number] for number in order]


def given_labels(logits: np.ndarray, thresholds: Sequence[float] | None) -> np.ndarray:
    """Decide which labels a multi-label model gives each row: those whose probability is above their threshold.

    Args:
        logits: `(rows, labels)`.
        thresholds: of that model, one a label; 0.5 if None.

    Returns:
        True where a label is given, `(rows, labels)`.
    """
    return logits > (np.zeros(1) if thresholds is None else least_logits(thresholds))


def least_logits(thresholds: Sequence[float]) -> np.ndarray:
    """Return what each label's logit must be above where a model gives labels by thresholds: float64 `(labels,)`."""
    return logit(np.asarray(thresholds, dtype=np.float64))


def forget_thresholds(config: Any) -> None:
    """Leave a model that is yet to be trained without thresholds: they were fitted on other scores than it will give.

    Args:
        config: of the model.
    """
    vars(config).pop("thresholds", None)


def settle_classes(config: Any) -> None:
    """Make a config's `label2id` the inverse of its `id2label`, by which transformers names what a model answers.

    Others read `label2id`: the zero-shot pipeline, the `label_mapping` of evaluate, programs that serve. Where it
    contradicts `id2label` a warning says so, once; names that only count (`LABEL_0`) are left from a model's making.

    Args:
        config: of the model; one that names no classes, or none that can be told apart, is left as it is.
    """
    try:
        classes = Classes.of_config(config)
    except ValueError:
        # Refused where the classes are read: the names may be of a head that is about to be replaced.
        return
    if classes is None:
        return
    given, config.label2id = getattr(config, "label2id", None), classes.label2id
    counts = isinstance(given, Mapping) and all(name == f"LABEL_{number}" for name, number in given.items())
    if given and not counts and given != classes.label2id:
        _warn_once(
            f"The config of {getattr(config, '_name_or_path', '') or 'a model'} contradicts itself: its label2id is "
            f"{given!r:.200}, and its id2label {classes.id2label!r:.200}. id2label is followed, by which transformers "
            "names what the model answers: if label2id is the right one, mend id2label."
        )


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def rename_classes(config: Any, classes: Classes) -> None:
    """Give a model's classes other names, in the order of their ids.

    Args:
        config: of the model; its thresholds go by the new names.
        classes: the new names.
    """
    thresholds = thresholds_of(config)
    config.id2label, config.label2id = classes.id2label, classes.label2id
    if thresholds is not None:
        config.thresholds = dict(zip(classes.names, thresholds, strict=True))


def refuse_look_alikes(names: Iterable[str], where: str) -> None:
    """Refuse two names of classes that look alike.

    Args:
        names: the names.
        where: they are, for the error.

    Raises:
        ValueError: if two names differ in nothing that a reader sees; it shows their code points.
    """
    seen: dict[str, str] = {}
    for name in names:
        twin = seen.setdefault(plain_name(name), name)
        if twin == name:
            continue
        problem = "differ only in case or blanks"
        if twin.strip().casefold() != name.strip().casefold():
            problem = f"look alike: {_code_points(twin)} and {_code_points(name)}"
        raise ValueError(f"Labels {twin!r:.80} and {name!r:.80} of {where} {problem}. Write them one way.")


def _code_points(name: str) -> str:
    shown = " ".join(f"U+{ord(letter):04X}" for letter in name[:12])
    return shown + (" .." if len(name) > 12 else "")


class ClassWeights(list[float]):
    """One weight a class, with the classes that they are of.

    Attributes:
        classes: in the order of the weights.

    Args:
        weights: one a class.
        classes: whose they are.
    """

    def __init__(self, weights: Iterable[float], classes: Classes):
        super().__init__(weights)
        self.classes = classes

    def in_order_of(self, config: Any) -> list[float]:
        """Return the weights in the order of a model's classes, by name; as they are where names say nothing.

        Raises:
            ValueError: if the model has other classes.
        """
        wanted = Classes.of_config(config)
        order = None if wanted is None else wanted.positions_in(self.classes)
        return list(self) if order is None else [self[number] for number in order]
