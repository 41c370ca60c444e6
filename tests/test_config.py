"""Settings: fast where the machine is, and refused where they would do harm."""

from dataclasses import fields, replace
from typing import get_type_hints

import numpy as np
import pytest
import torch
from samples import tiny_bert
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from nlpkd import DistillationConfig
from nlpkd.config import fast_at_bf16
from nlpkd.evaluation.scoring import task_scoring
from nlpkd.tasks import MULTI_LABEL, REGRESSION, TASKS


@pytest.fixture
def config(tmp_path):
    return lambda **settings: DistillationConfig(output_dir=str(tmp_path), report_to="none", **settings)


def parsed(*flags) -> DistillationConfig:
    return HfArgumentParser(DistillationConfig).parse_args_into_dataclasses([*flags, "--report_to", "none"])[0]


def test_bf16_is_by_default_what_the_machine_is_fast_at(config):
    assert config().bf16 is fast_at_bf16(config().use_cpu)


def test_a_cpu_is_fast_at_bf16_with_avx512_bf16_or_amx_only(monkeypatch):
    for flags, fast in [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx512_f": True}, False),
        ({}, False),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        assert fast_at_bf16(use_cpu=True) is fast


@pytest.mark.parametrize("bf16", [True, False])
def test_bf16_can_be_set_either_way(config, bf16):
    assert config(bf16=bf16).bf16 is bf16


def test_fp16_turns_the_choice_of_bf16_off(config):
    settings = config(fp16=True)
    assert settings.fp16 and settings.bf16 is False


@pytest.mark.parametrize("launched", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("bf16", [None, True, False])
@pytest.mark.parametrize("fp16", [None, False])
def test_what_is_logged_is_the_precision_that_trainer_takes_and_what_was_said_holds(
    config, monkeypatch, launched, bf16, fp16
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    try:
        settings = config(bf16=bf16, fp16=fp16)
    except ValueError as error:
        assert "launch with --mixed_precision no" in str(error) and launched in str(error)
        return
    assert settings.choices()[0].replace("float32", "no") == settings.mixed_precision
    assert bf16 in (None, settings.bf16) and fp16 in (None, settings.fp16)
    assert launched in ("no", settings.mixed_precision) and replace(settings).choices() == settings.choices()


def test_fp16_of_a_launcher_is_refused_where_training_is_on_the_cpu(config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="on the CPU, where it would be in float32"):
        config(use_cpu=True)


def test_the_other_defaults(config):
    settings = config()
    assert settings.train_sampling_strategy == "group_by_length"
    assert (settings.per_device_train_batch_size, settings.per_device_eval_batch_size) == (32, 64)
    assert settings.logging_steps == 50 and settings.logging_nan_inf_filter is False
    assert settings.teacher_check == "error" and settings.objective_learning_rate is None
    plain = TrainingArguments(output_dir=settings.output_dir, report_to="none")
    assert settings.learning_rate == plain.learning_rate and settings.num_train_epochs == plain.num_train_epochs


@pytest.mark.parametrize("check", ["error", "warn", "off"])
def test_the_teacher_check_takes_three_values(config, check):
    assert config(teacher_check=check).teacher_check == check


@pytest.mark.parametrize("check", ["ERROR", "none", "", True, None])
def test_any_other_teacher_check_is_refused(config, check):
    with pytest.raises(ValueError, match=r"teacher_check must be one of \('error', 'warn', 'off'\), got"):
        config(teacher_check=check)


@pytest.mark.parametrize("rate", [-1e-3, float("nan")])
def test_a_learning_rate_of_objectives_below_zero_is_refused(config, rate):
    with pytest.raises(ValueError, match="objective_learning_rate must be "):
        config(objective_learning_rate=rate)
    assert config(objective_learning_rate=0).objective_learning_rate == 0


@pytest.mark.parametrize("name", ["label_smoothing_factor", "adam_beta1", "adam_beta2"])
@pytest.mark.parametrize("share", [-0.5, 1.0, 1.5, float("nan")])
def test_what_is_a_share_below_one_is_refused_otherwise(config, name, share):
    with pytest.raises(ValueError, match=f"{name} must be "):
        config(**{name: share})
    for fine in (0, 0.5):
        assert getattr(config(**{name: fine}), name) == fine


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_strategies_that_publish_pickled_state_are_refused(config, strategy):
    with pytest.raises(ValueError, match=f"hub_strategy='{strategy}' would publish pickled state.*'every_save'"):
        config(hub_strategy=strategy)


@pytest.mark.parametrize("strategy", ["end", "every_save"])
def test_the_other_strategies_pass(config, strategy):
    assert config(hub_strategy=strategy).hub_strategy == strategy


@pytest.mark.parametrize(
    ("place", "settings"),
    [("out", {"hub_model_id": "a/b/c"}), ("out", {"hub_model_id": "my name"}), ("my out", {}), ("out", {})],
)
def test_a_push_that_can_not_be_is_refused_before_a_training(place, settings, tmp_path, monkeypatch):
    # The last one is for want of the Hub alone.
    possible = (place, settings) == ("out", {})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", possible)
    said = "HF_HUB_OFFLINE is set: unset it" if possible else "can't push to a repository '.*': set hub_model_id"
    given = {"output_dir": str(tmp_path / place), "report_to": "none", **settings}
    with pytest.raises(ValueError, match=said):
        DistillationConfig(**given, push_to_hub=True)
    assert DistillationConfig(**given).repository == settings.get("hub_model_id", place)


def test_every_field_is_a_flag(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    settings = parsed(
        *["--output_dir", str(tmp_path), "--bf16", "False", "--objective_learning_rate", "1e-3"],
        *["--teacher_check", "warn", "--train_sampling_strategy", "random", "--logging_nan_inf_filter", "True"],
        *["--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "5", "--logging_steps", "7"],
        *["--num_train_epochs", "2", "--learning_rate", "1e-4", "--push_to_hub", "--hub_model_id", "a/b"],
    )
    assert (settings.output_dir, settings.bf16, settings.objective_learning_rate) == (str(tmp_path), False, 1e-3)
    assert (settings.teacher_check, settings.train_sampling_strategy) == ("warn", "random")
    assert settings.logging_nan_inf_filter is True and settings.logging_steps == 7
    assert (settings.per_device_train_batch_size, settings.per_device_eval_batch_size) == (4, 5)
    assert (settings.num_train_epochs, settings.learning_rate) == (2, 1e-4)
    assert (settings.push_to_hub, settings.hub_model_id) == (True, "a/b")


def test_bf16_as_a_flag_is_a_switch_and_absent_it_is_automatic(tmp_path):
    assert parsed("--output_dir", str(tmp_path), "--bf16").bf16 is True
    assert parsed("--output_dir", str(tmp_path), "--bf16", "true").bf16 is True
    assert parsed("--output_dir", str(tmp_path)).bf16 is fast_at_bf16(not torch.accelerator.is_available())


def test_settings_survive_being_written_and_read(config):
    settings = config(teacher_check="warn", objective_learning_rate=1e-3, bf16=False).to_dict()
    assert (settings["teacher_check"], settings["objective_learning_rate"], settings["bf16"]) == ("warn", 1e-3, False)


def test_fields_of_training_arguments_are_all_there():
    assert set(TrainingArguments.__dataclass_fields__) <= set(DistillationConfig.__dataclass_fields__)


@pytest.mark.parametrize(
    "name, value",
    [
        ("per_device_train_batch_size", 0), ("learning_rate", -1e-3), ("gradient_accumulation_steps", 0),
        ("adam_epsilon", -1e-8), ("max_grad_norm", -1.0), ("neftune_noise_alpha", -5.0), ("eval_delay", -1),
        ("eval_accumulation_steps", 0), ("dataloader_num_workers", -1), ("ddp_timeout", 0),
    ],
)  # fmt: skip
def test_settings_below_their_least_value_are_refused(config, name, value):
    with pytest.raises(ValueError, match=f"{name} must be >= "):
        config(**{name: value})


@pytest.mark.parametrize("name", ["seed", "data_seed"])
def test_seeds_that_no_generator_takes_are_refused(config, name):
    for value in (-5, -1, 2**32):
        with pytest.raises(ValueError, match=f"{name} must be from 0 to 4294967295, got {value}"):
            config(**{name: value})
    for value in (0, 2**32 - 1):
        assert getattr(config(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        ("linear", {"a": 1}, "unexpected keyword argument 'a'"),
        ("cosine", '{"num_cycles": "x"}', "'x'"),
        ("cosine_with_min_lr", None, "min_lr"),
        ("warmup_stable_decay", {}, "num_decay_steps"),
    ],
)
def test_a_schedule_that_can_t_be_made_is_refused(config, kind, settings, told):
    with pytest.raises(ValueError, match=f"(?s)lr_scheduler_kwargs=.* do not fit .*'{kind}': .*{told}"):
        config(lr_scheduler_type=kind, lr_scheduler_kwargs=settings)


def test_a_schedule_with_settings_of_its_own_is_taken(config):
    config(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 1e-6})
    config(lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs={"num_decay_steps": 10})
    config(lr_scheduler_type="polynomial", lr_scheduler_kwargs={"lr_end": 1e-4}, learning_rate=1e-3)


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("fsdp", [True, "full_shard", None])
def test_fsdp_on_the_cpu_is_refused_since_accelerate_would_do_without_it(config, monkeypatch, fsdp, gpu):
    if fsdp is None:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    with pytest.raises(ValueError, match="FSDP was asked for, and training is on the CPU"):
        config(fsdp=fsdp, use_cpu=gpu)


NUMBERS = [
    field.name
    for field in fields(DistillationConfig)
    if get_type_hints(DistillationConfig)[field.name] in (int, float)
]


@pytest.mark.parametrize("name", [*NUMBERS, "train_sampling_strategy", "length_column_name", "include_for_metrics"])
def test_none_is_refused_where_it_is_no_value_of_a_setting(config, name):
    """Trainer takes it, and ends at the first step that reads it."""
    with pytest.raises(ValueError, match=f"^{name} must be .*{name}=None: leave it out for "):
        config(**{name: None})


def test_none_is_taken_where_it_is_a_value_or_a_switch_that_is_off(config):
    settings = config(objective_learning_rate=None, eval_steps=None, lean_training=None, load_best_model_at_end=None)
    assert not settings.load_best_model_at_end


@pytest.mark.parametrize("names", [["labels", "input_ids"], ["label"], []])
def test_other_labels_than_those_of_the_column_labels_are_refused(config, names):
    with pytest.raises(ValueError, match="label_names=.* can't be had: labels are those of the column 'labels'"):
        config(label_names=names)
    assert config(label_names=["labels"]).label_names == ["labels"]


def test_saving_on_each_machine_is_refused_where_transformers_would_leave_the_weights_out(config):
    with pytest.raises(ValueError, match="that all machines share"):
        config(save_on_each_node=True)


@pytest.mark.parametrize("report_to", ["nowhere", ["tensorboard", "nowhere"]])
def test_a_place_to_report_to_that_nobody_knows_is_refused(report_to, tmp_path):
    with pytest.raises(ValueError, match=r"report_to must be .* got \['nowhere'\]"):
        DistillationConfig(str(tmp_path), report_to=report_to)


def test_an_optimizer_is_refused_where_trainer_could_not_make_it(config):
    """Those of packages that are installed are taken; of the others all are known before a run begins."""
    refused, model = set(), tiny_bert(layers=1)
    for name in (each.value for each in OptimizerNames):
        plain = TrainingArguments(report_to="none", optim=name, optim_target_modules=["query"])
        try:
            Trainer.get_optimizer_cls_and_kwargs(plain, model)
        except (ImportError, ValueError):
            refused.add(name)
            with pytest.raises(ValueError, match=f"optim='{name}' can't be had here .*choose another optimizer"):
                config(optim=name)
        else:
            assert config(optim=name).optim == name
    assert "adamw_torch_xla" in refused and not {"adamw_torch", "adamw_torch_fused", "sgd", "adafactor"} & refused


def test_settings_that_an_optimizer_does_not_take_are_refused(config):
    with pytest.raises(ValueError, match="optim='adagrad' with optim_args='lr_decay' can't be had here"):
        config(optim="adagrad", optim_args="lr_decay")
    assert config(optim="adagrad", optim_args="lr_decay=0.1").optim == "adagrad"


@pytest.mark.parametrize(
    "length", [{"num_train_epochs": 0}, {"num_train_epochs": -1.0}, {"num_train_epochs": 0, "max_steps": 0}]
)
def test_a_training_of_no_epochs_is_refused_unless_it_goes_by_its_steps(config, length):
    with pytest.raises(ValueError, match=r"num_train_epochs must be > 0, got .*: nothing would be trained"):
        config(**length)
    assert config(**length | {"max_steps": 2}).max_steps == 2


def test_a_negative_number_of_steps_is_refused_but_for_that_of_none_given(config):
    with pytest.raises(ValueError, match="max_steps must be >= 1, or -1 to go by num_train_epochs, got -5"):
        config(max_steps=-5)
    assert config(max_steps=-1).max_steps == -1


@pytest.mark.parametrize("metric", ["mse", "eval_rmse", "brier_score", "error_rate", "perplexity", "score", "f1"])
def test_a_metric_of_ones_own_chooses_the_best_only_with_a_word_on_whether_more_is_better(config, metric):
    with pytest.raises(ValueError, match=f"{metric!r} is no metric that nlpkd reports.* greater_is_better=True or"):
        config(metric_for_best_model=metric)
    for greater in (True, False):
        assert config(metric_for_best_model=metric, greater_is_better=greater).greater_is_better is greater
    assert config(metric_for_best_model=f"{metric}_loss").greater_is_better is False


@pytest.mark.parametrize("task", [None, *TASKS])
def test_of_every_metric_of_an_evaluation_it_is_known_whether_more_is_better(config, task):
    logits = np.array([[2.0, -1.0], [-1.0, 2.0], [0.5, 0.0]])
    labels = np.array([0, 1, 1])
    if task == MULTI_LABEL:
        labels = np.eye(2)[labels]
    elif task == REGRESSION:
        logits, labels = logits[:, :1], labels.astype(float)
    for name in [*task_scoring(task, None).metrics(logits, labels), "agreement"]:
        assert config(metric_for_best_model=f"eval_dev_{name}").greater_is_better is ("error" not in name)
