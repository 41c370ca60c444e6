"""A classifier as an ONNX file, compared with PyTorch on real text before it gets its name.

`onnx/model.onnx` lies in a folder under the model's own, as Optimum and transformers.js have it: one repository serves
PyTorch, ONNX Runtime and a browser with the same config and tokenizer.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.compression.record import agreement_of
from nlpkd.data.columns import checked_text, values_of
from nlpkd.data.tokenization import refuse_no_tokens, same_tokenizer, with_usual_padding
from nlpkd.models.files.onnx_weights import external_weights_in
from nlpkd.models.files.saved_config import complete_config, write_labels
from nlpkd.models.files.tokenizers import save_tokenizer
from nlpkd.models.inference import inference_copy
from nlpkd.models.limits import positions_of
from nlpkd.models.loading import load_tokenizer
from nlpkd.models.onnx_classifier import EXPORT_RECORD, MODEL_INPUTS, OnnxClassifier, config_sha256
from nlpkd.models.padding import reads_padding, refuse_unknown_padding
from nlpkd.models.reshaped import settings_without
from nlpkd.models.structure import matching_tokenizer, readable, refuse_other_than_plain
from nlpkd.teachers.compatibility import refuse_unknown_tokens
from nlpkd.utils.disk.files import digest_of, explain_damage, weight_files, weights_sha256
from nlpkd.utils.disk.links import inside, move_into, refuse_links
from nlpkd.utils.field_types import plain_arguments
from nlpkd.utils.object_hashes import hash_weights
from nlpkd.utils.packages import require
from nlpkd.utils.progress import quiet

logger = logging.getLogger(__name__)


FP32_FILE = "onnx/model.onnx"


EXPORT_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What an export needs of the extra `export`."""


Texts = Sequence[str] | Sequence[tuple[str, str]]
"""Texts, or pairs of texts."""


TESTED_TORCH = "2.13"


_BATCH_SIZES = (1, 3, 32)


_DRAWN_TEXTS = 64


# Encoders with one mask for all layers, of every token to every other one: they take it ready-made.
_TAKE_A_READY_MASK = {"albert", "bert", "distilbert", "electra", "mobilebert", "mpnet", "roberta", "xlm-roberta"}


# What save_pretrained writes of its own accord, what Trainer sets, and what follows from id2label.
_NOT_THE_MODELS = {
    "transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures", "use_cache", "label2id",
}  # fmt: skip


@dataclass(frozen=True)
class OnnxRecord:
    """What an export gave, and how it compares with what it was made of.

    Attributes:
        file: its path in the model's folder.
        size_mb: megabytes (10^6 bytes).
        reference: what it was compared with, `"PyTorch"` or a file.
        rows: texts that were compared, each in batches of 1, 3 and 32 with the padding that this takes.
        largest_difference: of any logit.
        agreement: share of the same decisions; of a regression the correlation of both scores.
        retention: its headline metric over that of the student in PyTorch, where both were measured.
        portable_agreement: of an int8 file in 8 bits the agreement that its form in 7 bits has, for CPUs without VNNI.
    """

    file: str
    size_mb: float
    reference: str
    rows: int
    largest_difference: float
    agreement: float
    retention: float | None = None
    portable_agreement: float | None = None


@plain_arguments
def export_onnx(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    texts: Texts | None = None,
    max_length: int | None = None,
    tolerance: float = 1e-3,
) -> OnnxRecord:
    """Write a classifier as `onnx/model.onnx`, of any number of texts of any length, in float32.

    The file gets its name once it has given PyTorch's logits on the texts; a failure leaves what was there before. It
    holds plain ONNX operators, which every runtime reads; ONNX Runtime fuses them as it loads the file.

    Args:
        model: the classifier; left as it is.
        tokenizer: its tokenizer.
        directory: the model's own folder, or an empty one, which gets config and tokenizer too.
        texts: real texts to compare on; of pairs two texts each. 64 of random tokens if None.
        max_length: the most tokens of a text, within the limits of model and tokenizer; 512 if None.
        tolerance: how far a logit may be off, times the largest logit where that is above 1.

    Returns:
        The record.

    Raises:
        ImportError: if a package of the extra `export` is missing.
        ValueError: if the folder holds another model, there are no texts, or the tokenizer is another model's.
        RuntimeError: if the model can't be exported, or the file gives other logits.
    """
    for package in EXPORT_PACKAGES:
        require(package)
    refuse_other_than_plain(model, "model")
    directory, max_length = Path(directory), most_tokens(max_length, tokenizer, model)
    refuse_another_model(directory, model, tokenizer)
    texts = texts_to_compare(texts, tokenizer, max_length)
    refuse_another_tokenizer(model, tokenizer, texts, max_length)
    reference = copy.deepcopy(model).float().cpu().eval()
    if reference.config.model_type in _TAKE_A_READY_MASK:
        # The plain products: what stands for scaled_dot_product_attention in ONNX has more operators.
        reference.set_attn_implementation("eager")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".exporting-") as temporary:
        staged = Path(temporary) / FP32_FILE
        staged.parent.mkdir()
        _export(reference, batch_of(tokenizer, [texts[0], *texts[:2]], max_length), staged)
        classifier = OnnxClassifier(staged, reference.config)
        difference, agreement, largest = compare_logits(classifier, reference, tokenizer, texts, max_length)
        if not difference <= tolerance * max(1.0, largest):
            raise RuntimeError(
                f"the ONNX file of this {type(model).__name__} gives other logits than PyTorch, off by up to "
                f"{difference:.3g} on {len(texts)} texts where tolerance={tolerance:g}: it was not kept"
            )
        record = OnnxRecord(FP32_FILE, classifier.size_mb, "PyTorch", len(texts), difference, agreement)
        reference.config.architectures = [type(model).__name__]
        complete_config(reference.config)
        reference.config.save_pretrained(temporary)
        write_labels(reference.config, Path(temporary))
        save_tokenizer(matching_tokenizer(tokenizer, model), Path(temporary))
        accept(Path(temporary), directory, [record], hash_weights(model))
    logger.info("%s", record)
    return record


def refuse_another_model(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a folder that holds config, weights or tokenizer of another model; one without them is fine.

    Args:
        directory: the folder, perhaps missing.
        model: what is to be exported to it.
        tokenizer: its tokenizer.

    Raises:
        ValueError: if something differs; it says what.
    """
    differing = []
    if (directory / "config.json").is_file():
        there, ours = (
            settings_without(_NOT_THE_MODELS, json.loads(config.to_json_string(use_diff=False)))
            for config in (type(model.config).from_pretrained(directory), model.config)
        )
        names = sorted(there.keys() | ours.keys())
        differing = [f"{name} in config.json" for name in names if there.get(name) != ours.get(name)]
    state = model.state_dict()
    for file in weight_files(directory):
        weights = load_file(file)
        same = all(name in state and torch.equal(state[name].cpu().to(w.dtype), w) for name, w in weights.items())
        differing += [] if same else [file.name]
    if (directory / "tokenizer_config.json").is_file() and not same_tokenizer(load_tokenizer(directory), tokenizer):
        differing.append("the tokenizer")
    if differing:
        raise ValueError(
            f"{directory} holds another model ({', '.join(differing)}): save this one there first, or export to an "
            "empty folder"
        )


def accept(staged: Path, directory: Path, records: Sequence[OnnxRecord], state_sha256: str | None) -> None:
    """Move what was written to its place, and note in `onnx/export.json` what it was made from.

    Files without a record are other names of one that has it.

    Config and tokenizer that are there stay. Files that were made from other weights or settings are deleted, and so
    is what the files before had their weights in, unless another ONNX file of the folder has some there too.

    Args:
        staged: a folder inside of `directory`.
        directory: the model's folder.
        records: of the files.
        state_sha256: of the weights that they were made of, which need not lie in the folder; None if not known.
    """
    noted, weights = directory / EXPORT_RECORD, weights_sha256(directory)
    refuse_links(directory, noted.parent.name)
    had = external_weights_in(directory)
    before, settings = export_record(directory), config_sha256(directory) or config_sha256(staged)
    # Earlier versions noted no settings.
    made_of = (before.get("weights_sha256"), before.get("state_sha256"), before.get("config_sha256") or settings)
    if made_of != (weights, state_sha256, settings):
        for file in before["files"]:
            if PurePosixPath(file).match("onnx/*.onnx"):
                inside(directory, file).unlink(missing_ok=True)
        before = {"files": {}}
    made = {record.file: asdict(record) for record in records}
    paths = {path.relative_to(staged).as_posix(): path for path in staged.rglob("*.onnx")}
    files = before["files"] | {name: made.get(name, {}) | {"sha256": digest_of(path)} for name, path in paths.items()}
    record = {
        "weights_sha256": weights, "state_sha256": state_sha256, "config_sha256": settings, "files": files,
    }  # fmt: skip
    (staged / EXPORT_RECORD).write_text(json.dumps(record, indent=2) + "\n")
    written = [path for path in staged.rglob("*") if path.is_file()]
    # The record goes last: until then the old one tells files of other weights.
    for path in sorted(written, key=lambda path: (path.parent != staged, path.name == noted.name)):
        target = directory / path.relative_to(staged)
        if path.parent != staged or not target.exists():
            move_into(directory, path, path.relative_to(staged))
    for left in had - external_weights_in(directory) - {directory / path.relative_to(staged) for path in written}:
        left.unlink()


def export_record(directory: Path) -> dict[str, Any]:
    """Read what a folder's ONNX files were made from.

    Args:
        directory: the model's folder.

    Returns:
        `{"weights_sha256", "state_sha256", "config_sha256", "files"}`; no files where nothing was exported.
    """
    noted = directory / EXPORT_RECORD
    if not noted.is_file():
        return {"files": {}}
    with explain_damage(noted, "delete it and the ONNX files beside it, and export again"):
        record = json.loads(noted.read_text(encoding="utf-8"))
        return record | {"files": dict(record["files"])}


class _Logits(nn.Module):
    """A classifier that returns its logits alone."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = inference_copy(model, "cpu", first_token=True)
        self.makes_mask = model.config.model_type in _TAKE_A_READY_MASK

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        if self.makes_mask and "attention_mask" in inputs:
            # Four operators, where transformers' own way to it takes two dozen, a tenth of a small student's time.
            real = inputs["attention_mask"][:, None, None, :].float()
            inputs = {**inputs, "attention_mask": (1.0 - real) * torch.finfo(real.dtype).min}
        return self.model(**inputs).logits


def _export(model: PreTrainedModel, example: dict[str, Tensor], path: Path) -> None:
    inputs = readable(model, example)
    # The exporter puts loops over any length in the place of these. torch would go on with what it looked up before,
    # as in an earlier export, and unroll a loop of the example's length.
    for recurrent in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        recurrent._dispatch_cache.clear()
    try:
        with quietly():
            program = torch.onnx.export(
                _Logits(model).eval(),
                kwargs={"inputs": inputs},
                dynamo=True,
                verbose=False,
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_shapes={"inputs": {name: {0: "batch", 1: "sequence"} for name in inputs}},
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).strip().splitlines()[:2])
        tested = torch.__version__.startswith(f"{TESTED_TORCH}.")
        advice = "serve it by PyTorch" if tested else f"nlpkd is tested with torch {TESTED_TORCH}: try that"
        raise RuntimeError(
            f"torch {torch.__version__} can't export this {type(model).__name__} to ONNX: {reason}. {advice}"
        ) from error
    program.save(path, external_data=False)  # type: ignore[union-attr]


@contextmanager
def quietly() -> Iterator[None]:
    """Keep exporter and quantiser from talking of what a caller can do nothing about."""
    with quiet("", "torch.onnx"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def compare_logits(
    model: nn.Module,
    reference: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Texts,
    max_length: int,
    sizes: Sequence[int] = _BATCH_SIZES,
) -> tuple[float, float, float]:
    """Return the largest difference of two models' logits, their least agreement, and the largest logit.

    The model reads the texts in batches of each of the sizes; the reference, whose logits depend on no other text of
    their batch, in those of the last size alone. Where they do, it reads what the model reads.
    """
    batches = {
        size: [batch_of(tokenizer, texts[at : at + size], max_length) for at in range(0, len(texts), size)]
        for size in sizes
    }
    theirs = torch.cat([_logits(reference, batch) for batch in batches[sizes[-1]]])
    differences, agreements = [], []
    for size in sizes:
        ours = torch.cat([_logits(model, batch) for batch in batches[size]])
        if reads_padding(reference):
            theirs = torch.cat([_logits(reference, batch) for batch in batches[size]])
        if ours.shape != theirs.shape:
            raise RuntimeError(f"the ONNX file gives logits {tuple(ours.shape)}, and not {tuple(theirs.shape)}")
        differences.append((ours - theirs).abs().max().item())
        agreements.append(agreement_of(ours, model.config, theirs, reference.config))
    return float(np.max(differences)), min(agreements), theirs.abs().max().item()


def _logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**readable(model, batch)).logits


def batch_of(tokenizer: PreTrainedTokenizerBase, texts: Any, max_length: int) -> dict[str, Tensor]:
    """Tokenise as `nlpkd.data` does: a pair has segments, whatever the tokenizer gives of its own accord."""
    encoded = with_usual_padding(tokenizer)(
        list(texts),
        padding=True,
        truncation=True,
        max_length=max_length,
        return_token_type_ids=None if isinstance(texts[0], str) else True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    refuse_no_tokens(encoded["attention_mask"].sum(dim=1).tolist(), "the texts to compare on")
    return {name: encoded[name] for name in MODEL_INPUTS if name in encoded}


def most_tokens(asked: int | None, tokenizer: PreTrainedTokenizerBase, model: Any) -> int:
    """Return the most tokens of a text, within the limits of tokenizer and model; 512 where nothing is asked for."""
    return min(asked or 512, tokenizer.model_max_length, positions_of(model.config) or tokenizer.model_max_length)


def refuse_another_tokenizer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Texts, max_length: int
) -> None:
    """Refuse a tokenizer that gives texts ids which the model has no embedding for, or whose padding it would read."""
    refuse_unknown_padding(model, tokenizer, "student")
    ids = batch_of(tokenizer, texts, max_length)["input_ids"].tolist()
    refuse_unknown_tokens(model, Dataset.from_dict({"input_ids": ids}), "input_ids", "student", "compared")


def texts_to_compare(
    texts: Texts | None, tokenizer: PreTrainedTokenizerBase, max_length: int, name: str = "texts"
) -> Texts:
    """Check the given texts, or draw texts of random ordinary tokens, from one to as many as fit."""
    if texts is not None:
        wanted = f"{name} must be a list of texts, or of pairs, to compare on"
        given = [_text_or_pair(each, f"{name}: text {at}") for at, each in enumerate(values_of(texts, wanted))]
        if not given or len({type(each) is tuple for each in given}) > 1:
            raise ValueError(f"{wanted}; got {'both' if given else 'none'}")
        return given
    generator = np.random.default_rng(0)
    ordinary = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    lengths = generator.integers(1, max(max_length - 2, 2), size=_DRAWN_TEXTS)
    return [str(tokenizer.decode(generator.choice(ordinary, size=length).tolist())) for length in lengths]


def _text_or_pair(given: Any, which: str) -> Any:
    """Return a text, or a pair of texts as a tuple."""
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return tuple(checked_text(text, which) for text in given)
    return checked_text(given, which)
