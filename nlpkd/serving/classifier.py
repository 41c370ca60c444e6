"""A saved classifier as a function of texts: on ONNX Runtime where it has an ONNX file, on PyTorch where not."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from transformers import TextClassificationPipeline
from transformers.pipelines.text_classification import ClassificationFunction
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from nlpkd.data.labels.classes import Classes, given_labels, thresholds_of
from nlpkd.data.tokenization import NO_TOKENS, resolve_max_length, with_limit, with_usual_padding
from nlpkd.data.windows import average_windows, windows_of
from nlpkd.labelling.answers import AnswerFile
from nlpkd.labelling.costs import SpendingLimits
from nlpkd.labelling.rows import asked_probabilities
from nlpkd.models.files.saved_config import complete_config
from nlpkd.models.limits import positions_of
from nlpkd.models.loading import load_classifier, load_tokenizer, onnx_file, split_revision
from nlpkd.models.onnx_classifier import OnnxClassifier, model_folder
from nlpkd.models.padding import reads_padding, refuse_unknown_padding
from nlpkd.models.structure import readable, refuse_other_than_plain
from nlpkd.serving.cascade import Cascade, CascadeRecord, folder_of_student, scores, served_files
from nlpkd.serving.one_text import OneText, one_text
from nlpkd.serving.texts import READING, as_texts
from nlpkd.tasks import MULTI_LABEL, refuse_other_than_one_class, task_of
from nlpkd.teachers.base import LabelingTeacher
from nlpkd.teachers.compatibility import refuse_unknown_token
from nlpkd.utils.field_types import check_counts, plain_arguments, plain_numbers

logger = logging.getLogger(__name__)


TORCH_FILE = "model.safetensors"
"""The `file` of `load` that stands for PyTorch."""


_ANSWERING = ("top_k", "function_to_apply")


_WINDOWS_AT_ONCE = 32

_READING_NOW = threading.Lock()
"""Held while a text is tokenised: a call leaves its truncation in the tokenizer, where another thread finds it."""


class TextClassifier(TextClassificationPipeline):
    """The text-classification pipeline of transformers, its arguments and answers, over PyTorch or ONNX Runtime.

    Args:
        model: a classifier, or an `OnnxClassifier`.
        tokenizer: its tokenizer.
        **settings: of the pipeline; any argument of a call too.
    """

    @plain_arguments
    def __init__(self, model: Any, tokenizer: Any, **settings: Any):
        refuse_other_than_plain(model, "model", ["config"])
        # Before anything is answered, labels that nobody could tell apart are refused.
        Classes.of(model.config.id2label)
        complete_config(model.config)
        # What is no tokenizer has no limit.
        _check_max_length(tokenizer, None)
        limited = with_limit(tokenizer, positions_of(model.config))
        _check_max_length(limited, settings.get("max_length"))
        # Whether several texts may be read at once, which one alone need not know.
        self._padding_is_known = False
        super().__init__(model=model, tokenizer=with_usual_padding(limited), **settings)

    def __call__(self, inputs: Any, **settings: Any) -> list[Any]:  # type: ignore[override]
        """Classify texts.

        Args:
            inputs: a text, a pair as `{"text": .., "text_pair": ..}`, or several of either; see
                `nlpkd.serving.texts.as_texts`.
            **settings: `top_k`, how many labels (None: all; 1 if left out); `batch_size`; `truncation`, on unless
                False, `max_length` and the other settings of the tokenizer in `nlpkd.serving.texts.READING`;
                `window_stride`, by which a longer text is read whole, in windows of `max_length` tokens that share so
                many, whose logits are averaged as where they are measured (`nlpkd.data.windows`);
                `function_to_apply`; and `decide=True` of a multi-label model: the labels whose probability is above
                their threshold in `config.thresholds`, or 0.5, be they none or all; with `top_k` the most probable of
                these.

        Returns:
            `{"label", "score"}` of each text; with `top_k` or `decide` a list of those, the most probable first. Of no
            texts an empty list.

        Raises:
            ValueError: for what is neither a text nor a pair, a text without any token, with more of them than the
                model has positions for where none is cut, or with one that it has no embedding for; settings that
                there are not or that are out of range, `decide=True` of a model of another task or beside
                `function_to_apply`, and a batch of several texts whose padding the model would take for text.
        """
        inputs, settings = as_texts(inputs), plain_numbers(settings)
        if isinstance(inputs, list) and not inputs:
            return []
        if settings.get("decide"):
            settings = {"top_k": None} | settings
        if settings.get("window_stride", self._preprocess_params.get("window_stride")) is not None:
            # A batch is the windows of a text.
            settings = settings | {"batch_size": 1}
        if isinstance(inputs, str) and not settings and self._one_text is not None:
            model: Any = self.model
            given = self._one_text(inputs)
            self._refuse_unreadable(given["input_ids"], inputs)
            logits = torch.from_numpy(model.run(given))
            return [self.postprocess({"logits": logits}, **self._postprocess_params)]
        if reads_padding(self.model):
            # Each text as it is read alone.
            settings = settings | {"batch_size": 1}
        return super().__call__(inputs, **settings)

    @functools.cached_property
    def _one_text(self) -> OneText | None:
        """Tokenises one text for ONNX Runtime; None where the pipeline has to."""
        if not isinstance(self.model, OnnxClassifier) or self._preprocess_params != {"truncation": True}:
            return None
        with _READING_NOW:
            return one_text(self.tokenizer, self.model.inputs)

    def preprocess(self, inputs: Any, **settings: Any) -> Any:  # type: ignore[override]
        """Tokenise a text, or a pair with its segments, whatever the tokenizer gives; a step of the pipeline."""
        pair = isinstance(inputs, dict) and inputs.get("text_pair") is not None
        _check_max_length(
            self.tokenizer, settings.get("max_length"), pair, special_tokens=settings.get("add_special_tokens", True)
        )
        if (stride := settings.pop("window_stride", None)) is not None:
            return self._windows(inputs, stride, **settings)
        with _READING_NOW:
            encoded = super().preprocess(inputs, **({"return_token_type_ids": True} if pair else {}) | settings)
        self._refuse_unreadable(encoded["input_ids"], inputs)
        return encoded

    def _windows(self, text: Any, stride: int, max_length: int | None = None, **settings: Any) -> Any:
        """Tokenise a text into windows, the rows of one batch."""
        tokenizer: Any = self.tokenizer
        if not isinstance(text, str):
            raise ValueError(f"window_stride is for single texts, and this is a pair: leave it out; got {text!r:.80}")
        if others := sorted(settings.items() - {("truncation", True)}):
            raise ValueError(f"window_stride goes with max_length alone: leave {others[0][0]}={others[0][1]!r} out")
        max_length = tokenizer.model_max_length if max_length is None else max_length
        if max_length >= VERY_LARGE_INTEGER:
            raise ValueError("the tokenizer knows no largest length that windows could have: give max_length")
        with _READING_NOW:
            cut = windows_of(tokenizer, "text", max_length, stride)({"text": [text]}, [0])
        columns = {name: cut[name] for name in tokenizer.model_input_names}
        encoded = tokenizer.pad(columns, return_attention_mask=True, return_tensors="pt")
        self._refuse_unreadable(encoded["input_ids"], text)
        return encoded

    def _refuse_unreadable(self, ids: Any, text: Any) -> None:
        """Refuse a text of no tokens, of more than the model has positions for, or of one without an embedding."""
        positions, tokens = positions_of(self.model.config), ids.shape[-1]
        if not tokens:
            raise ValueError(f"the text {text!r:.80} {NO_TOKENS}")
        if positions is not None and tokens > positions:
            raise ValueError(
                f"the model has {positions} positions, and the text {text!r:.80} has {tokens} tokens: let it be "
                "cut (leave truncation out), or read it in windows (window_stride)"
            )
        refuse_unknown_token(self.model, int(ids.max()), "model", f"the text {text!r:.80} has")

    def _forward(self, model_inputs: Any, windows: bool = False) -> Any:  # type: ignore[override]
        """Run the model on what it reads, and average over windows; a step of the pipeline."""
        given = readable(self.model, model_inputs)
        if len(given["input_ids"]) > 1 and not self._padding_is_known:
            refuse_unknown_padding(self.model, self.tokenizer, "model")
            self._padding_is_known = True
        if not windows:
            return super()._forward(given)
        # A window beside which padding would be read is read alone, without it.
        alone, mask, logits = reads_padding(self.model), model_inputs["attention_mask"].bool(), []
        step = 1 if alone else _WINDOWS_AT_ONCE
        for at in range(0, len(mask), step):
            some = {name: each[at : at + step, mask[at] if alone else slice(None)] for name, each in given.items()}
            logits.append(super()._forward(some)["logits"].float().cpu())
        whole = torch.cat(logits).numpy()
        return {"logits": torch.from_numpy(average_windows(whole, [0] * len(whole)))}

    def postprocess(  # type: ignore[override]
        self, model_outputs: Any, decide: bool = False, **settings: Any
    ) -> Any:
        """Turn logits into labels and scores; a step of the pipeline."""
        if not decide:
            return super().postprocess(model_outputs, **settings)
        config: Any = self.model.config
        given = given_labels(model_outputs["logits"].float().numpy(), thresholds_of(config))[0]
        names = {config.id2label[number] for number in given.nonzero()[0]}
        labels = super().postprocess(model_outputs, **settings | {"top_k": None})
        return [each for each in labels if each["label"] in names][: settings.get("top_k")]

    def check_model_type(self, supported_models: Any) -> None:
        """Take any model: the pipeline's own check knows the classes of transformers alone."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__} on {self.device})"

    def _sanitize_parameters(  # type: ignore[override]
        self, decide: bool = False, window_stride: int | None = None, **settings: Any
    ) -> Any:
        if unknown := sorted(settings.keys() - {*_ANSWERING, *READING}):
            raise ValueError(
                f"a classifier has no setting {', '.join(unknown)}: there are batch_size, decide, "
                f"{', '.join((*_ANSWERING, *READING, 'window_stride'))}"
            )
        _check_answering(**{name: settings[name] for name in _ANSWERING if name in settings})
        if decide and settings.get("function_to_apply") is not None:
            raise ValueError("decide=True goes by probabilities: leave function_to_apply out")
        if decide and task_of(self.model.config) != MULTI_LABEL:
            raise ValueError(
                "decide=True gives the labels above their thresholds, and this model's task is another: leave it out"
            )
        preprocess, forward, postprocess = super()._sanitize_parameters(**settings)
        if window_stride is not None:
            check_counts(0, window_stride=window_stride)
            preprocess, forward = preprocess | {"window_stride": window_stride}, forward | {"windows": True}
        return preprocess, forward, postprocess | ({"decide": True} if decide else {})


def _check_max_length(tokenizer: Any, asked: Any, pair: bool = False, special_tokens: bool = True) -> None:
    """Refuse a largest length that this tokenizer does not take, as where rows are read, and what is no tokenizer."""
    if asked is not None:
        check_counts(max_length=asked)
    resolve_max_length(asked, [tokenizer], pair, special_tokens=special_tokens)


def _check_answering(top_k: Any = None, function_to_apply: Any = None) -> None:
    """Refuse a number of labels that can't be, and a function that the pipeline does not know."""
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k must be a whole number from 1 on, or None for all labels; got {top_k!r}")
    known = [each.name.lower() for each in ClassificationFunction]
    if isinstance(function_to_apply, str) and function_to_apply.lower() not in known:
        raise ValueError(f"function_to_apply must be one of {', '.join(known)}, or None; got {function_to_apply!r}")


@plain_arguments
def load(
    name: str | Path,
    *,
    revision: str | None = None,
    file: str | None = None,
    threads: int | None = None,
    trust_remote_code: bool = False,
    fallback: str | Path | LabelingTeacher | None = None,
    window_stride: int | None = None,
) -> Any:
    """Load a classifier to call, with the arguments and answers of `transformers.pipeline("text-classification")`.

    It runs on ONNX Runtime where the folder or repository has an ONNX file, `onnx/model_int8.onnx` before
    `onnx/model.onnx`, and else on PyTorch. `onnx/model.onnx` gives the pipeline's own answers; an int8 file nearly.

    Args:
        name: a folder, an ONNX file, or a Hub id (`id` or `id@revision`).
        revision: branch, tag or commit of a Hub id.
        file: the ONNX file in the folder or repository, or `"model.safetensors"` for PyTorch.
        threads: of ONNX Runtime; as many as torch has if None. PyTorch's own are `torch.set_num_threads`.
        trust_remote_code: run the repository's own code.
        fallback: what answers where the classifier is unsure, a path, a Hub id or one of `nlpkd.teachers`; the folder
            then has a `cascade.json`, which `nlpkd.cascade` writes.
        window_stride: read longer texts whole, in windows that share so many tokens, as the setting of a call does.

    Returns:
        The classifier, a `TextClassifier`: `classify("a fine film")` is `[{"label": "positive", "score": 0.99}]`. With
        a fallback a `nlpkd.serving.cascade.Cascade`.

    Raises:
        ValueError: if there is no such path or file, the ONNX file was made from other weights than those beside it,
            threads are asked of PyTorch, `cascade.json` was chosen on another file or other weights of student or
            fallback, or the fallback has other classes or another task.
        OSError: if the repository can't be had.
        ImportError: if there is an ONNX file and ONNX Runtime is not installed.
    """
    # A cascade: this classifier, and what answers where it is unsure.
    if fallback is not None:
        if window_stride is not None:
            raise ValueError("a cascade was chosen on texts that are cut: leave window_stride out")
        folder = folder_of_student(name)
        record = CascadeRecord.load(folder)
        small = load(folder, revision=revision, file=file, threads=threads, trust_remote_code=trust_remote_code)
        record.refuse_other_student(served_files(small, folder), folder)
        large = Fallback(fallback, trust_remote_code)
        record.refuse_other_teacher(large.name, large.files, folder)
        return Cascade(small, large.in_words_of(small.model.config), record)
    if isinstance(name, str) and revision is None:
        name, revision = split_revision(name)
    # ONNX Runtime, where there is a file for it.
    path = None if file == TORCH_FILE else onnx_file(name, file=file, revision=revision)
    settings: dict[str, Any] = {"task": "text-classification", "truncation": True, "window_stride": window_stride}
    if path is not None:
        classifier = OnnxClassifier.from_pretrained(path, threads=threads, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(model_folder(path), trust_remote_code=trust_remote_code)
        logger.info("%s is served by ONNX Runtime from %s", name, path)
        return TextClassifier(model=classifier, tokenizer=tokenizer, device=-1, **settings)
    # PyTorch.
    if threads is not None:
        raise ValueError(
            f"threads={threads} is for ONNX Runtime, and {str(name)!r} is served by PyTorch: use torch.set_num_threads"
        )
    model, missing = load_classifier(name, revision=revision, trust_remote_code=trust_remote_code)
    if missing:
        raise ValueError(f"{str(name)!r} is no trained classifier: its checkpoint lacks {', '.join(missing)}")
    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    logger.info("%s is served by PyTorch", name)
    return TextClassifier(model=model.eval(), tokenizer=tokenizer, **settings)


class Fallback:
    """What answers where a student is unsure.

    Args:
        teacher: a path, a Hub id or one of `nlpkd.teachers`.
        trust_remote_code: run the repository's own code.
        batch_size: texts at once.
        answers: where the answers of one of `nlpkd.teachers` are kept, and are not asked for again; they are not kept
            if None.
        limits: the limits of asking one of `nlpkd.teachers`.

    Attributes:
        name: of the teacher.
        files: the SHA-256 of the files that it is served from, by name; none where nobody knows.
        classes: its classes.

    Raises:
        ValueError: if its task is not one class a text.
    """

    def __init__(
        self,
        teacher: str | Path | LabelingTeacher,
        trust_remote_code: bool = False,
        batch_size: int = 32,
        answers: AnswerFile | None = None,
        limits: SpendingLimits | None = None,
    ):
        self._teacher, self._batch_size, self._answers, self._limits = teacher, batch_size, answers, limits
        self.files: dict[str, str] = {}
        if isinstance(teacher, LabelingTeacher):
            self.name, self.classes = str(teacher.describe()["name"]), Classes.of(teacher.classes)
            refuse_other_than_one_class(teacher, "a cascade", self.name)
            return
        self._large: Any = load(teacher, trust_remote_code=trust_remote_code)
        self.name, self.files = str(teacher), served_files(self._large, Path(teacher))
        refuse_other_than_one_class(self._large.model.config, "a cascade", self.name)
        self.classes = Classes.of(self._large.model.config.id2label)

    def in_words_of(self, student_config: Any) -> Callable[..., list[tuple[str, float] | None]]:
        """Make a function from texts to `(label, probability)` of each, the labels by the student's names.

        One of `nlpkd.teachers` is asked about each text once. What it does not answer is None, and told; that it
        answers none of the texts is an error. Settings of reading texts (`nlpkd.serving.texts.READING`) are those of a
        model's tokenizer: one of `nlpkd.teachers` reads whole texts.

        Args:
            student_config: the student's config.

        Raises:
            ValueError: if they have other classes.
        """
        own = Classes.of(student_config.id2label)
        try:
            order = self.classes.positions_in(own) or range(len(own))
        except ValueError as error:
            raise ValueError(f"the teacher {self.name} can't answer for the student: {error}") from error
        words = {name: own.names[place] for name, place in zip(self.classes.names, order, strict=True)}

        def ask(texts: list[Any], **reading: Any) -> list[tuple[str, float] | None]:
            if isinstance(self._teacher, LabelingTeacher):
                labels = list(self.classes.names)
                found = asked_probabilities(self._teacher, texts, self._answers, self._limits)
            else:
                labels, logits = scores(self._large, texts, batch_size=self._batch_size, **reading)
                found = softmax(logits, axis=-1)
            lacking = np.isnan(found).any(axis=-1)
            return [
                None if none else (words[labels[row.argmax()]], float(row.max()))
                for row, none in zip(found, lacking, strict=True)
            ]

        return ask
