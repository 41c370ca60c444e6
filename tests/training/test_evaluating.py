"""The evaluation of a student while it is trained: its loss, its metrics, and what is chosen by them."""

import copy
import dataclasses
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from samples import raw_rows, tiny_bert
from scipy.special import expit
from transformers import GPT2Config, GPT2ForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from nlpkd import DistillationTrainer
from nlpkd.data.columns import DOCUMENT
from nlpkd.evaluation.evaluate import evaluate_student
from nlpkd.evaluation.prediction import predict_logits
from nlpkd.objectives import (
    AttentionMSELoss,
    CrossEntropyLoss,
    ForwardKLLoss,
    HiddenStateMSELoss,
    LinearTemperature,
)
from nlpkd.pipeline.jobs.roles import supervised_trainer

WIDE = {"initializer_range": 0.3}


@pytest.fixture
def build(make_rows, settings, tokenizer):
    def build(objectives=None, rows=None, teacher=True, kind=DistillationTrainer, config=None, **more):
        rows = make_rows(20) if rows is None else rows
        return kind(
            tiny_bert(1, **WIDE), tiny_bert(1, seed=1, **WIDE) if teacher else None, settings(**(config or {})),
            objectives, rows, rows, processing_class=tokenizer, **more,
        )  # fmt: skip

    return build


def several_labels(**config):
    model = tiny_bert(1, num_labels=3, **WIDE)
    model.config.update({"problem_type": "multi_label_classification", **config})
    return model


@pytest.fixture
def tagged(make_rows):
    rows = make_rows(20)
    labels = [[float(row % 2), 1.0, float(row % 3 == 0)] for row in range(20)]
    return rows.remove_columns("labels").add_column("labels", labels)


def test_an_evaluation_decides_by_the_thresholds_that_student_and_teacher_have(tagged, settings, tokenizer):
    student, teacher = several_labels(), several_labels()
    cuts = expit(np.median(predict_logits(student, tagged, tokenizer), axis=0)).tolist()
    trainer = DistillationTrainer(student, teacher, settings(), None, tagged, tagged, processing_class=tokenizer)
    for own, others in ((cuts, None), (None, cuts), (cuts, cuts)):
        student.config.thresholds, teacher.config.thresholds = own, others
        found = trainer.evaluate()
        report = evaluate_student(student, teacher, tagged, tokenizer, bootstrap_samples=2, latency_runs=0)
        measured = report.candidates["student"]
        assert found["eval_f1_macro"] == pytest.approx(measured.quality["f1_macro"].value)
        assert found["eval_agreement"] == pytest.approx(measured.agreement.value)
        assert (found["eval_agreement"] == 1.0) == (own == others)


def test_a_teacher_and_an_ensemble_of_it_alone_decide_alike(tagged, settings, tokenizer):
    student, teacher = several_labels(), several_labels()
    teacher.config.thresholds = expit(np.median(predict_logits(teacher, tagged, tokenizer), axis=0)).tolist()
    found = []
    for given in (teacher, [teacher, copy.deepcopy(teacher)]):
        report = evaluate_student(student, given, tagged, tokenizer, bootstrap_samples=2, latency_runs=0)
        trainer = DistillationTrainer(student, given, settings(), None, tagged, tagged, processing_class=tokenizer)
        measured = report.candidates["student"].agreement.value
        assert trainer.evaluate()["eval_agreement"] == pytest.approx(measured) != 1.0
        found.append((measured, report.candidates["teacher"].quality["f1_macro"]))
    assert found[0] == found[1]


def relabelled(rows, label):
    return rows.remove_columns("labels").add_column("labels", [label(row) for row in range(len(rows))])


LOSSES = {
    "pairs of tokens": (lambda: [AttentionMSELoss(on="scores")], lambda row: row % 2),
    "tokens": (lambda: [HiddenStateMSELoss(), ForwardKLLoss()], lambda row: row % 2),
    "class weights": (lambda: [CrossEntropyLoss(class_weights=[1.0, 20.0])], lambda row: int(row % 8 == 0)),
    "unlabelled rows": (lambda: [CrossEntropyLoss()], lambda row: row % 2 if row < 5 else -100),
}


@pytest.mark.parametrize("wanted", LOSSES)
def test_the_loss_of_an_evaluation_is_the_same_for_every_size_of_its_batches(wanted, build, make_rows):
    objectives, label = LOSSES[wanted]
    rows = relabelled(make_rows(20), label)
    found = [
        build(objectives(), rows, config={"per_device_eval_batch_size": size}).evaluate()["eval_loss"]
        for size in (20, 1, 3)
    ]
    assert found[1:] == pytest.approx(found[:1] * 2, rel=1e-5)


def test_the_loss_of_an_evaluation_is_total_by_count_of_all_rows(build, make_rows, tokenizer):
    rows = relabelled(make_rows(20), lambda row: row % 2 if row < 5 else -100)
    trainer = build([CrossEntropyLoss(0.5)], rows, config={"per_device_eval_batch_size": 3})
    batch = trainer.data_collator([rows[number] for number in range(20)])
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = trainer.model.eval()(**batch).logits
    expected = 0.5 * torch.nn.functional.cross_entropy(logits[:5], labels[:5])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


SCHEDULES = {
    "linear": (lambda: [CrossEntropyLoss(), ForwardKLLoss()], {"weighting": "linear"}),
    "uncertainty": (lambda: [CrossEntropyLoss(), ForwardKLLoss()], {"weighting": "uncertainty"}),
    "temperature": (lambda: [ForwardKLLoss(LinearTemperature(4.0, 1.0))], {}),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_student_that_stays_as_it_is_has_the_same_loss_at_every_evaluation(schedule, build):
    objectives, config = SCHEDULES[schedule]
    trainer = build(
        objectives(),
        config=config
        | {"num_train_epochs": 3, "learning_rate": 0.0, "eval_strategy": "epoch", "weighting_learning_rate": 0.5},
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    during = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert during == pytest.approx([before] * 3)
    logged = [entry for entry in trainer.state.log_history if "weight/forward_kl" in entry]
    if schedule != "temperature":
        assert logged[0]["weight/forward_kl"] != logged[-1]["weight/forward_kl"], "the training follows its schedule"


class Noisy(ForwardKLLoss):
    """Has modules that do something else in training, and remembers what it saw in training."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.layers = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(2))
        self.register_buffer("mean", torch.zeros(2))

    def total(self, student, teacher, batch):
        self.seen.append(self.training)
        if self.training:
            self.mean += student.logits.detach().sum(dim=0)
        return super().total(student, teacher, batch) + (self.layers(student.logits) - self.mean).square().sum()


class NoisyFunction(torch.nn.Module):
    """The same as a loss function of Trainer's kind."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.layers = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(2))

    def forward(self, outputs, labels, num_items_in_batch):
        self.seen.append(self.training)
        return self.layers(outputs.logits).square().sum()


@pytest.mark.parametrize("kind", [Noisy, NoisyFunction])
def test_objectives_are_in_eval_mode_in_evaluations_and_in_training_mode_in_training(kind, build):
    noisy, few = kind(), {"per_device_eval_batch_size": 19}
    given = {"objectives": [noisy]} if kind is Noisy else {"objectives": [], "compute_loss_func": noisy}
    trainer = build(**given, config={"eval_strategy": "epoch", "num_train_epochs": 2, **few})
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    assert noisy.seen == [False] * 4, "a last batch of one row among them, which has no spread"
    noisy.seen.clear()
    trainer.train()
    steps = trainer.state.global_step // 2
    assert noisy.seen == ([True] * steps + [False] * 2) * 2
    assert all(module.training for module in noisy.modules())


def test_evaluations_beside_a_training_leave_what_objectives_learn_as_it_was(build):
    found = []
    for strategy in ("no", "steps"):
        torch.manual_seed(0)
        trainer = build([Noisy()], config={"eval_strategy": strategy, "eval_steps": 1, "learning_rate": 1e-2})
        trainer.train()
        found.append([*trainer.objectives.state_dict().values(), *trainer.model.state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_at_a_schedules_end_gold_labels_alone_are_the_loss(build):
    gold = build([CrossEntropyLoss()], teacher=False).evaluate()["eval_loss"]
    both = build([CrossEntropyLoss(), ForwardKLLoss()], config={"weighting": "linear"}).evaluate()["eval_loss"]
    assert both == pytest.approx(gold)


def test_a_loss_of_ones_own_is_the_evaluations_too(build):
    class Doubled(DistillationTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            return (2 * loss, outputs) if return_outputs else 2 * loss

    once = build([CrossEntropyLoss()]).evaluate()["eval_loss"]
    assert build([CrossEntropyLoss()], kind=Doubled).evaluate()["eval_loss"] == pytest.approx(2 * once)
    own = build([], compute_loss_func=lambda outputs, labels, num_items_in_batch: (
        torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
    ))  # fmt: skip
    assert own.evaluate()["eval_loss"] == pytest.approx(once)


def test_the_loss_that_an_own_step_of_the_evaluation_returns_is_the_evaluations(build):
    class Own(DistillationTrainer):
        def prediction_step(self, *arguments, **options):
            _, logits, labels = super().prediction_step(*arguments, **options)
            return torch.tensor(7.0), logits, labels

    class Unlabelled(DistillationTrainer):
        def prediction_step(self, *arguments, **options):
            return None, *super().prediction_step(*arguments, **options)[1:]

    config = {"per_device_eval_batch_size": 8}
    found = build(kind=Own, config=config).evaluate()
    assert found["eval_loss"] == 7.0
    assert found["eval_accuracy"] == build(config=config).evaluate()["eval_accuracy"]
    assert "eval_loss" not in build(kind=Unlabelled, config=config).evaluate()


def test_batches_that_are_not_joined_give_the_same_metrics_and_their_logits_alone(build):
    seen = []

    def metrics(prediction):
        seen.append(prediction)
        return {"batches": len(prediction.predictions)}

    config = {"eval_do_concat_batches": False, "per_device_eval_batch_size": 8}
    joined, split = build().evaluate(), build(config=config).evaluate()
    for name in ("eval_accuracy", "eval_agreement", "eval_loss"):
        assert split[name] == pytest.approx(joined[name])
    found = build(config=config, compute_metrics=metrics).evaluate()
    assert found["eval_batches"] == 3 and "eval_agreement" in found
    assert [batch.shape for batch in seen[0].predictions] == [(8, 2), (8, 2), (4, 2)]
    predictions = build(config=config).predict(build().eval_dataset).predictions
    assert isinstance(predictions, list) and isinstance(predictions[0], np.ndarray)


BEST = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}


def test_a_metric_that_no_evaluation_gives_is_refused_before_training(build, make_rows):
    for arguments, said in (
        ({"config": BEST | {"metric_for_best_model": "agreement"}, "teacher": False}, "'agreement' is no metric"),
        ({"config": BEST | {"metric_for_best_model": "acuracy", "greater_is_better": True}},
         "'acuracy' is no metric.*accuracy"),
        ({"config": BEST, "rows": make_rows(20).rename_column("labels", "gold"), "objectives": [ForwardKLLoss()]},
         "'loss' is no metric"),
        ({"config": {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}, "teacher": False,
          "rows": make_rows(20).add_column("teacher_logits", [[0.0, 2.0]] * 20)}, None),
    ):  # fmt: skip
        arguments["config"] = {"rehearsal": True} | arguments["config"]
        trainer = build(**arguments)
        if said is None:
            trainer.eval_dataset = make_rows(8)
            said = "'loss' is no metric"
        with pytest.raises(ValueError, match=said):
            trainer.train()
        assert trainer.state.global_step == 0


def test_metrics_of_ones_own_and_of_several_sets_choose_the_best(build, make_rows):
    config = BEST | {"metric_for_best_model": "mine", "greater_is_better": True}
    trainer = build(config=config, compute_metrics=lambda prediction: {"mine": 1.0})
    trainer.train()
    assert trainer.state.best_metric == 1.0
    trainer = build(config=BEST | {"metric_for_best_model": "eval_dev_agreement", "greater_is_better": True})
    trainer.eval_dataset = {"dev": make_rows(8), "other": make_rows(8)}
    trainer.train()
    assert trainer.state.best_metric is not None


def test_a_model_without_a_teacher_is_chosen_by_the_tasks_metric_in_place_of_agreement(settings, tokenizer):
    from samples import raw_rows

    from nlpkd import load_text_classification

    data = load_text_classification(raw_rows(16), raw_rows(8, seed=1), tokenizer=tokenizer)
    args = settings(**BEST, metric_for_best_model="agreement")
    trainer = supervised_trainer(tiny_bert(1), args, data, tokenizer, [CrossEntropyLoss()])
    assert trainer.args.metric_for_best_model in ("accuracy", "f1_macro") and trainer.args.greater_is_better
    trainer.train()


def test_a_checkpoint_of_the_model_alone_is_not_resumed_from(build, tmp_path):
    config = {"save_strategy": "epoch", "num_train_epochs": 2, "save_only_model": True}
    build(config=config).train()
    with pytest.raises(ValueError, match="has no state of the optimizer .save_only_model=True"):
        build(config=config).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    trainer = build(config=config)
    trainer.train(resume_from_checkpoint="auto")
    assert trainer.resumed_checkpoint is None and trainer.state.global_step == 6


def test_a_trainer_whose_objectives_another_one_took_says_so(build):
    objectives = [HiddenStateMSELoss()]
    first = build(objectives)
    second = build(objectives)
    for act in (first.train, first.evaluate):
        with pytest.raises(ValueError, match="hidden_state_mse were given to another trainer"):
            act()
    second.train()


def test_a_search_sets_the_objectives_weights_too(make_rows, settings, tokenizer):
    found = []
    rows, given = make_rows(8), [CrossEntropyLoss(), ForwardKLLoss()]
    trainer = DistillationTrainer(
        teacher_model=tiny_bert(1, seed=3), args=settings(max_steps=1), train_dataset=rows, eval_dataset=rows,
        objectives=given, model_init=lambda trial: tiny_bert(1), processing_class=tokenizer,
    )  # fmt: skip

    def space(trial):
        return {
            "forward_kl.weight": trial.suggest_float("forward_kl.weight", 0.1, 0.9),
            "forward_kl.temperature": trial.suggest_categorical("forward_kl.temperature", [4.0]),
        }

    def judge(metrics):
        found.append((trainer.objectives[1].weight, trainer.objectives.factors()["forward_kl"]))
        return metrics["eval_loss"]

    best = trainer.hyperparameter_search(
        hp_space=space, n_trials=2, backend="optuna", direction="minimize", compute_objective=judge
    )
    assert best.hyperparameters["forward_kl.weight"] in [weight for weight, _ in found]
    assert all(weight == factor != 1.0 for weight, factor in found) and len({*found}) == 2
    assert given[1].weight == 1.0 and dataclasses.asdict(trainer.args)["max_steps"] == 1


def test_metrics_that_are_assigned_to_a_trainer_are_its_own(build):
    trainer = build()
    plain = trainer.evaluate()
    trainer.compute_metrics = lambda found: {"first": float(found.predictions[0, 0]), "labels": len(found.label_ids)}
    found = trainer.evaluate()
    assert found["eval_labels"] == 20 and "eval_accuracy" not in found
    assert found["eval_agreement"] == plain["eval_agreement"]
    trainer.preprocess_logits_for_metrics = lambda logits, labels: 2 * logits
    assert trainer.evaluate()["eval_first"] == pytest.approx(2 * found["eval_first"])
    trainer.train()
    assert "eval_first" in trainer.evaluate()


class SumsUp:
    """Metrics that add batches up and tell a result at the last one alone, as transformers documents it."""

    def __init__(self):
        self.right = self.rows = 0

    def __call__(self, prediction, compute_result=False):
        self.right += int((prediction.predictions.argmax(-1) == prediction.label_ids).sum())
        self.rows += len(prediction.label_ids)
        return {"right": self.right / self.rows, "rows": self.rows} if compute_result else None


BY_BATCH = {"batch_eval_metrics": True, "per_device_eval_batch_size": 8}


@pytest.mark.parametrize("teacher", [True, False])
def test_metrics_that_add_batches_up_give_what_they_give_in_trainer(teacher, build, make_rows, tmp_path):
    rows = make_rows(20)
    trainer = build([CrossEntropyLoss()], rows, teacher, config=BY_BATCH, compute_metrics=SumsUp())
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **BY_BATCH)
    plain = Trainer(trainer.model, args, trainer.data_collator, None, rows, compute_metrics=SumsUp())
    found, expected = trainer.evaluate(), plain.evaluate()
    assert found["eval_rows"] == expected["eval_rows"] == 20 and found["eval_right"] == expected["eval_right"]
    if teacher:
        assert found["eval_agreement"] == build(rows=rows).evaluate()["eval_agreement"]


@pytest.mark.parametrize("kind", ["teacher", "alone", "windows", "preprocessed"])
def test_the_tasks_metrics_are_the_same_batch_by_batch(kind, build, make_rows):
    rows = make_rows(20).add_column(DOCUMENT, [number // 2 for number in range(20)]) if kind == "windows" else None
    more = {"preprocess_logits_for_metrics": lambda logits, labels: -logits} if kind == "preprocessed" else {}
    whole, batches = (
        build([CrossEntropyLoss()], rows, kind != "alone", config=config, **more) for config in ({}, BY_BATCH)
    )
    for _ in range(2):
        found, expected = batches.evaluate(), whole.evaluate()
        names = {name for name in expected if not name.endswith(("time", "second"))}
        assert "eval_accuracy" in names and ("eval_agreement" in names) == (kind != "alone")
        assert {name: found[name] for name in names} == pytest.approx({name: expected[name] for name in names})


def test_metrics_that_do_not_add_batches_up_are_refused_before_training(build):
    with pytest.raises(ValueError, match="compute_metrics has no argument compute_result"):
        build(config=BY_BATCH, compute_metrics=lambda prediction: {"own": 1.0})


@pytest.mark.parametrize("name", ["teacher_model", "teacher_processing_class", "objectives"])
def test_what_is_fitted_together_is_not_changed_in_a_trainer(name, build):
    trainer = build()
    before = getattr(trainer, name)
    with pytest.raises(ValueError, match=f"{name} was fitted together .* make another DistillationTrainer"):
        setattr(trainer, name, None)
    assert getattr(trainer, name) is before


@pytest.mark.parametrize("kind", ["bf16_full_eval", "fp16_full_eval"])
def test_an_evaluation_in_half_precision_leaves_the_weights_as_they_were(kind, build, tmp_path):
    trainer = build(config={kind: True})
    trainer.train()
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.evaluate()
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in before.items() if name in saved)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_a_tokenizer_set_up_to_generate_changes_no_evaluation_and_no_kept_logits(kind, settings, make_rows, tokenizer):
    """GPT-2 counts its positions from the first place, padding or not."""
    names = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "num_labels": 2}
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}
    decoder = GPT2ForSequenceClassification(GPT2Config(**names, **size))
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    found = set()
    for padding in (tokenizer, left):
        for size, cache in ((1, "auto"), (16, "off")):
            how = {"per_device_eval_batch_size": size, "cache_teacher": cache, "num_train_epochs": 2}
            args = settings(learning_rate=0.0, **how)
            pair = (copy.deepcopy(decoder), None) if kind == "student" else (tiny_bert(1, **WIDE), decoder)
            losses = [CrossEntropyLoss()] if kind == "student" else [ForwardKLLoss()]
            trainer = DistillationTrainer(*pair, args, losses, make_rows(20), make_rows(20), padding)
            taught = trainer.train().training_loss
            found.add((round(trainer.evaluate()["eval_loss"], 4), round(taught, 4)))
            assert trainer.processing_class.padding_side == "right"
    assert len(found) == 1 and left.padding_side == "left"


@pytest.mark.parametrize("given", ["at once", "several at once", "to evaluate", "to predict", "assigned"])
def test_rows_that_nobody_tokenised_are_refused_by_their_name_whenever_they_are_given(
    given, make_rows, settings, tokenizer
):
    raw = raw_rows(8)

    def trainer(evaluated=None):
        return DistillationTrainer(
            tiny_bert(), None, settings(), None, make_rows(8), evaluated, processing_class=tokenizer
        )

    def assigned():
        later = trainer(make_rows(8))
        later.eval_dataset = raw
        later.evaluate()

    ways = {
        "at once": ("evaluation", lambda: trainer(raw)),
        "several at once": ("evaluation set own", lambda: trainer({"own": raw})),
        "to evaluate": ("evaluation", lambda: trainer().evaluate(raw)),
        "to predict": ("test", lambda: trainer().predict(raw)),
        "assigned": ("evaluation", assigned),
    }
    split, way = ways[given]
    with pytest.raises(ValueError, match=rf"the {split} rows have the columns \['text', 'label'\] and no input_ids"):
        way()


class Predicts(TrainerCallback):
    """Has rows predicted after every step."""

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.predict(self.trainer.eval_dataset)


def _drawn(prediction):
    return {"drawn": random.random() + np.random.rand() + float(torch.rand(()))}


@pytest.mark.parametrize(
    ("evaluated", "compute_metrics", "predicts"),
    [
        ({"eval_strategy": "steps", "eval_steps": 1}, None, False),
        ({"eval_strategy": "steps", "eval_steps": 1}, _drawn, False),
        ({"eval_strategy": "epoch", "eval_on_start": True}, None, False),
        ({}, None, True),
    ],
)
def test_a_training_with_dropout_is_the_same_with_evaluations_and_without(
    evaluated, compute_metrics, predicts, settings, make_rows, tokenizer
):
    def learned(compute_metrics, predicts, **evaluated):
        trainer = DistillationTrainer(
            tiny_bert(seed=1, hidden_dropout_prob=0.2), tiny_bert(seed=2),
            settings(learning_rate=1e-2, lean_training=True, **evaluated), None, make_rows(24),
            make_rows(10, seed=1), tokenizer, compute_metrics=compute_metrics,
        )  # fmt: skip
        if predicts:
            trainer.add_callback(Predicts())
            trainer.callback_handler.callbacks[-1].trainer = trainer
        trainer.train()
        return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])

    assert torch.equal(learned(compute_metrics, predicts, **evaluated), learned(None, False))
