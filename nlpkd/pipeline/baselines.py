"""Which baselines a distillation trains: what one has without a teacher, and what remains without the losses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from nlpkd.models.source import ModelSource
from nlpkd.students.backbone import CONFIG_KEY, find_backbone, known_backbone

logger = logging.getLogger(__name__)


def baselines_asked_for(
    asked: bool | str, student: ModelSource, teacher_config: Any, *, start: str, backbone: str | Path | None
) -> list[str]:
    """Return the names of the baselines to train.

    Args:
        asked: as `nlpkd.distill` takes it: a name, True for all that there are, or False for none.
        student: as it was asked for.
        teacher_config: config of the teacher that the student is made of; None of a checkpoint or a model.
        start: of a student that is made of a teacher; see `make_student`.
        backbone: the teacher's, where the caller names it.

    Returns:
        `no_teacher`, `same_start`, both or none. Where the student itself starts from pre-trained weights both are
        one, which goes by the name that was asked for, or by `no_teacher`.

    Raises:
        ValueError: for another name, and for `no_teacher` where no pre-trained weights of the student are known.
    """
    if asked is False:
        return []
    if asked is not True and asked not in ("no_teacher", "same_start"):
        raise ValueError(f"baseline={asked!r}: give 'no_teacher', 'same_start', True (both) or False (none)")
    if asked == "same_start":
        return ["same_start"]
    if teacher_config is not None:
        pretrained = start == "pretrained"
        if asked == "no_teacher":
            known_backbone(teacher_config, backbone, "baseline='no_teacher'")
        elif not pretrained and find_backbone(teacher_config, backbone) is None:
            logger.warning(
                "There is no baseline no_teacher, since nobody says which backbone the teacher was fine-tuned from: "
                "name it as backbone=... (--backbone), and what is gained over having no teacher will be known."
            )
            return ["same_start"]
    else:
        pretrained = _is_pretrained(student)
        if asked == "no_teacher" and not pretrained:
            raise ValueError(
                "baseline='no_teacher' starts from pre-trained weights, and this student is a classifier already: use "
                "baseline='same_start', or give a pre-trained checkpoint by its path or Hub id"
            )
        if not pretrained:
            return ["same_start"]
    return ["no_teacher"] if pretrained or asked == "no_teacher" else ["no_teacher", "same_start"]


def _is_pretrained(student: ModelSource) -> bool:
    """Check whether a student is a checkpoint by name that was not fine-tuned as a classifier."""
    if isinstance(student.given, PreTrainedModel):
        return False
    config = student.config()
    architectures = getattr(config, "architectures", None) or []
    return not hasattr(config, CONFIG_KEY) and not any("SequenceClassification" in name for name in architectures)
