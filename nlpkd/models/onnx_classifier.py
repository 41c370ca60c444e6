"""An ONNX file as a module that gives logits, so that it is measured and served like any other classifier."""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from nlpkd.models.files.onnx_weights import external_weights
from nlpkd.models.limits import (
    EXPORT_RECORD,
    ONNX_FOLDER,
    export_advice,
    refuse_onnx_of_other_weights,
    refuse_other_than_name,
)
from nlpkd.models.loading import load_config, onnx_file
from nlpkd.models.reshaped import settings_without
from nlpkd.utils.disk.files import digest_of, explain_damage, weights_sha256
from nlpkd.utils.field_types import plain_arguments
from nlpkd.utils.fingerprints import hash_value
from nlpkd.utils.object_hashes import NO_INFLUENCE
from nlpkd.utils.packages import require

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


_NOT_COMPUTED = NO_INFLUENCE | {"thresholds", "torch_dtype"}


# ONNX Runtime 1.31 takes four times as long for the operator that this makes as for a sum and a layer norm.
_SLOWER_FUSED = ["SkipLayerNormFusion"]


class OnnxClassifier(nn.Module):
    """A classifier that ONNX Runtime runs on the CPU.

    It has no parameters of its own: the weights are in the file. A session fuses what it can as it loads the file.

    What it says of its file holds for what it was loaded from. A copy opens the file again, which must be the same.

    Args:
        path: the ONNX file. Its inputs are among `input_ids`, `attention_mask` and `token_type_ids`, int64
            `(batch, seq)`; its first output is logits `(batch, labels)`.
        config: the classifier's config, which names labels and task.
        threads: threads of one forward pass; as many as torch has if None.

    Attributes:
        path: the file.
        config: the config.
        threads: the threads.
        sha256: of the file by its name, and of the files beside it that it has weights in.
        size_mb: megabytes (10^6 bytes) of these.
        inputs: names of the inputs that the file has.

    Raises:
        ImportError: if ONNX Runtime is not installed.
        ValueError: if the file is no ONNX file, needs other inputs, or gives another number of logits than the config
            has labels, or there are no threads; or it was written to meanwhile.
    """

    @plain_arguments
    def __init__(self, path: str | Path, config: PreTrainedConfig, *, threads: int | None = None):
        super().__init__()
        refuse_other_than_name(path, "an ONNX file")
        self.path = Path(path)
        self.config = config
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads={threads!r} must be a number from 1 on, or None for as many as torch has")
        self.threads = threads or torch.get_num_threads()
        self.session, self.sha256, self.size_mb = _opened(self.path, self.threads)
        self.inputs = [each.name for each in self.session.get_inputs()]
        if "input_ids" not in self.inputs or set(self.inputs) - set(MODEL_INPUTS):
            raise ValueError(
                f"{path} has the inputs {self.inputs}, and a classifier's are input_ids and at most {MODEL_INPUTS[1:]}"
            )

        labels = self.session.get_outputs()[0].shape[-1]
        if isinstance(labels, int) and labels != config.num_labels:
            raise ValueError(
                f"{path} gives {labels} logits, and its config names {config.num_labels} labels: one of them is "
                "another model's"
            )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        file: str | None = None,
        revision: str | None = None,
        threads: int | None = None,
        trust_remote_code: bool = False,
    ) -> OnnxClassifier:
        """Load the ONNX file of a saved model.

        Args:
            name: a model's folder, a Hub id, or an ONNX file whose config is in its folder or the one above.
            file: the file in the folder or repository; `nlpkd.models.loading.ONNX_FILES` in their order if None.
            revision: branch, tag or commit of a Hub id.
            threads: see the class.
            trust_remote_code: run the repository's own code, which a config may need.

        Returns:
            The classifier.

        Raises:
            ValueError: if there is no such file, or it was made from other weights than those beside it.
            OSError: if the repository can't be had.
        """
        path = onnx_file(name, file=file, revision=revision)
        if path is None:
            raise ValueError(f"{str(name)!r} holds no ONNX file: make one with `nlpkd export`, or name it with file=")
        folder = model_folder(path)
        refuse_stale(folder, path)
        return cls(path, load_config(folder, trust_remote_code=trust_remote_code), threads=threads)

    @property
    def device(self) -> torch.device:
        """Where it runs; inputs may be elsewhere."""
        return torch.device("cpu")

    @cached_property
    def num_weights(self) -> int:
        """How many weights the file has; the scales and zero points of an int8 file are among them.

        Raises:
            ValueError: if the file was changed before anybody asked.
        """
        onnx = require("onnx")
        self._refuse_other(_hashes(self.path))
        kinds = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
        graph = onnx.load(self.path, load_external_data=False).graph
        return sum(math.prod(each.dims) for each in graph.initializer if each.data_type in kinds)

    def get_extra_state(self) -> Tensor:
        """Return a hash of what the file had, so that a hash of weights tells one file from another.

        Returns:
            32 numbers of 8 bits.
        """
        return torch.frombuffer(bytearray.fromhex(hash_value([*self.sha256.values()])), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Take the hash of a `state_dict` for what it is: the weights can't be set.

        Raises:
            ValueError: if it is another file's.
        """
        if not isinstance(state, Tensor) or not torch.equal(state.cpu(), self.get_extra_state()):
            raise ValueError(
                f"the state is of another file than {self.path}, whose weights can't be set: load the other file"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the session, which can't be copied."""
        return {name: value for name, value in vars(self).items() if name != "session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the file again.

        Raises:
            ValueError: if it is another one by now.
        """
        super().__setstate__(state)
        self.session, sha256, _ = _opened(self.path, self.threads)
        self._refuse_other(sha256)

    def _refuse_other(self, sha256: dict[str, str]) -> None:
        if sha256 != self.sha256:
            raise ValueError(f"{self.path} was changed since it was loaded: load it again")

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Classify texts.

        Args:
            input_ids: `(batch, seq)`.
            attention_mask: 1 for real tokens, 0 for padding, `(batch, seq)`; ones if None.
            token_type_ids: 1 for the second text of a pair, `(batch, seq)`; zeros if None.

        Returns:
            Logits `(batch, labels)`.

        Raises:
            RuntimeError: if ONNX Runtime fails, as on texts longer than the model reads.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            "token_type_ids": torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
        }
        logits = self.run({name: given[name].cpu().numpy() for name in self.inputs})
        return SequenceClassifierOutput(logits=torch.from_numpy(logits).to(input_ids.device))

    def run(self, given: dict[str, np.ndarray]) -> np.ndarray:
        """Classify texts.

        Args:
            given: int64 arrays `(batch, seq)` by the names of all `inputs`.

        Returns:
            Logits `(batch, labels)`.

        Raises:
            RuntimeError: if ONNX Runtime fails, as on texts longer than the model reads.
        """
        try:
            return self.session.run(None, given)[0]
        except Exception as error:  # ONNX Runtime's errors derive from Exception alone.
            raise RuntimeError(
                f"{self.path.name} can't read input_ids of shape {given['input_ids'].shape} (where that is longer "
                f"than the model reads, truncate): {error}"
            ) from error


def model_folder(path: Path) -> Path:
    """Find the folder with an ONNX file's config.

    It is the one above of a file in a folder called `onnx`, else the file's own, the one above, or, of
    `student.int8.onnx`, `student` beside it.

    Args:
        path: the file.

    Returns:
        The folder.

    Raises:
        ValueError: if none has a config.json.
    """
    beside, above = path.with_name(path.name.partition(".")[0]), path.absolute().parent.parent
    # What is written beside the ONNX files of a model, such as another model's config, is not what they are of.
    first = [above] if path.absolute().parent.name == ONNX_FOLDER else []
    for folder in (*first, path.parent, above, beside):
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(
        f"there is no config.json in {path.parent}, above it or in {beside}: {path.name} does not say its labels"
    )


def config_sha256(folder: Path) -> str | None:
    """Hash what a folder's config.json says of how its model computes: no names, no task, no thresholds.

    Args:
        folder: the model's.

    Returns:
        The hash; None where it has no config.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    with explain_damage(path, "use another copy of the model"):
        settings = dict(json.loads(path.read_text(encoding="utf-8")))
    return hash_value(settings_without(_NOT_COMPUTED, settings))


def refuse_stale(folder: Path, *files: Path) -> None:
    """Refuse ONNX files that were made from other weights or settings than the folder's, or were changed since.

    Args:
        folder: the model's.
        *files: of it, that are read; those that `onnx/export.json` does not name are passed.

    Raises:
        ValueError: if `onnx/export.json` names other weights or settings, or another hash of a file.
    """
    noted = folder / EXPORT_RECORD
    if not noted.is_file():
        return
    refuse_onnx_of_other_weights(folder, weights_sha256(folder))
    with explain_damage(noted, export_advice(folder, "delete it and the ONNX files beside it")):
        record = json.loads(noted.read_text(encoding="utf-8"))
        # Earlier versions noted no settings.
        settings = record.get("config_sha256")
        known = {name: dict(about).get("sha256") for name, about in dict(record["files"]).items()}
    if settings and settings != config_sha256(folder):
        raise ValueError(
            f"the ONNX files in {folder / 'onnx'} were made from other settings than {folder / 'config.json'} has: "
            f"{export_advice(folder, 'undo the change')}"
        )
    for file in files:
        digest = known.get(f"{file.parent.name}/{file.name}")
        if digest is not None and digest != digest_of(file):
            raise ValueError(
                f"{file} was changed since it was exported (SHA-256 of {EXPORT_RECORD}): "
                f"{export_advice(folder, 'delete it')}"
            )


def _saturates() -> bool:
    """Check whether this machine adds two products of 8 bits in 16 bits: x86 without VNNI."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("sse4_1")) and not (capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"))


def _files(path: Path) -> list[Path]:
    """List an ONNX file and its external weights."""
    if not path.is_file():
        raise ValueError(f"there is no ONNX file {path}")
    return [path, *external_weights(path)]


def _hashes(path: Path) -> dict[str, str]:
    return {each.relative_to(path.parent).as_posix(): digest_of(each) for each in _files(path)}


def _opened(path: Path, threads: int) -> tuple[InferenceSession, dict[str, str], float]:
    """Load a file; also return the hashes of what was loaded by name, and its megabytes."""
    before = _stamps(path)
    sha256, session = _hashes(path), _session(path, threads)
    if _stamps(path) != before:
        raise ValueError(f"{path} was written to while it was loaded: load it again")
    return session, sha256, sum(size for _, size, _ in before) / 1e6


def _stamps(path: Path) -> list[tuple[int, int, int]]:
    stats = [each.stat() for each in _files(path)]
    return [(each.st_ino, each.st_size, each.st_mtime_ns) for each in stats]


def _session(path: Path, threads: int) -> InferenceSession:
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if _saturates():
        # Exact sums of 8-bit products. They take up to twice as long, with VNNI too, which needs no such request.
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER_FUSED
        )
    except Exception as error:  # ONNX Runtime's errors derive from Exception alone.
        raise ValueError(f"{path} can't be loaded by ONNX Runtime: {error}") from error
