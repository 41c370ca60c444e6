"""A student of a frontier: how far it is, what makes it, and the error that it failed with."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nlpkd.augment.ways import AUTO, way_for
from nlpkd.compression.int8 import INT8_FILE
from nlpkd.config import DistillationConfig
from nlpkd.data.arguments import DataArguments, training_settings
from nlpkd.data.sources import identity_of_source
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.hub.saving import CARD_NAME
from nlpkd.models.source import identity_of_model
from nlpkd.objectives.presets import with_preset_settings
from nlpkd.pipeline.distill import distill
from nlpkd.pipeline.dry_run import Plan, plan_distillation
from nlpkd.pipeline.jobs.distillation import prepare_job
from nlpkd.students.kinds import kind_of
from nlpkd.utils.disk.files import explain_damage, weight_files, write_json
from nlpkd.utils.disk.locks import only_run
from nlpkd.utils.fingerprints import differences
from nlpkd.utils.provenance import FORESEEN
from nlpkd.utils.secrets import without_tokens

logger = logging.getLogger(__name__)

TEACHER = "teacher"
"""The student that is the teacher as it is; there is something to make of it where it is shipped."""

_STATE = "job.json"
"""In a student's folder: what was asked for, how many seeds of it are finished, and why it failed."""

_OF_THE_ROWS = {each.name for each in fields(DataArguments)}
_OF_THE_ROWS |= {"teacher", "teacher_dtype", "train", "seed", "vocabulary"}
"""What the teacher's outputs depend on, beside `augment` and its like."""


_SOURCES = ("train", "validation", "test", "augment_texts")
_MODELS = ("teacher", "student", "backbone", "augment_model")
"""Arguments that are known by what they name, which may change under its name."""


@dataclass
class FrontierStudent:
    """A student of a frontier, and how far it is.

    Attributes:
        name: as it was asked for.
        folder: its own.
        arguments: of `nlpkd.distill`.
        asked: the same as JSON can hold it, files, models and rows by their content; also a student that is a model.
        started: whether it was begun with these arguments.
        finished: how many seeds are finished; none where the folder has something else than what was measured.
        error: why it failed, if it did.
        own_rows: whether it learns from other rows than the other students.
    """

    name: str
    folder: Path
    arguments: dict[str, Any]
    asked: dict[str, Any]
    started: bool = False
    finished: int = 0
    error: str | None = None
    own_rows: bool = False

    @classmethod
    def of(cls, name: str, folder: Path, settings: Mapping[str, Any], own: Mapping[str, Any]) -> FrontierStudent:
        """Read how far a student with settings of its own is; refuse a finished one that was made otherwise."""
        arguments = {**settings, **own}
        given = arguments if name == TEACHER or kind_of(name) is not None else {"student": name, **arguments}
        asked = {key: _identity(key, value) for key, value in given.items() if value is not None}
        student = cls(name, folder, arguments, json.loads(json.dumps(asked, default=str)))
        student.own_rows = any(key in _OF_THE_ROWS or key.startswith("augment") for key in own)
        path = folder / _STATE
        if not path.is_file():
            return student
        with explain_damage(path, f"delete {folder}, and the student is made again"):
            state = json.loads(path.read_text(encoding="utf-8"))
            before, finished, error = dict(state["asked"]), int(state["finished"]), state["error"]
        differ = differences(before, student.asked, str(path))
        if not differ:
            student.started, student.error = True, error
            student.finished = finished if student.is_whole() else 0
            if finished and not student.finished:
                logger.warning(
                    "%s in %s is not the one that was finished and measured: it is made again. Export and compress "
                    "students of a frontier into other folders (output_dir).",
                    name,
                    folder,
                )
        elif finished:
            raise ValueError(
                f"{name} is finished, and was made otherwise: {'; '.join(differ)}. Choose another output_dir"
            )
        return student

    def is_whole(self) -> bool:
        """Check whether its folder has a report, and all that this measured: the weights, and the file to deploy."""
        try:
            report = EvaluationReport.load(self.folder)
        except (OSError, ValueError) as error:
            logger.warning("%s", error)
            return False
        deployed = INT8_FILE if self.arguments.get("ship") else "student"
        return deployed in report.candidates and bool(weight_files(self.folder)) and report.is_of_all(self.folder)

    def is_made(self, only: Sequence[str]) -> bool:
        """Check whether there is something to make of it, and it is among those that are made now."""
        return (self.name != TEACHER or bool(self.arguments.get("ship"))) and (not only or self.name in only)

    def make(self, num_seeds: int, teacher_cache: Path) -> None:
        """Train and measure what is not finished; an error is kept, so that the other students go on."""
        if self.finished >= (1 if self.name == TEACHER else num_seeds):
            return
        more: dict[str, Any] = {"teacher_cache_dir": str(self._cache(teacher_cache)), "output_dir": str(self.folder)}
        if self.started:
            more["resume_from_checkpoint"] = "True"
        self.error = None
        self._save()
        try:
            if self.name == TEACHER:
                _ship_teacher(**more | self.arguments)
            else:
                distill(student=self.name, num_seeds=num_seeds, **more | self.arguments)
            self.finished = num_seeds
        except Exception as error:
            self.error = in_one_line(error)
            unforeseen = None if isinstance(error, FORESEEN) else error
            logger.error("%s failed, and the others go on: %s", self.name, self.error, exc_info=unforeseen)
        self._save()

    def plan(self, num_seeds: int) -> Plan:
        """Plan its training with so many seeds."""
        args = self._settings()
        options = self.arguments.keys() - training_settings() - {"baseline_dir"}
        return plan_distillation(
            args,
            trainings=num_seeds,
            learning_rate_is_given="learning_rate" in self.arguments,
            student=self.name,
            **{name: self.arguments[name] for name in options},
        )

    def _settings(self) -> DistillationConfig:
        of_training = training_settings() & self.arguments.keys()
        return DistillationConfig(str(self.folder), **{name: self.arguments[name] for name in of_training})

    def _cache(self, shared: Path) -> Path:
        """Return where the teacher's outputs on its rows are kept: students of different rows can't share them."""
        if self.own_rows:
            return self.folder / "teacher_cache"
        args = with_preset_settings(self._settings(), self.arguments.get("objectives"))
        way = way_for(self.name) if args.augment == AUTO else args.augment
        return shared if way is None else shared.with_name(f"{shared.name}-{way}")

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {"asked": self.asked, "finished": self.finished, "error": self.error}
        write_json(self.folder / _STATE, state)


def _identity(argument: str, value: Any) -> Any:
    """Return what tells an argument from another one: of files, models and rows in memory the content."""
    if argument in _SOURCES:
        return identity_of_source(value)
    # A Hub id is told by itself.
    return identity_of_model(value).get("weights", str(value)) if argument in _MODELS else value


def _ship_teacher(teacher: str | Path, **keywords: Any) -> None:
    """Make the teacher smaller as it is, its vocabulary trimmed or whole, and measure that beside it."""
    data_args, keywords = DataArguments.split_keywords(keywords)
    names = {name for name in training_settings() if not name.startswith("augment")} - {"resume_from_checkpoint"}
    args = DistillationConfig(**{name: value for name, value in keywords.items() if name in names})
    wanted = ("train", "validation", "test", "ship", "vocabulary", "teacher_dtype", "trust_remote_code")
    options = {name: keywords[name] for name in wanted if name in keywords}
    job = prepare_job(args, teacher, str(teacher), objectives="hinton", data_args=data_args, **options)
    with only_run(args.output_dir):
        job.run_untrained(args)
        # It would be that of a student.
        (Path(args.output_dir) / CARD_NAME).unlink(missing_ok=True)


def in_one_line(error: Exception) -> str:
    """Return an error in one line, without tokens."""
    return without_tokens(f"{type(error).__name__}: {' '.join(str(error).split())}")
