"""Every kind of rows and of models, the teacher run live or once: the same training, or a refusal by name."""

import copy

import pytest
import torch
from samples import QUIET, tiny_bert
from torch import nn

from nlpkd import DistillationTrainer, evaluate_student
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss


class TorchRows(torch.utils.data.Dataset):
    """Rows by position, as tensors."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return {name: torch.tensor(self.rows[number][name]) for name in READ}


class TorchStream(torch.utils.data.IterableDataset):
    """Rows that can only be iterated."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return ({name: row[name] for name in READ} for row in self.rows)


class Wrapped(nn.Module):
    """A module around a model, whose forward names nothing."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        return self.model(**inputs)


class GivesTuples(Wrapped):
    def forward(self, input_ids, attention_mask=None):
        return (self.model(input_ids=input_ids, attention_mask=attention_mask).logits,)


def without_return_dict(model):
    model.config.return_dict = False
    return model


def with_adapter(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"], lora_dropout=0.0))


def on_the_fly(rows, tokenizer):
    def tokenise(batch):
        return {**tokenizer(batch["words"]), "labels": batch["gold"]}

    texts = [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in rows]
    return rows.from_dict({"words": texts, "gold": rows["labels"][:]}).with_transform(tokenise)


READ = ("input_ids", "attention_mask", "token_type_ids", "labels")
ROWS = {
    "data set": lambda rows, tokenizer: rows,
    "format of torch": lambda rows, tokenizer: rows.with_format("torch"),
    "format of numpy": lambda rows, tokenizer: rows.with_format("numpy"),
    "format of some columns": lambda rows, tokenizer: rows.with_format("torch", columns=["input_ids", "labels"]),
    "transform": lambda rows, tokenizer: rows.with_transform(lambda batch: batch),
    "tokenised on the fly": on_the_fly,
    "iterable": lambda rows, tokenizer: rows.to_iterable_dataset(),
    "iterable of torch": lambda rows, tokenizer: TorchStream(rows),
    "data set of torch": lambda rows, tokenizer: TorchRows(rows),
    "list": lambda rows, tokenizer: list(rows),
}
MODELS = {
    "plain": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "wrapped": Wrapped,
    "wrapped twice": lambda model: Wrapped(nn.DataParallel(model)),
    "adapter": with_adapter,
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "float16": lambda model: model.to(torch.float16),
    "tuples": without_return_dict,
    "module of tuples": GivesTuples,
}
OWN_REFERENCE = ("adapter", "bfloat16", "float16")
"""Kinds of models that are other models, whose reference is a training on a data set with a live teacher."""


@pytest.fixture(scope="module")
def losses(make_rows, tokenizer, tmp_path_factory):
    """The losses of a short training, by kind of rows, kind of models, and whether the teacher may be run once."""
    from nlpkd import DistillationConfig

    found = {}

    def train(rows, model, cache):
        key = (rows, model, cache)
        if key not in found:
            args = DistillationConfig(
                str(tmp_path_factory.mktemp("run")), **QUIET, save_strategy="no", max_steps=3,
                teacher_check="off", per_device_train_batch_size=4, logging_steps=1,
                cache_teacher=cache, train_sampling_strategy="sequential", learning_rate=1e-2,
            )  # fmt: skip
            trainer = DistillationTrainer(
                MODELS[model](tiny_bert(1, seed=3)), MODELS[model](tiny_bert(1, seed=1)), args,
                [CrossEntropyLoss(), ForwardKLLoss()], ROWS[rows](make_rows(8), tokenizer), processing_class=tokenizer,
            )  # fmt: skip
            trainer.train()
            assert {each.dtype for each in trainer.model.parameters() if each.requires_grad} == {torch.float32}
            found[key] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return found[key]

    return train


# Rows and models come through gates of their own: each kind with the plain one of the other, and with some other.
CELLS = {(model, rows) for model in MODELS for rows in ROWS if "plain" == model or "data set" == rows}
CELLS |= set(zip(MODELS, [*ROWS][3:] + [*ROWS][:3], strict=True))


@pytest.mark.parametrize(("model", "rows"), sorted(CELLS))
def test_any_rows_train_any_models_alike_with_and_without_a_cache(model, rows, losses):
    reference = losses("data set", model if model in OWN_REFERENCE else "plain", "off")
    close = 1e-2 if model in OWN_REFERENCE[1:] else 1e-5
    for cache in ("off", "auto") if rows == "data set" else ("auto",):
        assert losses(rows, model, cache) == pytest.approx(reference, rel=close)


@pytest.mark.parametrize("model", MODELS)
def test_any_models_are_measured_alike(model, make_rows, tokenizer):
    found = []
    for kind in (model, "plain"):
        student, teacher = (MODELS[kind](tiny_bert(1, seed=seed)) for seed in (3, 1))
        report = evaluate_student(student, teacher, make_rows(8), tokenizer, bootstrap_samples=10, latency_runs=1)
        found.append({name: each.quality["accuracy"].value for name, each in report.candidates.items()})
    assert found[0] == found[1]


class OtherNames(Wrapped):
    def forward(self, ids, mask):
        return self.model(input_ids=ids, attention_mask=mask).logits


class NoNames(Wrapped):
    def forward(self, *inputs):
        return self.model(*inputs).logits


class Head(nn.Module):
    """A module of its own: the mean of embeddings, and what is made of its logits."""

    def __init__(self, outputs, change=lambda logits: logits):
        super().__init__()
        self.table, self.head, self.change = nn.Embedding(64, 8), nn.Linear(8, outputs), change

    def forward(self, input_ids, attention_mask=None):
        return self.change(self.head(self.table(input_ids).mean(dim=1)))


def traced(model):
    return torch.jit.trace(Head(2).eval(), torch.ones(1, 4, dtype=torch.long))


REFUSED = {
    "other names": (OtherNames, r"takes \['ids', 'mask'\], and the batch has \['attention_mask', 'input_ids'"),
    "no names": (NoNames, r"takes \[\], and the batch has"),
    "TorchScript": (traced, "is TorchScript"),
    "another number of logits": (lambda model: Head(3), "3 logits a row"),
    "one logit": (lambda model: Head(1), "1 logits a row"),
    "probabilities": (lambda model: Head(2, lambda logits: logits.softmax(-1)), "probabilities"),
    "numbers that are not finite": (lambda model: Head(2, lambda logits: logits / 0), "NaN or infinite"),
}


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("model", REFUSED)
def test_a_model_that_is_no_classifier_of_the_rows_is_refused_before_training(
    model, role, make_rows, settings, tokenizer
):
    make, said = REFUSED[model]
    models = {"model": tiny_bert(1), "teacher_model": tiny_bert(1, seed=1)}
    if role == "student":
        models = {"model": make(tiny_bert(1)), "teacher_model": Head(2)}
    else:
        models["teacher_model"] = make(tiny_bert(1, seed=1))
    with pytest.raises(ValueError, match=said):
        DistillationTrainer(
            **models, args=settings(), objectives=[ForwardKLLoss()], train_dataset=make_rows(8),
            processing_class=tokenizer,
        )  # fmt: skip


def test_a_student_of_three_dimensions_and_one_of_whole_numbers_are_refused(make_rows, settings, tokenizer):
    for change, said in (
        (lambda logits: logits[:, None], r"float32 \(8, 1, 2\) for 8 rows"),
        (lambda logits: logits.long(), r"int64 \(8, 2\)"),
        (lambda logits: {"logits": "none"}, "gave str"),
    ):
        with pytest.raises(ValueError, match=said):
            DistillationTrainer(
                Head(2, change), args=settings(), train_dataset=make_rows(8), processing_class=tokenizer
            )


@pytest.mark.parametrize("rows", ["transform", "iterable", "iterable of torch", "data set of torch", "list"])
def test_rows_of_any_kind_are_checked_as_a_data_set_is(rows, make_rows, settings, tokenizer):
    def build(data, teacher=None, student=None, **config):
        return DistillationTrainer(
            student or tiny_bert(1), teacher or tiny_bert(1, seed=1), settings(max_steps=2, **config),
            train_dataset=ROWS[rows](data, tokenizer), processing_class=tokenizer,
        )  # fmt: skip

    def relabelled(label):
        data = make_rows(40)
        return data.remove_columns("labels").add_column("labels", [label] * len(data))

    with pytest.raises(ValueError, match="label 2 in column 'labels'"):
        build(relabelled(2))
    with pytest.raises(ValueError, match="no better than always answering"):
        build(make_rows(40), teacher_check="error")
    with pytest.raises(ValueError, match="are probabilities"):
        build(make_rows(40), teacher=Head(2, lambda logits: logits.softmax(-1)))
    with pytest.raises(ValueError, match="embeddings of 10 tokens, and the training rows have token"):
        build(make_rows(40), teacher=tiny_bert(1, seed=1, vocab_size=10), student=tiny_bert(1, vocab_size=10))

    class Swapped(nn.Module):
        """Right, with its two classes in each other's places, and without names."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, input_ids, attention_mask=None):
            good = torch.isin(input_ids, torch.tensor([5, 6, 7])).any(dim=1).float()
            return torch.stack([good, 1 - good], dim=1) * 8 - 4

    trainer = build(make_rows(64), teacher=Swapped(), teacher_check="error")
    assert trainer.teacher_order == [1, 0]


def test_classes_in_another_order_are_refused_where_rows_cant_be_renumbered(make_rows, settings, tokenizer):
    names = {"id2label": {0: "pos", 1: "neg"}, "label2id": {"pos": 0, "neg": 1}}
    for rows in ("transform", "iterable"):
        with pytest.raises(ValueError, match=r"names its classes \['neg', 'pos'\].*can't be renumbered"):
            DistillationTrainer(
                tiny_bert(1, **names), args=settings(max_steps=1), train_dataset=ROWS[rows](make_rows(8), tokenizer),
                processing_class=tokenizer,
            )  # fmt: skip


def test_renumbered_rows_keep_their_format(make_rows, settings, tokenizer):
    names = {"id2label": {0: "pos", 1: "neg"}, "label2id": {"pos": 0, "neg": 1}}
    rows = make_rows(8)
    trainer = DistillationTrainer(
        tiny_bert(1, **names), args=settings(), processing_class=tokenizer,
        train_dataset=rows.with_format("torch", columns=["input_ids", "labels"]),
    )  # fmt: skip
    row = trainer.train_dataset[0]
    assert sorted(row) == ["input_ids", "labels"] and row["labels"].item() == 1 - rows["labels"][0]


def test_rows_that_are_no_mappings_train_with_a_collator_that_makes_batches_of_them(make_rows, settings, tokenizer):
    pairs = [(row["input_ids"], row["labels"]) for row in make_rows(8)]

    def collate(examples):
        batch = tokenizer.pad({"input_ids": [ids for ids, _ in examples]}, return_tensors="pt")
        return {**batch, "labels": torch.tensor([label for _, label in examples])}

    args = settings(max_steps=2)
    trainer = DistillationTrainer(
        tiny_bert(1), tiny_bert(1, seed=1), args, train_dataset=pairs, data_collator=collate,
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 2


def test_the_checks_draw_nothing_from_the_generators(make_rows, settings, tokenizer):
    class Random(TorchRows):
        def __getitem__(self, number):
            drawn.append(torch.rand(1).item())
            return super().__getitem__(number)

    drawn, args = [], settings(teacher_check="warn")
    DistillationTrainer(
        tiny_bert(1), tiny_bert(1, seed=1), args, train_dataset=Random(make_rows(40)), processing_class=tokenizer
    )
    first = copy.copy(drawn)
    torch.manual_seed(args.seed)
    assert first and torch.rand(1).item() == first[0]


def test_arguments_of_another_kind_are_refused_with_what_to_give(make_rows, settings, tokenizer):
    from datasets import DatasetDict

    rows = make_rows(8)
    for arguments, said in (
        ({"objectives": "hinton"}, "objectives must be a list.*resolve"),
        ({"objectives": ForwardKLLoss()}, "objectives must be a list"),
        ({"objectives": [ForwardKLLoss]}, "objectives must be a list"),
        ({"teacher_model": "runs/teacher"}, "the teacher is 'runs/teacher', and must be a model: load it first"),
        (
            {"teacher_model": [tiny_bert(1, seed=1), "runs/teacher"]},
            "the teacher is 'runs/teacher', and must be a model",
        ),
        ({"train_dataset": DatasetDict(train=rows)}, r"train_dataset must be the rows of one split.*\['train'\]"),
        ({"train_dataset": rows.select_columns("labels")}, r"have the columns \['labels'\] and no input_ids"),
        ({"processing_class": "runs/student"}, "a tokenizer is 'runs/student': load it first"),
        ({"processing_class": None}, "have 4 to 12 tokens, and nothing pads them: pass the student's tokenizer"),
    ):
        given = {"teacher_model": tiny_bert(1, seed=1), "train_dataset": rows, "processing_class": tokenizer}
        with pytest.raises(ValueError, match=said):
            DistillationTrainer(tiny_bert(1), args=settings(), **given | arguments)
    # Rows of one length need no padding.
    even = rows.filter(lambda row: row["length"] == rows["length"][0])
    DistillationTrainer(tiny_bert(1), args=settings(), train_dataset=even).train()
