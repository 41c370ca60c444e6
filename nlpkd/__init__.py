"""Distil a fine-tuned text classifier into a small, fast student, and measure what it cost.

`import nlpkd` imports no torch. It lets transformers know the models of `nlpkd.models.small_models` and
`nlpkd.models.reshaped`, so that `AutoModelForSequenceClassification.from_pretrained` and `pipeline` load one from its
folder: at once where transformers' auto models are imported already, and else as soon as they are.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any

from nlpkd.utils.packages import installed_version, refuse_unmet_requirements

_HOMES = {
    "BiLSTMConfig": "nlpkd.models.small_models",
    "BiLSTMForSequenceClassification": "nlpkd.models.small_models",
    "aggregate_seeds": "nlpkd.evaluation.report",
    "calibrate_teacher": "nlpkd.labelling.calibration",
    "cache_teacher_outputs": "nlpkd.teachers.cache",
    "cascade": "nlpkd.pipeline.cascade",
    "check_labels": "nlpkd.labelling.mislabelled",
    "DistillationConfig": "nlpkd.config",
    "DistillationTrainer": "nlpkd.training.trainer",
    "METRIC_NAMES": "nlpkd.evaluation.records",
    "EvaluationReport": "nlpkd.evaluation.report",
    "demo_backbone": "nlpkd.data.demo",
    "distill": "nlpkd.pipeline.distill",
    "evaluate": "nlpkd.pipeline.evaluate",
    "evaluate_student": "nlpkd.evaluation.evaluate",
    "export_student": "nlpkd.pipeline.export",
    "frontier": "nlpkd.comparison.frontier",
    "label": "nlpkd.pipeline.label",
    "load": "nlpkd.serving.classifier",
    "load_airline_tweets": "nlpkd.data.demo",
    "load_teacher": "nlpkd.models.loading",
    "load_text_classification": "nlpkd.data.text_classification",
    "load_tweets": "nlpkd.data.demo",
    "make_student": "nlpkd.students.make_student",
    "ModelSource": "nlpkd.models.source",
    "only_run": "nlpkd.utils.disk.locks",
    "OnnxClassifier": "nlpkd.models.onnx_classifier",
    "push_student": "nlpkd.hub.push",
    "read_decisions": "nlpkd.labelling.logs",
    "read_splits": "nlpkd.data.sources",
    "save_report": "nlpkd.hub.saving",
    "small_student": "nlpkd.students.small",
    "StaticConfig": "nlpkd.models.small_models",
    "StaticForSequenceClassification": "nlpkd.models.small_models",
    "TextClassifier": "nlpkd.serving.classifier",
    "TextCNNConfig": "nlpkd.models.small_models",
    "TextCNNForSequenceClassification": "nlpkd.models.small_models",
    "train_teacher": "nlpkd.pipeline.train_teacher",
    "with_fresh_pooler": "nlpkd.students.checkpoint",
}

_PACKAGES = ("compression", "objectives")

__all__ = [*sorted(_HOMES), *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Written down in pyproject.toml alone.
        return installed_version("nlpkd") or "0+unknown"
    # `import nlpkd` stays cheap: torch and transformers are imported with the first name that needs them.
    if name in _PACKAGES:
        return import_module(f"nlpkd.{name}")
    if name in _HOMES:
        refuse_unmet_requirements()
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nlpkd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def _register_models() -> None:
    for home in ("nlpkd.models.small_models", "nlpkd.models.reshaped"):
        import_module(home)


class _ModelsWithAutoClasses:
    """An import hook for one module: transformers' auto classes bring the registration of our models with them."""

    module = "transformers.models.auto.modeling_auto"

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            _register_models()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if _ModelsWithAutoClasses.module in sys.modules:
    _register_models()
else:
    sys.meta_path.insert(0, _ModelsWithAutoClasses())
