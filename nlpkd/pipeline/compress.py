"""Compress a saved model: model, tokenizer and record into one folder; or a student before it is trained."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.compression.half import to_half
from nlpkd.compression.low_rank import factorize_embeddings, factorize_linear
from nlpkd.compression.prune import prune_heads, prune_neurons
from nlpkd.compression.record import RECORD_NAME, measure_change
from nlpkd.compression.vocabulary import spelled_out, trim_embeddings, trim_vocabulary
from nlpkd.data.arguments import DataArguments
from nlpkd.data.rows import texts_of
from nlpkd.data.sources import Source
from nlpkd.data.splits.learned import LearnedTexts, remember_texts
from nlpkd.data.text_classification import TextClassificationData, load_rows_for_model
from nlpkd.data.tokenization import original_ids
from nlpkd.evaluation.records import format_number, percent
from nlpkd.evaluation.report_text import Cells
from nlpkd.hub.saving import save_student
from nlpkd.models.limits import refuse_other_than_name
from nlpkd.models.source import ModelSource
from nlpkd.pipeline.jobs.job import Job
from nlpkd.pipeline.jobs.roles import Teachers
from nlpkd.utils.disk.files import explain_damage, write_json
from nlpkd.utils.disk.locks import only_run
from nlpkd.utils.field_types import check_counts, check_share, plain_arguments
from nlpkd.utils.progress import quiet

logger = logging.getLogger(__name__)

METHODS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "prune-neurons": prune_neurons,
    "prune-heads": prune_heads,
    "factorize-embeddings": factorize_embeddings,
    "factorize-linear": factorize_linear,
    "half": to_half,
    "trim-vocabulary": trim_vocabulary,
}
"""What can be done to a saved model, by name: gives a model, its tokenizer where that changes too, and the record."""


_GIVEN = {"model", "dataset", "tokenizer", "texts"}


@dataclass(frozen=True)
class CompressResult:
    """A compressed model.

    Attributes:
        model: the model, in eval mode.
        tokenizer: its tokenizer.
        records: what was done to it, the first compression first.
        output_dir: where model, tokenizer and record were saved.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    records: list[dict[str, Any]]
    output_dir: Path

    def cells(self) -> Cells:
        """Return the table of what the last compression saved: its header, and a row a figure."""
        done = self.records[-1]
        figures = {"parameters": ("parameters", ","), "MB": ("size_mb", ".1f")}
        rows = []
        for name, (key, spec) in figures.items():
            before, after = done[f"{key}_before"], done[f"{key}_after"]
            numbers = (format_number(each, spec) for each in (before, after))
            rows.append([name, *numbers, percent(after / before if before else None)])
        return ["", "before", "after", "left"], rows

    def verdict(self) -> str:
        """Return in words what the last compression changed in the model's answers."""
        done = self.records[-1]
        agreement, difference = (format_number(done[key]) for key in ("agreement", "logits_difference"))
        return (
            f"{done['method']}: on the rows of the data the agreement with the model before is {agreement}, and a "
            f"logit differs by {difference} on average."
        )


@plain_arguments
def compress(
    model: str | Path,
    method: str,
    data: Source,
    *,
    output_dir: str | Path,
    trust_remote_code: bool = False,
    **keywords: Any,
) -> CompressResult:
    """Compress a saved model by one method; run it again on its output for the next.

    Args:
        model: a path or Hub id (`id@revision`).
        method: one of `METHODS`.
        data: labelled rows, which importance is measured on or the vocabulary is kept of where the method needs it,
            and the agreement of the labels before and after in any case; not those that you report on. See
            `load_text_classification`.
        output_dir: where model, tokenizer and `compression.json` are saved.
        trust_remote_code: run the model repository's own code.
        **keywords: how the rows are read, by the fields of `nlpkd.data.arguments.DataArguments` (`text_column`,
            `label_column`, `max_length`, ...); and the method's own options, such as `keep=0.5`.

    Returns:
        The compressed model, saved.

    Raises:
        ValueError: if there is no such method or option, model and data do not fit, or `output_dir` is the model's.
    """
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}: choose one of {', '.join(METHODS)}")
    refuse_other_than_name(model, advice="save it first, or call a method of nlpkd.compression on it")
    data_args, options = DataArguments.split_keywords(keywords)
    if data_args.validation_split is not None:
        raise ValueError(
            "validation_split holds out rows to report on, which no compression may look at: leave it out"
        )
    function = METHODS[method]
    known = inspect.signature(function).parameters.keys()
    own_options = [name for name in known if name not in _GIVEN]
    if unknown := sorted(options.keys() - set(own_options)):
        raise ValueError(f"{method} has no option {', '.join(unknown)}: its options are {', '.join(own_options)}")
    # The methods check them too, once the model is loaded.
    for name in ("keep", "energy"):
        check_share(name, options.get(name))
    counted = ("intermediate_size", "heads", "rank", "min_count", "max_rows", "batch_size")
    check_counts(**{name: options[name] for name in counted if options.get(name) is not None})
    # Where the model comes from and goes to.
    source = ModelSource.of(model, None, trust_remote_code)
    source.refuse_as_output(output_dir)
    with only_run(output_dir):
        # Load model and data; a model in half precision stays in it.
        before, tokenizer = source.teacher("auto"), source.tokenizer()
        load = partial(load_rows_for_model, data, before.config, data_args=data_args, splits=["train"])
        rows, _, loaded = load(tokenizer=tokenizer)
        # Compress, by what the method asks for of rows, tokenizer and texts.
        texts = texts_of(rows, loaded.text_columns)
        given = {"dataset": rows, "tokenizer": tokenizer, "texts": texts}
        after, *own, record = function(before, **{name: given[name] for name in known & given.keys()}, **options)
        # Measure what that changed; a trimmed vocabulary reads the same texts by other ids.
        new = load(tokenizer=own[0])[0] if own else rows
        agreement, difference = measure_change(before, after, rows, tokenizer, new, *own)
        tokenizer = own[0] if own else tokenizer
        record = replace(record, agreement=agreement, logits_difference=difference)
        # Save model, tokenizer and record.
        records = [*_earlier_records(source), asdict(record)]
        save_student(after, output_dir, tokenizer)
        remember_texts(LearnedTexts.beside(source.folder), Path(output_dir))
        write_json(Path(output_dir) / RECORD_NAME, records)
    return CompressResult(after.eval(), tokenizer, records, Path(output_dir))


def _earlier_records(source: ModelSource) -> list[dict[str, Any]]:
    """Read what was done to a model in a folder before."""
    path = Path(str(source.given)) / RECORD_NAME
    if not path.exists():
        return []
    with explain_damage(path, "delete it, and the card says nothing of earlier compressions"):
        return [dict(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def with_trimmed_vocabulary(
    job: Job,
    whole: PreTrainedModel | None,
    teachers: Teachers,
    load: Callable[[PreTrainedTokenizerBase], TextClassificationData],
    seed: int,
    *,
    required: bool,
) -> Job:
    """Leave the student the vocabulary of the training split's text, and read the data again with it.

    Args:
        job: with the whole vocabulary.
        whole: the teacher that the student is made of; None of a checkpoint.
        teachers: whose tokenizers read the data too.
        load: reads the data with a tokenizer.
        seed: of the student whose vocabulary is looked at.
        required: whether it is an error where that can't be; else a warning says why.

    Returns:
        The job with the trimmed vocabulary; the job as it was where that can't be.

    Raises:
        ValueError: if it is required, and can't be.
    """
    make_student = job.make_untrained_student
    texts = partial(texts_of, columns=job.data.text_columns)
    try:
        _, tokenizer, record = trim_vocabulary(whole or make_student(seed), job.tokenizer, texts(job.data["train"]))
    except ValueError as error:
        if required:
            raise
        logger.warning("The student is shipped with its whole vocabulary: %s", error)
        return job
    ids: Any = original_ids(tokenizer, job.tokenizer)
    more = {"token_ids": ids} if whole else {}

    def trimmed(make: Callable[..., PreTrainedModel]) -> Callable[[int], PreTrainedModel]:
        """Return a function from a seed to what `make` makes, with fewer tokens."""
        return lambda seed: trim_embeddings(make(seed, **more), ids)

    held_out = [split for split in ("validation", "test") if split in job.data]
    lacking = {split: spelled_out(tokenizer, job.tokenizer, texts(job.data[split])) for split in held_out}
    spelled, lost = ({split: shares[at] for split, shares in lacking.items()} for at in (0, 1))
    logger.warning("The vocabulary is trimmed to %d tokens; others spell out %s.", len(tokenizer), _told(spelled))
    if any(lost.values()):
        logger.warning("The trimmed vocabulary can't spell %s: they are unknown to it.", _told(lost))
    # What there is to say of the rows was said when they were first read.
    with quiet("nlpkd.data", "nlpkd.augment"):
        data = load(tokenizer)
    cut, known = data.truncated, job.data.truncated
    if longer := {split: cut[split] for split in data if cut.get(split, 0) > known.get(split, 0)}:
        logger.warning("With the trimmed vocabulary more rows are truncated to %d tokens: %s", data.max_length, longer)
    vocabulary = record.details | {"spelled_out": spelled, "not_spelled": lost}
    student = job.origin["student"] | {"vocabulary": vocabulary}
    return replace(
        job,
        tokenizer=tokenizer,
        teacher_tokenizer=teachers.tokenizers_beside(tokenizer),
        data=data,
        origin=job.origin | {"student": student},
        make_untrained_student=trimmed(make_student),
        baselines={name: trimmed(make) for name, make in job.baselines.items()},
    )


def _told(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{percent(share)} of the tokens of {split}" for split, share in shares.items())
