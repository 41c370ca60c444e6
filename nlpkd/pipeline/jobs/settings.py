"""The settings of a run, and what is refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlpkd.config import DistillationConfig
from nlpkd.data.sources import Source, refuse_as_output
from nlpkd.evaluation.report import JSON_NAME
from nlpkd.utils.disk.locks import refuse_unfit_folder
from nlpkd.utils.randomness import check_num_seeds


def settings_of(
    args: DistillationConfig | None, output_dir: str | Path, settings: Mapping[str, Any]
) -> DistillationConfig:
    """Return the settings of a run, which its caller gives as a whole or one by one.

    Args:
        args: the settings as a whole.
        output_dir: of those that are given one by one.
        settings: single settings by name.

    Raises:
        ValueError: if both are given.
    """
    if args is None:
        return DistillationConfig(output_dir=str(output_dir), **settings)
    if settings:
        raise ValueError(f"give either args or single settings, not both: got args and {sorted(settings)}")
    return args


def check_before(args: DistillationConfig, num_seeds: int, **sources: Source | None) -> None:
    """Refuse what can be refused before anything is loaded, of a run and of its plan.

    Args:
        args: the settings.
        num_seeds: how many seeds.
        **sources: the rows by the name of the argument.

    Raises:
        ValueError: if seeds, output directory and rows do not fit.
    """
    check_num_seeds(num_seeds, args.seed)
    refuse_unfit_folder(args.output_dir)
    refuse_as_output(Path(args.output_dir) / JSON_NAME, **sources)
