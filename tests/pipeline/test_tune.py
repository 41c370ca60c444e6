"""The search for settings: what it tries, that it is what a run with these settings gives, and that it goes on."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
from datasets import DatasetDict
from samples import QUIET, raw_rows, tiny_bert, tiny_onnx
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS
from typer.testing import CliRunner

from nlpkd import DistillationTrainer, make_student
from nlpkd.cli import app
from nlpkd.cli.training import _searched
from nlpkd.models.onnx_classifier import OnnxClassifier
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss, HiddenStateMSELoss, Stage
from nlpkd.objectives.objective_set import ObjectiveSet, with_settings

pytest.importorskip("optuna", reason="the extra 'tune' is not installed")

QUICK = {
    **QUIET, "per_device_train_batch_size": 8,
    "num_train_epochs": 1, "teacher_check": "off",
}  # fmt: skip


@pytest.fixture(scope="module")
def splits():
    return DatasetDict(train=raw_rows(160, seed=3), validation=raw_rows(80, seed=4))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("teacher")
    tiny_bert(layers=4, id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_search_tries_settings_of_run_objectives_and_student_and_goes_on(
    teacher, splits, tmp_path, make_rows, settings
):
    from nlpkd.pipeline.tune import tune

    asked = {
        "search": {
            "learning_rate": (1e-4, 5e-3), "forward_kl.temperature": [1.0, 4.0], "cross_entropy.weight": (0, 3),
        },
        "layers": (1, 2), "objectives": [CrossEntropyLoss(), ForwardKLLoss(), HiddenStateMSELoss()],
        "output_dir": tmp_path,
    }  # fmt: skip
    result = tune(teacher, splits, n_trials=3, **asked, **QUICK)
    assert len(result.trials) == 3 and result.metric == "accuracy"
    assert set(result.best) == {"layers", *asked["search"]}
    again = tune(teacher, splits, n_trials=5, **asked, **QUICK)
    assert again.trials[:3] == result.trials and len(again.trials) == 5
    assert len({trial["learning_rate"] for trial in again.trials}) == 5, "what is drawn later is drawn anew"
    assert again.value == max(trial["value"] for trial in again.trials)
    assert json.loads((tmp_path / "tuning.json").read_text())["best"] == again.best
    for trial in again.trials[:2]:
        student = make_student(tiny_bert(layers=4, id2label={0: "neg", 1: "pos"}), trial["layers"])
        trainer = DistillationTrainer(
            student, tiny_bert(layers=4, id2label={0: "neg", 1: "pos"}),
            settings(learning_rate=trial["learning_rate"]),
            [
                CrossEntropyLoss(weight=trial["cross_entropy.weight"]),
                ForwardKLLoss(temperature=trial["forward_kl.temperature"]), HiddenStateMSELoss(),
            ],
            make_rows(160, seed=3), make_rows(80, seed=4), student_tokenizer(teacher),
        )  # fmt: skip
        trainer.train()
        assert trainer.evaluate()["eval_accuracy"] == trial["value"]


@pytest.mark.parametrize("kind", [int, float])
def test_numbers_of_a_wide_range_are_drawn_by_logarithm_and_stay_of_their_kind(kind):
    import optuna

    from nlpkd.pipeline.tune import _draw

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    search = {"wide": (kind(1), kind(1000)), "narrow": (kind(100), kind(900)), "with 0": (kind(0), kind(1000))}
    drawn = [_draw(study.ask(), search, [1])[0] for _ in range(300)]
    assert {type(each[name]) for each in drawn for name in search} == {kind}
    below = {name: sum(each[name] <= 100 for each in drawn) / 300 for name in search}
    assert below["wide"] == pytest.approx(2 / 3, abs=0.1) and below["with 0"] == pytest.approx(0.1, abs=0.05)
    assert below["narrow"] < 0.05


@pytest.mark.parametrize("given", ["file", "model", "list"])
def test_trials_of_an_onnx_file_are_students_of_the_weights_beside_it(
    given, teacher, splits, tmp_path, make_rows, settings
):
    from nlpkd.pipeline.tune import tune

    folder = shutil.copytree(teacher, tmp_path / "teacher")
    (folder / "onnx").mkdir()
    file = tiny_onnx(folder / "onnx/model.onnx")
    onnx = OnnxClassifier.from_pretrained(file)
    teachers = {"file": file, "model": onnx, "list": [file, teacher]}
    asked = {"search": {"learning_rate": [1e-3]}, "layers": (2,), "n_trials": 1, "output_dir": tmp_path / "tuning"}
    found = tune(teachers[given], splits, objectives=[ForwardKLLoss()], **asked, **QUICK)
    parent = tiny_bert(layers=4, id2label={0: "neg", 1: "pos"})
    trainer = DistillationTrainer(
        make_student(parent, 2), {"list": [onnx, parent]}.get(given, onnx), settings(learning_rate=1e-3),
        [ForwardKLLoss()], make_rows(160, seed=3), make_rows(80, seed=4), student_tokenizer(teacher),
    )  # fmt: skip
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] == found.value


@pytest.fixture(scope="module")
def searched(teacher, splits, tmp_path_factory):
    """A search of one trial, and what was asked for."""
    from nlpkd.pipeline.tune import tune

    asked = {
        "teacher": teacher, "train": splits, "layers": (1,), "objectives": [CrossEntropyLoss(), ForwardKLLoss()],
        "search": {"learning_rate": (1e-4, 5e-3)}, "output_dir": tmp_path_factory.mktemp("searched"), "n_trials": 1,
        **QUICK, "max_steps": 1,
    }  # fmt: skip
    return asked, tune(**asked)


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("held-out rows", "the held-out rows' labels"), ("training rows", "the training rows' input_ids"),
        ("teacher", "the teacher's weights"), ("objectives", r"forward_kl: temperature"),
        ("search", r"search of learning_rate \(\[0.0001, 0.005\] in"), ("layers", r"layers \(\[1\] in"),
        ("steps", r"max_steps \(1 in the folder, 2 here\)"), ("seed", "seed"), ("weight decay", "weight_decay"),
    ],
)  # fmt: skip
def test_trials_are_of_one_search_alone(searched, teacher, tokenizer, tmp_path, what, named):
    from nlpkd.pipeline.tune import tune

    asked, found = searched
    rows = asked["train"]
    other_teacher = tiny_bert(layers=4, seed=9, id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1})
    other_teacher.config._name_or_path = str(teacher)
    other = {
        "held-out rows": {"train": DatasetDict(rows | {"validation": raw_rows(80, seed=5)})},
        "training rows": {"train": DatasetDict(rows | {"train": raw_rows(160, seed=5)})},
        "teacher": {"teacher": other_teacher}, "search": {"search": {"learning_rate": (1e-4, 6e-3)}},
        "objectives": {"objectives": [CrossEntropyLoss(), ForwardKLLoss(temperature=3.0)]},
        "layers": {"layers": (1, 2)}, "steps": {"max_steps": 2}, "seed": {"seed": 7},
        "weight decay": {"weight_decay": 0.1},
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"trials of another search: .*{named}.* Choose another output_dir"):
        tune(**asked | other[what])
    kept = json.loads((asked["output_dir"] / "tuning.json").read_text())
    assert kept["trials"] == found.trials, "what was found before is as it was"


def test_trials_are_of_one_streamed_file(searched, tmp_path):
    from nlpkd.pipeline.tune import tune

    raw_rows(40, seed=1).to_json(tmp_path / "train.jsonl")
    raw_rows(20, seed=2).to_json(tmp_path / "held-out.jsonl")
    asked = searched[0] | {
        "train": str(tmp_path / "train.jsonl"), "validation": str(tmp_path / "held-out.jsonl"), "streaming": True,
        "output_dir": tmp_path / "out", "objectives": [CrossEntropyLoss()],
    }  # fmt: skip
    tune(**asked)
    raw_rows(40, seed=3).to_json(tmp_path / "train.jsonl")
    with pytest.raises(ValueError, match="another search: .*the training rows' input_ids"):
        tune(**asked)


def test_trials_that_do_not_say_what_they_are_of_are_refused(searched, tmp_path):
    import optuna
    from optuna.storages.journal import JournalFileBackend

    from nlpkd.pipeline.tune import tune

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "optuna.log")))
    study = optuna.create_study(study_name="nlpkd", storage=storage, direction="maximize")
    study.tell(study.ask(), 0.5)
    with pytest.raises(ValueError, match="do not say what they are of"):
        tune(**searched[0] | {"output_dir": tmp_path})


def test_a_search_goes_on_after_a_line_that_a_full_disk_cut_and_names_a_file_that_is_damaged(searched, tmp_path):
    from nlpkd.pipeline.tune import STUDY_FILE, tune

    asked, result = searched
    folder = shutil.copytree(asked["output_dir"], tmp_path / "copy")
    journal = folder / STUDY_FILE
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "worker_')
    assert tune(**asked | {"output_dir": folder}) == result and journal.read_bytes().startswith(whole)
    journal.write_bytes(b'{"op_code": 4\n' + whole)
    with pytest.raises(ValueError, match=f"{STUDY_FILE} is damaged .*delete it, and the search begins anew"):
        tune(**asked | {"output_dir": folder})


def test_the_task_is_the_teachers(tokenizer, tmp_path):
    from nlpkd.pipeline.tune import tune

    tiny_bert(num_labels=1, problem_type="regression").save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    rows = [{"text": f"good {'film ' * number}", "label": number % 4} for number in range(16)]
    result = tune(
        tmp_path / "teacher", rows, validation_split=0.5, n_trials=1, layers=[1], output_dir=tmp_path / "out", **QUICK
    )
    assert result.metric == "pearson"


def test_without_a_learning_rate_a_trial_has_the_one_that_suits_the_student(tokenizer, tmp_path):
    from nlpkd.pipeline.tune import tune

    tiny_bert(num_labels=1, problem_type="regression").save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    rows = [{"text": text, "label": float(len(text))} for text in raw_rows(60)["text"]]
    asked = {"validation_split": 0.5, "search": {"logit_mse.weight": [1.0]}, "n_trials": 1, "layers": [1], **QUICK}

    def found(**more):
        return tune(tmp_path / "teacher", rows, output_dir=tmp_path / str(more), **asked, **more).value

    assert found() == found(learning_rate=2e-4) != found(learning_rate=5e-5)


def student_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_a_stage_s_own_settings_hold_in_a_trial(teacher, splits, tmp_path):
    from nlpkd.pipeline.tune import tune

    def value(objectives, folder, **more):
        asked = {"search": {"forward_kl.temperature": [2.0]}, "n_trials": 1, "layers": (1,), "output_dir": folder}
        return tune(teacher, splits, objectives=objectives, **asked, **QUICK | more).trials

    stage = value([Stage([ForwardKLLoss()], learning_rate=0.0)], tmp_path / "stage", learning_rate=1e-2)
    assert stage == value([ForwardKLLoss()], tmp_path / "untrained", learning_rate=0.0)
    assert stage != value([ForwardKLLoss()], tmp_path / "trained", learning_rate=1e-2)


def test_an_objective_s_setting_is_changed_by_its_name():
    given = [ForwardKLLoss(), ForwardKLLoss(temperature=1.0)]
    objectives = ObjectiveSet(with_settings(given, {"forward_kl_2.temperature": 3.0, "forward_kl.weight": 0.25}))
    assert [each.config()["temperature"] for each in objectives] == [2.0, 3.0]
    assert [each.weight for each in objectives] == [0.25, 1.0] and objectives.weighting.base == [0.25, 1.0]
    assert [each.config()["temperature"] for each in given] == [2.0, 1.0], "what was given stays as it is"
    assert [each.weight for each in given] == [1.0, 1.0]
    for key in ("forward_kl.temprature", "reverse_kl.weight", "temperature"):
        with pytest.raises(ValueError, match="is no setting of an objective"):
            with_settings(given, {key: 1.0})


def test_a_tuple_is_a_range_and_a_list_is_a_choice(searched, tmp_path):
    from nlpkd.pipeline.tune import tune

    def drawn(**search):
        found = tune(**searched[0] | {"search": search, "n_trials": 5, "output_dir": tmp_path / str(search)}).trials
        return [[trial[name] for trial in found] for name in search]

    choices = {"per_device_train_batch_size": [8, 64], "forward_kl.temperature": [1.0, 4.0]}
    sizes, temperatures, switches = drawn(**choices, gradient_checkpointing=[False, True])
    assert set(sizes) <= {8, 64} and set(temperatures) <= {1.0, 4.0} and set(map(repr, switches)) <= {"False", "True"}
    sizes, temperatures = drawn(**{name: tuple(values) for name, values in choices.items()})
    assert all(8 <= size <= 64 for size in sizes) and not {*sizes} <= {8, 64}
    assert all(1 <= temperature <= 4 for temperature in temperatures) and not {*temperatures} & {1.0, 4.0}


def test_a_choice_does_not_go_on_in_the_trials_of_a_range(searched):
    from nlpkd.pipeline.tune import tune

    with pytest.raises(ValueError, match="trials of another search: search of learning_rate"):
        tune(**searched[0] | {"search": {"learning_rate": [1e-4, 5e-3]}})


def test_a_search_that_found_nothing_keeps_no_other_from_its_folder(searched, tmp_path):
    from nlpkd.pipeline.tune import tune

    asked = searched[0] | {"output_dir": tmp_path}
    # It fails in a trial: this schedule ends above where it begins.
    schedule = {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 0.5}}
    with pytest.raises(ValueError, match="lr_end"):
        tune(**asked | schedule)
    assert (tmp_path / "optuna.log").is_file()
    assert len(tune(**asked).trials) == 1
    with pytest.raises(ValueError, match="trials of another search"):
        tune(**asked | {"search": {"learning_rate": (1e-4, 6e-3)}})


@pytest.mark.parametrize(
    ("entry", "values"),
    [
        ("a=1..8", (1, 8)), ("a=1e-5..5e-4", (1e-5, 5e-4)), ("a=8,64", [8, 64]), ("a=1,2,4", [1, 2, 4]),
        ("a=false,true", [False, True]), ("a=linear,cosine", ["linear", "cosine"]), ("a=3", [3]),
    ],
)  # fmt: skip
def test_the_command_line_tells_a_range_from_a_choice(entry, values):
    assert _searched(entry) == ("a", values)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"search": {"learning_rate": (1e-5, 5e-4), "weight_decay": (0.2, 0.1)}}, "low below high"),
        ({"search": {"forward_kll.temperature": [1.0]}}, r"forward_kll.*the objectives are \["),
        ({"search": {"forward_kl.temperature": (-1.0, 2.0)}}, "can't have the value -1.0: temperature"),
        ({"search": {"forward_kl.temperature": ["x"]}}, "can't have the value 'x'"),
        ({"search": {"num_train_epochs": ["x"]}}, "can't have the value 'x': num_train_epochs must be"),
        ({"search": {"per_device_train_batch_size": (1.5, 8.0)}}, "can't have the value 1.5"),
        ({"search": {"output_dir": ["a", "b"]}}, "'output_dir' can't be searched"),
        ({"search": {"teacher_cache_dir": ["a", "b"]}}, "'teacher_cache_dir' can't be searched"),
        ({"layers": ()}, r"numbers of layers to choose from, such as \(2, 3\), got \(\)"),
        ({"layers": (1, 0)}, "numbers of layers to choose from"),
        ({"layers": 3}, "numbers of layers to choose from"),
        ({"layers": (True, 2)}, "numbers of layers to choose from"),
        ({"layers": (1, 7)}, "7"),
        ({"n_trials": 0}, "n_trials must be at least 1"),
        ({"search": {"bf16": (False, True)}}, "or a list of values to choose from, got"),
        ({"search": {"learning_rate": (1e-5, 1e-4, 1e-3)}}, "must be a pair"),
        ({"search": {"lr_scheduler_type": ("linear", "cosine")}}, "or a list of values to choose from, got"),
        ({"search": {"learning_rate": (1e-5, float("inf"))}}, "must be a pair"),
        ({"search": {"learning_rat": (1, 2)}}, "'learning_rat' is neither"),
        ({"search": {"learning_rate": 3}}, "must be a pair"),
        ({"epochs": 3}, "'epochs' is neither an argument of tune .*did you mean num_train_epochs"),
        ({"search": {"learning_rate": (2.0, 1.0)}}, "low below high"),
        ({"search": {"augment_change": (0.1, 0.5)}}, "all trials learn from the same rows"),
        ({"search": {"forward_kl.temprature": (1.0, 2.0)}}, "no setting of an objective"),
        ({"objectives": "tinybert"}, "has 2 stages"),
    ],
)
def test_a_search_that_can_t_be_is_refused(teacher, splits, tmp_path, asked, message):
    from nlpkd.pipeline.tune import tune

    given = {"n_trials": 1, "output_dir": tmp_path / "out", **QUICK}
    with pytest.raises(ValueError, match=message):
        tune(teacher, splits, **given | asked)
    assert not (tmp_path / "out/optuna.log").exists(), "it was refused before a trial"


def test_held_out_rows_are_needed(teacher, splits, tmp_path):
    from nlpkd.pipeline.tune import tune

    with pytest.raises(ValueError, match="no held-out rows"):
        tune(teacher, splits["train"], n_trials=1, output_dir=tmp_path, **QUICK)


def test_the_command_line_searches_and_proposes_to_report_on_other_rows(teacher, splits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits["train"].to_csv(tmp_path / "train.csv")
    splits["validation"].to_csv(tmp_path / "TEST.csv")
    asked = ["tune", "--teacher", str(teacher), "--train", str(tmp_path / "train.csv"), "--validation-split", "0.25"]
    asked += ["--search", "learning_rate=1e-4..1e-3", "--search", "forward_kl.temperature=1,2,8", "--layers", "1"]
    asked += [
        "--n-trials",
        "2",
        "--num-train-epochs",
        "1",
        "--max-length",
        "64",
        "--output-dir",
        str(tmp_path / "out"),
    ]
    asked += ["--set", "use_cpu=true", "--set", "report_to=none", "--set", "teacher_check=off"]
    outcome = CliRunner().invoke(app, asked)
    assert outcome.exit_code == 0, outcome.output
    found = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert len(found["trials"]) == 2
    # Its result is a table, and the best settings go on to a distillation that the command line takes as it stands.
    cells = [line.split() for line in outcome.output.splitlines()]
    best = found["trials"].index(found["best"] | {"value": found["value"]})
    assert ["trial", str(best), "trial", str(1 - best)] in cells and "{\n" not in outcome.output
    (row,) = [line for line in cells if line[:1] == ["learning_rate"]]
    assert float(row[1]) == pytest.approx(found["best"]["learning_rate"], rel=1e-5)
    words = shlex.split(outcome.output.partition("Next:\n")[2])
    words = words[words.index("distill") :]
    rows = ["--train", str(tmp_path / "train.csv"), "--validation-split", "0.25", "--max-length", "64"]
    assert all(
        word in words for word in [*rows, "layers:1", "hinton", str(found["best"]["learning_rate"]), "--use-cpu"]
    )
    assert words[words.index("--test") + 1] == "TEST.csv"
    planned = CliRunner().invoke(app, [*words, "--dry-run"])
    assert planned.exit_code == 0 and "training rows: 120" in planned.output, planned.output
    wrong = CliRunner().invoke(app, [*asked, "--search", "weight_decay"])
    assert wrong.exit_code == 2 and "LOW..HIGH" in wrong.output


@pytest.mark.parametrize(
    "search",
    [
        {"per_device_train_batch_size": [4, 5], "num_train_epochs": [1, 2]},
        {"gradient_accumulation_steps": [1, 4], "learning_rate": (1e-4, 1e-3)},
        {"max_steps": [3, 7]},
    ],
    ids=["batches and epochs", "accumulation", "steps"],
)
def test_a_plan_has_the_steps_of_the_longest_trial_and_the_trials_that_are_left(search, teacher, splits, tmp_path):
    from nlpkd.pipeline.dry_run import plan_search
    from nlpkd.pipeline.tune import tune

    steps: list[int] = []

    class Counting(TrainerCallback):
        def on_train_end(self, args, state, control, **options):
            steps.append(state.global_step)

    few = DatasetDict(train=splits["train"].select(range(40)), validation=splits["validation"].select(range(20)))
    asked = {"search": search, "layers": (1,), "output_dir": tmp_path / "out", **QUICK}
    plan = plan_search(teacher, few, n_trials=6, **asked)
    assert not (tmp_path / "out").exists() and plan.trainings == 6
    DEFAULT_CALLBACKS.append(Counting)
    try:
        tune(teacher, few, n_trials=6, **asked)
    finally:
        DEFAULT_CALLBACKS.remove(Counting)
    assert len(steps) == 6 and max(steps) == plan.steps[0], "six draws miss none of the extremes by these seeds"
    before = (tmp_path / "out/optuna.log").read_bytes()
    assert plan_search(teacher, few, n_trials=8, **asked).trainings == 2
    assert plan_search(teacher, few, n_trials=3, **asked).trainings == 0
    assert (tmp_path / "out/optuna.log").read_bytes() == before
    for changed in ({"search": {"seed": [1, 2]}}, {"layers": (2,)}, {"max_length": 8}, {"weight_decay": 0.5}):
        for function in (plan_search, tune):
            with pytest.raises(ValueError, match="has the trials of another search"):
                function(teacher, few, n_trials=8, **asked | changed)
