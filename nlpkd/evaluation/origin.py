"""What was measured on and what made the figures: task, run, models and data of an evaluation report.

With the task goes the figure that a verdict on it rests on: its name, a candidate's, and the share of another's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar, get_type_hints

from nlpkd.evaluation.figures.reading import as_type, within
from nlpkd.evaluation.records import AGREEMENT, METRIC_NAMES, Candidate, Interval, without_controls

Record = TypeVar("Record", bound="OpenRecord")

_EMPTY: tuple[Any, ...] = (None, {}, [])


# 49 right of 85 rows are 98 % of 50 right, and the quotient of both accuracies is less in its last digit. On a million
# rows two shares are still a hundred times as far apart.
_ROUNDING = 1e-10


@dataclass(frozen=True, kw_only=True)
class OpenRecord:
    """A record to which callers may add entries of their own.

    Args:
        extra: entries without a field, and those that were recorded as null or empty, so that the JSON stays the same.
    """

    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls: type[Record], entry: Mapping[str, Any]) -> Record:
        """Build the record from JSON, or from the entries that a caller gave.

        Raises:
            TypeError: when the entry is no mapping.
        """
        if not isinstance(entry, Mapping):
            raise TypeError(f"expected an object with the entries of {cls.__name__}, found {entry!r}")
        # Names, paths and commands come in here, of strangers' reports and of this machine.
        entry = without_controls(entry)
        names = {each.name for each in fields(cls)} - {"extra"}
        known = {key: value for key, value in entry.items() if key in names and value not in _EMPTY}
        return cls(**known, extra={key: value for key, value in entry.items() if key not in known})

    def to_dict(self) -> dict[str, Any]:
        """Return the entries that were recorded."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "extra"}
        plain = {key: value.to_dict() if isinstance(value, OpenRecord) else value for key, value in values.items()}
        return self.extra | {key: value for key, value in plain.items() if value not in _EMPTY}

    def check(self) -> None:
        """Check the types of what was recorded, which is a stranger's in a report of the Hub.

        Raises:
            TypeError: if one is another one.
        """
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            with within(name):
                if isinstance(value, OpenRecord):
                    value.check()
                else:
                    as_type(kind, value)

    def updated(self: Record, entries: Mapping[str, Any]) -> Record:
        """Return the record with further or other entries."""
        return type(self).from_dict(self.to_dict() | dict(entries))


@dataclass(frozen=True)
class TaskRecord(OpenRecord):
    """The task and its gold labels.

    Args:
        problem_type: of transformers.
        headline: the metric that the verdict rests on.
        labels: their names, in order.
        rows: rows measured.
        majority_share: share of the commonest class, of a task with one class a row.
        labels_a_row: mean number of labels, of a multi-label task.
        score_mean: of a regression.
        score_sd: standard deviation of its scores.
    """

    problem_type: str | None = None
    headline: str = "accuracy"
    labels: list[str] = field(default_factory=list)
    rows: int | None = None
    majority_share: float | None = None
    labels_a_row: float | None = None
    score_mean: float | None = None
    score_sd: float | None = None

    def one_class_note(self) -> str:
        """Return what a reader must know where all rows are of one class of several; empty where they are not."""
        if self.majority_share != 1 or len(self.labels) < 2:
            return ""
        return (
            f"All {self.rows} measured rows are of one class: the figures say nothing of how well the classes are "
            "told apart. Measure on rows of all classes."
        )


def headline_name(metric: str) -> str:
    """Return what sentences, tables and charts call a headline metric.

    Args:
        metric: `TaskRecord.headline`.

    Returns:
        Its name; an unknown one's own.
    """
    return "agreement with the teacher" if metric == AGREEMENT else METRIC_NAMES.get(metric, metric)


def column_name(metric: str) -> str:
    """Return what a narrow table calls a headline metric: its whole name, or a word that says the same.

    Args:
        metric: `TaskRecord.headline`.

    Returns:
        Its name.
    """
    return "agree" if metric == AGREEMENT else headline_name(metric)


def headline_figure(candidate: Candidate, metric: str) -> Interval | None:
    """Return a candidate's headline figure, be it quality or the agreement with the teacher.

    Args:
        candidate: one of a report.
        metric: `TaskRecord.headline` of that report.

    Returns:
        The figure with its interval; None where the candidate has none, such as the teacher's agreement with itself.
    """
    return candidate.agreement if metric == AGREEMENT else candidate.quality.get(metric)


def retention(value: float, reference: float) -> float | None:
    """Return the share of a reference's headline figure that another one is.

    Args:
        value: of the model that is asked about.
        reference: of the model that it is compared with.

    Returns:
        The share; None where the reference is not above 0, of which nothing is a share.
    """
    return value / reference if reference > 0 else None


def keeps(share: float | None, least: float) -> bool:
    """Check whether a share of a reference's headline figure is enough.

    Args:
        share: what `retention` gave.
        least: the least share that is asked for; exactly as much is enough.

    Returns:
        Whether it is; never where nothing is a share.
    """
    return share is not None and share >= least - _ROUNDING


@dataclass(frozen=True)
class ModelRecord(OpenRecord):
    """Where a model comes from.

    Args:
        name: Hub id, path, or the kind of a student that was made; of several teachers all of them, for readers.
        folder: of an ONNX file, what the model's folder is called.
        models: of several teachers the entries of each, which no name is read out of.
        revision: of a Hub id.
        checkpoint: whether a student began as a saved checkpoint.
        layers: of a student.
        model_type: of transformers.
        weights_sha256: of each of a measured student's weight files, by name.
        files_sha256: of the candidates that are files of the student, by candidate: of each file, by its path in the
            student's folder.
        label_order: of a teacher, its index of each of the student's labels, where it is not the same.
    """

    name: str | None = None
    folder: str | None = None
    models: list[dict[str, Any]] = field(default_factory=list)
    revision: str | None = None
    checkpoint: bool | None = None
    layers: int | None = None
    model_type: str | None = None
    weights_sha256: dict[str, str] | None = None
    files_sha256: dict[str, dict[str, str]] | None = None
    label_order: list[int] | None = None

    def is_of(self, described: Mapping[str, Any]) -> bool:
        """Check whether this is a model that `ModelSource.describe` tells, by name and revision."""
        return (self.name, self.revision) == (described["name"], described["revision"])

    def check(self) -> None:
        """Check the types of the entries, those of each of several teachers too; see `OpenRecord.check`."""
        super().check()
        for each in self.models:
            ModelRecord.from_dict(each).check()


@dataclass(frozen=True)
class DataRecord(OpenRecord):
    """The data that a student was trained and measured on.

    Args:
        name: Hub id or file names.
        title: for readers of the card.
        config: configuration of a Hub data set.
        revision: of a Hub data set.
        split: that was measured; None of a source without splits.
        held_out: what the source is called that thresholds or temperatures were fitted on.
        held_out_split: of it, likewise.
        evaluated_source: which of several files held the measured split.
        pairs: whether a row has two texts.
        train_rows: rows of the training.
        evaluated_rows: rows measured.
        learned_rows: of the measured ones, those that are among the student's training rows too.
        teacher_learned_rows: of the measured ones, those that are among the teacher's training rows too.
        learned_estimates: those of these two numbers that are estimates.
        unanswered_rows: of the split that was measured, those that were left out since a teacher that labels texts did
            not answer them.
        other_labeller: how the teacher of the measured soft labels differs from that of the training rows: of
            `teacher`, `question` and `calibration`.
        evaluated_sha256: of their texts and labels, by the student's ids.
        truncated_rows: of them by split, those that were cut.
        max_length: longest text in tokens.
        window_stride: tokens that the windows of long texts share.
    """

    name: str | None = None
    title: str | None = None
    config: str | None = None
    revision: str | None = None
    split: str | None = None
    held_out: str | None = None
    held_out_split: str | None = None
    evaluated_source: str | None = None
    pairs: bool | None = None
    train_rows: int | None = None
    evaluated_rows: int | None = None
    learned_rows: int | None = None
    teacher_learned_rows: int | None = None
    learned_estimates: list[str] = field(default_factory=list)
    unanswered_rows: int | None = None
    other_labeller: list[str] = field(default_factory=list)
    evaluated_sha256: str | None = None
    truncated_rows: Any = None
    max_length: int | None = None
    window_stride: int | None = None

    def is_like(self, other: DataRecord) -> bool:
        """Check whether another record is of the same rows, whoever learnt from them or labelled them."""
        unsaid: dict[str, Any] = {"learned_rows": None, "teacher_learned_rows": None, "learned_estimates": []}
        unsaid |= {"unanswered_rows": None, "other_labeller": []}
        return replace(self, **unsaid) == replace(other, **unsaid)

    def notes(self) -> list[str]:
        """Return what a reader must know of the measured rows: learnt from, left out, or labelled by somebody else."""
        notes = [
            f"Of the {self.evaluated_rows} measured texts {'about ' if name in self.learned_estimates else ''}{rows} "
            f"are training texts{whose} too, but for case and blanks: the figures say more of them than of new texts."
            for name, whose in (("learned_rows", ""), ("teacher_learned_rows", " of the teacher"))
            if (rows := getattr(self, name))
        ]
        if self.unanswered_rows:
            notes.append(
                f"{self.unanswered_rows} further rows of the split were left out, since the teacher did not answer "
                "them: neither the student nor the teacher is measured on such texts."
            )
        if self.other_labeller:
            notes.append(
                f"The measured soft labels are of another {' and '.join(self.other_labeller)} than those that the "
                "student learnt from: what is said of the teacher is not said of the one that taught."
            )
        return notes


@dataclass(frozen=True)
class RunRecord(OpenRecord):
    """What made the figures; everything is optional.

    Args:
        command: of the process.
        date: in UTC.
        seed: of the training.
        versions: of Python and the packages, by name.
        machine: that was measured on.
        teacher: where it comes from.
        student: likewise.
        data: likewise.
        objectives: `Objective.config()` of each.
        settings: of the training.
        thresholds: of a multi-label task, by candidate one for each label by its name, by which it was measured; none
            of a candidate that decides by 0.5.
        thresholds_kept: whether the student's are those of its own config, by which it decides.
        held_out_protocol: on which rows thresholds or temperatures were fitted.
        interval_protocol: how the intervals were made.
        latency_protocol: how latencies were measured.
        flops_protocol: how operations were counted.
        memory_protocol: how memory was measured.
        measurement_sha256: of all that the figures depend on beside the student and its baselines.
        incomplete: whether measuring failed, so that the report lacks what was to come.
        base_model: for the card's metadata.
        license: likewise.
        language: likewise.
        tags: likewise.
    """

    command: str | None = None
    date: str | None = None
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    teacher: ModelRecord = field(default_factory=ModelRecord)
    student: ModelRecord = field(default_factory=ModelRecord)
    data: DataRecord = field(default_factory=DataRecord)
    objectives: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    thresholds_kept: bool | None = None
    held_out_protocol: str | None = None
    interval_protocol: str | None = None
    latency_protocol: str | None = None
    flops_protocol: str | None = None
    memory_protocol: str | None = None
    measurement_sha256: str | None = None
    incomplete: bool | None = None
    base_model: str | None = None
    license: str | None = None
    language: str | list[str] | None = None
    tags: list[str] = field(default_factory=list)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> RunRecord:
        """Build the record from JSON, or from the entries that a caller gave, models and data among them."""
        kinds: dict[str, type[OpenRecord]] = {"teacher": ModelRecord, "student": ModelRecord, "data": DataRecord}
        parts = {key: kind.from_dict(entry[key]) for key, kind in kinds.items() if entry.get(key)}
        return super().from_dict({**entry, **parts})

    def protocols(self) -> list[str]:
        """Return how intervals, latency, operations and memory were measured, and what was fitted, on what."""
        unkept = None
        if self.thresholds_kept is False:
            unkept = (
                "The student's figures are of these thresholds, and its own config has others, or none, which is 0.5: "
                "it decides by those. A report that is saved in the student's own folder keeps them there."
            )
        fitted = self.held_out_protocol
        split = self.data.held_out_split and f"the split {self.data.held_out_split}"
        if fitted and (held_out := " of ".join(filter(None, (split, self.data.held_out)))):
            fitted += f"; held out: {held_out}"
        recorded = (
            self.interval_protocol, fitted, unkept, self.latency_protocol, self.flops_protocol,
            self.memory_protocol,
        )  # fmt: skip
        return [*filter(None, recorded), *self.data.notes()]
