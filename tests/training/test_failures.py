"""Bad numbers are found however seldom anybody looks, and what ends a training leaves what it goes on from."""

from __future__ import annotations

import copy
import json
import logging
import signal

import pytest
import torch
from accelerate import Accelerator
from samples import tiny_bert
from transformers import EarlyStoppingCallback, TrainerCallback

from nlpkd import DistillationConfig, DistillationTrainer
from nlpkd.training.failures import explain_ctrl_c, explain_lost_process, explain_out_of_memory
from nlpkd.training.loss_log import LossAccumulator


def make() -> LossAccumulator:
    return LossAccumulator(["first", "second"], Accelerator(cpu=True), torch.device("cpu"))


def test_means_are_over_the_steps_since_the_last_time():
    window = make()
    for step in range(3):
        window.set_step(step + 7)
        window.add(torch.tensor([1.0, step]), [step])
    assert window.means(10) == {"first": 1.0, "second": 1.0}
    assert window.means(10) == {}
    window.set_step(10)
    window.add(torch.tensor([4.0, 2.0]), None)
    window.add_last(3.0)
    assert window.means(11) == {"first": 4.0, "second": 5.0}


def test_means_are_of_what_was_added_since_the_last_time_alone():
    window = make()
    window.set_step(0)
    window.add(torch.tensor([4.0]), None)
    assert window.means(1) == {"first": 4.0}
    window.set_step(1)
    window.add_last(0.0)
    assert window.means(2) == {"second": 0.0}
    assert window.means(3) == {}


def test_the_first_bad_batch_is_named_though_all_after_it_are_bad_too():
    window = make()
    for step in range(6):
        window.set_step(step)
        window.add(torch.tensor([float("inf") if step > 2 else 1.0, float("nan") if step > 3 else 1.0]), [step, 40])
        window.add_norm(torch.tensor(1.0 if step < 3 else float("nan")))
    with pytest.raises(FloatingPointError, match="first became NaN or infinite in step 4, on rows 3, 40 of"):
        window.check()


def test_losses_are_checked_for_nan_within_a_thousand_steps_though_nobody_reads_them():
    window = make()
    with pytest.raises(FloatingPointError, match="second became NaN or infinite in step 6, on rows 5 of"):
        for step in range(1_001):
            window.set_step(step)
            window.add(torch.tensor([1.0, float("nan") if step == 5 else 0.0]), [step])


def test_a_training_starts_with_no_losses_of_the_one_before():
    window = make()
    window.set_step(3)
    window.add(torch.tensor([float("nan"), 1.0]), [1])
    window.restart()
    window.set_step(0)
    window.add(torch.tensor([2.0, 1.0]), [1])
    assert window.means(1) == {"first": 2.0, "second": 1.0}


@pytest.mark.parametrize(
    "words",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.77.0.2]:20132",
        # Without its file's name: what operations say that end because another one timed out.
        "Application timeout caused pair closure",
    ],
)
def test_a_lost_connection_is_told_from_other_errors_by_the_words_of_gloo(words, tmp_path, monkeypatch):
    args = DistillationConfig(output_dir=str(tmp_path))
    with pytest.raises(RuntimeError, match="pair"), explain_lost_process(args):
        raise RuntimeError(words)
    monkeypatch.setattr(DistillationConfig, "world_size", 2)
    with pytest.raises(ConnectionError, match="process 0 of 2 can't reach another one any more: it ended"):
        with explain_lost_process(args):
            raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="size mismatch"), explain_lost_process(args):
        raise RuntimeError("size mismatch")


@pytest.mark.parametrize("order", ["group_by_length", "random", "sequential", "batch_rebalance"])
def test_where_memory_runs_out_smaller_batches_are_advised_to_be_found_where_that_is_taken(order, tmp_path):
    def args(**options):
        return DistillationConfig(output_dir=str(tmp_path), train_sampling_strategy=order, **options)

    with pytest.raises(MemoryError) as told, explain_out_of_memory(args()):
        raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
    if "auto_find_batch_size=True" in str(told.value):
        assert args(auto_find_batch_size=True).auto_find_batch_size
    else:
        with pytest.raises(ValueError, match="auto_find_batch_size=True can't be had with .*batch_rebalance"):
            args(auto_find_batch_size=True)
    assert ("auto_find_batch_size=True" in str(told.value)) == (order != "batch_rebalance")


class _Watch(TrainerCallback):
    """Notes what a run knows after each step, and sends it SIGTERM within one."""

    def __init__(self, stop=None):
        self.stop, self.known, self.saves = stop, {}, []

    def on_step_begin(self, args, state, control, **kwargs):
        self._note(state, **kwargs)
        if state.global_step + 1 == self.stop:
            signal.raise_signal(signal.SIGTERM)

    def on_train_end(self, args, state, control, **kwargs):
        self._note(state, **kwargs)

    def on_save(self, args, state, control, **kwargs):
        self.saves.append(state.global_step)

    def _note(self, state, lr_scheduler=None, **kwargs):
        known = {name: getattr(state, name) for name in ("best_metric", "best_global_step")}
        known["evaluations"] = [entry for entry in state.log_history if "eval_loss" in entry]
        self.known[state.global_step] = copy.deepcopy(_without_times(known | {"rates": lr_scheduler.state_dict()}))


def _without_times(known):
    kept = ("step", "eval_loss", "epoch")
    return known | {"evaluations": [{name: entry[name] for name in kept} for entry in known["evaluations"]]}


@pytest.fixture
def watched(settings, make_rows, tokenizer, tmp_path):
    """Train two epochs of three steps, stop within one where asked, and go on where there is a checkpoint."""

    def train(folder, stop=None, resume=None, callbacks=(), **config):
        config = {"num_train_epochs": 2, "metric_for_best_model": "loss", "learning_rate": 1e-2} | config
        args = settings(output_dir=str(tmp_path / folder), **config)
        trainer = DistillationTrainer(
            tiny_bert(1, hidden=8), None, args, None, make_rows(24), make_rows(8, 1), tokenizer,
            callbacks=[watch := _Watch(stop), *callbacks],
        )  # fmt: skip
        if stop is None:
            trainer.train(resume_from_checkpoint=resume)
        else:
            with pytest.raises(SystemExit):
                trainer.train()
        return trainer, watch

    return train


_PLATEAU = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "threshold": 1.0}}
_BY_STEPS = {"eval_strategy": "steps", "eval_steps": 2}
_BY_EPOCHS = {"eval_strategy": "epoch"}


@pytest.mark.parametrize(
    "strategies",
    [
        _BY_EPOCHS | _PLATEAU | {"save_strategy": "epoch", "load_best_model_at_end": True},
        _BY_EPOCHS | {"save_strategy": "best", "load_best_model_at_end": True},
        _BY_EPOCHS | {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 1},
        _BY_STEPS | _PLATEAU | {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True},
        # Of a loss that falls the first one is the greatest.
        _BY_STEPS | {"save_strategy": "best", "greater_is_better": True, "load_best_model_at_end": True},
        _BY_EPOCHS,
        {"max_steps": 5} | _BY_EPOCHS | {"save_strategy": "epoch"},
    ],
    ids=lambda strategies: "-".join(str(value) for value in strategies.values()),
)
def test_what_sigterm_leaves_after_any_step_is_what_a_run_that_goes_on_knows_then(strategies, watched, tmp_path):
    """After an epoch's last step it has the epoch's evaluation, within an epoch none; and it is written once."""
    whole, straight = watched("straight", **strategies)
    for step in range(1, whole.state.global_step + 1):
        _, stopped = watched(f"stopped-{step}", stop=step, **strategies)
        checkpoint = tmp_path / f"stopped-{step}" / f"checkpoint-{step}"
        assert (checkpoint / "checksums.json").is_file() and stopped.saves.count(step) == 1
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        found = {name: state[name] for name in ("best_metric", "best_global_step")}
        found["evaluations"] = [entry for entry in state["log_history"] if "eval_loss" in entry]
        found["rates"] = torch.load(checkpoint / "scheduler.pt", weights_only=True)
        assert _without_times(found) == straight.known[step]


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("stop", [3, 4])
def test_a_run_that_goes_on_after_sigterm_is_as_patient_and_ends_with_the_same_student(stop, start, watched):
    """No figure is good enough for this patience, so that one evaluation more would end the run before."""
    config = _BY_EPOCHS | {"save_strategy": "epoch", "num_train_epochs": 5, "load_best_model_at_end": True}
    ends = []
    for folder, cut in (("straight", None), ("cut", stop)):
        if cut:
            watched(folder, cut, callbacks=[EarlyStoppingCallback(2, 1.0)], eval_on_start=start, **config)
        patience = EarlyStoppingCallback(2, 1.0)
        trainer, _ = watched(folder, resume=cut is not None, callbacks=[patience], eval_on_start=start, **config)
        evaluations = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert evaluations == [*([0] if start else []), 3, 6, 9] and trainer.state.global_step == 9
        assert trainer.args.eval_on_start is start
        ends.append(trainer.model.state_dict())
    assert all(tensor.equal(ends[1][name]) for name, tensor in ends[0].items())


@pytest.mark.parametrize("without_optimizer", [False, True])
def test_what_ends_a_run_advises_to_go_on_only_from_what_can_be_gone_on_from(without_optimizer, watched, caplog):
    with caplog.at_level(logging.WARNING):
        trainer, _ = watched("run", stop=2, save_only_model=without_optimizer)
        with pytest.raises(KeyboardInterrupt), explain_ctrl_c(trainer.args):
            raise KeyboardInterrupt
    advice = (
        "it begins anew, since checkpoint-2 has no state of the optimizer (save_only_model=True)."
        if without_optimizer
        else "go on from checkpoint-2 with resume_from_checkpoint=True (--resume_from_checkpoint True)."
    )
    assert f"stopped after step 2, whose checkpoint is in {trainer.args.output_dir}: {advice}" in caplog.text
    assert f"Stopped by Ctrl-C in {trainer.args.output_dir}: {advice}" in caplog.text
