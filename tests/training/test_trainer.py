"""The trainer against the stock Trainer, against itself split otherwise, and against what goes silently wrong."""

import hashlib
import logging
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel
from filelock import FileLock
from safetensors.torch import load_file
from samples import Bag, looking_at, raw_rows, tiny_bert
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from nlpkd import DistillationTrainer, load_text_classification, make_student
from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.objectives import (
    AdversarialLoss,
    AttentionMSELoss,
    CrossEntropyLoss,
    ForwardKLLoss,
    HiddenStateMSELoss,
    LinearTemperature,
)
from nlpkd.training.checkpoints import describe_run
from nlpkd.utils.disk.locks import only_run


def everything(**hidden):
    return [
        CrossEntropyLoss(0.5),
        ForwardKLLoss(2.0, 0.5),
        HiddenStateMSELoss(**hidden),
        AttentionMSELoss(weight=10.0),
    ]


def moving():
    """Objectives with parameters of every kind, for learned weights."""
    return [
        CrossEntropyLoss(0.5),
        ForwardKLLoss(LinearTemperature(4.0, 1.0), 0.5),
        HiddenStateMSELoss(layers="learned"),
        AdversarialLoss(weight=0.1, width=8),
    ]


MOVING = {"weighting": "uncertainty", "weighting_learning_rate": 0.05, "anchor_weight": 0.1}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def differ(first: dict, second: dict) -> float:
    return max((first[name].float() - second[name].float()).abs().max().item() for name in first)


def losses(trainer: Trainer, key: str = "loss") -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()


def test_gold_labels_alone_train_exactly_like_the_stock_trainer(make_rows, settings, tokenizer, tmp_path):
    """Same arguments, no accumulation, no teacher: the same losses, gradients and weights, dropout on."""
    rows, dropout = make_rows(40), {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    args = {
        "num_train_epochs": 2, "learning_rate": 1e-3, "train_sampling_strategy": "random", "warmup_steps": 2,
        "weight_decay": 0.01, "max_grad_norm": 0.5, "lr_scheduler_type": "cosine",
    }  # fmt: skip
    ours = DistillationTrainer(
        model=tiny_bert(**dropout), args=settings(**args), objectives=[CrossEntropyLoss()],
        train_dataset=rows, eval_dataset=rows, processing_class=tokenizer,
    )  # fmt: skip
    ours.train()
    stock_args = TrainingArguments(
        output_dir=str(tmp_path / "stock"), use_cpu=True, save_strategy="no", disable_tqdm=True, logging_steps=1,
        per_device_train_batch_size=8, per_device_eval_batch_size=64, **args,
    )  # fmt: skip
    stock = Trainer(
        model=tiny_bert(**dropout), args=stock_args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
    )
    stock.train()
    assert losses(ours) == losses(stock) and losses(ours, "grad_norm") == losses(stock, "grad_norm")
    assert differ(weights(ours.model), weights(stock.model)) == 0.0
    assert ours.state.total_flos == stock.state.total_flos > 0
    assert ours.evaluate()["eval_loss"] == pytest.approx(stock.evaluate()["eval_loss"], rel=1e-6)


def test_label_smoothing_of_the_arguments_reaches_the_cross_entropy(make_rows, settings, tokenizer, tmp_path):
    rows = make_rows(16)
    ours = DistillationTrainer(
        model=tiny_bert(), args=settings(label_smoothing_factor=0.2), train_dataset=rows, processing_class=tokenizer
    )
    stock_args = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, label_smoothing_factor=0.2, per_device_eval_batch_size=16
    )
    stock = Trainer(model=tiny_bert(), args=stock_args, processing_class=tokenizer)
    assert ours.evaluate(rows)["eval_loss"] == pytest.approx(stock.evaluate(rows)["eval_loss"], rel=1e-6)


@pytest.mark.parametrize(("hidden", "make", "more"), [(16, everything, {}), (8, everything, {}), (8, moving, MOVING)])
def test_eight_rows_at_once_train_like_two_times_four(make_rows, settings, tokenizer, hidden, make, more):
    """Rows have 3 to 14 tokens, so a mean of micro-batch means would weigh tokens otherwise.

    SGD, because Adam would hide a gradient of the wrong scale, and blow up rounding where gradients are near 0.
    """
    runs = []
    for batch, accumulation in ((8, 1), (4, 2), (2, 4)):
        teacher, student = tiny_bert(layers=4, seed=1), tiny_bert(hidden=hidden, seed=2)
        trainer = DistillationTrainer(
            model=student, teacher_model=teacher, objectives=make(), train_dataset=make_rows(37),
            processing_class=tokenizer,
            args=settings(
                **more,
                per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, num_train_epochs=2,
                optim="sgd", learning_rate=0.05, objective_learning_rate=0.5,
            ),
        )  # fmt: skip
        start = weights(student)
        trainer.train()
        runs.append((trainer, weights(trainer.model) | weights(trainer.objectives)))
        assert differ(start, weights(trainer.model)) > 1e-3
    first, whole = runs[0]
    for other, split in runs[1:]:
        for key in ("loss", "grad_norm", "loss/hidden_state_mse", "loss/attention_mse", "loss/forward_kl"):
            assert losses(other, key) == pytest.approx(losses(first, key), rel=2e-4, abs=1e-6), key
        assert differ(whole, split) < 2e-5


def test_a_part_is_logged_for_each_objective_and_the_weighted_sum_is_the_loss(make_rows, settings, tokenizer):
    trainer = DistillationTrainer(
        model=tiny_bert(), teacher_model=tiny_bert(layers=4, seed=1), objectives=everything(),
        train_dataset=make_rows(40), processing_class=tokenizer, args=settings(logging_steps=2),
    )  # fmt: skip
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    for entry in logged:
        total = 0.5 * entry["loss/cross_entropy"] + 0.5 * entry["loss/forward_kl"]
        total += entry["loss/hidden_state_mse"] + 10 * entry["loss/attention_mse"]
        assert entry["loss"] == pytest.approx(total, rel=1e-5)


class TestTeacher:
    def test_is_in_eval_mode_frozen_unchanged_and_nowhere_in_optimizer_or_checkpoint(
        self, make_rows, settings, tokenizer, tmp_path
    ):
        """A teacher left in train mode teaches noise; the reference code of TinyBERT does that."""
        teacher = tiny_bert(layers=4, seed=1, hidden_dropout_prob=0.5).train()
        before, owned = digest(teacher), {p.data_ptr() for p in teacher.parameters()}
        seen = []

        class Watch(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                seen.append(any(module.training for module in teacher.modules()))

        trainer = DistillationTrainer(
            model=tiny_bert(hidden=8), teacher_model=teacher, objectives=everything(), callbacks=[Watch()],
            train_dataset=make_rows(40), processing_class=tokenizer, args=settings(save_strategy="epoch"),
        )  # fmt: skip
        trainer.train()
        assert seen and not any(seen)
        assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
        assert digest(teacher) == before
        optimised = {p.data_ptr() for group in trainer.optimizer.param_groups for p in group["params"]}
        assert optimised and not optimised & owned
        saved = load_file(tmp_path / "out" / "checkpoint-5" / "model.safetensors")
        assert set(saved) == set(trainer.model.state_dict())
        assert saved["classifier.weight"].shape == (2, 8)

    def test_dropout_of_the_student_does_not_touch_the_teacher(self, make_rows, settings, tokenizer):
        teacher, rows = tiny_bert(layers=4, seed=1, hidden_dropout_prob=0.5), make_rows(8)
        trainer = DistillationTrainer(
            model=tiny_bert(), teacher_model=teacher, train_dataset=rows, processing_class=tokenizer, args=settings()
        )
        batch = trainer.data_collator([rows[k] for k in range(8)])
        first, second = (trainer._signals.live.outputs(batch).logits for _ in range(2))
        assert torch.equal(first, second) and not first.requires_grad

    def test_no_teacher_is_run_where_no_objective_needs_one(self, make_rows, settings, tokenizer):
        teacher, calls = tiny_bert(seed=1), []
        trainer = DistillationTrainer(
            model=tiny_bert(), teacher_model=teacher, objectives=[CrossEntropyLoss()], train_dataset=make_rows(16),
            processing_class=tokenizer, args=settings(),
        )  # fmt: skip
        teacher.register_forward_hook(lambda *_: calls.append(1))
        trainer.train()
        assert not calls

    def test_a_column_of_logits_trains_like_the_live_teacher(self, make_rows, settings, tokenizer):
        rows, teacher = make_rows(24), tiny_bert(layers=4, seed=1)
        live = DistillationTrainer(
            model=tiny_bert(), teacher_model=teacher, train_dataset=rows, processing_class=tokenizer, args=settings()
        )
        with torch.no_grad():
            batch = live.data_collator([rows[k] for k in range(24)])
            logits = teacher(**{k: v for k, v in batch.items() if k != "labels"}).logits.numpy()
        rows = rows.add_column(TEACHER_LOGITS, logits.tolist())
        cached = DistillationTrainer(
            model=tiny_bert(), objectives=[CrossEntropyLoss(0.5), ForwardKLLoss(2.0, 0.5)],
            train_dataset=rows, processing_class=tokenizer, args=settings(),
        )  # fmt: skip
        live.train()
        cached.train()
        assert losses(cached) == pytest.approx(losses(live), rel=1e-5)

    def test_label_order_by_name_moves_the_logits(self, make_rows, settings, tokenizer):
        """Teacher {0: NEG, 1: POS} and data {0: pos, 1: neg}: the reversed order would train the opposite."""
        teacher = tiny_bert(seed=1, id2label={0: "NEG", 1: "POS"}, label2id={"NEG": 0, "POS": 1})
        rows = make_rows(16, names=("pos", "neg"))
        student = tiny_bert(id2label={0: "pos", 1: "neg"}, label2id={"pos": 0, "neg": 1})
        trainer = DistillationTrainer(
            model=student, teacher_model=teacher, train_dataset=rows, processing_class=tokenizer, args=settings()
        )
        batch = trainer.data_collator([rows[k] for k in range(16)])
        with torch.no_grad():
            own = teacher(**{k: v for k, v in batch.items() if k != "labels"}).logits
        assert torch.allclose(trainer._signals.live.outputs(batch).logits, own[:, [1, 0]], atol=1e-6)

    def test_a_student_of_the_teachers_layers_gets_the_datas_labels_by_name(self, make_rows, settings, tokenizer):
        teacher = tiny_bert(seed=1, layers=4, id2label={0: "NEG", 1: "POS"}, label2id={"NEG": 0, "POS": 1})
        rows = make_rows(16, names=("pos", "neg"))
        trainer = DistillationTrainer(
            model=make_student(teacher, layers=2), teacher_model=teacher, train_dataset=rows, eval_dataset=rows,
            processing_class=tokenizer, args=settings(),
        )  # fmt: skip
        assert trainer.train_dataset["labels"][:] == [1 - label for label in rows["labels"]]
        assert trainer.eval_dataset["labels"][:] == trainer.train_dataset["labels"][:]
        assert trainer.train_dataset.features["labels"] == ClassLabel(names=["NEG", "POS"])


def test_linear_weights_move_from_the_teacher_to_the_gold_labels_and_are_logged(make_rows, settings, tokenizer):
    trainer = DistillationTrainer(
        model=tiny_bert(), teacher_model=tiny_bert(layers=4, seed=1), train_dataset=make_rows(32),
        objectives=[CrossEntropyLoss(0.5), ForwardKLLoss(2.0, 0.8)], processing_class=tokenizer,
        args=settings(weighting="linear"),
    )  # fmt: skip
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    for number, step in enumerate(steps):
        gold, taught = 0.5 * number / 4, 0.8 * (1 - number / 4)
        assert step["weight/cross_entropy"] == pytest.approx(gold)
        assert step["weight/forward_kl"] == pytest.approx(taught)
        expected = gold * step["loss/cross_entropy"] + taught * step["loss/forward_kl"]
        assert step["loss"] == pytest.approx(expected, rel=1e-5)


def test_learned_weights_bring_objectives_of_any_unit_to_the_same_size(make_rows, settings, tokenizer):
    """With nothing else to learn exp(s_i) becomes L_i, so that every weighted part is 1."""
    trainer = DistillationTrainer(
        model=tiny_bert(), teacher_model=tiny_bert(layers=4, seed=1), train_dataset=make_rows(64),
        objectives=[CrossEntropyLoss(), HiddenStateMSELoss()], processing_class=tokenizer,
        args=settings(
            weighting="uncertainty", learning_rate=0.0, weighting_learning_rate=0.1, num_train_epochs=40,
            per_device_train_batch_size=64,
        ),
    )  # fmt: skip
    trainer.train()
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    for name in ("cross_entropy", "hidden_state_mse"):
        assert last[f"weight/{name}"] * last[f"loss/{name}"] == pytest.approx(1.0, rel=0.05)
    log_variances = [-np.log(last[f"weight/{name}"]) for name in ("cross_entropy", "hidden_state_mse")]
    assert last["loss"] == pytest.approx(2.0 + sum(log_variances), rel=0.05)


def test_a_second_trainer_with_the_same_objectives_trains_as_the_first_did(make_rows, settings, tokenizer):
    objectives = [CrossEntropyLoss(), HiddenStateMSELoss()]

    def train(given, **more):
        trainer = DistillationTrainer(
            tiny_bert(hidden=8), tiny_bert(hidden=16, layers=4), settings(learning_rate=1e-2, max_steps=4, **more),
            given, make_rows(32), processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
        bound = trainer.objectives
        return losses(trainer, "loss/hidden_state_mse"), len(bound[1].projections), bound[0].label_smoothing

    train(objectives, label_smoothing_factor=0.1)
    assert train(objectives) == train([CrossEntropyLoss(), HiddenStateMSELoss()])


def test_a_trial_of_a_search_trains_with_its_own_settings(make_rows, settings, tokenizer):
    plan = [
        {"label_smoothing_factor": 0.1, "anchor_weight": 0.5, "weighting": "linear"},
        {"label_smoothing_factor": 0.3, "anchor_weight": 0.25, "weighting": "fixed"},
        {"label_smoothing_factor": 0.2, "anchor_weight": 0.125, "weighting": "linear"},
    ]
    found = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            bound = trainer.objectives
            found.append((bound[0].label_smoothing, trainer._anchor.weight, bound.weighting.name))

    trainer = DistillationTrainer(
        teacher_model=tiny_bert(seed=3), args=settings(max_steps=1), train_dataset=make_rows(16),
        objectives=[CrossEntropyLoss(), ForwardKLLoss()], eval_dataset=make_rows(8), processing_class=tokenizer,
        model_init=lambda trial: tiny_bert(), callbacks=[Look()],
    )  # fmt: skip
    trainer.hyperparameter_search(
        hp_space=lambda trial: plan[trial.number], n_trials=3, backend="optuna", direction="minimize",
        compute_objective=lambda metrics: metrics["eval_loss"],
    )  # fmt: skip
    assert found == [tuple(trial.values()) for trial in plan]


def test_the_anchor_pulls_towards_the_start_by_the_distance_from_it(make_rows, settings, tokenizer):
    def build(anchor):
        trainer = DistillationTrainer(
            model=tiny_bert(), train_dataset=make_rows(32), processing_class=tokenizer,
            args=settings(anchor_weight=anchor, optim="sgd", learning_rate=0.1, max_grad_norm=0.0, num_train_epochs=6),
        )  # fmt: skip
        start = weights(trainer.model)
        trainer.train()
        moved = sum((now - start[name]).double().square().sum().item() for name, now in weights(trainer.model).items())
        return trainer, moved

    free, far = build(0.0)
    held, near = build(2.0)
    assert 0 < near < 0.8 * far
    steps = [entry for entry in held.state.log_history if "loss" in entry]
    assert steps[0]["loss/anchor"] == 0.0 and "loss/anchor" not in free.state.log_history[0]
    assert steps[0]["loss"] == losses(free)[0]
    # One SGD step of a gradient from one batch moves by the rate times the gradient.
    assert steps[1]["loss/anchor"] == pytest.approx(2.0 / 2 * (0.1 * steps[0]["grad_norm"]) ** 2, rel=1e-4)


def trained_teacher(make_rows, settings, tokenizer, **labels):
    teacher = tiny_bert(layers=2, seed=1, **labels)
    trainer = DistillationTrainer(
        model=teacher, args=settings(num_train_epochs=6, learning_rate=5e-3), objectives=[CrossEntropyLoss()],
        train_dataset=make_rows(200, seed=5), processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    return teacher


def test_generic_label_names_are_settled_on_gold_labels_and_said_aloud(make_rows, settings, tokenizer, caplog):
    teacher = trained_teacher(make_rows, settings, tokenizer)
    teacher.config.id2label, teacher.config.label2id = {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}
    with torch.no_grad():
        teacher.classifier.weight.copy_(teacher.classifier.weight.flip(0))
        teacher.classifier.bias.copy_(teacher.classifier.bias.flip(0))
    rows = make_rows(64, seed=9)
    with caplog.at_level(logging.WARNING, logger="nlpkd"):
        trainer = DistillationTrainer(
            model=tiny_bert(), teacher_model=teacher, train_dataset=rows, processing_class=tokenizer,
            args=settings(teacher_check="error"),
        )  # fmt: skip
    assert trainer.teacher_order == [1, 0]
    assert "label names say nothing" in caplog.text and "100.0 %" in caplog.text


def test_a_teacher_of_noise_is_refused_warned_of_or_let_be(make_rows, settings, tokenizer, caplog):
    arguments = {"train_dataset": make_rows(200), "processing_class": tokenizer}
    with pytest.raises(ValueError, match="no better than always answering"):
        DistillationTrainer(
            model=tiny_bert(), teacher_model=tiny_bert(seed=1), args=settings(teacher_check="error"), **arguments
        )
    DistillationTrainer(
        model=tiny_bert(), teacher_model=tiny_bert(seed=1), args=settings(teacher_check="warn"), **arguments
    )
    assert "no better than always answering" in caplog.text


class TestRefusals:
    @pytest.fixture
    def build(self, make_rows, settings, tokenizer):
        def build(teacher=None, student=None, rows=None, objectives=None, config=None, **arguments):
            return DistillationTrainer(
                model=student or tiny_bert(), teacher_model=teacher or tiny_bert(layers=4, seed=1),
                args=settings(**(config or {})), objectives=objectives,
                train_dataset=rows if rows is not None else make_rows(16), processing_class=tokenizer, **arguments,
            )  # fmt: skip

        return build

    def test_teacher_with_another_number_of_labels(self, build):
        with pytest.raises(ValueError, match="different numbers of labels: 3"):
            build(teacher=tiny_bert(num_labels=3))

    def test_label_names_that_contradict_each_other(self, build):
        teacher = tiny_bert(id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
        with pytest.raises(ValueError, match="contradict"):
            build(teacher=teacher)

    def test_other_vocabulary_without_teacher_processing_class(self, build):
        with pytest.raises(ValueError, match="pass teacher_processing_class"):
            build(teacher=tiny_bert(vocab_size=50))

    def test_no_rows(self, build, make_rows):
        with pytest.raises(ValueError, match="training set has no rows"):
            build(rows=make_rows(4).select([]))

    def test_label_out_of_range(self, build, make_rows):
        from datasets import Value

        rows = make_rows(4).cast_column("labels", Value("int64"))
        rows = rows.remove_columns("labels").add_column("labels", [0, 1, 2, 1])
        with pytest.raises(ValueError, match="row 2 of the training set has label 2"):
            build(rows=rows)

    def test_probabilities_passed_as_logits(self, build):
        class Probabilities(nn.Module):
            def __init__(self):
                super().__init__()
                self.bert = tiny_bert(seed=3)

            def forward(self, input_ids, attention_mask):
                return self.bert(input_ids, attention_mask).logits.softmax(-1)

        with pytest.raises(ValueError, match="are probabilities"):
            build(teacher=Probabilities(), objectives=[ForwardKLLoss()])

    def test_attention_of_a_module_that_has_none_to_give(self, build):
        with pytest.raises(ValueError, match="the student has none to give"):
            build(student=Bag(), objectives=[AttentionMSELoss()])

    def test_objectives_that_need_a_teacher_without_one(self, make_rows, settings, tokenizer):
        with pytest.raises(ValueError, match="forward_kl need a teacher"):
            DistillationTrainer(
                model=tiny_bert(), objectives=[ForwardKLLoss()], train_dataset=make_rows(8), args=settings(),
                processing_class=tokenizer,
            )  # fmt: skip

    def test_student_that_is_its_own_teacher(self, build):
        model = tiny_bert()
        with pytest.raises(ValueError, match="share"):
            build(student=model, teacher=model)

    def test_plain_training_arguments(self, make_rows, tmp_path):
        with pytest.raises(ValueError, match="must be a DistillationConfig"):
            DistillationTrainer(model=tiny_bert(), args=TrainingArguments(output_dir=str(tmp_path)))

    def test_no_objectives(self, build):
        with pytest.raises(ValueError, match="objectives is empty"):
            build(objectives=[])

    def test_nan_loss_stops_within_a_logging_step_and_names_the_objective(self, build, tmp_path):
        student = tiny_bert()
        trainer = build(student=student, objectives=everything(), config={"save_strategy": "steps", "save_steps": 1})

        class Poison(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                with torch.no_grad():
                    student.classifier.bias.fill_(float("nan"))

        trainer.add_callback(Poison())
        with pytest.raises(FloatingPointError, match="cross_entropy, forward_kl became NaN"):
            trainer.train()
        assert not (tmp_path / "out" / "checkpoint-2").exists()


@pytest.mark.parametrize(("make", "more"), [(everything, {}), (moving, MOVING)])
def test_a_resumed_run_equals_the_uninterrupted_one_own_parameters_included(
    make_rows, settings, tokenizer, tmp_path, make, more
):
    """Dropout is on, the resume in mid-epoch: order, optimizer, generators and projections must return."""

    def build(folder):
        return DistillationTrainer(
            model=tiny_bert(hidden=8, hidden_dropout_prob=0.1), teacher_model=tiny_bert(layers=4, seed=1),
            objectives=make(), train_dataset=make_rows(60), processing_class=tokenizer,
            args=settings(
                **more,
                output_dir=str(tmp_path / folder), num_train_epochs=3, save_strategy="steps", save_steps=5,
                learning_rate=1e-3, objective_learning_rate=1e-2, gradient_accumulation_steps=2,
                per_device_train_batch_size=4,
            ),
        )  # fmt: skip

    straight = build("straight")
    straight.train()
    resumed = build("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-10"))
    assert resumed.state.global_step == straight.state.global_step == 24
    assert losses(resumed)[-14:] == losses(straight)[-14:]
    assert differ(weights(resumed.model), weights(straight.model)) == 0.0
    assert differ(weights(resumed.objectives), weights(straight.objectives)) == 0.0
    fresh = build("fresh")
    assert differ(weights(fresh.objectives), weights(straight.objectives)) > 0


def test_projections_are_trained_at_their_own_rate_and_clipped_with_the_student(make_rows, settings, tokenizer):
    def build(**config):
        trainer = DistillationTrainer(
            model=tiny_bert(hidden=8), teacher_model=tiny_bert(layers=4, seed=1), objectives=[HiddenStateMSELoss()],
            train_dataset=make_rows(8), processing_class=tokenizer, args=settings(optim="sgd", **config),
        )  # fmt: skip
        before = weights(trainer.objectives)
        trainer.train()
        return trainer, before

    frozen, before = build(objective_learning_rate=0.0, learning_rate=0.1)
    assert differ(weights(frozen.objectives), before) == 0.0
    free, before = build(
        objective_learning_rate=1.0, learning_rate=0.0, max_grad_norm=0.0, lr_scheduler_type="constant"
    )
    clipped, _ = build(objective_learning_rate=1.0, learning_rate=0.0, max_grad_norm=0.1, lr_scheduler_type="constant")
    norm = losses(free, "grad_norm")[0]
    for name, start in before.items():
        whole, part = weights(free.objectives)[name] - start, weights(clipped.objectives)[name] - start
        assert torch.allclose(part, whole * 0.1 / norm, rtol=1e-2, atol=1e-7)


def test_a_saved_student_loads_in_plain_transformers_and_gives_the_same_logits(
    make_rows, settings, tokenizer, tmp_path
):
    rows = make_rows(24)
    trainer = DistillationTrainer(
        model=tiny_bert(hidden=8), teacher_model=tiny_bert(layers=4, seed=1), objectives=everything(),
        train_dataset=rows, processing_class=tokenizer, args=settings(),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert "nlpkd" not in (tmp_path / "saved" / "config.json").read_text()
    batch = {k: v for k, v in trainer.data_collator([rows[k] for k in range(24)]).items() if k != "labels"}
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch).logits, trainer.model.eval()(**batch).logits)
    assert not (tmp_path / "saved" / "objectives.safetensors").exists()


class TestEvaluation:
    @pytest.fixture
    def trainer(self, make_rows, settings, tokenizer):
        def build(**arguments):
            defaults = {
                "model": tiny_bert(), "teacher_model": tiny_bert(layers=4, seed=1), "train_dataset": make_rows(16),
                "eval_dataset": make_rows(37, seed=3), "processing_class": tokenizer,
                "args": settings(per_device_eval_batch_size=8),
            }  # fmt: skip
            return DistillationTrainer(**(defaults | arguments))

        return build

    def test_reports_the_task_and_the_agreement_with_the_teacher(self, trainer):
        trainer = trainer()
        rows, teacher = trainer.eval_dataset, trainer.teacher_model
        batch = trainer.data_collator([rows[k] for k in range(37)])
        labels = batch.pop("labels").numpy()
        with torch.no_grad():
            ours, theirs = (m.eval()(**batch).logits.argmax(-1).numpy() for m in (trainer.model, teacher))
        metrics = trainer.evaluate()
        assert metrics["eval_accuracy"] == pytest.approx((ours == labels).mean())
        assert metrics["eval_agreement"] == pytest.approx((ours == theirs).mean())
        assert {"eval_f1_macro", "eval_matthews_correlation", "eval_expected_calibration_error"} <= set(metrics)

    def test_predictions_are_the_students_logits_in_the_order_of_the_data(self, trainer):
        trainer = trainer()
        output = trainer.predict(trainer.eval_dataset)
        assert isinstance(output.predictions, np.ndarray) and output.predictions.shape == (37, 2)
        assert output.label_ids.tolist() == trainer.eval_dataset["labels"][:]
        assert "test_agreement" in output.metrics

    def test_own_metrics_and_preprocessing_see_logits_alone(self, trainer):
        seen = []

        def metrics(prediction):
            seen.append(np.asarray(prediction.predictions).shape)
            return {"mine": 1.0}

        trainer = trainer(
            compute_metrics=metrics, preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1)
        )
        result = trainer.evaluate()
        assert seen == [(37,)] and result["eval_mine"] == 1.0 and 0 <= result["eval_agreement"] <= 1

    def test_several_evaluation_sets(self, trainer, make_rows):
        result = trainer(eval_dataset={"a": make_rows(9), "b": make_rows(5)}).evaluate()
        assert {"eval_a_accuracy", "eval_b_agreement"} <= set(result)

    def test_best_model_comes_back_with_its_projections_and_training_stops_early(
        self, make_rows, settings, tokenizer, tmp_path
    ):
        scores = iter([0.3, 0.5, 0.4, 0.2])
        args = settings(
            output_dir=str(tmp_path / "best"), num_train_epochs=20, learning_rate=0.05, objective_learning_rate=0.05,
            eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="score",
            greater_is_better=True, rehearsal=False,
        )  # fmt: skip
        trainer = DistillationTrainer(
            model=tiny_bert(hidden=8), teacher_model=tiny_bert(layers=4, seed=1), objectives=everything(), args=args,
            train_dataset=make_rows(16), eval_dataset=make_rows(16, seed=4), processing_class=tokenizer,
            compute_metrics=lambda prediction: {"score": next(scores)},
            callbacks=[EarlyStoppingCallback(early_stopping_patience=1)],
        )  # fmt: skip
        trainer.train()
        assert trainer.state.epoch == 3
        best = tmp_path / "best" / "checkpoint-4"
        assert Path(trainer.state.best_model_checkpoint) == best
        assert differ(load_file(best / "model.safetensors"), weights(trainer.model)) == 0.0
        assert differ(load_file(best / "objectives.safetensors"), weights(trainer.objectives)) == 0.0


class TestArgumentsOfTrainer:
    def test_model_init_makes_the_student(self, make_rows, settings, tokenizer):
        made = []

        def init():
            made.append(tiny_bert(hidden=8))
            return made[-1]

        trainer = DistillationTrainer(
            model_init=init, teacher_model=tiny_bert(layers=4, seed=1), objectives=everything(),
            train_dataset=make_rows(16), processing_class=tokenizer, args=settings(),
        )  # fmt: skip
        trainer.train()
        assert trainer.model is made[-1] and len(made) == 2
        assert losses(trainer, "loss/attention_mse")[0] > 0

    def test_own_loss_function_is_added_as_a_part(self, make_rows, settings, tokenizer):
        def half(outputs, labels, num_items_in_batch=None):
            return 0.5 * nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

        def build(**arguments):
            trainer = DistillationTrainer(
                model=tiny_bert(), train_dataset=make_rows(20), processing_class=tokenizer,
                args=settings(per_device_train_batch_size=4, gradient_accumulation_steps=2), **arguments,
            )  # fmt: skip
            trainer.train()
            return trainer

        mine, theirs = build(compute_loss_func=half), build(objectives=[CrossEntropyLoss(0.5)])
        assert losses(mine) == pytest.approx(losses(theirs), rel=1e-6)
        assert losses(mine, "loss/compute_loss_func") == pytest.approx(losses(mine), rel=1e-6)

    def test_own_optimizer_trains_the_projections_too(self, make_rows, settings, tokenizer):
        student = tiny_bert(hidden=8)
        trainer = DistillationTrainer(
            model=student, teacher_model=tiny_bert(layers=4, seed=1), objectives=everything(),
            train_dataset=make_rows(16), processing_class=tokenizer, args=settings(learning_rate=1e-2),
            optimizers=(torch.optim.SGD(student.parameters(), lr=1e-2), None),
        )  # fmt: skip
        before = weights(trainer.objectives)
        trainer.train()
        assert differ(weights(trainer.objectives), before) > 0

    @pytest.mark.parametrize("known", ["none", "projections", "all"])
    def test_own_create_optimizer_trains_projections_and_weights_too(self, known, make_rows, settings, tokenizer):
        class Own(DistillationTrainer):
            def create_optimizer(self, model=None):
                own = {
                    "none": [],
                    "projections": self.objectives.objectives.parameters(),
                    "all": self.objectives.trained(),
                }
                self.optimizer = torch.optim.SGD([*self.model.parameters(), *own[known]], lr=0.1)
                return self.optimizer

        trainer = Own(
            model=tiny_bert(hidden=8), teacher_model=tiny_bert(layers=4, seed=1), objectives=everything(),
            train_dataset=make_rows(16), processing_class=tokenizer, args=settings(weighting="uncertainty"),
        )  # fmt: skip
        before = weights(trainer.objectives)
        trainer.train()
        after = weights(trainer.objectives)
        assert all(differ({name: after[name]}, {name: before[name]}) > 0 for name in before)
        given = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
        assert len(given) == len({id(parameter) for parameter in given})

    def test_activation_checkpointing_changes_no_loss(self, make_rows, settings, tokenizer):
        runs = []
        for checkpointing in (False, True):
            trainer = DistillationTrainer(
                model=tiny_bert(), teacher_model=tiny_bert(layers=4, seed=1), objectives=everything(),
                train_dataset=make_rows(24), processing_class=tokenizer,
                args=settings(gradient_checkpointing=checkpointing, learning_rate=1e-3),
            )  # fmt: skip
            trainer.train()
            runs.append((losses(trainer), losses(trainer, "grad_norm")))
        assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-5)
        assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-4)

    def test_reentrant_checkpointing_is_refused_where_it_cuts_objectives_off(self, make_rows, settings, tokenizer):
        given = {"train_dataset": make_rows(8), "processing_class": tokenizer, "teacher_model": tiny_bert(4, seed=1)}
        again = settings(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True})
        with pytest.raises(ValueError, match="attentions without gradients"):
            DistillationTrainer(model=tiny_bert(), args=again, objectives=[AttentionMSELoss()], **given)
        DistillationTrainer(model=tiny_bert(), args=again, objectives=[HiddenStateMSELoss()], **given)

    def test_bf16_trains_all_objectives(self, make_rows, settings, tokenizer):
        trainer = DistillationTrainer(
            model=tiny_bert(hidden=8), teacher_model=tiny_bert(layers=4, seed=1), objectives=everything(),
            train_dataset=make_rows(16), processing_class=tokenizer, args=settings(bf16=True),
        )  # fmt: skip
        trainer.train()
        assert all(np.isfinite(losses(trainer)))
        assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())

    def test_a_plain_module_that_returns_logits_learns_from_logits(self, make_rows, settings, tokenizer):
        trainer = DistillationTrainer(
            model=Bag(), teacher_model=tiny_bert(seed=1), train_dataset=make_rows(64), eval_dataset=make_rows(16),
            processing_class=tokenizer, args=settings(num_train_epochs=4, learning_rate=0.1),
        )  # fmt: skip
        trainer.train()
        assert losses(trainer)[-1] < losses(trainer)[0]
        assert "eval_agreement" in trainer.evaluate()


def test_a_teacher_of_logits_alone_is_run_once_a_row_and_teaches_the_same(make_rows, settings, tokenizer, caplog):
    def build(folder, **more):
        teacher, rows = tiny_bert(layers=4, seed=1), make_rows(24)
        seen = []
        trainer = DistillationTrainer(
            model=tiny_bert(), teacher_model=teacher, objectives=[CrossEntropyLoss(), ForwardKLLoss()],
            train_dataset=rows, processing_class=tokenizer,
            args=settings(
                num_train_epochs=3, learning_rate=1e-3, output_dir=f"{settings().output_dir}-{folder}",
                rehearsal=False, **more,
            ),
        )  # fmt: skip

        def look(module, inputs, output):
            seen.extend([1] * len(output.logits) * (module.config.num_hidden_layers == 4))

        with looking_at(type(teacher), look):
            trainer.train()
        return trainer, sum(seen)

    cached, once = build("auto")
    live, always = build("off", cache_teacher="off")
    assert (once, always) == (24, 3 * 24)
    said = "Training with float32, length-grouped batches, adamw_torch_fused, sdpa attention, the teacher"
    fast = "first token, quick dropout, own attention"
    assert f"{said}'s outputs kept with the rows, {fast}." in caplog.text
    assert f"{said} run on every batch, {fast}, no cached teacher (cache_teacher is off)." in caplog.text
    assert losses(cached) == pytest.approx(losses(live), rel=1e-5)
    _, again = build("auto")
    assert again == 0, "what is on disk is used"
    _, single = build("single", max_steps=3)
    assert single == 24
    other = DistillationTrainer(
        model=tiny_bert(), teacher_model=tiny_bert(layers=4, seed=2), objectives=[ForwardKLLoss()],
        train_dataset=make_rows(24), processing_class=tokenizer, args=cached.args,
    )  # fmt: skip
    other.train()
    assert "The teacher is run on every batch, since its outputs can't be kept" in caplog.text


def _other_weights(trainer):
    trainer.teacher_model.load_state_dict(tiny_bert(layers=4, seed=9).state_dict())


def _a_hook(trainer):
    trainer.teacher_model.classifier.register_forward_hook(lambda module, inputs, output: output * 3)


def _changed_rows(trainer):
    trainer.train_dataset = trainer.train_dataset.map(lambda row: {"input_ids": row["input_ids"][::-1]})


@pytest.mark.parametrize("change", [_other_weights, _a_hook, _changed_rows])
def test_what_a_teacher_gave_for_one_training_does_not_teach_the_next_one(
    change, make_rows, settings, tokenizer, tmp_path
):
    trained = []
    for way in ("auto", "off"):
        rows = make_rows(24)
        trainer = DistillationTrainer(
            tiny_bert(), tiny_bert(layers=4, seed=1),
            settings(cache_teacher=way, num_train_epochs=2, learning_rate=1e-2, output_dir=str(tmp_path / way)),
            [ForwardKLLoss()], train_dataset=rows, processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
        assert trainer.train_dataset is rows
        change(trainer)
        trainer.train()
        trained.append(weights(trainer.model))
    assert differ(*trained) < 1e-5


class Greedy(CrossEntropyLoss):
    """Takes more memory than any machine has, for more rows than `most`."""

    def __init__(self, most: int):
        super().__init__()
        self.most, self.batches = most, []

    def total(self, student, teacher, batch):
        if len(batch["labels"]) > self.most:
            torch.empty(2**50)
        self.batches.append(len(batch["labels"]))
        return super().total(student, teacher, batch)


class Sigterm(TrainerCallback):
    """Sends the signal to this process once, at an event."""

    def __init__(self, event: str):
        setattr(self, event, self.send)
        self.left = 1

    def send(self, args, state, control, **kwargs):
        if self.left:
            self.left = 0
            signal.raise_signal(signal.SIGTERM)


class TestInterruption:
    @pytest.fixture
    def heard(self):
        """What a handler of the caller's own hears."""
        heard = []
        before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
        yield heard
        signal.signal(signal.SIGTERM, before)

    @pytest.fixture
    def build(self, make_rows, settings, tokenizer):
        def build(objective, rows=66, callbacks=None, **config):
            args = settings(train_sampling_strategy="random", per_device_train_batch_size=33, **config)
            return DistillationTrainer(
                tiny_bert(hidden=8), None, args, [objective], make_rows(rows), processing_class=tokenizer,
                callbacks=callbacks,
            )  # fmt: skip

        return build

    def test_a_training_that_fails_gives_the_handler_back(self, build, heard):
        mine = signal.getsignal(signal.SIGTERM)
        with pytest.raises(MemoryError):
            build(Greedy(0)).train()
        assert signal.getsignal(signal.SIGTERM) is mine

    def test_a_training_that_starts_over_gives_the_handler_back_and_a_step_of_any_order_keeps_its_rows(
        self, build, heard
    ):
        mine, objective = signal.getsignal(signal.SIGTERM), Greedy(20)
        trainer = build(objective, auto_find_batch_size=True, rehearsal=False)
        trainer.train()
        assert signal.getsignal(signal.SIGTERM) is mine
        assert objective.batches == [11] * 6 and trainer.state.global_step == 2

    def test_the_step_in_progress_is_the_last_and_saved(self, build, heard, tmp_path):
        trainer = build(Greedy(33), callbacks=[Sigterm("on_step_begin")])
        mine = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as stopped:
            trainer.train()
        assert stopped.value.code == 143 and trainer.state.global_step == 1 and not heard
        assert (tmp_path / "out" / "checkpoint-1" / "checksums.json").is_file()
        assert signal.getsignal(signal.SIGTERM) is mine

    def test_after_the_last_step_the_signal_does_what_it_does_without_training(self, build, heard):
        trainer = build(Greedy(33), callbacks=[Sigterm("on_train_end")])
        trainer.train()
        assert trainer.state.global_step == 2 and heard == [signal.SIGTERM]


def test_a_directory_that_another_run_writes_to_can_be_evaluated_in_and_not_trained_in(
    make_rows, settings, tokenizer, tmp_path
):
    trainer = DistillationTrainer(
        tiny_bert(), None, settings(), None, make_rows(8), make_rows(8), processing_class=tokenizer
    )
    (tmp_path / "out").mkdir(exist_ok=True)
    with FileLock(tmp_path / "out" / ".lock"):
        trainer.evaluate()
        with pytest.raises(ValueError, match=f"another run is writing to {tmp_path / 'out'}: "):
            trainer.train()
    with only_run(tmp_path / "out"):
        trainer.train()
        with pytest.raises(TimeoutError):
            FileLock(tmp_path / "out" / ".lock", timeout=0).acquire()
    with FileLock(tmp_path / "out" / ".lock", timeout=0):
        assert trainer.state.global_step == 1


def test_the_rows_of_a_stream_are_counted_alike_before_and_after_processes_share_them_out(
    settings, tokenizer, tmp_path
):
    raw_rows(30).to_csv(tmp_path / "rows.csv")
    rows = load_text_classification(tmp_path / "rows.csv", tokenizer=tokenizer, streaming=True)["train"]
    trainer = DistillationTrainer(tiny_bert(), None, settings(), None, rows, processing_class=tokenizer)

    def described(rows):
        return describe_run(trainer.args, trainer.model, None, trainer.objectives, rows, ["input_ids"])["result"]

    before = described(rows)
    assert before["training rows"] == 30 and described(rows.batched(8, num_processes=2)) == before
