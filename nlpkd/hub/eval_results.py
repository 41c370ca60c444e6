"""A student's figure for a leaderboard of the Hub: `.eval_results/*.yaml`, where its data set is a benchmark there.

The format is that of https://huggingface.co/docs/hub/eval-results: a benchmark is a data set with a file `eval.yaml`,
whose tasks have an id, a configuration and a split.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path

import yaml
from huggingface_hub import (
    EvalResultEntry,
    constants,
    eval_result_entries_to_yaml,
    hf_hub_download,
    parse_eval_result_entries,
)
from huggingface_hub.errors import EntryNotFoundError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

from nlpkd.evaluation.origin import DataRecord, headline_name
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.hub.model_card import evaluated_data, hub_id
from nlpkd.utils.disk.yaml_files import read_yaml

logger = logging.getLogger(__name__)

RESULTS_FOLDER = ".eval_results"
"""The folder of a repository that the Hub reads figures from."""

RESULTS_FILES = f"{RESULTS_FOLDER}/*.yaml"
"""Its files, as a pattern."""

_SOURCE_NAME = "nlpkd report"


def write_eval_results(report: EvaluationReport, folder: Path, repo_id: str, token: str | None = None) -> Path | None:
    """Write the headline metric for the leaderboard of the data set that it was measured on, if it has one.

    Args:
        report: the student's, as it is published.
        folder: of the files to be pushed.
        repo_id: the student's repository, which the figure names as its source.
        token: asks the Hub for the data set; None takes the one of `hf auth login`.

    Returns:
        The file; None where the data set is no benchmark of the Hub with a task of this configuration and split.
    """
    data, headline = evaluated_data(report.run.data), report.task.headline
    name, found = hub_id(data.name), report.candidates["student"].quality.get(headline)
    task = _task_id(name, data, token) if name and found and math.isfinite(found.value) else None
    if task is None or name is None or found is None:
        return None
    entry = EvalResultEntry(
        dataset_id=name,
        task_id=task,
        value=found.value,
        dataset_revision=data.revision if re.fullmatch("[0-9a-f]{40}", data.revision or "") else None,
        date=report.run.date,
        source_url=f"{constants.ENDPOINT}/{repo_id}",
        source_name=_SOURCE_NAME,
        notes=headline_name(headline),
    )
    path = folder / RESULTS_FOLDER / f"{name.rpartition('/')[2]}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")
    return path


def is_written_here(text: str) -> bool:
    """Check whether a file of results is as `write_eval_results` writes them.

    Args:
        text: the file's.

    Returns:
        False for figures that somebody else gave, and for what can't be read.
    """
    try:
        return {entry.source_name for entry in parse_eval_result_entries(yaml.safe_load(text))} == {_SOURCE_NAME}
    except (ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        return False


def _task_id(name: str, data: DataRecord, token: str | None) -> str | None:
    """Return the only task of a benchmark that has the measured configuration and split."""
    try:
        path = hf_hub_download(name, "eval.yaml", repo_type="dataset", revision=data.revision, token=token)
        tasks = read_yaml(Path(path))["tasks"]
        ids = [
            str(task["id"])
            for task in tasks
            if (task.get("config") or "default", task.get("split")) == (data.config or "default", data.split)
        ]
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
        return None
    except (HTTPError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        logger.warning("No figure for a leaderboard: eval.yaml of the data set %s can't be read (%s)", name, error)
        return None
    return ids[0] if len(ids) == 1 else None
