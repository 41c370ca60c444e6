"""Which checkpoint a training goes on from where its student starts from other weights."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from samples import QUIET, raw_rows, tiny_bert
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from nlpkd import DistillationConfig, DistillationTrainer, load_text_classification
from nlpkd.objectives import HiddenStateMSELoss
from nlpkd.training.resuming import tell_shortened_epochs
from nlpkd.utils.disk.files import write_checksums


@pytest.fixture
def run(settings, make_rows, tokenizer, tmp_path):
    """Make a trainer of a student with weights of its own."""

    def make(seed, same_start):
        args = settings(output_dir=str(tmp_path / "run"), save_strategy="steps", save_steps=1)
        trainer = DistillationTrainer(
            tiny_bert(seed=seed), None, args, None, make_rows(16), processing_class=tokenizer
        )
        trainer.same_start = same_start
        return trainer

    make(1, True).train()
    return make


def test_where_the_start_counts_another_one_is_another_run(run, tmp_path):
    with pytest.raises(ValueError, match="is of another run; what differs: the student's weights at the start"):
        run(2, True).train(resume_from_checkpoint=True)
    again, anew = run(1, True), run(2, True)
    again.train(resume_from_checkpoint="auto")
    assert again.resumed_checkpoint == str(tmp_path / "run" / "checkpoint-2")
    anew.train(resume_from_checkpoint="auto")
    assert anew.resumed_checkpoint is None
    assert len(list((tmp_path / "run" / "earlier-1").glob("checkpoint-*"))) == 2


@pytest.mark.parametrize("same_start", [True, False])
def test_a_checkpoint_takes_the_place_of_the_start_where_it_is_named_or_the_start_does_not_count(
    run, same_start, tmp_path, caplog
):
    asked = str(tmp_path / "run" / "checkpoint-1") if same_start else True
    with caplog.at_level(logging.WARNING):
        run(2, same_start).train(resume_from_checkpoint=asked)
    assert "The student starts from other weights, which are not used" in caplog.text


@pytest.mark.parametrize("written", ["run/checkpoint-1", "./run/checkpoint-1", "link/checkpoint-1"])
def test_a_checkpoint_that_is_named_is_not_set_aside_however_it_is_written(run, written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("run")
    again = run(2, True)
    again.train(resume_from_checkpoint=written)
    assert again.state.global_step == 2 and (tmp_path / "run" / "checkpoint-1").is_dir()


def _texts(make_rows, tokenizer, tmp_path, kind):
    """Rows of one kind that the trainer takes."""
    if kind == "rows":
        return make_rows(16)
    if kind == "rows without a length":
        return make_rows(16).to_iterable_dataset()
    file = str(tmp_path / "texts.jsonl")
    raw_rows(16).to_json(file)
    return load_text_classification(file, tokenizer=tokenizer, streaming=True)["train"]


@pytest.mark.parametrize("operations", [1, 10**18])
@pytest.mark.parametrize("kind", ["rows", "rows without a length", "stream of a file"])
def test_a_training_on_rows_of_any_kind_is_resumed_however_many_operations_it_took(
    kind, operations, settings, make_rows, tokenizer, tmp_path
):
    texts = _texts(make_rows, tokenizer, tmp_path, kind)
    args = settings(save_strategy="steps", save_steps=2, max_steps=4)

    class Counting(DistillationTrainer):
        def floating_point_ops(self, inputs):
            return operations

    def trainer():
        return Counting(tiny_bert(seed=1), None, args, None, texts, processing_class=tokenizer)

    whole = trainer()
    whole.train()
    assert whole.state.total_flos == 4 * operations
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert resumed.resumed_checkpoint
    for theirs, ours in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("stopped", [2, 4], ids=["unfinished", "finished"])
def test_a_run_that_is_resumed_for_another_length_has_the_learning_rates_of_that_length(
    stopped, schedule, settings, make_rows, tokenizer, tmp_path
):
    def trained(name, epochs, checkpoint=None):
        folder = str(tmp_path / name)
        args = settings(
            output_dir=folder, save_strategy="steps", save_steps=2, num_train_epochs=epochs, logging_steps=1,
            lr_scheduler_type=schedule, warmup_steps=0.2, objective_learning_rate=0.01, learning_rate=0.05,
        )  # fmt: skip
        used = []

        class Noting(DistillationTrainer):
            def training_step(self, *given, **options):
                used.append([group["lr"] for group in self.optimizer.param_groups])
                return super().training_step(*given, **options)

        models = tiny_bert(hidden=8, seed=1), tiny_bert(layers=3, seed=2)
        trainer = Noting(*models, args, [HiddenStateMSELoss()], make_rows(16), processing_class=tokenizer)
        trainer.train(checkpoint and f"{folder}/{checkpoint}")
        return used

    whole = trained("whole", 4)
    assert len(whole) == 8 and len(set(whole[1])) == 2
    trained("first", 2)
    assert trained("first", 4, f"checkpoint-{stopped}") == whole[stopped:]
    assert trained("whole", 4, f"checkpoint-{stopped}") == whole[stopped:]


BEST = {
    "load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 1,
    "save_strategy": "steps", "save_steps": 1,
}  # fmt: skip


class _OwnRows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = list(rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, at):
        return self.rows[at]


def _as_they_are(rows, seed):
    return rows(8, seed=seed)


def _by_name(rows, seed):
    return {"easy": rows(8, seed=5), "hard": rows(8, seed=seed)}


def ones(prediction):
    return {"accuracy": 1.0}


CHOOSING = {
    "metric": (
        {"metric_for_best_model": "accuracy"},
        {},
        "metric_for_best_model .(hard_)?loss in the checkpoint",
    ),
    "direction": ({"greater_is_better": True}, {}, "greater_is_better .False in the checkpoint, True here"),
    "times": ({"eval_delay": 1}, {}, "eval_delay .0 in the checkpoint, 1 here"),
    "rows": ({}, {"seed": 4}, "the (validation|hard) rows' "),
    "function": ({}, {"compute_metrics": ones}, "the metrics' function .None in the checkpoint, ones here"),
}
"""What else the best checkpoint may be chosen by, and what a refusal says."""


@pytest.fixture(scope="module", params=[_as_they_are, _by_name])
def choosing(request, make_rows, tokenizer, tmp_path_factory):
    """Make a trainer whose best checkpoint is chosen, in a folder with the first checkpoint of such a run."""
    first = tmp_path_factory.mktemp("first") / "run"

    def make(folder, config=None, *, seed=3, held_out=request.param, **options):
        best = BEST | (config or {})
        if held_out is _by_name and best["metric_for_best_model"]:
            best["metric_for_best_model"] = f"hard_{best['metric_for_best_model']}"
        args = DistillationConfig(output_dir=str(folder), max_steps=2, per_device_train_batch_size=8, **QUIET, **best)
        return DistillationTrainer(
            tiny_bert(seed=1), None, args, None, make_rows(16), held_out(make_rows, seed), tokenizer, **options
        )

    make(first).train()
    shutil.rmtree(first / "checkpoint-2")

    def copy(folder, *given, **options):
        shutil.copytree(first, folder, ignore=shutil.ignore_patterns(".lock"))
        return make(folder, *given, **options)

    return copy


@pytest.mark.parametrize("other", CHOOSING)
def test_a_run_whose_best_checkpoint_is_chosen_by_other_figures_is_another_run(other, choosing, tmp_path):
    config, options, said = CHOOSING[other]
    with pytest.raises(ValueError, match=f"is of another run; what differs: .*{said}"):
        choosing(tmp_path / "refused", config, **options).train(resume_from_checkpoint=True)
    anew = choosing(tmp_path / "anew", config, **options)
    anew.train(resume_from_checkpoint="auto")
    assert anew.resumed_checkpoint is None
    assert str(anew.state.best_model_checkpoint).startswith(str(tmp_path / "anew" / "checkpoint-"))


def test_a_run_whose_best_checkpoint_is_chosen_by_the_same_figures_goes_on(choosing, tmp_path, caplog):
    again = choosing(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        again.train(resume_from_checkpoint=True)
    assert again.resumed_checkpoint and "its best metric" not in caplog.text


def test_figures_count_only_where_the_best_checkpoint_is_chosen_by_them(choosing, tmp_path):
    last = choosing(tmp_path / "run", {"load_best_model_at_end": False, "metric_for_best_model": None}, seed=4)
    last.train(resume_from_checkpoint=True)
    assert last.resumed_checkpoint and "chosen" not in last.run_record


def test_a_checkpoint_of_an_earlier_version_is_taken_and_what_it_lacks_is_said(choosing, tmp_path, caplog):
    trainer = choosing(tmp_path / "run", seed=4)
    noted = tmp_path / "run" / "checkpoint-1" / "distillation_run.json"
    record = json.loads(noted.read_text())
    record.pop("chosen", None)
    noted.write_text(json.dumps(record))
    (noted.parent / "checksums.json").unlink()
    write_checksums(noted.parent)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.resumed_checkpoint and "does not say which rows its best metric" in caplog.text


def test_a_run_judged_by_rows_of_a_user_s_own_class_goes_on(choosing, tmp_path):
    first = choosing(tmp_path / "run", held_out=lambda rows, seed: _OwnRows(rows(8, seed=seed)))
    shutil.rmtree(tmp_path / "run" / "checkpoint-1")
    first.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    first.train(resume_from_checkpoint=True)
    assert first.resumed_checkpoint


class Kept(TrainerCallback, ExportableState):
    """Counts the steps, which it keeps."""

    def __init__(self, unit=1):
        self.unit, self.steps = unit, 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += self.unit

    def state(self):
        return {"args": {"unit": self.unit}, "attributes": {"steps": self.steps}}


class Cut(TrainerCallback):
    """Ends a run after the checkpoint of a step, as a killed process does."""

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture
def stopping(settings, make_rows, tokenizer, tmp_path):
    """Make a trainer of at most ten steps whose figures never improve, and cut it after a checkpoint where asked."""

    def make(folder, *callbacks, cut=None, **config):
        args = settings(
            output_dir=str(tmp_path / folder), max_steps=10, save_strategy="steps", save_steps=1,
            eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, metric_for_best_model="accuracy",
            greater_is_better=True, **config,
        )  # fmt: skip
        trainer = DistillationTrainer(
            tiny_bert(seed=1), None, args, None, make_rows(16), make_rows(8), tokenizer,
            compute_metrics=ones, callbacks=[*callbacks, *([] if cut is None else [Cut(cut)])],
        )  # fmt: skip
        if cut is not None:
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        return trainer

    return make


@pytest.mark.parametrize("asked", [True, "auto", "path"])
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_run_that_stops_early_ends_at_the_same_step_where_it_was_cut_and_resumed(asked, cut, stopping, tmp_path):
    """The last of these checkpoints is the very one at which the run stopped."""
    straight = stopping("straight", EarlyStoppingCallback(4), Kept(), Kept(2))
    straight.train()
    stopping("cut", EarlyStoppingCallback(4), Kept(), Kept(2), cut=cut)
    resumed = stopping("cut", EarlyStoppingCallback(4), *(own := (Kept(), Kept(2))))
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{cut}") if asked == "path" else asked)
    assert resumed.state.global_step == straight.state.global_step == 5
    assert [each.steps for each in own] == [5, 10]
    assert resumed.state.best_global_step == straight.state.best_global_step
    ends = [trainer.model.state_dict() for trainer in (straight, resumed)]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_settings_of_a_callback_are_those_of_the_resumed_run_which_says_so(stopping, tmp_path, caplog):
    stopping("run", EarlyStoppingCallback(4), cut=5)
    longer = stopping("run", EarlyStoppingCallback(7))
    with caplog.at_level(logging.WARNING):
        longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 8
    assert "EarlyStoppingCallback: early_stopping_patience (4 in the checkpoint, 7 here); this run's is" in caplog.text
    given = stopping("run", EarlyStoppingCallback(8), restore_callback_states_from_checkpoint=True)
    given.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert given.state.global_step == 5


def test_callbacks_that_one_of_both_runs_has_alone_are_named(stopping, caplog):
    stopping("run", EarlyStoppingCallback(4), cut=2)
    other = stopping("run", kept := Kept())
    with caplog.at_level(logging.WARNING):
        other.train(resume_from_checkpoint=True)
    assert "has a state of EarlyStoppingCallback, which is no callback of this run: it is left out" in caplog.text
    assert "has no state of Kept, which begins anew" in caplog.text
    assert other.state.global_step == 10 and kept.steps == 8
    assert set(other.state.stateful_callbacks) == {"Kept", "TrainerControl"}


def _taken(trainer, key):
    """Steps after which something was logged."""
    return [entry["step"] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize("often", [1, 0.5])
@pytest.mark.parametrize("first", [2, 0.5])
def test_a_resumed_run_logs_evaluates_and_saves_when_it_says(first, often, settings, make_rows, tokenizer, tmp_path):
    """As a run that begins with them does, from the checkpoint on."""

    def train(folder, length, every, **config):
        times = {f"{kind}_steps": every for kind in ("logging", "eval", "save")}
        args = settings(
            output_dir=str(tmp_path / folder), max_steps=length, eval_strategy="steps", save_strategy="steps",
            **times, **config,
        )  # fmt: skip
        rows = make_rows(16), make_rows(8, 1)
        trainer = DistillationTrainer(tiny_bert(1, hidden=8), None, args, None, *rows, processing_class=tokenizer)
        trainer.train(resume_from_checkpoint=bool(config))
        return trainer

    train("run", 4, first)
    resumed = train("run", 8, often, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    straight = train("straight", 8, often)
    for key in ("loss", "eval_loss"):
        after = [step for step in _taken(straight, key) if step > 4]
        assert [step for step in _taken(resumed, key) if step > 4] == after and after
    saved = [int(path.name[11:]) for path in (tmp_path / "run").glob("checkpoint-*")]
    assert sorted(step for step in saved if step > 4) == after
    assert resumed.state.train_batch_size == 4


class _Shorten(TrainerCallback):
    """Ends the first epoch after some steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_epoch_stop = state.global_step == self.steps


@pytest.mark.parametrize(("steps", "told"), [(1, True), (2, True), (3, False), (None, False)])
def test_epochs_that_were_ended_early_are_told_of_when_a_run_is_resumed(
    steps, told, settings, make_rows, tokenizer, caplog
):
    """Epochs have three steps, the last one of a single micro-batch, and each step leaves a checkpoint."""
    args = settings(
        num_train_epochs=3, save_strategy="steps", save_steps=1, per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )  # fmt: skip
    trainer = DistillationTrainer(
        tiny_bert(1, hidden=8), None, args, None, make_rows(18), processing_class=tokenizer,
        callbacks=[_Shorten(steps)],
    )  # fmt: skip
    trainer.train()
    for step in range(1, trainer.state.global_step + 1):
        caplog.clear()
        state = TrainerState.load_from_json(f"{args.output_dir}/checkpoint-{step}/trainer_state.json")
        tell_shortened_epochs(state, 3, trainer.train_dataset)
        assert ("epochs were ended early" in caplog.text) == (told and step > steps)
    caplog.clear()
    trainer.train(resume_from_checkpoint=True)
    assert ("epochs were ended early" in caplog.text) == told
