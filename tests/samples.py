"""Small models with random weights, and texts of twenty words whose label can be learned."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.modules.module import register_module_forward_hook
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, PreTrainedTokenizerFast

from nlpkd.evaluation.origin import RunRecord, TaskRecord
from nlpkd.evaluation.records import Candidate, Interval
from nlpkd.evaluation.report import EvaluationReport

QUIET = {
    "bf16": False, "report_to": "none", "disable_tqdm": True, "use_cpu": True, "rehearsal": False,
    "bootstrap_samples": 20, "latency_runs": 0, "html_report": False,
}  # fmt: skip
"""Settings of a job that does little beside what a test is about."""
QUIET_FLAGS = [word for name, value in QUIET.items() if name != "use_cpu" for word in (f"--{name}", str(value))]
"""The same for a recipe."""
WORDS = "good great fine bad poor awful film plot actor the a was is very not at all and it".split()


def tiny_config(layers: int = 2, hidden: int = 16, heads: int = 2, **config) -> BertConfig:
    """The settings of a small BERT; dropout is off unless asked for."""
    settings = {
        "vocab_size": 5 + len(WORDS), "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": 2 * hidden, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "num_labels": 2,
    }  # fmt: skip
    return BertConfig(**(settings | config))


def tiny_bert(
    layers: int = 2, hidden: int = 16, heads: int = 2, seed: int = 0, **config
) -> BertForSequenceClassification:
    """A BERT with random weights; see `tiny_config`."""
    with torch.random.fork_rng():
        # torch.manual_seed notes the whole stack for each kind of device, which takes as long as a layer.
        torch.default_generator.manual_seed(seed)
        return BertForSequenceClassification(tiny_config(layers, hidden, heads, **config))


class Uncalled(torch.nn.Module):
    """A model that is not to be run."""

    def __init__(self, config):
        super().__init__()
        self.config, self.weight = config, torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids):
        raise AssertionError("it was run")


@contextmanager
def looking_at(kind: type, look):
    """Call a function with each pass of all modules of a class; a hook on one of them would change the model."""
    hook = register_module_forward_hook(
        lambda module, inputs, output: look(module, inputs, output) if type(module) is kind else None
    )
    try:
        yield
    finally:
        hook.remove()


def tiny_onnx(file: Path, seed: int = 0, external: bool = False) -> Path:
    """Write an ONNX file whose logits are the sum of two numbers a token; with `external` these lie beside it."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kinds, make = onnx.TensorProto, onnx.helper
    table = torch.rand(5 + len(WORDS), 2, generator=torch.Generator().manual_seed(seed)).numpy()
    graph = make.make_graph(
        [
            make.make_node("Gather", ["table", "input_ids"], ["of_tokens"]),
            make.make_node("ReduceSum", ["of_tokens", "axes"], ["logits"], keepdims=0),
        ],
        "sums",
        [make.make_tensor_value_info("input_ids", kinds.INT64, ["batch", "seq"])],
        [make.make_tensor_value_info("logits", kinds.FLOAT, ["batch", 2])],
        [
            onnx.numpy_helper.from_array(table, "table"),
            make.make_tensor("axes", kinds.INT64, [1], [1]),
        ],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    beside = {"location": f"{file.name}.data", "size_threshold": 0, "convert_attribute": False}
    # What is there would be added to.
    file.with_name(f"{file.name}.data").unlink(missing_ok=True)
    onnx.save_model(model, file, save_as_external_data=external, **beside if external else {})
    return file


def sentences(rows: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Texts of 1 to 12 words whose label (1 good, 0 bad) is told by their only word of judgement."""
    generator = torch.Generator().manual_seed(seed)
    texts, labels = [], []
    for _ in range(rows):
        label = int(torch.randint(2, (), generator=generator))
        judgement = WORDS[int(torch.randint(3, (), generator=generator)) + (0 if label else 3)]
        filler = [WORDS[6 + int(torch.randint(11, (), generator=generator))] for _ in range(int(torch.randint(12, (), generator=generator)))]  # fmt: skip  # noqa: E501
        texts.append(" ".join([*filler, judgement]))
        labels.append(label)
    return texts, labels


def raw_rows(rows: int, seed: int = 0, names: tuple[str, ...] = ("neg", "pos")) -> Dataset:
    """Such texts as a data set with columns text and label."""
    texts, labels = sentences(rows, seed)
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


def masking_tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """Tokenizers of such texts by their algorithm, each of which has a mask token of its own."""
    usual: dict = {"show_progress": False, "vocab_size": 400}
    made = {}
    for algorithm, model, trainer, splitting, decoder, mask in (
        ("WordPiece", models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer,
         pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(), "[MASK]"),
        ("BPE", models.BPE(), partial(trainers.BpeTrainer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
         pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel(), AddedToken("<mask>", lstrip=True)),
        ("Unigram", models.Unigram(), partial(trainers.UnigramTrainer, unk_token="<unk>"),
         pre_tokenizers.Metaspace(), decoders.Metaspace(), "<<mask>>"),
    ):  # fmt: skip
        backend = Tokenizer(model)
        backend.pre_tokenizer, backend.decoder = splitting, decoder
        roles = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
        backend.train_from_iterator(
            [*sentences(300)[0], "[ MASK ] < mask >"], trainer(special_tokens=[*roles.values(), mask], **usual)
        )
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 2), ("</s>", 3)]
        )
        made[algorithm] = PreTrainedTokenizerFast(
            tokenizer_object=backend, mask_token=mask, model_max_length=64, **roles
        )
    return made


def fine_tuned_teacher(folder: Path, tokenizer: BertTokenizer, layers: int = 4) -> Path:
    """Fine-tune and save a small teacher that gets such texts right."""
    from nlpkd import train_teacher

    train_teacher(
        tiny_bert(layers=layers), raw_rows(160, seed=1), tokenizer=tokenizer, output_dir=folder,
        num_train_epochs=8, per_device_train_batch_size=8, learning_rate=2e-3, **QUIET, save_strategy="no",
    )  # fmt: skip
    return folder


def tiny_report(teacher: str = "org/teacher") -> EvaluationReport:
    """A report of a student alone, with the path of a teacher that must not be published."""
    quality = {"accuracy": Interval(0.8, 0.7, 0.9), "f1_macro": Interval(0.75, 0.6, 0.8)}
    run = {
        "command": "recipes/sst2.py --teacher /home/canary/teacher",
        "teacher": {"name": teacher},
        "data": {"name": "alice/reviews", "config": None, "split": "test"},
    }
    task = TaskRecord(labels=["bad", "good"], rows=20)
    return EvaluationReport(task, RunRecord.from_dict(run), {"student": Candidate(quality, None, 1234, 0.1)}, {})


TRIED_NAMES = {"id2label": {0: "<b>neg</b>", 1: "pos"}, "label2id": {"<b>neg</b>": 0, "pos": 1}}


def tried_models(folder: Path, tokenizer: BertTokenizer) -> Path:
    """Save a student with a report beside a teacher that differs from it, and the rows of the report."""
    from nlpkd import evaluate

    for seed, name in enumerate(("student", "teacher")):
        tiny_bert(layers=1, seed=seed, initializer_range=0.5, **TRIED_NAMES).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = raw_rows(30, seed=3).to_pandas()
    rows.replace({"label": TRIED_NAMES["id2label"]}).to_csv(folder / "test.csv", index=False)
    evaluate(
        folder / "student", str(folder / "test.csv"), teacher=folder / "teacher", output_dir=folder / "student",
        latency_runs=0, bootstrap_samples=5,
    )  # fmt: skip
    return folder


class Bag(torch.nn.Module):
    """A student that is no transformers model, and has no config."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.EmbeddingBag(50, 2)

    def forward(self, input_ids):
        return self.table(input_ids)
