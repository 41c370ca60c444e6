"""Names into loaded models, tokenizers and ONNX files: a local path or a Hub id, at a revision, never a pickle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, list_repo_tree, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file

from nlpkd.data.labels.classes import settle_classes
from nlpkd.data.tokenization import with_limit, with_usual_padding
from nlpkd.models.files.onnx_weights import named_weights
from nlpkd.models.files.saved_config import labels_left_out, settle_model
from nlpkd.models.files.tokenizers import read_tokenizer
from nlpkd.models.limits import (
    positions_of,
    refuse_adapter,
    refuse_foreign_files,
    refuse_onnx_of_other_weights,
    refuse_other_than_name,
    refuse_oversized_config,
    refuse_oversized_vocabulary,
    refuse_unknown_dtype,
    refuse_unreadable_labels,
)
from nlpkd.utils.disk.files import TOKENIZER, WEIGHT_FILES, WEIGHTS, refuse_damaged
from nlpkd.utils.field_types import plain_arguments
from nlpkd.utils.hub_requests import limit_hub_requests
from nlpkd.utils.packages import require
from nlpkd.utils.progress import quiet
from nlpkd.utils.secrets import without_tokens

ONNX_FILES = ("onnx/model_int8.onnx", "onnx/model.onnx", "model.onnx")
"""Where a model's ONNX file is looked for. An int8 file is there because somebody chose it, so that it comes first."""

_NO_TOKENIZER = "Does it hold config.json and tokenizer.json, as save_pretrained of model and tokenizer write them?"

_GIVE = "pass a saved model's folder, or a Hub id (USER/NAME)"

_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.py"]

# What the names of a model's or tokenizer's files end with.
_SAVED = (".json", ".txt", ".model", ".safetensors", ".bin", ".onnx")

OFFLINE_ADVICE = (
    "If the Hub can't be reached from here, pass a local path, or run the embedded demo: `make demo` "
    "(`python recipes/quickstart.py`)."
)


def split_revision(name: str) -> tuple[str, str | None]:
    """Split `"id@revision"`; a local path is never split.

    Args:
        name: a path, a Hub id, or a Hub id with `@` and a branch, tag or commit.

    Returns:
        The name, and the revision or None.
    """
    if "@" not in name or Path(name).exists():
        return name, None
    base, revision = name.rsplit("@", 1)
    return base, revision


def load_classifier(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    ignore_mismatched_sizes: bool = False,
    **config: Any,
) -> tuple[PreTrainedModel, list[str]]:
    """Load a model for sequence classification.

    Args:
        name: a local path or a Hub id.
        revision: branch, tag or commit on the Hub.
        dtype: dtype of the weights; a checkpoint's own dtype is not inherited.
        trust_remote_code: run the repository's own modelling code.
        ignore_mismatched_sizes: draw at random what the checkpoint has in another shape than the config says.
        **config: overrides of the model's config, such as `num_labels`, and what else `from_pretrained` takes.

    Returns:
        The model, and the names of parameters that the checkpoint did not have, or not in this shape, and that were
        initialised at random.

    Raises:
        ValueError: if the name looks like a path and nothing is there, the weights there are damaged or lie outside
            of it, the model is larger than any, or torch has no such dtype of weights.
        OSError: if the checkpoint can't be had, or has no safetensors file.
    """
    refuse_unknown_dtype(dtype)
    check_place(name, revision)
    refuse_damaged(Path(name), WEIGHTS)
    # Of an id the Hub is asked for this file alone, before anything that it names.
    with _explained(name, revision, "model"):
        adapter = find_adapter_config_file(str(name), revision=revision)
    if adapter is not None:
        refuse_adapter(Path(adapter).parent)
    settings = _load_config(name, revision, trust_remote_code, "model")
    settings.update({setting: value for setting, value in config.items() if hasattr(settings, setting)})
    # What transformers would say in a table of missing weights, callers say in a sentence, or refuse. At that level it
    # would say too which layers are not shared out among devices.
    talking = quiet("transformers.modeling_utils", "transformers.distributed.tensor_parallel")
    with _explained(name, revision, "model"), talking:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            str(name),
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            config=settings,
            **{setting: value for setting, value in config.items() if not hasattr(settings, setting)},
        )
    if info["mismatched_keys"] and not ignore_mismatched_sizes:
        shapes = (f"{each} is {tuple(found)} and not {tuple(told)}" for each, found, told in info["mismatched_keys"])
        raise ValueError(f"the weights in {str(name)!r} have other shapes than its config says: {', '.join(shapes)}")
    settle_model(model)
    return model, sorted({*info["missing_keys"], *(parameter for parameter, *_ in info["mismatched_keys"])})


def load_config(name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Load a model's config alone.

    Args:
        name: a local path or a Hub id.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run the repository's own code.

    Returns:
        The config.

    Raises:
        ValueError: if the name looks like a path and nothing is there, an adapter is, or the model is larger than any.
        OSError: if it can't be had.
    """
    check_place(name, revision)
    refuse_adapter(Path(name))
    return _load_config(name, revision, trust_remote_code, "config")


def _load_config(name: str | Path, revision: str | None, trust_remote_code: bool, what: str) -> PreTrainedConfig:
    refuse_foreign_files(Path(name))
    refuse_unreadable_labels(Path(name))
    if (Path(name) / "adapter_config.json").is_file():
        require("peft", extra="peft")
    with _explained(name, revision, what):
        config = AutoConfig.from_pretrained(str(name), revision=revision, trust_remote_code=trust_remote_code)
        config.update(labels_left_out(config, name, revision))
    refuse_oversized_config(config, name)
    settle_classes(config)
    return config


def load_tokenizer(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Args:
        name: a local path or a Hub id.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run the repository's own code.

    Returns:
        The tokenizer; its limit is at most that of the model beside it.

    Raises:
        ValueError: if the name looks like a path and nothing is there, or what is there is damaged or no tokenizer.
        OSError: if it can't be had.
    """
    check_place(name, revision)
    refuse_foreign_files(Path(name))
    refuse_unreadable_labels(Path(name))
    refuse_damaged(Path(name), TOKENIZER)
    with _explained(name, revision, "tokenizer", f"\n{_NO_TOKENIZER}"):
        tokenizer = read_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # transformers makes one of special tokens alone where a folder has a config and no vocabulary.
        raise ValueError(f"{str(name)!r} has no tokenizer's vocabulary. {_NO_TOKENIZER}")
    refuse_oversized_vocabulary(tokenizer, name)
    with _explained(name, revision, "tokenizer", f"\n{_NO_TOKENIZER}"):
        # Settings of a wrong type are read with the first text alone; one without an unknown token may refuse words.
        tokenizer("", truncation=True)
    # It may name no limit, or that of another model.
    return with_usual_padding(with_limit(tokenizer, _positions_beside(name, revision, trust_remote_code)))


def _positions_beside(name: str | Path, revision: str | None, trust_remote_code: bool) -> int | None:
    """Return the most tokens of the model beside a tokenizer; None where there is no model, or it names no limit."""
    try:
        return positions_of(_load_config(name, revision, trust_remote_code, "config"))
    except (ImportError, OSError, ValueError):
        return None


def onnx_file(name: str | Path, *, file: str | None = None, revision: str | None = None) -> Path | None:
    """Find a model's ONNX file, from the Hub with config and tokenizer around it.

    Args:
        name: a folder, an ONNX file, or a Hub id.
        file: the file in the folder or repository; the first of `ONNX_FILES` that is there if None.
        revision: branch, tag or commit on the Hub.

    Returns:
        The file; None where no `file` was named and there is none.

    Raises:
        ValueError: if the path or the named file does not exist, or one is named beside a file, or the repository's
            were made from other weights than it has.
        OSError: if the repository can't be had.
    """
    if isinstance(name, (str, os.PathLike)) and Path(name).suffix == ".onnx" and Path(name).is_file():
        if file is not None or revision is not None:
            raise ValueError(f"{str(name)!r} is an ONNX file itself: leave file and revision out, or give the folder")
        return Path(name)
    check_place(name, revision)
    path = Path(name)
    if path.is_dir():
        # The folder onnx may be a link, which rglob does not follow.
        found = {*path.rglob("*.onnx"), *path.glob("onnx/*.onnx")}
        return _choose_onnx(path, [each.relative_to(path).as_posix() for each in found], file)
    try:
        folder = Path(snapshot_download(str(name), revision=revision, allow_patterns=_SMALL_FILES))
        if constants.HF_HUB_OFFLINE:
            return onnx_file(folder, file=file)
        tree = list_repo_tree(str(name), revision=folder.name, recursive=True)
        there = {each.path: each for each in tree if isinstance(each, RepoFile)}
        if (chosen := _choose_onnx(path, [*there], file)) is None:
            return None
        chosen_name = chosen.relative_to(path).as_posix()
        # The Hub knows the hashes of the weights, which are not downloaded.
        hashes = {at: each.lfs.sha256 for at, each in there.items() if each.lfs and fnmatch(at, WEIGHT_FILES)}
        refuse_onnx_of_other_weights(folder, hashes)
        # External weights lie beside their file, mostly under its name with a suffix.
        snapshot_download(str(name), revision=folder.name, allow_patterns=f"{chosen_name}*")
        if others := [each.relative_to(folder).as_posix() for each in named_weights(folder / chosen_name)]:
            snapshot_download(str(name), revision=folder.name, allow_patterns=others)
        return folder / chosen_name
    except (OSError, HTTPError) as error:
        raise OSError(_explain(name, revision, "ONNX file", error)) from error


def _choose_onnx(folder: Path, names: list[str], file: str | None) -> Path | None:
    wanted = ONNX_FILES if file is None else (file,)
    chosen = next((each for each in wanted if each in names), None)
    if chosen is None and file is not None:
        found = ", ".join(sorted(each for each in names if each.endswith(".onnx"))) or "none"
        raise ValueError(f"{str(folder)!r} holds no ONNX file {file!r}; found: {found}")
    return folder / chosen if chosen is not None else None


def check_place(name: str | Path, revision: str | None = None) -> None:
    """Refuse what names no model, before the Hub is asked.

    Args:
        name: a path or Hub id.
        revision: branch, tag or commit on the Hub.

    Raises:
        ValueError: for a path where nothing is, or a single file, a name that no repository of the Hub can have, a
            folder without any file of a model or tokenizer, and a revision of a folder.
    """
    refuse_other_than_name(name)
    path = Path(name)
    if path.is_file():
        raise ValueError(f"{str(name)!r} is a file, and a model is a folder with its config: give the folder")
    if path.exists() and revision is not None:
        raise ValueError(f"{str(name)!r} is a folder here, which has no revision {revision!r}: leave revision out")
    beside = len(path.parts) == 2 and path.parent.is_dir()
    if not path.exists() and (
        isinstance(name, Path) or path.is_absolute() or len(path.parts) > 2 or name[:1] in ".~" or beside
    ):
        raise ValueError(f"there is no folder {str(name)!r}: {_GIVE}")
    if path.is_dir():
        found = sorted(each.name for each in path.iterdir())
        if not any(each == "onnx" or each.endswith(_SAVED) for each in found):
            there = ", ".join(found[:5]) or "nothing"
            raise ValueError(
                f"the folder {str(name)!r} holds no saved model: no config.json (found: {there}); see whether the run "
                "that should have written it ended, or pass another folder or a Hub id"
            )
    if not path.exists():
        try:
            validate_repo_id(str(name))
        except HFValidationError as error:
            raise ValueError(
                f"{str(name)!r} is no folder here, and no name that a repository of the Hub can have: {_GIVE}"
            ) from error
        limit_hub_requests()


@contextmanager
def _explained(name: str | Path, revision: str | None, what: str, advice: str = "") -> Iterator[None]:
    """Say of which model an error is: files that somebody damaged raise whatever the code behind them runs into."""
    try:
        yield
    except OSError as error:
        raise OSError(_explain(name, revision, what, error)) from error
    except SafetensorError as error:
        raise ValueError(
            f"the weights in {str(name)!r} are cut short or damaged ({error}): use another copy"
        ) from error
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # tokenizers raises nothing narrower.
        raise ValueError(f"{_explain(name, revision, what, error)}{advice}") from error


@contextmanager
def named_in_errors(model: Any) -> Iterator[None]:
    """Name the model, and the offline command, where another library can't get it.

    Args:
        model: a path or Hub id; of an object nothing is added.

    Yields:
        Nothing.

    Raises:
        OSError: what was raised meanwhile, in these words.
    """
    try:
        yield
    except OSError as error:
        if not isinstance(model, (str, Path)):
            raise
        raise OSError(_explain(model, None, "model", error)) from error


def _explain(name: str | Path, revision: str | None, what: str, error: Exception) -> str:
    if Path(name).exists():
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        return f"the {what} in {str(name)!r} can't be loaded: {kind}{error}"
    at = f" at revision {revision!r}" if revision else ""
    # A server may quote the token, and the endpoint may have a password.
    return without_tokens(
        f"the {what} {str(name)!r}{at} can't be had from {constants.ENDPOINT}, and there is no folder of that name "
        f"here: {error}\n{OFFLINE_ADVICE}"
    )


@plain_arguments
def load_teacher(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a fine-tuned classifier to teach.

    Args:
        name: a local path or a Hub id.
        revision: branch, tag or commit on the Hub.
        dtype: dtype of its weights.
        device: where to put it; the trainer moves it to its own device.
        trust_remote_code: run the repository's own modelling code.

    Returns:
        The model in eval mode.

    Raises:
        ValueError: if a part of it, such as the classification head, is not in the checkpoint: a teacher with random
            weights teaches noise.
        OSError: if it can't be had.
    """
    model, missing = load_classifier(name, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code)
    if missing:
        raise ValueError(
            f"the checkpoint {str(name)!r} has no weights for {', '.join(missing)}: it is not fine-tuned for "
            "classification. Fine-tune it first: `nlpkd train-teacher --model ... ` or nlpkd.train_teacher(...)"
        )
    if device is not None:
        model = nn.Module.to(model, device)
    return model.eval()
