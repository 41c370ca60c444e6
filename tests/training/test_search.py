"""What a hyperparameter search goes by, on real searches of tiny students."""

from __future__ import annotations

import pytest
from samples import tiny_bert

from nlpkd import DistillationTrainer
from nlpkd.objectives import CrossEntropyLoss
from nlpkd.training.search import search_arguments

pytest.importorskip("optuna")

RATES = [1e-9, 2e-3]


def searcher(settings, make_rows, tokenizer, compute_metrics=None, **config):
    return DistillationTrainer(
        args=settings(eval_strategy="epoch", num_train_epochs=12, **config),
        objectives=[CrossEntropyLoss()],
        train_dataset=make_rows(96),
        eval_dataset=make_rows(40, seed=5),
        processing_class=tokenizer,
        model_init=lambda: tiny_bert(seed=1),
        compute_metrics=compute_metrics,
    )


def by_rate(trainer, **search):
    """Try both learning rates once; return the best, and the values by rate."""
    import optuna

    sampler = optuna.samplers.GridSampler({"learning_rate": RATES})
    space = {"hp_space": lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", RATES)}}
    best = trainer.hyperparameter_search(n_trials=2, sampler=sampler, **space, **search)
    return best.hyperparameters["learning_rate"], best.objective


def test_a_search_that_names_no_goal_takes_the_most_accurate_trial(settings, make_rows, tokenizer):
    rate, value = by_rate(searcher(settings, make_rows, tokenizer))
    assert rate == RATES[1] and 0.8 < value <= 1.0


@pytest.mark.parametrize("metric", ["eval_loss", "loss", "f1_macro"])
def test_a_search_goes_by_the_metric_for_the_best_model_in_its_own_direction(metric, settings, make_rows, tokenizer):
    rate, value = by_rate(searcher(settings, make_rows, tokenizer, metric_for_best_model=metric))
    assert rate == RATES[1] and (value < 0.6) == metric.endswith("loss")


def test_a_goal_and_a_direction_that_are_given_hold(settings, make_rows, tokenizer):
    own = {"compute_objective": lambda metrics: -metrics["eval_accuracy"]}
    assert by_rate(searcher(settings, make_rows, tokenizer), **own)[0] == RATES[1]
    worst = {"compute_objective": lambda metrics: metrics["eval_accuracy"], "direction": "minimize"}
    assert by_rate(searcher(settings, make_rows, tokenizer), **worst)[0] == RATES[0]


GOALS = {
    "accuracy": ({}, "maximize"),
    "f1_macro": ({"metric_for_best_model": "f1_macro"}, "maximize"),
    "loss": ({"metric_for_best_model": "eval_loss"}, "minimize"),
    "cost": ({"metric_for_best_model": "cost", "greater_is_better": False}, "minimize"),
}


@pytest.mark.parametrize("goal", GOALS)
def test_a_direction_that_would_take_the_worst_trial_is_refused(goal, settings):
    import optuna

    config, own = GOALS[goal]
    args, (wrong,) = settings(**config), {"maximize", "minimize"} - {own}
    named = optuna.study.StudyDirection
    for other in (wrong, [wrong], named[wrong.upper()]):
        with pytest.raises(ValueError, match=f"would take the worst trial, since .* by {goal}.* is to {own}: leave"):
            search_arguments(args, None, {}, direction=other)
    for same in (own, [own], named[own.upper()]):
        assert search_arguments(args, None, {}, direction=same)["direction"] == same
    assert search_arguments(args, None, {})["direction"] == own


def test_metrics_of_ones_own_without_a_known_name_are_no_goal(settings, make_rows, tokenizer):
    trainer = searcher(settings, make_rows, tokenizer, compute_metrics=lambda found: {"cost": 1.0})
    with pytest.raises(ValueError, match="set metric_for_best_model, or pass compute_objective"):
        by_rate(trainer)


def test_of_several_data_sets_the_first_one_counts(settings):
    goal = search_arguments(settings(), None, {})["compute_objective"]
    assert goal({"eval_a_loss": 0.1, "eval_a_accuracy": 0.7, "eval_b_accuracy": 0.9}) == 0.7
    assert goal({"eval_loss": 0.1, "eval_agreement": 0.8}) == 0.8


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("accuracy", True),
        ("eval_agreement", True),
        ("eval_loss", False),
        ("expected_calibration_error", False),
        ("eval_mean_squared_error", False),
        ("eval_dev_mean_absolute_error", False),
    ],
)
def test_the_best_checkpoint_has_the_least_error(metric, greater, settings):
    assert settings(metric_for_best_model=metric).greater_is_better is greater
    assert settings(metric_for_best_model=metric, greater_is_better=not greater).greater_is_better is not greater
