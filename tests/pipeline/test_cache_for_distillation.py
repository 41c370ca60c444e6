"""A cache made ahead of time is the one that a distillation looks for."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from samples import QUIET, WORDS, raw_rows, tiny_bert
from transformers import AutoModelForSequenceClassification, BertTokenizer

from nlpkd import DistillationConfig, distill, make_student
from nlpkd.pipeline.cache import cache_for_distillation

QUICK = {**QUIET, "save_strategy": "no"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("teacher")
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    tiny_bert(initializer_range=0.5, **names).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_distillation_takes_the_outputs_that_were_kept_for_it(teacher, tmp_path):
    options = {"teacher": str(teacher), "student": "layers:1", "train": raw_rows(40), "validation": raw_rows(20, 3)}
    args = DistillationConfig(output_dir=str(tmp_path / "outputs"), teacher_check="off", **QUICK)
    rows = cache_for_distillation(args, **options)
    assert len(rows) == 40 and len(rows["teacher_logits"][0]) == 2
    shards = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "outputs").glob("shard-*")}
    assert shards
    quick = QUICK | {"html_report": True}
    result = distill(**options, objectives="hinton", output_dir=tmp_path / "student", num_train_epochs=2,
                     teacher_cache_dir=args.output_dir, teacher_check="off", logging_steps=1, **quick)  # fmt: skip
    assert (result.output_dir / "report.json").exists()
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "outputs").glob("shard-*")} == shards
    assert not (tmp_path / "student" / "teacher_cache").exists()
    assert "Training" in (tmp_path / "student" / "report.html").read_text()


def test_rows_without_held_out_ones_are_refused_in_words_that_fit_a_run_that_measures_nothing(teacher, tmp_path):
    args = DistillationConfig(output_dir=str(tmp_path), **QUICK)
    with pytest.raises(ValueError, match="no held-out rows, which a training is measured on: give validation="):
        cache_for_distillation(args, teacher=str(teacher), student="layers:1", train=raw_rows(40))


def test_the_average_of_several_teachers_is_kept_and_taken(teacher, tokenizer, tmp_path, caplog):
    names = {"id2label": {0: "pos", 1: "neg"}, "label2id": {"pos": 0, "neg": 1}}
    second = tiny_bert(initializer_range=0.5, seed=7, **names).eval()
    second.save_pretrained(tmp_path / "second")
    tokenizer.save_pretrained(tmp_path / "second")
    student = make_student(AutoModelForSequenceClassification.from_pretrained(teacher), 1)
    job = {"teacher": [str(teacher), str(tmp_path / "second")], "student": student, "tokenizer": tokenizer,
           "train": raw_rows(40), "validation": raw_rows(20, 3)}  # fmt: skip
    settings = QUICK | {"teacher_check": "off", "ensemble_weights": [3.0, 1.0]}
    kept = cache_for_distillation(DistillationConfig(output_dir=str(tmp_path / "outputs"), **settings), **job)
    first = AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    for row in kept:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            one, other = first(ids).logits.softmax(-1)[0], second(ids).logits.softmax(-1)[0].flip(0)
        mean = (0.75 * one + 0.25 * other).log()
        torch.testing.assert_close(torch.tensor(row["teacher_logits"]), mean, atol=1e-5, rtol=1e-4)

    run = {"objectives": "hinton", "num_train_epochs": 2, "learning_rate": 1e-3, **settings}
    with caplog.at_level("WARNING"):
        once = distill(**job, **run, output_dir=tmp_path / "once", teacher_cache_dir=str(tmp_path / "outputs"))
    assert "the teacher's outputs kept with the rows" in caplog.text
    live = distill(**job, **run, output_dir=tmp_path / "live", cache_teacher="off")
    weights = [load_file(result.output_dir / "model.safetensors") for result in (once, live)]
    for name, kept_weights in weights[0].items():
        # A softmax does not see the keys' bias: its gradient is rounding alone, which AdamW makes as large as any.
        if not name.endswith("key.bias"):
            torch.testing.assert_close(kept_weights, weights[1][name], atol=1e-5, rtol=1e-3)
    untrained = student.state_dict()["classifier.weight"]
    assert (weights[0]["classifier.weight"] - untrained).abs().max() > 1e-4


def test_teachers_with_tokenizers_of_their_own_are_run_live(teacher, tmp_path, caplog):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *reversed(WORDS)]
    tiny_bert(initializer_range=0.5, id2label={0: "neg", 1: "pos"}).save_pretrained(tmp_path / "second")
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(tmp_path / "second")
    student = make_student(AutoModelForSequenceClassification.from_pretrained(teacher), 1)
    job = {"teacher": [str(teacher), str(tmp_path / "second")], "student": student, "train": raw_rows(40),
           "validation": raw_rows(20, 3)}  # fmt: skip
    settings = QUICK | {"teacher_check": "off"}
    with pytest.raises(ValueError, match=r"tokenizers of their own \(teacher_input_ids\), which can't be cached"):
        cache_for_distillation(DistillationConfig(output_dir=str(tmp_path / "outputs"), **settings), **job)
    with caplog.at_level("WARNING"):
        distill(**job, objectives="hinton", num_train_epochs=2, output_dir=tmp_path / "student", **settings)
    assert "The teacher is run on every batch, since its outputs can't be kept" in caplog.text
