"""A model's config.json: what is completed where it is read, trained and written."""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from torch import nn
from transformers import CONFIG_NAME, PreTrainedConfig, PreTrainedModel

from nlpkd.data.labels.classes import settle_classes
from nlpkd.tasks import fill_in_task
from nlpkd.utils.disk.files import WEIGHT_FILES

logger = logging.getLogger(__name__)

_ANSWERS = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
"""What a config asks for with every answer: logits by their name, and nothing beside them.

Pipelines read them by their name, and transformers saves no model that asks for attention maps unless it runs eager
attention."""

_LEFT_OUT = 2
"""Labels without names of their own that transformers leaves out of a file, whatever the family has without one."""


def complete_config(config: Any) -> None:
    """Write into the config of a model that is read, saved or served what others read in it.

    Args:
        config: gets the task of a model with one output (`fill_in_task`), the right `label2id` (`settle_classes`),
            and asks for logits alone (`settle_answers`); None of a module without one.
    """
    fill_in_task(config)
    settle_classes(config)
    settle_answers(config)


def settle_answers(config: Any) -> None:
    """Make a config, and those within it, ask for logits by their name alone; what it asked for is said.

    Args:
        config: of a model; None of a module without one.
    """
    asked = {name: getattr(config, name) for name, value in _ANSWERS.items() if getattr(config, name, value) != value}
    for name in asked:
        setattr(config, name, _ANSWERS[name])
    if asked := {name: value for name, value in asked.items() if value is not None}:
        logger.warning(
            "The config of %s has %s: a classifier is read, and saved, with %s.",
            getattr(config, "_name_or_path", "") or "a model",
            ", ".join(f"{name}={value}" for name, value in asked.items()),
            ", ".join(f"{name}={_ANSWERS[name]}" for name in asked),
        )
    for part in getattr(config, "sub_configs", ()):
        settle_answers(getattr(config, part, None))


def settle_model(model: nn.Module) -> None:
    """Settle the labels and answers of a model's config, and of those that the models within it have.

    Args:
        model: any module.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            settle_classes(module.config)
            settle_answers(module.config)


def refuse_unsaved_config(model: nn.Module, role: str) -> None:
    """Refuse a model whose config can't be written: it could be trained, and then not saved.

    Args:
        model: any module; one without a config of transformers is passed.
        role: what the message calls it.

    Raises:
        ValueError: with what transformers says of it.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            # Saving changes the config.
            copy.deepcopy(config).save_pretrained(folder)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(
            f"the {role} could not be saved after its training, since its config can't ({error}): mend the config of "
            "the model"
        ) from error


def write_labels(config: Any, folder: Path) -> None:
    """Write a model's labels into the config.json that transformers saved, which leaves out two that have no names.

    A family such as BART takes another number of them where its file does not say it.

    Args:
        config: the model's; of a module without one nothing is written.
        folder: where it was saved; one without a config.json, such as an adapter's, is left as it is.
    """
    path, names = folder / CONFIG_NAME, getattr(config, "id2label", None)
    if not names or not path.is_file():
        return
    entries = json.loads(path.read_text(encoding="utf-8"))
    labels = {"id2label": {str(number): name for number, name in names.items()}, "label2id": config.label2id}
    path.write_text(json.dumps(entries | labels, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def labels_left_out(config: Any, name: str | Path, revision: str | None) -> dict[str, int]:
    """Find the number of labels of a classifier that was saved without, as transformers saves two without names.

    A file written by hand may leave out as many as the family has: weights in a folder tell it.

    Args:
        config: as transformers read it, which has the number that the family takes where its file says none.
        name: a local path or a Hub id, where it was read.
        revision: branch, tag or commit on the Hub.

    Returns:
        The setting `num_labels`; nothing where the config has it right.
    """
    names = getattr(config, "id2label", None) or {}
    counts = all(label == f"LABEL_{number}" for number, label in names.items())
    is_classifier = any(each.endswith("ForSequenceClassification") for each in config.architectures or ())
    if len(names) in (0, _LEFT_OUT) or not counts or not is_classifier:
        return {}
    entries, _ = PreTrainedConfig.get_config_dict(str(name), revision=revision)
    if entries.keys() & {"id2label", "num_labels", "_num_labels"} or _has_rows(Path(name), len(names)):
        return {}
    return {"num_labels": _LEFT_OUT}


def _has_rows(folder: Path, count: int) -> bool:
    """Check whether a weight in the folder has so few rows: the outputs of a classifier alone do."""
    for path in folder.glob(WEIGHT_FILES):
        with safe_open(path, "pt") as weights:
            if any(weights.get_slice(name).get_shape()[:1] == [count] for name in weights.keys()):  # noqa: SIM118
                return True
    return False
