"""Label order: by name where names tell, by gold labels where they do not; a teacher that teaches noise is caught."""

import logging

import numpy as np
import pytest
from datasets import Dataset
from samples import raw_rows, tiny_bert
from sklearn.metrics import matthews_corrcoef, recall_score

from nlpkd import DistillationTrainer
from nlpkd.data.labels.classes import Classes
from nlpkd.data.labels.order import Knowledge, best_order, can_tell
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from nlpkd.teachers.checks import (
    check_correlated,
    check_teacher,
    checked_rows,
    looks_like_probabilities,
    stratified_sample,
)


def align_names(source: dict[int, str], target: dict[int, str]) -> list[int] | None:
    return Classes.of(target).positions_in(Classes.of(source))


def logits_for(predictions, num_labels: int) -> np.ndarray:
    """Logits whose largest entry is at each row's prediction."""
    return 4 * np.eye(num_labels)[np.asarray(predictions)] - 2


@pytest.mark.parametrize(
    "names, generic",
    [
        (["LABEL_0", "LABEL_1"], True),
        (["label 0", "label1"], True),
        (["0", "1"], True),
        (["NEG", "POS"], False),
        (["1 star", "2 stars"], False),
        (["LABEL_0", "POS"], False),
    ],
)
def test_generic_names_are_those_that_only_count(names, generic):
    assert Classes.of(dict(enumerate(names))).is_generic is generic


def test_a_teacher_with_the_names_the_other_way_round_is_aligned_by_name():
    assert align_names({0: "NEG", 1: "POS"}, {0: "pos", 1: "neg"}) == [1, 0]


def test_the_order_tells_where_the_source_has_each_label_of_the_target():
    source, target = {0: "b", 1: "c", 2: "a"}, {0: "a", 1: "b", 2: "c"}
    assert align_names(source, target) == [2, 0, 1]
    assert [source[k] for k in align_names(source, target)] == ["a", "b", "c"]


def test_case_and_outer_spaces_do_not_count():
    assert align_names({0: "Negative ", 1: "POSITIVE"}, {0: "negative", 1: "positive"}) == [0, 1]


@pytest.mark.parametrize("source, target", [(["LABEL_0", "LABEL_1"], ["neg", "pos"]), (["neg", "pos"], ["0", "1"])])
def test_generic_label_names_tell_no_order(source, target):
    assert align_names(dict(enumerate(source)), dict(enumerate(target))) is None


@pytest.mark.parametrize("source", [["bad", "pos"], ["neg", "neutral"]])
def test_contradicting_names_are_refused_with_both_lists(source):
    with pytest.raises(ValueError, match=f"contradict each other: 0: '{source[0]}'.*0: 'neg', 1: 'pos'.*id2label"):
        align_names(dict(enumerate(source)), {0: "neg", 1: "pos"})


@pytest.mark.parametrize(("names", "message"), [("pos", "have the same name, 'pos'"), ("POS", "differ only in case")])
def test_a_name_that_comes_twice_tells_no_order(names, message):
    with pytest.raises(ValueError, match=message):
        align_names({0: "pos", 1: names}, {0: "neg", 1: "pos"})


def test_another_number_of_labels_is_refused():
    with pytest.raises(ValueError, match="different numbers of labels: 3 .*'c'.* and 2 "):
        align_names({0: "a", 1: "b", 2: "c"}, {0: "LABEL_0", 1: "LABEL_1"})


def test_the_best_order_is_found_among_all_of_them():
    from itertools import permutations

    random = np.random.default_rng(0)
    for _ in range(10):
        labels, predictions = random.integers(0, 4, 200), random.integers(0, 4, 200)
        right = {order: (np.array(order)[labels] == predictions).mean() for order in permutations(range(4))}
        found = tuple(best_order(predictions, labels, 4))
        assert right[found] == max(right.values())


def test_the_best_order_of_a_tie_is_the_given_one():
    assert best_order(np.array([0, 1, 1, 1]), np.array([0, 0, 0, 1]), 2) == [0, 1]


def test_a_good_teacher_keeps_its_order():
    labels = np.array([0, 1] * 50)
    assert check_teacher(logits_for(labels, 2), labels, [0, 1], {0: "neg", 1: "pos"}) == ([0, 1], None)


def test_generic_names_are_settled_on_gold_labels_and_said_aloud(caplog):
    labels = np.array([0, 1, 2] * 30)
    predictions = np.array([2, 0, 1])[labels]  # the teacher says 2 where gold says 0, and so on
    with caplog.at_level(logging.WARNING):
        order, problem = check_teacher(logits_for(predictions, 3), labels, None, {0: "a", 1: "b", 2: "c"})
    assert (order, problem) == ([2, 0, 1], None)
    assert "{'a': 2, 'b': 0, 'c': 1}" in caplog.text and "0.0 %" in caplog.text and "100.0 %" in caplog.text


def test_generic_names_in_the_right_order_need_no_word(caplog):
    labels = np.array([0, 1] * 50)
    assert check_teacher(logits_for(labels, 2), labels, None, {0: "neg", 1: "pos"}) == ([0, 1], None)
    assert not caplog.records


def test_generic_names_are_not_reordered_on_a_difference_that_chance_explains():
    labels = np.array([0, 1] * 50)
    predictions = np.where(np.arange(100) < 48, labels, 1 - labels)  # 48 % right as given, 52 % swapped
    order, problem = check_teacher(logits_for(predictions, 2), labels, None, {0: "neg", 1: "pos"})
    assert order == [0, 1] and problem is not None


def test_a_teacher_no_order_of_which_beats_the_majority_is_a_problem_with_its_figures():
    labels = np.array([0] * 70 + [1] * 30)
    order, problem = check_teacher(logits_for(np.zeros(100, int), 2), labels, [0, 1], {0: "neg", 1: "pos"})
    assert order == [0, 1]
    assert "70.0 % of 100 gold labels" in problem and "most frequent one (70.0 %)" in problem
    assert "id2label is wrong" not in problem


# Of 205, 11 and 40 rows of three classes: what a teacher answers to a class, a row each, and whether it knows any.
TABLES = {
    "always the most frequent": ([[205, 0, 0], [11, 0, 0], [40, 0, 0]], False),
    "as often as the labels": ([[164, 9, 32], [9, 0, 2], [32, 2, 6]], False),
    "each alike": ([[69, 68, 68], [4, 4, 3], [13, 14, 13]], False),
    "one rare answer, which is right": ([[205, 0, 0], [10, 1, 0], [40, 0, 0]], False),
    "one rare class, which is half found": ([[192, 0, 13], [5, 0, 6], [20, 0, 20]], True),
    "a third of one rare class": ([[200, 0, 5], [7, 0, 4], [29, 0, 11]], True),
    "rare classes too often": ([[150, 15, 40], [3, 6, 2], [8, 2, 30]], True),
}


@pytest.mark.parametrize(("table", "knows"), TABLES.values(), ids=TABLES)
def test_a_teacher_of_rare_classes_passes_where_its_answers_go_with_the_labels_and_else_what_it_lacks_is_said(
    table, knows
):
    labels = np.repeat(np.arange(3), np.sum(table, axis=1))
    predictions = np.concatenate([np.repeat(np.arange(3), row) for row in table])
    problem = check_teacher(logits_for(predictions, 3), labels, [0, 1, 2], {0: "a", 1: "b", 2: "c"})[1]
    assert (problem is None) is knows
    if problem:
        assert "most frequent one (80.1 %); more than chance would be 85.1 %, or a mean recall over classes" in problem
        right, recall = (predictions == labels).mean(), recall_score(labels, predictions, average="macro")
        assert f"gets {100 * right:.1f} % of 256" in problem and f"(it is {100 * recall:.1f} %)" in problem
        said = f"(it is {matthews_corrcoef(labels, predictions):.2f})"
        assert (said in problem) is (len(set(predictions)) > 1)


def test_the_correlation_is_the_usual_one_and_its_error_that_of_shuffled_answers():
    random = np.random.default_rng(0)
    # Of the four classes one has no row, and one index is no class.
    labels, predictions = random.choice([0, 1, 3], 80, p=[0.7, 0.1, 0.2]), random.choice(5, 80)
    order = [1, 0, 2, 3]
    known = Knowledge.of(predictions, labels, order)
    renamed = np.asarray([1, 0, 2, 3, 4])[predictions]
    assert known.mcc == pytest.approx(matthews_corrcoef(labels, renamed))
    shuffled = [Knowledge.of(random.permutation(predictions), labels, order).mcc for _ in range(2000)]
    # What one right answer more is worth, where all else stays as it is.
    answers, gold = (np.bincount(each) @ np.bincount(each) for each in (predictions, labels))
    one = 80 / np.sqrt((80**2 - answers) * (80**2 - gold))
    assert known.needed_mcc == pytest.approx(3 * np.std(shuffled) + one, rel=0.05)


def test_answers_that_know_nothing_pass_no_more_often_than_two_standard_errors_let_them():
    """Of several shares of classes, most of all those of a teacher that nearly always gives the same answer."""
    random, labels = np.random.default_rng(0), np.repeat(np.arange(3), [205, 11, 40])
    for shares in ([0.8, 0.04, 0.16], [0.98, 0.01, 0.01], [0.995, 0.0025, 0.0025], [1 / 3] * 3):
        passed = [Knowledge.of(random.choice(3, 256, p=shares), labels, range(3)).is_there for _ in range(500)]
        assert np.mean(passed) < 0.04


def test_wrong_names_are_a_problem_that_names_the_order_that_fits():
    labels = np.array([0, 1] * 50)
    order, problem = check_teacher(logits_for(1 - labels, 2), labels, [0, 1], {0: "neg", 1: "pos"})
    assert order == [0, 1], "names are never overruled in silence"
    assert "{'neg': 1, 'pos': 0}" in problem and "100.0 %: its id2label is wrong" in problem


def test_a_name_order_is_what_the_teacher_is_judged_by():
    labels = np.array([0, 1] * 50)
    assert check_teacher(logits_for(1 - labels, 2), labels, [1, 0], {0: "neg", 1: "pos"}) == ([1, 0], None)


@pytest.mark.parametrize("classes", [6, 150])
def test_two_swapped_classes_of_many_are_found(classes):
    labels = np.repeat(np.arange(classes), checked_rows(classes) // classes)
    swap = list(range(classes))
    swap[1], swap[4] = 4, 1
    logits, names = logits_for(np.array(swap)[labels], classes), {k: f"c{k}" for k in range(classes)}
    order, problem = check_teacher(logits, labels, list(range(classes)), names)
    assert order == list(range(classes)) and "'c1', 'c4'" in problem and "{'c1': 4, 'c4': 1} fits" in problem
    assert check_teacher(logits, labels, None, names) == (swap, None)
    assert check_teacher(logits, labels, None, names, only_sure=True) == (swap, None)


def test_classes_that_a_good_teacher_confuses_are_not_swapped():
    random, found = np.random.default_rng(0), 0
    for _ in range(50):
        labels = np.repeat(np.arange(20), 13)
        neighbour = labels ^ 1
        predictions = np.where(random.random(len(labels)) < 0.55, labels, neighbour)
        names = {k: str(k) for k in range(20)}
        order, problem = check_teacher(logits_for(predictions, 20), labels, list(range(20)), names)
        found += problem is not None
    assert found <= 2


def test_a_constant_teacher_is_no_reason_to_change_the_order():
    labels = np.array([0] * 20 + [1] * 80)
    logits = logits_for(np.zeros(100, int), 2)
    assert check_teacher(logits, labels, None, {0: "a", 1: "b"}, only_sure=True)[0] == [0, 1]


@pytest.mark.parametrize(
    ("counts", "tells"),
    [
        ([1], False),
        ([40], False),
        ([0, 40], False),
        ([1, 1], False),
        ([2, 1], False),
        ([2, 2], False),
        ([4, 4], True),
        ([99, 1], False),
        ([95, 5], True),
        ([1] * 10, True),
        ([20, 20, 1], True),
    ],
)
def test_gold_labels_tell_where_a_teacher_that_is_wrong_once_passes(counts, tells):
    labels = np.repeat(np.arange(len(counts)), counts)
    assert can_tell(labels, SINGLE_LABEL) is tells
    names = {k: str(k) for k in range(len(counts) + 1)}
    for wrong in range(len(labels)) if tells else ():
        predictions = labels.copy()
        predictions[wrong] = len(counts)
        assert check_teacher(logits_for(predictions, len(names)), labels, list(names), names)[1] is None
    for constant in range(len(counts)) if tells else ():
        logits = logits_for(np.full(len(labels), constant), len(names))
        assert check_teacher(logits, labels, list(names), names)[1] is not None


def test_scores_and_labels_of_several_tell_where_a_correlation_can_be_above_chance():
    for task, columns in ((REGRESSION, 1), (MULTI_LABEL, 2)):
        for rows, tells in ((1, False), (4, False), (7, False), (8, True), (40, True)):
            labels = np.tile(np.arange(rows)[:, None] % 2, columns).astype(float)
            assert can_tell(labels, task) is tells
            assert can_tell(np.ones_like(labels), task) is False
        wrong_once = labels[:8].copy()
        wrong_once[0] = 1 - wrong_once[0]
        assert check_correlated(wrong_once, labels[:8], list(range(columns)), {0: "a", 1: "b"})[1] is None


FEW = {
    "one class": ([1] * 40, {}),
    "two rows": ([0, 1] + [-100] * 9, {}),
    "one row of a class": ([0] * 60 + [1], {}),
    "four scores": ([1.0, 2.0, 4.0, 8.0], {"num_labels": 1, "problem_type": REGRESSION}),
    "several labels": ([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], {"problem_type": MULTI_LABEL}),
}


@pytest.mark.parametrize(("labels", "config"), FEW.values(), ids=FEW)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_teacher_is_not_judged_by_gold_labels_that_tell_nothing(labels, config, seed, settings, tokenizer, caplog):
    texts = raw_rows(len(labels))["text"]
    rows = Dataset.from_dict({**tokenizer(texts[:]), "labels": labels})
    DistillationTrainer(
        tiny_bert(1, **config), tiny_bert(1, seed=seed, **config), settings(teacher_check="error"), train_dataset=rows,
        processing_class=tokenizer,
    )  # fmt: skip
    said = [record.getMessage() for record in caplog.records if "is not checked" in record.getMessage()]
    assert len(said) == 1 and "gold labels" in said[0]


def test_two_swapped_labels_of_several_a_row_are_found():
    random = np.random.default_rng(0)
    labels = (random.random((256, 6)) < 0.4).astype(float)
    logits = (labels + random.normal(0, 0.3, labels.shape))[:, [0, 4, 2, 3, 1, 5]]
    names = {k: f"c{k}" for k in range(6)}
    order, problem = check_correlated(logits, labels, list(range(6)), names)
    assert order == list(range(6)) and "{'c1': 4, 'c4': 1} fits" in problem
    assert check_correlated(logits, labels, None, names)[0] == [0, 4, 2, 3, 1, 5]
    assert check_correlated(labels + random.normal(0, 1, labels.shape), labels, list(range(6)), names)[1] is None


def test_a_sample_has_every_label_as_equally_often_as_the_data_allow():
    labels = np.array([0] * 500 + [1] * 40 + [2] * 5 + [-100] * 100)
    sample = stratified_sample(labels, 65, seed=0)
    assert np.bincount(labels[sample]).tolist() == [30, 30, 5]
    assert sample == sorted(set(sample)) and len(sample) == 65


def test_a_sample_depends_on_the_seed_alone_and_is_drawn_from_everywhere():
    labels = raw_rows(1000)["label"][:]
    assert stratified_sample(labels, 50, seed=3) == stratified_sample(labels, 50, seed=3)
    assert stratified_sample(labels, 50, seed=3) != stratified_sample(labels, 50, seed=4)
    assert max(stratified_sample(labels, 50, seed=3)) > 800


def test_a_sample_of_few_or_no_labelled_rows_is_all_there_is():
    assert stratified_sample([1, -100, 0], 10, seed=0) == [0, 2]
    assert stratified_sample([-100, -100], 10, seed=0) == []
    assert stratified_sample([0.5, -100.0, np.nan, 2.0], 10, seed=0) == [0, 3]
    assert stratified_sample([[0, 1], [1, -100], [-100, 1], [np.nan, 0], [1, 0]], 10, seed=0) == [0, 4]


@pytest.mark.parametrize(
    "rows, probabilities",
    [
        ([[0.2, 0.8], [1.0, 0.0]], True),
        ([[0.2, 0.8], [0.5, 0.6]], False),
        ([[-0.2, 1.2]], False),
        ([[2.0, -1.0]], False),
    ],
)
def test_probabilities_are_told_from_logits(rows, probabilities):
    assert looks_like_probabilities(np.array(rows, dtype=np.float32)) is probabilities
    assert looks_like_probabilities(np.zeros((0, 2))) is False
