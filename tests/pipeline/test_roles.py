"""Baselines by name: what each starts from, how long it is trained, and which there are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from samples import QUIET, WORDS, raw_rows, tiny_bert
from transformers import (
    AutoModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertModel,
    PerceiverConfig,
    SqueezeBertConfig,
    SqueezeBertForSequenceClassification,
)

from nlpkd import DistillationConfig, distill, make_student, train_teacher
from nlpkd.data.arguments import DataArguments
from nlpkd.evaluation.benchmark import model_size_mb
from nlpkd.models.loading import load_teacher
from nlpkd.models.source import ModelSource
from nlpkd.objectives import ForwardKLLoss, Stage
from nlpkd.objectives.presets import resolve
from nlpkd.pipeline.jobs.distillation import prepare_job
from nlpkd.pipeline.jobs.roles import Teachers, usual_learning_rate

QUICK = {
    **QUIET, "per_device_train_batch_size": 8,
    "learning_rate": 2e-3, "num_train_epochs": 1, "save_strategy": "no", "teacher_check": "off", "logging_steps": 1,
}  # fmt: skip
NAMES = ("bad", "good")
ROWS = {"train": raw_rows(24, seed=2, names=NAMES), "validation": raw_rows(17, 7, NAMES)}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    tiny_bert(layers=4, seed=5).base_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def taught(tmp_path_factory, backbone) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    return train_teacher(backbone, ROWS["train"], output_dir=folder, **QUICK).output_dir


def test_each_of_several_teachers_is_recorded_by_itself_and_a_file_with_its_folder(backbone, tokenizer):
    (backbone / "onnx").mkdir(exist_ok=True)
    file = backbone / "onnx" / "model_int8.onnx"
    teachers = Teachers.of([backbone, "org/cats and dogs@v2", file], [tokenizer] * 3, None, False, None)
    described = teachers.describe()
    assert described["models"] == [
        {"name": str(backbone), "revision": None},
        {"name": "org/cats and dogs", "revision": "v2"},
        {"name": str(file), "revision": None, "folder": backbone.name},
    ]
    assert described["name"] == f"{backbone} and org/cats and dogs@v2 and {file}"
    assert Teachers.of(file, tokenizer, None, False, None).describe() == described["models"][2]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def steps(folder: Path) -> tuple[int, list[float]]:
    state = json.loads((folder / "trainer_state.json").read_text())
    return state["global_step"], [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]


def run(teacher, folder, **options):
    given = {"objectives": "hinton", "student": "layers:2", **QUICK, **options}
    return distill(teacher, train=ROWS["train"], validation=ROWS["validation"], output_dir=folder, **given)


def test_baselines_start_from_the_backbone_and_from_the_student_s_weights_for_each_seed(taught, tmp_path):
    result = run(taught, tmp_path, baseline=True, num_seeds=2, learning_rate=0.0)
    assert list(result.report.candidates) == ["teacher", "student", "no_teacher", "same_start"]
    assert set(result.report.comparisons) == {"student_vs_no_teacher", "student_vs_same_start", "student_vs_teacher"}
    assert set(result.report.seeds) == set(result.report.candidates)
    teacher = load_teacher(taught)
    for folder, seed in ((tmp_path, 42), (tmp_path / "seed-43", 43)):
        pretrained = make_student(teacher, 2, start="pretrained", seed=seed).state_dict()
        assert equal(weights(folder / "baseline/no_teacher"), pretrained)
        assert equal(weights(folder / "baseline/same_start"), weights(folder))
        assert not equal(weights(folder), pretrained)


def test_a_student_that_starts_pretrained_has_one_baseline_which_is_no_teacher_of_the_other_start(taught, tmp_path):
    pretrained = run(taught, tmp_path / "pretrained", baseline=True, start="pretrained")
    run(taught, tmp_path / "teacher", baseline="no_teacher")
    assert list(pretrained.report.candidates) == ["teacher", "student", "no_teacher"]
    trained = weights(tmp_path / "pretrained/baseline/no_teacher")
    assert equal(trained, weights(tmp_path / "teacher/baseline/no_teacher"))
    assert not equal(trained, make_student(load_teacher(taught), 2, start="pretrained").state_dict())


def test_a_pretrained_checkpoint_is_no_teacher_and_a_classifier_is_the_same_start(taught, tmp_path, tokenizer):
    for name, model in (("plain", tiny_bert(hidden=8).base_model), ("classifier", tiny_bert(hidden=8))):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    found = [list(run(taught, tmp_path / f"{name}-out", student=tmp_path / name, baseline=True).report.candidates)[2:]
             for name in ("plain", "classifier")]  # fmt: skip
    assert found == [["no_teacher"], ["same_start"]]
    with pytest.raises(ValueError, match="this student is a classifier already"):
        run(taught, tmp_path / "never", student=tmp_path / "classifier", baseline="no_teacher")


def test_an_unknown_backbone_leaves_out_no_teacher_aloud_and_refuses_it_by_name(backbone, tmp_path, tokenizer, caplog):
    job = {"teacher_tokenizer": tokenizer, "tokenizer": tokenizer}
    teacher = tiny_bert(layers=4, id2label=dict(enumerate(NAMES)))
    assert "same_start" in (found := run(teacher, tmp_path / "a", baseline=True, **job).report.candidates)
    assert "no_teacher" not in found and "There is no baseline no_teacher" in caplog.text
    with pytest.raises(ValueError, match="baseline='no_teacher' needs the pre-trained backbone"):
        run(teacher, tmp_path / "b", baseline="no_teacher", **job)
    named = run(teacher, tmp_path / "c", baseline="no_teacher", backbone=backbone, learning_rate=0.0, **job)
    assert list(named.report.candidates) == ["teacher", "student", "no_teacher"]
    assert torch.equal(weights(tmp_path / "c/baseline/no_teacher")["bert.embeddings.word_embeddings.weight"],
                       weights(backbone)["embeddings.word_embeddings.weight"])  # fmt: skip
    with pytest.raises(ValueError, match="baseline='both'"):
        run(teacher, tmp_path / "d", baseline="both", **job)


@pytest.mark.parametrize(("name", "recorded"), [("org/base", "org/base"), ("/nowhere/base", None)])
def test_a_backbone_of_the_hub_is_recorded_for_the_card_and_no_folder(name, recorded, taught, tokenizer, tmp_path):
    teacher = load_teacher(taught)
    teacher.config.nlpkd_backbone = {"name": name}
    args = DistillationConfig(output_dir=str(tmp_path / "out"), **QUICK)
    splits = (ROWS["train"], ROWS["validation"])
    job = prepare_job(args, teacher, "layers:1", *splits, objectives="hinton", tokenizer=tokenizer)
    assert job.origin["student"].get("backbone") == recorded


def objectives_of(teacher, student, folder, **options) -> list[list[str]]:
    job = prepare_job(
        DistillationConfig(output_dir=str(folder)), teacher, student, ROWS["train"], ROWS["validation"], **options
    )
    return [[repr(each) for each in stage.objectives] for stage in job.stages]


@pytest.mark.parametrize(
    ("student", "preset"),
    [
        ("layers:2", "layerwise"),
        ("width:0.5", "dynabert"),
        ("bert-tiny", "layerwise"),
        ("bilstm", "hinton"),
        ("textcnn", "hinton"),
        ("static", "hinton"),
    ],
)
def test_without_objectives_a_student_of_the_teacher_has_those_that_suit_its_kind(student, preset, taught, tmp_path):
    wanted = [[repr(each) for each in stage.objectives] for stage in resolve(preset)]
    assert objectives_of(taught, student, tmp_path) == wanted


@pytest.mark.parametrize(
    ("heads", "words", "preset"),
    [(2, WORDS, "layerwise"), (4, WORDS, "hinton"), (2, WORDS[::-1], "hinton")],
    ids=["matched", "other heads", "other tokens"],
)
def test_without_objectives_a_checkpoint_s_layers_are_matched_where_they_can_be(
    heads, words, preset, taught, tmp_path
):
    wanted = [[repr(each) for each in stage.objectives] for stage in resolve(preset)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    own = BertTokenizer(vocab={token: number for number, token in enumerate([*special, *words])}, model_max_length=64)
    tiny_bert(heads=heads).base_model.save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    assert objectives_of(taught, tmp_path, tmp_path / "out") == wanted


@pytest.fixture(scope="module")
def squeezebert(tmp_path_factory, tokenizer) -> Path:
    """A family whose attention maps are scores."""
    folder = tmp_path_factory.mktemp("squeezebert")
    size = tiny_bert().config.to_dict() | {"embedding_size": 16, "id2label": dict(enumerate(NAMES))}
    own = {name: value for name, value in size.items() if name not in ("model_type", "architectures", "label2id")}
    SqueezeBertForSequenceClassification(SqueezeBertConfig(**own)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("budget", [False, True])
def test_without_objectives_a_family_that_does_not_show_its_layers_is_trained_on_logits(budget, squeezebert, tmp_path):
    size = model_size_mb(make_student(load_teacher(squeezebert), "layers:1"))
    asked = {"student": None, "max_size_mb": size} if budget else {"student": "layers:1"}
    result = run(squeezebert, tmp_path, objectives=None, max_steps=1, **asked)
    assert result.student.config.model_type == "squeezebert"
    told = [each["class"] for each in result.report.run.to_dict()["objectives"]]
    assert told == [type(each).__name__ for each in resolve("hinton")[0].objectives]


def test_without_objectives_a_checkpoint_of_another_family_is_tried_too(squeezebert, taught, tmp_path, tokenizer):
    wanted = {name: [[repr(each) for each in stage.objectives] for stage in resolve(name)]
              for name in ("hinton", "layerwise")}  # fmt: skip
    assert objectives_of(taught, squeezebert, tmp_path / "a") == wanted["hinton"]
    size = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "vocab_size": 5 + len(WORDS)}
    DistilBertModel(DistilBertConfig(**size, max_position_embeddings=64)).save_pretrained(tmp_path / "distilbert")
    tokenizer.save_pretrained(tmp_path / "distilbert")
    assert objectives_of(taught, tmp_path / "distilbert", tmp_path / "b") == wanted["layerwise"]


def test_without_objectives_a_model_in_hand_and_soft_labels_get_what_they_can_use(taught, tmp_path, tokenizer):
    own = [[repr(each) for each in stage.objectives] for stage in resolve("hinton")]
    bilstm = make_student(load_teacher(str(taught)), "bilstm")
    assert objectives_of(taught, bilstm, tmp_path, tokenizer=tokenizer) == own
    rows = ROWS["train"].add_column("scores", [[0.25, 0.75]] * len(ROWS["train"]))
    job = prepare_job(
        DistillationConfig(output_dir=str(tmp_path)), None, str(taught), rows, ROWS["validation"],
        data_args=DataArguments(soft_label_column="scores"),
    )  # fmt: skip
    assert [[repr(each) for each in stage.objectives] for stage in job.stages] == own


@pytest.mark.parametrize(
    ("student", "given", "rate"),
    [("layers:2", {}, 2e-4), ("static", {}, 1e-3), ("static", {"learning_rate": 0.02}, 0.02)],
)
def test_the_learning_rate_that_is_not_given_suits_the_student_and_its_baselines(
    student, given, rate, taught, tmp_path
):
    settings = {name: value for name, value in QUICK.items() if name != "learning_rate"} | given
    settings |= {"lr_scheduler_type": "constant", "baseline": "same_start"}
    distill(taught, student, **ROWS, output_dir=tmp_path, **settings)
    for folder in (tmp_path, tmp_path / "baseline/same_start"):
        assert set(steps(folder)[1]) == {rate}


def test_wide_students_have_the_learning_rate_of_large_models(taught, tmp_path, tokenizer):
    wide = tiny_bert(hidden=512)
    narrow = tmp_path / "narrow"
    tiny_bert().base_model.save_pretrained(narrow)
    tokenizer.save_pretrained(narrow)
    args, rows = DistillationConfig(output_dir=str(tmp_path)), (ROWS["train"], ROWS["validation"])
    for student, rate in {
        "layers:1": 5e-5, "width:0.5": 5e-5, wide: 5e-5, "bert-tiny": 2e-4, narrow: 2e-4,
        "static": 1e-3, "bilstm": 1e-3, make_student(wide, "textcnn"): 1e-3,
    }.items():  # fmt: skip
        more = {"tokenizer": tokenizer, "teacher_tokenizer": tokenizer}
        assert prepare_job(args, wide, student, *rows, **more).learning_rate == rate, student


def test_the_learning_rate_of_settings_in_hand_is_taken_as_it_is_with_a_warning(taught, tmp_path, caplog):
    settings = QUICK | {"learning_rate": 5e-5, "lr_scheduler_type": "constant"}
    args = DistillationConfig(output_dir=str(tmp_path), **settings)
    distill(taught, "layers:2", **ROWS, args=args)
    assert "suits it better" not in caplog.text
    distill(taught, "static", **ROWS, args=args)
    assert set(steps(tmp_path)[1]) == {5e-5}
    assert (
        "learning_rate=5e-05 is the default of large models" in caplog.text and "0.001 suits it better" in caplog.text
    )


@pytest.mark.parametrize(
    ("layers", "name"),
    [(2, "layers:2"), ([1, 4], "layers:1,4"), ((2, 3, 4), "layers:2,3,4"), ("3", "layers:3"), ("1,4", "layers:1,4")],
)
def test_layers_go_by_numbers_as_in_make_student(layers, name, taught, tmp_path):
    args = DistillationConfig(output_dir=str(tmp_path))
    jobs = [prepare_job(args, taught, each, ROWS["train"], ROWS["validation"]) for each in (layers, name)]
    made, wanted = (job.make_untrained_student(args.seed).state_dict() for job in jobs)
    assert equal(made, wanted) and equal(made, make_student(load_teacher(str(taught)), name).state_dict())
    assert jobs[0].origin["student"] == jobs[1].origin["student"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("epochs", "num_train_epochs"), ("batch_size", "auto_find_batch_size or .* or per_device_train_batch_size"),
        ("objective", "objectives"), ("max_len", "max_length"), ("lr", None),
    ],
)  # fmt: skip
def test_an_argument_that_nobody_knows_is_named_with_the_one_that_was_meant(given, meant, taught, tmp_path):
    hint = f"; did you mean {meant}\\?" if meant else ""
    with pytest.raises(
        ValueError, match=f"{given!r} is neither an argument of distill nor a setting of a training{hint}$"
    ):
        distill(taught, train=ROWS["train"], output_dir=tmp_path / "out", **{given: 1})
    with pytest.raises(ValueError, match=f"{given!r} is neither an argument of train_teacher nor a setting"):
        train_teacher(taught, ROWS["train"], output_dir=tmp_path / "out", **{given: 1})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_model_without_a_head_is_refused_before_the_first_step(role, taught, backbone, tmp_path, tokenizer):
    headless = AutoModel.from_pretrained(backbone)
    models = {"teacher": taught, "student": "layers:2", "tokenizer": tokenizer, role: headless}
    if role == "teacher":
        models |= {"teacher_tokenizer": tokenizer, "student": str(taught)}
    with pytest.raises(ValueError, match="does not classify texts.*AutoModelForSequenceClassification"):
        distill(**models, **ROWS, output_dir=tmp_path, **QUICK)


def test_without_objectives_several_teachers_and_their_budget_have_what_joint_logits_allow(taught, tmp_path, caplog):
    own = [[repr(each) for each in stage.objectives] for stage in resolve("hinton")]
    assert objectives_of([taught, taught], "layers:2", tmp_path) == own
    assert objectives_of([taught, taught], None, tmp_path, max_size_mb=50.0) == own
    assert "layers:4" in caplog.text and "static" in caplog.text, "students with layers are candidates too"


def test_a_shape_s_heads_say_whether_its_layers_are_matched(taught, tmp_path, tokenizer):
    own = {
        name: [[repr(each) for each in stage.objectives] for stage in resolve(name)]
        for name in ("layerwise", "hinton")
    }
    for heads, preset in ((2, "layerwise"), (4, "hinton")):
        wide = tiny_bert(hidden=128, heads=heads)
        more = {"tokenizer": tokenizer, "teacher_tokenizer": tokenizer}
        assert objectives_of(wide, "bert-tiny", tmp_path, **more) == own[preset]


def test_a_checkpoint_of_a_bilstm_has_its_learning_rate_and_a_large_one_without_a_count_of_layers_has_not(
    taught, tmp_path, tokenizer
):
    make_student(load_teacher(str(taught)), "bilstm").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    args = DistillationConfig(output_dir=str(tmp_path / "out"))
    assert prepare_job(args, taught, tmp_path, *ROWS.values()).learning_rate == 1e-3
    nested = PerceiverConfig(num_labels=2)
    teachers = Teachers.of(str(taught), None, None, False, None)
    assert not hasattr(nested, "num_hidden_layers")
    assert usual_learning_rate(ModelSource.of(_Bare(nested)), teachers) == 5e-5


class _Bare(torch.nn.Module):
    """A model of which only the config is read."""

    def __init__(self, config):
        super().__init__()
        self.config = config


def test_layers_by_number_go_with_factorised_embeddings(taught, tmp_path):
    args = DistillationConfig(output_dir=str(tmp_path))
    for layers in (2, "2", [1, 4], range(1, 3), np.int64(2)):
        job = prepare_job(args, taught, layers, *ROWS.values(), embedding_size=4)
        assert job.make_untrained_student(args.seed).config.num_hidden_layers == 2
    with pytest.raises(ValueError, match=r"student=\[1\]: name two layers or more"):
        prepare_job(args, taught, [1], *ROWS.values())


def test_a_stage_s_own_learning_rate_is_not_spoken_of(taught, tmp_path, caplog):
    args = DistillationConfig(output_dir=str(tmp_path), **QUICK | {"learning_rate": 5e-5})
    distill(taught, "static", **ROWS, args=args, objectives=[Stage([ForwardKLLoss()], learning_rate=1e-2)])
    assert "suits it better" not in caplog.text
