"""A small model first, and a large one where the small one is unsure."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from nlpkd.evaluation.records import percent
from nlpkd.evaluation.report_text import Cells, markdown_table
from nlpkd.labelling.answers import NoneAnswered
from nlpkd.models.limits import refuse_other_than_name
from nlpkd.models.onnx_classifier import OnnxClassifier, config_sha256
from nlpkd.serving.texts import READING, as_texts
from nlpkd.tasks import refuse_other_than_one_class
from nlpkd.utils.disk.files import TOKENIZER, digest_of, explain_damage, weights_sha256, write_json
from nlpkd.utils.object_hashes import Hasher

logger = logging.getLogger(__name__)

CASCADE_NAME = "cascade.json"
"""The file beside a student that says when it answers by itself."""

_LABELS = "id2label"


@dataclass(frozen=True)
class CascadeRecord:
    """When a student answers by itself, and what that was found to give.

    Attributes:
        threshold: it answers where its probability is at least this.
        temperature: what its logits are divided by for that probability.
        kind: `"agreement"`, the share of the answered rows on which student and teacher agree, or `"accuracy"`, the
            share of all rows that are right, whoever answers.
        target: what `kind` is to be at least.
        certainty: the probability, over the choice of rows, that the target holds.
        found: `kind` on the rows.
        low: its lower bound, by Clopper and Pearson.
        answered: the share of the rows that the student answers.
        rows: how many they were.
        unanswered_rows: how many rows the large model did not answer. With `"accuracy"` they are among `rows`, and the
            student's answers count there, as they are served; with `"agreement"` they are left out. Earlier versions
            did not note them, and left them out.
        teacher: name of the large model.
        student_ms: median time of one text, text to label.
        teacher_ms: likewise; None where it was not timed.
        curve: threshold, answered, found and low of every candidate, the strictest first.
        student_files: the SHA-256 of what the student was served from, by name; see `served_files`.
        teacher_files: likewise of the large model; none where nobody knows.
    """

    threshold: float
    temperature: float
    kind: str
    target: float
    certainty: float
    found: float
    low: float
    answered: float
    rows: int
    teacher: str
    student_ms: float
    teacher_ms: float | None
    curve: list[dict[str, float]]
    student_files: dict[str, str]
    teacher_files: dict[str, str] = field(default_factory=dict)
    unanswered_rows: int = 0

    def save(self, folder: Path) -> Path:
        """Write the record beside the student, and return its path."""
        path = folder / CASCADE_NAME
        write_json(path, asdict(self))
        return path

    @classmethod
    def load(cls, folder: Path) -> CascadeRecord:
        """Read the record beside a student.

        Raises:
            ValueError: if there is none, or it is damaged.
        """
        path = folder / CASCADE_NAME
        if not path.is_file():
            raise ValueError(f"{folder} has no {CASCADE_NAME}, which says when to ask the fallback: run nlpkd cascade")
        with explain_damage(path, "choose the threshold again with nlpkd cascade"):
            entry = json.loads(path.read_text(encoding="utf-8"))
            # Earlier versions did not note the teacher's files, nor the rows that it did not answer.
            entry = {"teacher_files": {}, "unanswered_rows": 0} | entry
            record = cls(**{each.name: entry[each.name] for each in fields(cls)})
            if not (0 <= record.threshold <= 1 and record.temperature > 0):
                raise ValueError(f"threshold {record.threshold} or temperature {record.temperature} is out of range")
        return record

    def refuse_other_student(self, files: Mapping[str, str], folder: Path) -> None:
        """Refuse a student whose answers are others than those that the threshold was chosen on.

        Args:
            files: those that it is served from, as `served_files` has them.
            folder: its folder.

        Raises:
            ValueError: if they are other files, or have changed.
        """
        # Earlier versions noted the weights alone.
        before = [name for name, digest in self.student_files.items() if files.get(name) != digest]
        if before:
            now = [name for name, digest in files.items() if self.student_files.get(name) != digest]
            changed = "has changed since" if before == now else "is another file"
            raise ValueError(
                f"{folder / CASCADE_NAME} was chosen on {', '.join(before)}, and what is served now, "
                f"{', '.join(now)}, {changed}: the threshold promises nothing of it. Run nlpkd cascade again"
            )

    def refuse_other_teacher(self, name: str, files: Mapping[str, str], folder: Path) -> None:
        """Refuse a large model other than the one that the threshold was chosen beside, or warn where nobody knows.

        Args:
            name: its name.
            files: those that it is served from, as `served_files` has them.
            folder: the student's.

        Raises:
            ValueError: if its files are known to be others.
        """
        # Its classes are matched with the student's by name, whatever it calls them.
        noted = {each: digest for each, digest in self.teacher_files.items() if each != _LABELS}
        changed = [each for each, digest in noted.items() if files.get(each) != digest]
        if files and changed:
            raise ValueError(
                f"{folder / CASCADE_NAME} was chosen beside {self.teacher}, and the fallback {name} has another "
                f"{', '.join(changed)} than that had: the threshold promises nothing of it. Run nlpkd cascade with it"
            )
        if name != self.teacher and not (files and self.teacher_files):
            logger.warning(
                "The threshold of %s was chosen beside %s, and the fallback is %s: run nlpkd cascade with that, since "
                "what the threshold promises holds beside the first alone.",
                *(folder, self.teacher, name),
            )

    def cells(self) -> Cells:
        """Return the table of candidates: its header, and a row a threshold."""
        rows = [
            [percent(each["answered"]), percent(each["found"], 2), percent(each["low"], 2), f"{each['threshold']:.4f}"]
            for each in self.curve
        ]
        return ["answered", self.kind, "at least", "threshold"], rows

    def verdict(self) -> str:
        """Return in words what the cascade gives."""
        of = "of its answers agree with the teacher's" if self.kind == "agreement" else "of all answers are right"
        times = f"One text takes the student {self.student_ms:.2f} ms"
        if self.teacher_ms is not None:
            mean = self.student_ms + (1 - self.answered) * self.teacher_ms
            times += (
                f", the teacher {self.teacher_ms:.2f} ms and the cascade {mean:.2f} ms on average, "
                f"{self.teacher_ms / mean:.1f} times as fast as the teacher"
            )
        unanswered = ""
        if self.unanswered_rows:
            told = (
                "they are left out, and nothing is known of such texts"
                if self.kind == "agreement"
                else "the student's answers count there, as they are served"
            )
            unanswered = f" Texts that the teacher did not answer: {self.unanswered_rows:,}; {told}."
        return (
            f"The student answers {percent(self.answered)} of {self.rows:,} texts itself, where its probability is at "
            f"least {self.threshold:.4f}; {percent(self.found, 2)} {of}, with {percent(self.certainty, 0)} certainty "
            f"at least {percent(self.low, 2)} (target {percent(self.target, 2)}).{unanswered} "
            f"{times}."
        )

    def to_text(self) -> str:
        """Describe in a few lines what the cascade gives."""
        return f"{self.verdict()}\n\n{markdown_table(*self.cells())}"


def folder_of_student(name: str | Path) -> Path:
    """Return the folder of a student that is to be asked first.

    Args:
        name: as it was given.

    Raises:
        ValueError: if it is none: a Hub id, or a file.
    """
    refuse_other_than_name(name, "a student")
    if not Path(name).is_dir():
        raise ValueError(
            f"{name} is no folder, and a cascade is of a student's folder on this machine, with {CASCADE_NAME} in it: "
            "of a model on the Hub give a copy (hf download USER/NAME --local-dir FOLDER), of an ONNX file the folder"
        )
    return Path(name)


def served_files(student: Any, folder: Path) -> dict[str, str]:
    """Return the SHA-256 of what a classifier's answers follow from, by name: weights, settings, tokenizer and labels.

    Args:
        student: a `nlpkd.TextClassifier`.
        folder: where it was loaded from.

    Returns:
        The hashes; none where its weights lie elsewhere.
    """
    if isinstance(student.model, OnnxClassifier):
        files = dict(student.model.sha256)
    else:
        files = weights_sha256(folder)
    if not files:
        return {}
    if (settings := config_sha256(folder)) is not None:
        files["config.json"] = settings
    if (folder / TOKENIZER).is_file():
        files[TOKENIZER] = digest_of(folder / TOKENIZER)
    # What other files say of how it reads: where a text is cut, and on which side.
    files["tokenizer"] = Hasher().hash(student.tokenizer)
    labels = json.dumps(student.model.config.id2label, sort_keys=True)
    return files | {_LABELS: hashlib.sha256(labels.encode()).hexdigest()}


def confidence(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return the largest probability of each row at a temperature, `(rows, classes)` into `(rows,)`."""
    return softmax(logits / temperature, axis=-1).max(axis=-1)


class Cascade:
    """A small classifier that hands texts on to a large one where it is unsure.

    Attributes:
        answered: how many texts the small one has answered.
        passed_on: how many it has handed on.
        refused: how many of these the large one has not answered.

    Args:
        student: the small classifier; takes texts, and the pipeline's `top_k` and `function_to_apply`.
        fallback: from a list of texts, and the settings of the call that are in `nlpkd.serving.texts.READING`, to
            `(label, probability)` of each, or None of what it does not answer.
        record: when the small one answers.
    """

    def __init__(
        self, student: Any, fallback: Callable[..., Sequence[tuple[str, float] | None]], record: CascadeRecord
    ):
        self.student, self.fallback, self.record = student, fallback, record
        self.answered = self.passed_on = self.refused = 0

    def __call__(self, inputs: Any, **settings: Any) -> list[dict[str, Any]]:
        """Classify texts.

        Args:
            inputs: a text, a pair as `{"text": .., "text_pair": ..}`, or several of either; see
                `nlpkd.serving.texts.as_texts`.
            **settings: of the student's pipeline, such as `batch_size`; those of reading texts, such as `max_length`,
                are the fallback's too.

        Returns:
            `{"label", "score", "by"}` of each text; `by` is `"student"` or `"fallback"`, or `"refused"` where the
            student answers although it is unsure, since the fallback does not. Of no texts an empty list.

        Raises:
            ValueError: for what is neither a text nor a pair, settings that the cascade fixes, and a fallback whose
                server does not reply.
        """
        if fixed := sorted({"top_k", "function_to_apply"} & settings.keys()):
            raise ValueError(f"a cascade gives one answer a text, with its probability: leave {', '.join(fixed)} out")
        inputs = as_texts(inputs)
        texts = [inputs] if isinstance(inputs, (str, dict)) else list(inputs)
        if not texts:
            return []
        labels, logits = scores(self.student, texts, **settings)
        sure = confidence(logits, self.record.temperature) >= self.record.threshold
        probabilities = softmax(logits / self.record.temperature, axis=-1)
        answers: list[Any] = [
            {"label": labels[row.argmax()], "score": float(row.max()), "by": "student"} for row in probabilities
        ]
        unsure = np.flatnonzero(~sure)
        if len(unsure):
            reading = {name: settings[name] for name in READING if name in settings}
            told: Sequence[tuple[str, float] | None] = [None] * len(unsure)
            try:
                told = self.fallback([texts[number] for number in unsure], **reading)
            except NoneAnswered as refusal:
                logger.warning("%s", refusal)
            if strange := {each[0] for each in told if each is not None} - set(labels):
                raise ValueError(
                    f"the fallback answers {sorted(strange)[:5]}, and the student's classes are {labels[:20]}"
                )
            for number, each in zip(unsure, told, strict=True):
                if each is None:
                    answers[number]["by"] = "refused"
                else:
                    answers[number] = {"label": each[0], "score": float(each[1]), "by": "fallback"}
            self.refused += sum(each is None for each in told)
        self.answered += int(sure.sum())
        self.passed_on += len(unsure)
        return answers


def scores(classifier: Any, texts: list[Any], **settings: Any) -> tuple[list[str], np.ndarray]:
    """Return a classifier's labels, sorted, and its logits of texts, `(texts, classes)`.

    Args:
        classifier: a `nlpkd.TextClassifier`.
        texts: texts or pairs.
        **settings: of the pipeline.

    Raises:
        ValueError: if its task is not one class a text.
    """
    config = classifier.model.config
    refuse_other_than_one_class(config, "a cascade")
    # Sorted, so that sums over classes are rounded alike whatever order a model has.
    labels = sorted(config.id2label[number] for number in range(config.num_labels))
    found = classifier(texts, top_k=None, function_to_apply="none", **settings)
    by_name = [{each["label"]: each["score"] for each in row} for row in found]
    return labels, np.array([[row[label] for label in labels] for row in by_name])
