"""Every field of `TrainingArguments` and argument of `Trainer`, set once: as in `Trainer`, or refused by name.

`python tests/test_trainer_arguments.py` writes the table in README.md anew.
"""

from __future__ import annotations

import dataclasses
import gc
import inspect
import os
import re
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from samples import tiny_bert
from transformers import Trainer, TrainerCallback, TrainingArguments

from nlpkd import DistillationConfig, DistillationTrainer
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss

README = Path(__file__).parent / "README.md"
START, END = "<!-- fields of TrainingArguments -->\n", "<!-- end -->\n"

BASE = {
    "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4, "max_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "use_cpu": True,
    "train_sampling_strategy": "sequential", "bf16": False, "logging_nan_inf_filter": False,
}  # fmt: skip

SAVE = {"save_strategy": "steps", "save_steps": 2}
BEST = {**SAVE, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
CHECKPOINTS = {"activation_checkpointing": True}

VALUES: dict[str, dict | str] = {
    # A field, what else it needs, and None where the field's own name is not to be set.
    "output_dir": "every run has one",
    "per_device_train_batch_size": {"per_device_train_batch_size": 8},
    "num_train_epochs": {"num_train_epochs": 2, "max_steps": -1},
    "max_steps": {"max_steps": 3},
    "learning_rate": {"learning_rate": 1e-3},
    "lr_scheduler_type": {"lr_scheduler_type": "cosine"},
    "lr_scheduler_kwargs": {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
    "warmup_steps": {"warmup_steps": 2},
    "optim": {"optim": "sgd"},
    "optim_args": {"optim": "adafactor", "optim_args": "scale_parameter=True"},
    "weight_decay": {"weight_decay": 0.1},
    "adam_beta1": {"adam_beta1": 0.5},
    "adam_beta2": {"adam_beta2": 0.9},
    "adam_epsilon": {"adam_epsilon": 1e-3},
    "optim_target_modules": {"optim_target_modules": ["query"]},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "average_tokens_across_devices": {"average_tokens_across_devices": False},
    "max_grad_norm": {"max_grad_norm": 0.01},
    "label_smoothing_factor": {"label_smoothing_factor": 0.2},
    "bf16": {"bf16": True},
    "fp16": {"fp16": True},
    "bf16_full_eval": {"bf16_full_eval": True},
    "fp16_full_eval": {"fp16_full_eval": True},
    "tf32": {"tf32": True},
    "activation_checkpointing": {"activation_checkpointing": True},
    "activation_checkpointing_kwargs": {**CHECKPOINTS, "activation_checkpointing_kwargs": {"use_reentrant": False}},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "gradient_checkpointing_kwargs": {
        "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}
    },
    "torch_compile": {"torch_compile": True, "torch_compile_backend": "eager"},
    "torch_compile_backend": {"torch_compile_backend": "eager"},
    "torch_compile_mode": "a mode of inductor, which takes a minute to compile",
    "use_liger_kernel": {"use_liger_kernel": True},
    "liger_kernel_config": {"liger_kernel_config": {"rope": False}},
    "use_cache": {"use_cache": True},
    "neftune_noise_alpha": {"neftune_noise_alpha": 5.0},
    "torch_empty_cache_steps": {"torch_empty_cache_steps": 1},
    "auto_find_batch_size": {"auto_find_batch_size": True},
    "logging_strategy": {"logging_strategy": "epoch"},
    "logging_steps": {"logging_steps": 2},
    "logging_first_step": {"logging_first_step": True, "logging_steps": 2},
    "log_on_each_node": {"log_on_each_node": False},
    "logging_nan_inf_filter": {"logging_nan_inf_filter": True},
    "include_num_input_tokens_seen": {"include_num_input_tokens_seen": "all"},
    "log_level": {"log_level": "error"},
    "log_level_replica": {"log_level_replica": "error"},
    "disable_tqdm": {"disable_tqdm": False},
    "report_to": {"report_to": "nowhere"},
    "run_name": {"run_name": "mine"},
    "project": {"project": "mine"},
    "trackio_space_id": {"trackio_space_id": "mine"},
    "trackio_bucket_id": {"trackio_bucket_id": "mine"},
    "trackio_static_space_id": {"trackio_static_space_id": "mine"},
    "eval_strategy": {"eval_strategy": "epoch"},
    "eval_steps": {"eval_strategy": "steps", "eval_steps": 2},
    "eval_delay": {"eval_strategy": "steps", "eval_steps": 1, "eval_delay": 2},
    "per_device_eval_batch_size": {"per_device_eval_batch_size": 3},
    "prediction_loss_only": {"prediction_loss_only": True},
    "eval_on_start": {"eval_on_start": True, "eval_strategy": "epoch"},
    "eval_do_concat_batches": {"eval_do_concat_batches": False},
    "eval_use_gather_object": {"eval_use_gather_object": True},
    "eval_accumulation_steps": {"eval_accumulation_steps": 1},
    "include_for_metrics": {"include_for_metrics": ["inputs", "loss"]},
    "batch_eval_metrics": {"batch_eval_metrics": True},
    "save_only_model": {**SAVE, "save_only_model": True},
    "save_strategy": {"save_strategy": "epoch"},
    "save_steps": SAVE,
    "save_on_each_node": {"save_on_each_node": True},
    "save_total_limit": {**SAVE, "save_steps": 1, "save_total_limit": 1},
    "enable_jit_checkpoint": {"enable_jit_checkpoint": True},
    "push_to_hub": "`tests/hub/test_push.py` pushes to a server on loopback",
    "hub_token": "`tests/hub/test_push.py`",
    "hub_private_repo": "`tests/hub/test_push.py`",
    "hub_model_id": "`tests/hub/test_push.py`",
    "hub_strategy": {"hub_strategy": "checkpoint"},
    "hub_always_push": "`tests/hub/test_push.py`",
    "hub_revision": "`tests/hub/test_push.py`",
    "load_best_model_at_end": BEST,
    "metric_for_best_model": {**BEST, "metric_for_best_model": "loss"},
    "greater_is_better": {**BEST, "metric_for_best_model": "loss", "greater_is_better": True},
    "ignore_data_skip": {"ignore_data_skip": True},
    "restore_callback_states_from_checkpoint": {"restore_callback_states_from_checkpoint": True},
    "full_determinism": "it holds for the whole process",
    "seed": {"seed": 7, "train_sampling_strategy": "random"},
    "data_seed": {"data_seed": 7, "train_sampling_strategy": "random"},
    "use_cpu": "the tests run on the CPU",
    "accelerator_config": {"accelerator_config": {"split_batches": True}},
    "parallelism_config": "it is for several processes",
    "dataloader_drop_last": {"dataloader_drop_last": True, "per_device_train_batch_size": 3},
    "dataloader_num_workers": {"dataloader_num_workers": 1},
    "dataloader_pin_memory": {"dataloader_pin_memory": False},
    "dataloader_persistent_workers": {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
    "dataloader_prefetch_factor": {"dataloader_prefetch_factor": 2, "dataloader_num_workers": 1},
    "dataloader_multiprocessing_context": {
        "dataloader_multiprocessing_context": "fork", "dataloader_num_workers": 1
    },
    "dataloader_in_order": {"dataloader_in_order": False},
    "remove_unused_columns": {"remove_unused_columns": False},
    "label_names": {"label_names": ["labels", "input_ids"]},
    "train_sampling_strategy": {"train_sampling_strategy": "random"},
    "length_column_name": {"length_column_name": "size"},
    "ddp_find_unused_parameters": {"ddp_find_unused_parameters": True},
    "ddp_bucket_cap_mb": {"ddp_bucket_cap_mb": 1},
    "ddp_broadcast_buffers": {"ddp_broadcast_buffers": False},
    "ddp_static_graph": {"ddp_static_graph": True},
    "ddp_backend": {"ddp_backend": "gloo"},
    "ddp_timeout": {"ddp_timeout": 60},
    "fsdp": {"fsdp": True},
    "fsdp_config": {"fsdp_config": {"min_num_params": 10}},
    "deepspeed": {"deepspeed": {"train_batch_size": 4}},
    "debug": {"debug": "underflow_overflow"},
    "skip_memory_metrics": {"skip_memory_metrics": False},
    "do_train": {"do_train": True},
    "do_eval": {"do_eval": True},
    "do_predict": {"do_predict": True},
    "resume_from_checkpoint": {"resume_from_checkpoint": "nowhere"},
    "local_rank": {"local_rank": 0},
}  # fmt: skip

WHY = {
    "gradient_accumulation_steps": "the mean over a step's rows, where `Trainer` adds the micro-batches' means up",
    "bf16_full_eval": "the loss of an evaluation is computed in float32",
}
"""Where the losses may differ though nothing is wrong."""


class Outcome:
    """How a training ended: its losses, or its error."""

    def __init__(self, make, settings, rows, tokenizer, **more):
        self.error, self.numbers = "", []
        environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
        try:
            with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
                warnings.simplefilter("ignore")
                trainer = make(folder, settings, rows, tokenizer, **more)
                trainer.train()
                evaluated = trainer.evaluate(rows)
                logged = [
                    entry[key] for entry in trainer.state.log_history for key in ("loss", "eval_loss") if key in entry
                ]
                weights = [parameter.detach().double().sum().item() for parameter in trainer.model.parameters()]
                self.numbers = [*logged, evaluated["eval_loss"], trainer.state.global_step, *weights]
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
        finally:
            # Some settings are kept there for the whole process.
            os.environ.clear()
            os.environ.update(environment)
            signal.signal(signal.SIGTERM, handler)

    def same(self, other: Outcome) -> bool:
        return self.numbers == pytest.approx(other.numbers, rel=2e-3, abs=2e-4)


def student():
    return tiny_bert(1, hidden=8, seed=3)


def no_metrics(prediction, compute_result=True):
    return {}


def stock(folder, settings, rows, tokenizer, **more):
    args = TrainingArguments(output_dir=folder, **(BASE | settings))
    given = {"model": student(), "eval_dataset": rows, "compute_metrics": no_metrics} | more
    return Trainer(args=args, train_dataset=rows, processing_class=tokenizer, **given)


def ours(folder, settings, rows, tokenizer, teacher=None, **more):
    quick = {"teacher_check": "off", "cache_teacher": "off"}
    args = DistillationConfig(output_dir=folder, **(BASE | quick | settings))
    # With a weight of 0 the teacher is run, or kept, and changes no loss.
    objectives = [CrossEntropyLoss()] + ([ForwardKLLoss(weight=0.0)] if teacher is not None else [])
    if "compute_loss_func" in more:
        objectives = []
    given = {"model": student(), "eval_dataset": rows, "compute_metrics": no_metrics} | more
    return DistillationTrainer(
        teacher_model=teacher,
        args=args,
        objectives=objectives,
        train_dataset=rows,
        processing_class=tokenizer,
        **given,
    )


def judge(name, settings, rows, tokenizer, make=lambda: {}) -> str:
    """Say how a setting, or what `make` gives, ends in nlpkd, by training with it in both."""
    expected = Outcome(stock, settings, rows, tokenizer, **make())
    alone = Outcome(ours, settings, rows, tokenizer, **make())
    taught = Outcome(ours, settings, rows, tokenizer, teacher=tiny_bert(1, seed=1), **make())
    if alone.error and expected.error:
        same = alone.error.split(":")[0] == expected.error.split(":")[0] or name in alone.error
        return (
            "refused here, as by `Trainer`" if same and taught.error else f"NOT ALIKE: {alone.error} {expected.error}"
        )
    if alone.error and taught.error:
        named = name in alone.error and name in taught.error
        return "refused by name" if named else f"NOT NAMED: {alone.error[:200]}"
    if alone.error or taught.error or expected.error:
        return f"NOT ALIKE: {alone.error or taught.error} | {expected.error}"[:300]
    if alone.same(expected) and taught.same(expected):
        return "as in `Trainer`"
    return WHY.get(name) or f"OTHER NUMBERS: {expected.numbers[:6]} {alone.numbers[:6]} {taught.numbers[:6]}"


def table(verdicts: dict[str, str]) -> str:
    lines = ["| field | in nlpkd |", "|---|---|"]
    by_verdict: dict[str, list[str]] = {}
    for name, verdict in verdicts.items():
        by_verdict.setdefault(verdict, []).append(f"`{name}`")
    return (
        "\n".join([*lines, *(f"| {', '.join(names)} | {verdict} |" for verdict, names in by_verdict.items())]) + "\n"
    )


def written() -> dict[str, str]:
    """What README says of each field."""
    text = README.read_text().partition(START)[2].partition(END)[0]
    rows = re.findall(r"^\| (`.*`) \| (.*) \|$", text, flags=re.MULTILINE)
    return {name: verdict for names, verdict in rows for name in re.findall(r"`(\w+)`", names)}


def fields() -> list[str]:
    return [field.name for field in dataclasses.fields(TrainingArguments)]


def verdict_of(name: str, rows, tokenizer) -> str:
    value = VALUES[name]
    return f"not tried: {value}" if isinstance(value, str) else judge(name, value, rows, tokenizer)


@pytest.fixture(scope="module")
def rows(make_rows):
    return make_rows(8).remove_columns("text")


@pytest.mark.parametrize("name", fields())
def test_a_field_of_the_training_arguments_does_what_the_table_says(name, rows, tokenizer):
    """A field that is new in transformers fails here, until somebody has looked what nlpkd makes of it."""
    assert name in VALUES, "give it another value in VALUES, and write the table anew"
    assert verdict_of(name, rows, tokenizer) == written().get(name), "python tests/test_trainer_arguments.py"


def test_the_table_tries_no_value_that_is_the_default():
    """Such a value would be as in Trainer whatever nlpkd made of the field."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    defaults |= BASE | {"label_names": Trainer(student(), TrainingArguments(**BASE)).label_names}
    tried = {name: value[name] for name, value in VALUES.items() if isinstance(value, dict)}
    assert [name for name, value in tried.items() if value == defaults[name]] == []


def test_the_table_has_no_field_that_is_gone():
    assert set(written()) == set(VALUES) == set(fields())
    assert not [verdict for verdict in written().values() if verdict.startswith(("NOT ", "OTHER "))]


class Idle(TrainerCallback):
    pass


def reduced(outputs, labels, num_items_in_batch=None):
    total = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def optimizers():
    model = student()
    return {"model": model, "optimizers": (torch.optim.SGD(model.parameters(), lr=0.1), None)}


def collated(tokenizer):
    return {"data_collator": transformers.DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)}


ARGUMENTS = {
    "model": None, "args": None, "train_dataset": None, "processing_class": None,  # in every run
    "data_collator": collated,
    "eval_dataset": lambda tokenizer: {"eval_dataset": None},
    "model_init": lambda tokenizer: {"model": None, "model_init": student},
    "compute_loss_func": lambda tokenizer: {"compute_loss_func": reduced},
    "compute_metrics": lambda tokenizer: {"compute_metrics": lambda prediction: {"rows": len(prediction.label_ids)}},
    "callbacks": lambda tokenizer: {"callbacks": [Idle()]},
    "optimizers": lambda tokenizer: optimizers(),
    "optimizer_cls_and_kwargs": lambda tokenizer: {"optimizer_cls_and_kwargs": (torch.optim.RMSprop, {"lr": 1e-3})},
    "preprocess_logits_for_metrics": lambda tokenizer: {
        "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
        "compute_metrics": lambda prediction: {"mean": float(prediction.predictions.mean())},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", [*inspect.signature(Trainer.__init__).parameters][1:])
def test_an_argument_of_the_trainer_works_as_in_trainer(name, rows, tokenizer):
    make = ARGUMENTS[name]
    if make is not None:
        assert judge(name, {}, rows, tokenizer, lambda: make(tokenizer)) == "as in `Trainer`"


if __name__ == "__main__":
    from samples import WORDS, raw_rows
    from transformers import BertTokenizer

    from nlpkd import load_text_classification

    transformers.utils.logging.set_verbosity_error()
    gc.freeze()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)}, model_max_length=64)
    rows = load_text_classification(raw_rows(8), tokenizer=tokenizer)["train"].remove_columns("text")
    before, _, rest = README.read_text().partition(START)
    verdicts = {}
    for name in sys.argv[1:] or fields():
        verdicts[name] = verdict_of(name, rows, tokenizer)
        print(name, verdicts[name], file=sys.stderr, flush=True)
    new = table(verdicts)
    if not sys.argv[1:]:
        README.write_text(before + START + new + END + rest.partition(END)[2])
    print(new)
