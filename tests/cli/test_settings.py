"""Arguments of a command, separated into settings of a training and all else."""

from __future__ import annotations

from nlpkd.cli.settings import training_config


def test_names_of_labels_stay_with_the_rows_whose_labels_they_name(tmp_path):
    """`TrainingArguments` has a `label_names` too, which names columns."""
    given = {"output_dir": str(tmp_path), "learning_rate": 1e-3, "label_names": ["neg", "pos"], "report_to": "none"}
    args, others = training_config(given)
    assert (args.learning_rate, args.label_names, others) == (1e-3, None, {"label_names": ["neg", "pos"]})
