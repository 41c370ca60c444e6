"""A cache made ahead of time is the one that a distillation looks for."""

from __future__ import annotations

import pytest
from conftest import raw_rows, tiny_bert

from nlpkd import DistillationConfig, distill
from nlpkd.caching import cache_for_distillation

QUIET = {"bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("teacher")
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    tiny_bert(initializer_range=0.5, **names).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_distillation_takes_the_outputs_that_were_kept_for_it(teacher, tmp_path):
    options = {"teacher": str(teacher), "student": "layers:1", "train": raw_rows(40), "validation": raw_rows(20, 3)}
    args = DistillationConfig(output_dir=str(tmp_path / "outputs"), teacher_check="off", **QUIET)
    rows = cache_for_distillation(args, **options)
    assert len(rows) == 40 and len(rows["teacher_logits"][0]) == 2
    shards = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "outputs").glob("shard-*")}
    assert shards
    result = distill(**options, objectives="hinton", output_dir=tmp_path / "student", num_train_epochs=2,
                     teacher_cache_dir=args.output_dir, teacher_check="off", logging_steps=1, **QUIET)  # fmt: skip
    assert (result.output_dir / "report.json").exists()
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "outputs").glob("shard-*")} == shards
    assert not (tmp_path / "student" / "teacher_cache").exists()
    assert "Training" in (tmp_path / "student" / "report.html").read_text()


def test_several_teachers_are_refused(teacher, tmp_path):
    args = DistillationConfig(output_dir=str(tmp_path / "outputs"), **QUIET)
    options = {"student": "layers:1", "train": raw_rows(40), "validation": raw_rows(20, 3)}
    with pytest.raises(ValueError, match="a cache is of one teacher"):
        cache_for_distillation(args, teacher=[str(teacher), str(teacher)], **options)
