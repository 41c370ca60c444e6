"""A model as a caller names it, by path, Hub id or object: its tokenizer, its config, the model, and its record."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.models.files.onnx_weights import external_weights
from nlpkd.models.limits import ONNX_FOLDER, refuse_adapter
from nlpkd.models.loading import load_config, load_teacher, load_tokenizer, split_revision
from nlpkd.models.onnx_classifier import OnnxClassifier, model_folder
from nlpkd.models.structure import unwrapped
from nlpkd.utils.disk.files import digest_of, weights_in_use
from nlpkd.utils.fingerprints import hash_value
from nlpkd.utils.object_hashes import Hasher, UnhashableError, hash_configuration, hash_weights
from nlpkd.utils.progress import quiet

logger = logging.getLogger(__name__)

_MODEL_FILES = (
    *("model*.safetensors", "pytorch_model*.bin", "adapter_model.*", "config.json", "adapter_config.json", "*.py"),
    *("tokenizer*", "vocab*", "merges.txt", "*.model", "added_tokens.json", "special_tokens_map.json"),
    # Of a decoder that is asked, and of a sentence encoder with its parts, such as 1_Pooling.
    *("chat_template*", "modules.json", "*sentence_*.json", "[0-9]*_*/*"),
)
"""What a model's answers depend on; not what is written beside it, such as reports."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        given: a path, a Hub id, or a model (one in a peft wrapper too); to be asked or measured, an ONNX file too.
        revision: branch, tag or commit of a Hub id.
        trust_remote_code: run the repository's own code.
    """

    given: str | Path | PreTrainedModel | OnnxClassifier
    revision: str | None = None
    trust_remote_code: bool = False

    @classmethod
    def of(cls, given: Any, revision: str | None = None, trust_remote_code: bool = False) -> ModelSource:
        """Take `"id@revision"` apart, unless a revision is given beside it; a model is taken without torch's wrappers.

        Raises:
            ValueError: for a module without a config, and what is neither a path, an id nor a module.
        """
        if isinstance(given, str) and revision is None:
            given, revision = split_revision(given)
        if isinstance(given, nn.Module):
            given = unwrapped(given, "model")
            if not hasattr(given, "config"):
                raise ValueError(
                    f"{type(given).__name__} is no transformers model, of which this function needs the config: give "
                    "a path, a Hub id or a PreTrainedModel. nlpkd.DistillationTrainer trains any module"
                )
        elif not isinstance(given, (str, os.PathLike)):
            raise ValueError(f"a model is a path, a Hub id or a PreTrainedModel, got {given!r:.80}")
        return cls(given, revision, trust_remote_code)

    @property
    def name(self) -> str | Path:
        """The path or id; of a model where it was loaded from, of an ONNX file the model's folder.

        Raises:
            ValueError: if nobody knows.
        """
        if not isinstance(self.given, nn.Module):
            return model_folder(Path(self.given)) if _is_onnx(self.given) else self.given
        if not self.given.config._name_or_path:
            raise ValueError("the model was not loaded by a name, so its tokenizer is unknown: pass the tokenizer too")
        return self.given.config._name_or_path

    @property
    def folder(self) -> Path | None:
        """The folder of a model that is given by its path; None of a Hub id, and of a model in memory."""
        return None if isinstance(self.given, nn.Module) or not Path(self.name).is_dir() else Path(self.name)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer beside the model.

        Raises:
            ValueError: if an adapter lies where a model is named: its folder may well have no tokenizer.
        """
        if not isinstance(self.given, nn.Module):
            refuse_adapter(Path(self.name))
        return load_tokenizer(self.name, revision=self.revision, trust_remote_code=self.trust_remote_code)

    def config(self) -> Any:
        """Return the model's config, without its weights."""
        if isinstance(self.given, nn.Module):
            return self.given.config
        return load_config(self.name, revision=self.revision, trust_remote_code=self.trust_remote_code)

    @property
    def is_onnx(self) -> bool:
        """Whether it is an ONNX file, of which only logits can be had."""
        return isinstance(self.given, OnnxClassifier) or not isinstance(self.given, nn.Module) and _is_onnx(self.given)

    def teacher(self, dtype: str = "float32") -> Any:
        """Load the model as a teacher (`nlpkd.load_teacher`); a model is returned as it is.

        Raises:
            ValueError: if another dtype is asked for of a model than it has, or it is an ONNX file.
        """
        if isinstance(self.given, OnnxClassifier):
            raise ValueError(f"{self.given.path} is an ONNX file, without weights in PyTorch: give the model's folder")
        if isinstance(self.given, nn.Module):
            own = str(getattr(self.given, "dtype", dtype)).removeprefix("torch.")
            if dtype not in ("auto", "float32", own):
                raise ValueError(
                    f"teacher_dtype={dtype!r}, and the model that is given has {own}: leave it out, or cast the model"
                )
            return self.given
        options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": self.trust_remote_code}
        return load_teacher(self.given, revision=self.revision, **options)

    def classifier(self, dtype: str = "float32") -> PreTrainedModel | OnnxClassifier:
        """Load the model to be asked or measured: a teacher, or an ONNX file.

        Raises:
            ValueError: if a dtype is asked for of an ONNX file.
        """
        given: Any = self.given
        if not self.is_onnx:
            return self.teacher(dtype)
        if dtype != "float32":
            raise ValueError(
                f"teacher_dtype={dtype!r} is of weights in PyTorch, and {self.describe()['name']} has a precision of "
                "its own: leave it out"
            )
        if isinstance(given, OnnxClassifier):
            return given
        return OnnxClassifier.from_pretrained(given, trust_remote_code=self.trust_remote_code)

    def in_pytorch(self, loaded: PreTrainedModel | OnnxClassifier) -> PreTrainedModel:
        """Return a loaded classifier's weights in PyTorch: of an ONNX file those of the model's folder.

        Raises:
            ValueError: if there are none.
        """
        if not isinstance(loaded, OnnxClassifier):
            return loaded
        folder = model_folder(loaded.path)
        if not any(folder.glob("*.safetensors")):
            raise ValueError(
                f"a student that is made of its teacher needs the teacher's weights in PyTorch, and {folder} has no "
                f"*.safetensors beside {loaded.path.name}: put them there, or name a student that is saved already"
            )
        return load_teacher(folder, trust_remote_code=self.trust_remote_code)

    def weights_folder(self) -> Path | None:
        """Find the folder with the weight files of a model that was loaded by its name, of a Hub id in the cache.

        Returns:
            The folder; None of a model in memory, of an ONNX file, and where no weight files are.
        """
        given: Any = self.given
        if self.is_onnx or isinstance(given, nn.Module):
            return None
        folder = Path(given)
        if not folder.is_dir():
            cached = try_to_load_from_cache(str(given), "config.json", revision=self.revision)
            if not isinstance(cached, str):
                return None
            folder = Path(cached).parent
        return folder if weights_in_use(folder) else None

    def refuse_as_output(self, output_dir: str | Path) -> None:
        """Refuse an output folder that what is written would take the model from.

        Raises:
            ValueError: if it is the model's own folder, that of its ONNX files, or that of the training whose
                checkpoint the model is.
        """
        given: Any = self.given
        in_memory, file = isinstance(given, nn.Module), None
        name = given.config._name_or_path if in_memory else self.name
        if self.is_onnx:
            file = given.path if in_memory else Path(given)
        places = [] if file is None else [file.parent]
        if name and Path(name).is_dir():
            folder = Path(name).resolve()
            places += [folder, folder / ONNX_FOLDER]
            places += [folder.parent] if folder.name.startswith("checkpoint-") else []
        if Path(output_dir).resolve() in {each.resolve() for each in places}:
            raise ValueError(
                f"output_dir={str(output_dir)!r} is the folder of the model {str(file or name)!r}, which would be "
                "overwritten: choose another one"
            )

    def describe(self) -> dict[str, Any]:
        """Return name, revision and an ONNX file's folder for a record; a path is told by its first character."""
        given = self.given
        if isinstance(given, OnnxClassifier):
            given = given.path
        if isinstance(given, nn.Module):
            given = given.config._name_or_path or f"./{type(given).__name__}"
        name = str(given) if not Path(given).exists() or Path(given).is_absolute() else f"./{Path(given)}"
        described = {"name": name, "revision": self.revision}
        if _is_onnx(given):
            # One that was loaded with a config of its caller's may have no folder.
            with suppress(ValueError):
                described["folder"] = model_folder(Path(given)).resolve().name
        return described

    def describe_weights(self) -> dict[str, Any]:
        """Return what `describe` does, but no name or revision whose files hold other weights than the model.

        A model in memory may have an adapter, or have been trained or quantised, since it was loaded. Then it is
        called by its class, as one is that was not loaded by a name.
        """
        given: Any = self.given
        if self.is_onnx or not isinstance(self.given, nn.Module) or not given.config._name_or_path:
            return self.describe()
        if (folder := self._folder_of_these_weights(given)) is not None:
            # The name of a Hub id's folder in the cache is the commit.
            at_home = Path(given.config._name_or_path).is_dir()
            return self.describe() | {"revision": None if at_home else folder.name}
        kind = type(given).__name__
        logger.warning(
            "The weights of the %s in memory are not known to be those of %s, which its config names: the record has "
            "the name of its class.",
            kind, given.config._name_or_path,
        )  # fmt: skip
        return {"name": f"./{kind}", "revision": None}

    def _folder_of_these_weights(self, given: Any) -> Path | None:
        """Find the folder that a model in memory was loaded from, where its files still hold the model's weights."""
        dtype = str(getattr(given, "dtype", "float32")).removeprefix("torch.")
        try:
            if (folder := ModelSource(given.config._name_or_path).weights_folder()) is None:
                return None
            with quiet("nlpkd"):
                saved = load_teacher(folder, dtype=dtype, trust_remote_code=self.trust_remote_code)
            return folder if hash_weights(saved) == hash_weights(given) else None
        except (ImportError, OSError, ValueError):
            return None


_ELSEWHERE = {
    "revision", "token", "device", "device_map", "batch_size", "num_workers", "cache_folder", "local_files_only",
}  # fmt: skip
"""Settings of a pipeline that no answer depends on, and the revision, which `identity_of_model` tells."""


def told_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Tell the settings with which a model is loaded or run, for a record of what its answers depend on.

    Args:
        settings: keywords of `transformers.pipeline`, `SentenceTransformer` and the like.

    Returns:
        By their names what JSON can hold: numbers and texts as they are, of a folder's name a hash of its files too,
        of all else a hash. No devices and nothing else that no answer depends on.

    Raises:
        ValueError: if nothing tells a setting apart.
    """
    told: dict[str, Any] = {}
    for name, value in settings.items():
        if name in _ELSEWHERE or value is None:
            continue
        if isinstance(value, torch.dtype):
            value = str(value).removeprefix("torch.")
        if isinstance(value, (str, Path)) and Path(value).is_dir():
            told[name] = [str(value), identity_of_model(value)]
        elif isinstance(value, (bool, int, float, str)):
            told[name] = value
        else:
            try:
                told[name] = Hasher().hash(value)
            except UnhashableError as error:
                raise ValueError(
                    f"nothing tells {name}={value!r:.100} from another one ({error}): leave it out, or load the model "
                    "with it beforehand"
                ) from None
    return told


def identity_of_model(given: Any, revision: str | None = None) -> dict[str, str]:
    """Tell a model from every other one, so that what was made with it is not taken for another one's.

    Args:
        given: a path, a Hub id, or a module.
        revision: branch, tag or commit of a Hub id.

    Returns:
        Of a Hub id its revision, if one is given, since its name says the rest. Of all others a hash: of a folder
        one of the files that its answers depend on, of a single file one of its content and of its model's folder, of
        a module one of weights, configuration and names.

    Raises:
        ValueError: if a module has an attribute that nothing tells apart.
    """
    if isinstance(given, nn.Module):
        names = getattr(getattr(given, "config", None), "id2label", None)
        return {"weights": hash_value([hash_weights(given), hash_configuration(given), names])}
    path = Path(given)
    if path.is_file():
        beside = identity_of_model(model_folder(path)) if _is_onnx(path) else {}
        further = map(digest_of, external_weights(path)) if beside else ()
        return {"weights": hash_value([digest_of(path), *further, beside])}
    if path.is_dir():
        files = {file for pattern in _MODEL_FILES for file in path.glob(pattern) if file.is_file()}
        return {"weights": hash_value({str(file.relative_to(path)): digest_of(file) for file in files})}
    return {} if revision is None else {"revision": revision}


def _is_onnx(given: str | Path) -> bool:
    return Path(given).suffix == ".onnx"


class LocalModel:
    """A model that a teacher runs here, as it was given.

    Args:
        given: a path, a Hub id, or a module.
        settings: with which it is loaded.
    """

    def __init__(self, given: Any, settings: Mapping[str, Any]):
        self.given = given
        self.settings = dict(settings)

    def describe(self) -> dict[str, Any]:
        """Tell model and settings, for `LabelingTeacher.describe`.

        Returns:
            What tells the model's weights, of a module as it is now; and `settings`, where there are any.

        Raises:
            ValueError: if nothing tells the model or a setting apart.
        """
        # Files are read once, as the model is: what is written into the folder later is not what answers.
        told: dict[str, Any] = identity_of_model(self.given) if isinstance(self.given, nn.Module) else self._files
        settings = told_settings(self.settings)
        return told | ({"settings": settings} if settings else {})

    @functools.cached_property
    def _files(self) -> dict[str, str]:
        return identity_of_model(self.given, self.settings.get("revision"))
