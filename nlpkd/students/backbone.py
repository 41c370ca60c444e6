"""The pre-trained backbone of a teacher: its record in the teacher's config, and the classifier that it makes.

The record lies in `config.json`, since a config goes wherever the teacher goes: into its folder and its copies, to the
Hub, and into the model object, without a file that could be left behind.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from nlpkd.models.loading import split_revision
from nlpkd.students.checkpoint import load_student, with_fresh_pooler

logger = logging.getLogger(__name__)

CONFIG_KEY = "nlpkd_backbone"
"""The entry of a fine-tuned model's config that names its backbone."""


@dataclass(frozen=True)
class Backbone:
    """What a teacher was fine-tuned from.

    Attributes:
        name: a local path or a Hub id.
        revision: branch, tag or commit on the Hub.
        fresh_pooler: whether its pooler was drawn anew before the fine-tuning; see `with_fresh_pooler`.
    """

    name: str
    revision: str | None = None
    fresh_pooler: bool = False


def record_backbone(config: Any, revision: str | None = None, fresh_pooler: bool = False) -> None:
    """Write into a config which backbone its model was loaded from.

    A record that is there already stays, since the model was fine-tuned before. A model that was not loaded by a name
    gets none.

    Args:
        config: of the model, before its fine-tuning; changed in place.
        revision: that was asked for; the commit that was loaded if None.
        fresh_pooler: see `Backbone`.
    """
    name = config._name_or_path
    if not name or hasattr(config, CONFIG_KEY):
        return
    # A teacher's folder may be used from another working directory.
    name = str(Path(name).resolve()) if Path(name).exists() else name
    record = Backbone(name, revision or getattr(config, "_commit_hash", None), fresh_pooler)
    setattr(config, CONFIG_KEY, asdict(record))


def find_backbone(config: Any, given: str | Path | None = None) -> Backbone | None:
    """Return the backbone of a teacher.

    Args:
        config: the teacher's.
        given: its path or Hub id (`id@revision` too), where the caller names it.

    Returns:
        What was given, else what the config records; None where nobody knows, or a recorded folder is gone.
    """
    record = getattr(config, CONFIG_KEY, None)
    record = record if isinstance(record, Mapping) else {}
    fresh_pooler = bool(record.get("fresh_pooler"))
    if given is not None:
        return Backbone(*split_revision(str(given)), fresh_pooler)
    name, revision = record.get("name"), record.get("revision")
    if not isinstance(name, str) or (Path(name).is_absolute() and not Path(name).exists()):
        return None
    return Backbone(name, revision if isinstance(revision, str) else None, fresh_pooler)


def known_backbone(config: Any, given: str | Path | None, reason: str) -> Backbone:
    """Return the backbone of a teacher, as `find_backbone` does.

    Args:
        config: the teacher's.
        given: see `find_backbone`.
        reason: what needs it, for the error.

    Raises:
        ValueError: if nobody knows it.
    """
    found = find_backbone(config, given)
    if found is None:
        record = getattr(config, CONFIG_KEY, None)
        known = f"names {record['name']!r}, which is not there" if record else f"has no {CONFIG_KEY!r}"
        raise ValueError(
            f"{reason} needs the pre-trained backbone that the teacher was fine-tuned from, and the teacher's config "
            f"{known}: name a path or a Hub id as backbone=... (--backbone on the command line)"
        )
    return found


def without_local_backbone(config_json: str) -> str | None:
    """Strike a backbone that is a folder of this machine out of a config to publish.

    Args:
        config_json: the text of `config.json`.

    Returns:
        The text without it; None where there is nothing to strike out.
    """
    config = json.loads(config_json)
    # A reshaped model has the config that it was made of inside.
    nested = [config, config.get("base_config")] if isinstance(config, dict) else []
    found = [each for each in nested if isinstance(each, dict) and isinstance(each.get(CONFIG_KEY), dict)]
    local = [each for each in found if Path(str(each[CONFIG_KEY].get("name"))).is_absolute()]
    for each in local:
        del each[CONFIG_KEY]
    return json.dumps(config, indent=2) + "\n" if local else None


def load_pretrained(
    teacher: PreTrainedModel, backbone: Backbone, *, seed: int = 42, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a teacher's backbone as a classifier of the same shape and labels, as before the fine-tuning.

    Args:
        teacher: a classifier without an adapter.
        backbone: what it was fine-tuned from.
        seed: of the head, which is drawn at random.
        trust_remote_code: run the repository's own code.

    Returns:
        A float32 model in train mode on the teacher's device.

    Raises:
        ValueError: if the backbone's weights have other names or shapes than the teacher's, or there is no such path.
        OSError: if it can't be had.
    """
    logger.info("Loading the backbone %s of the teacher.", backbone.name)
    model = load_student(
        backbone.name,
        revision=backbone.revision,
        id2label=teacher.config.id2label,  # type: ignore[arg-type]
        trust_remote_code=trust_remote_code,
        seed=seed,
    )
    if backbone.fresh_pooler:
        model = with_fresh_pooler(model, seed)
    model.config.problem_type = teacher.config.problem_type
    ours, theirs = _shapes(model), _shapes(teacher)
    if differing := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
        first = differing[0]
        raise ValueError(
            f"the backbone {backbone.name!r} is not what the teacher was fine-tuned from: {len(differing)} weights "
            f"differ in shape, such as {first} (backbone {ours.get(first)}, teacher {theirs.get(first)}); name "
            "another as backbone=..."
        )
    return model.to(teacher.device)  # type: ignore[arg-type]


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight below the head."""
    return {name: tuple(tensor.shape) for name, tensor in model.base_model.state_dict().items()}
