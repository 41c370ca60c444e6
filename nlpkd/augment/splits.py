"""More rows to learn from beside the training rows of a distillation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets
from transformers import PreTrainedTokenizerBase

from nlpkd.augment.augmenters import Augmenter, MaskingAndNGrams, mask_token_of
from nlpkd.augment.lengths import follow_lengths
from nlpkd.augment.rows import variants_of
from nlpkd.augment.ways import check_way, copies_of
from nlpkd.config import DistillationConfig
from nlpkd.data.arguments import DataArguments
from nlpkd.data.columns import Columns, find_text_column
from nlpkd.data.files.readers import read_lines
from nlpkd.data.one_split import read_one_split
from nlpkd.data.text_classification import TextClassificationData
from nlpkd.data.tokenization import TextEncoder
from nlpkd.tasks import MULTI_LABEL, REGRESSION, UNLABELLED

logger = logging.getLogger(__name__)


def refuse_augmentation(args: DistillationConfig, data_args: DataArguments, teacher: Any) -> None:
    """Refuse settings of more text where no teacher would label it, or no text is in memory.

    Args:
        args: the settings.
        data_args: how the rows are read.
        teacher: what is run on every row; None where the student learns from answers or soft labels that there are.

    Raises:
        ValueError: if the rows can't be made or labelled.
    """
    if args.augment is None:
        defaults = {field.name: field.default for field in fields(args) if field.name.startswith("augment_")}
        idle = [name for name, default in defaults.items() if getattr(args, name) != default]
        if idle:
            raise ValueError(
                f"{' and '.join(idle)} say how rows are made, and nothing makes any: name a way as augment, or 'auto'"
            )
        return
    check_way(args.augment)
    if teacher is None:
        raise ValueError(
            f"augment={args.augment!r} makes rows for a fine-tuned teacher to label, and there is none that is run: "
            "leave augment out (objectives='best' sets it), or make and label more text first (nlpkd.augment.augment, "
            "nlpkd.label)"
        )
    if data_args.streaming or data_args.window_stride is not None:
        raise ValueError(
            "augment makes variants of whole texts in memory: leave streaming and window_stride out, or write the "
            "rows to a file first (nlpkd.augment.augment)"
        )


def with_more_text(
    data: TextClassificationData,
    args: DistillationConfig,
    augmenter: Callable[[], Augmenter],
    tokenizers: Sequence[PreTrainedTokenizerBase],
) -> TextClassificationData:
    """Put variants of the training rows behind them, for the teacher to label, where `args.augment` asks for them.

    None of them nearly equals a row of another split. The same settings make the same rows again, from the cache of
    `datasets`.

    Args:
        data: the splits, which stay as they are.
        args: the settings.
        augmenter: returns what makes the variants.
        tokenizers: the student's, and those of teachers that have their own.

    Returns:
        The splits, "train" with more rows.

    Raises:
        ValueError: as for `nlpkd.augment.augment` and `nlpkd.augment.follow_lengths`, and for a tokenizer without a
            mask token where words are masked.
    """
    if args.augment is None:
        return data
    # What can't be read is refused before the variants are made.
    like = None if args.augment_texts is None else read_texts(args.augment_texts)
    # Variants of the training rows' texts, as long as other texts are where these are given.
    train, names = data["train"], data.text_columns
    others = [data[split] for split in data if split != "train"]
    maker = augmenter()
    if isinstance(maker, MaskingAndNGrams):
        for tokenizer in tokenizers:
            mask_token_of(tokenizer)
    made = variants_of(train, maker, names, copies=copies_of(args), seed=args.seed, exclude=others)
    if like is not None:
        made = follow_lengths(made, like, names, args.seed)
    # The columns of tokenised rows, with the mark that a row without a label has in this task.
    encode = TextEncoder(Columns(data.text_column, data.text_pair_column, "labels"), tokenizers, data.max_length)
    encode = encode.for_training()
    tokenised = made.map(encode, batched=True, desc="Tokenising more text")
    several, score = data.problem_type == MULTI_LABEL, data.problem_type == REGRESSION
    mark = [float(UNLABELLED)] * data.num_labels if several else math.nan if score else UNLABELLED
    tokenised = tokenised.add_column("labels", [mark] * len(made), feature=train.features["labels"])
    # Behind the training rows.
    counts = {f"{prefix}train": count for prefix, count in encode.truncated_of(tokenised).items()}
    truncated = data.truncated | {name: data.truncated.get(name, 0) + count for name, count in counts.items()}
    both = concatenate_datasets([train, tokenised.select_columns(train.column_names)])
    logger.warning("The teacher labels %d more rows, made by augment=%r.", len(made), args.augment)
    return replace(data, splits={**data.splits, "train": both}, truncated=truncated)


def read_texts(source: str) -> Sequence[str]:
    """Read plain texts.

    Args:
        source: a text file with a text a line (.txt), or anything that `nlpkd.load_text_classification` reads; its
            column of text is recognised, and needs no label beside it.

    Returns:
        The texts.

    Raises:
        ValueError: if nothing is there, it can't be read, or no column is known to be the text.
    """
    if Path(source).suffix.lower() == ".txt":
        return read_lines(source)
    rows, _ = read_one_split(source)
    return rows[find_text_column(rows.column_names)][:]
