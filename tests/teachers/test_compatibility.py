"""What does not fit together is refused before training, and what can be made to fit is, and said aloud."""

import logging

import pytest
import torch
from datasets import Dataset
from samples import WORDS, raw_rows, tiny_bert
from torch import nn
from transformers import BertTokenizer, DistilBertTokenizer

from nlpkd import DistillationTrainer, make_student
from nlpkd.data.collator import DistillationCollator
from nlpkd.data.label_names import adopt_label_names, align_labels_to_student, label_column
from nlpkd.data.labels.classes import Classes
from nlpkd.teachers.checks import check_teacher_on_gold_labels
from nlpkd.teachers.compatibility import label_order, refuse_shared_weights, teacher_prefix
from nlpkd.teachers.teacher import CachedTeacher, LiveTeacher

CPU = torch.device("cpu")
NEG_POS = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
POS_NEG = {"id2label": {0: "POS", 1: "NEG"}, "label2id": {"POS": 0, "NEG": 1}}


class Oracle(nn.Module):
    """A teacher that reads the label out of the text: logits by the word of judgement, no training needed."""

    def __init__(self, id2label: dict[int, str], swapped: bool = False, constant: bool = False, nan: bool = False):
        super().__init__()
        self.config = tiny_bert(id2label=id2label).config
        self.register_buffer("sign", torch.tensor(-1.0 if swapped else 1.0))
        self.constant, self.nan = constant, nan

    def forward(self, input_ids, attention_mask=None):
        good = ((input_ids >= 5) & (input_ids < 8)).any(dim=1).float() * 2 - 1
        if self.constant:
            good = torch.ones_like(good)
        logits = torch.stack([-3 * good, 3 * good], dim=1) * self.sign
        return (logits * float("nan") if self.nan else logits,)


class Probabilities(Oracle):
    def forward(self, input_ids, attention_mask=None):
        return (super().forward(input_ids)[0].softmax(dim=-1),)


@pytest.fixture
def rows(make_rows):
    return make_rows(120)


def live(model, order=None) -> LiveTeacher:
    return LiveTeacher(model, {}, CPU, order=order)


def hold(teacher, rows, tokenizer, check="error", config=None):
    config = tiny_bert(**NEG_POS).config if config is None else config
    check_teacher_on_gold_labels(teacher, rows, DistillationCollator(tokenizer), 32, CPU, config, check, seed=0)


# Shared weights


def test_a_student_that_is_its_teacher_or_holds_a_part_of_it_is_refused():
    teacher = tiny_bert()
    student = tiny_bert(seed=1)
    refuse_shared_weights(student, teacher)
    with pytest.raises(ValueError, match="share .*make_student"):
        refuse_shared_weights(teacher, teacher)
    student.bert.embeddings = teacher.bert.embeddings
    with pytest.raises(ValueError, match=r"share 5 tensors \(bert.embeddings.word_embeddings.weight"):
        refuse_shared_weights(student, teacher)


def test_copied_layers_are_not_shared():
    teacher = tiny_bert(layers=4)
    refuse_shared_weights(make_student(teacher, 2), teacher)


# Labels of data and student


@pytest.mark.parametrize("name", ["labels", "label", "label_ids"])
def test_the_column_of_labels_goes_by_any_name_that_trainer_knows(name):
    assert label_column(Dataset.from_dict({"a": [1], name: [0]})) == name
    assert label_column(Dataset.from_dict({"a": [1]})) is None
    assert label_column(None) is None


def test_data_with_the_names_the_other_way_round_follow_the_student(caplog):
    data = raw_rows(20)
    with caplog.at_level(logging.WARNING):
        followed = align_labels_to_student(data, tiny_bert(**POS_NEG).config, "training")
    assert followed["label"][:] == [1 - label for label in data["label"]]
    assert "training" in caplog.text


def test_data_in_the_students_order_are_left_as_they_are(caplog):
    data, config = raw_rows(20), tiny_bert(**NEG_POS).config
    assert align_labels_to_student(data, config, "training") is data
    assert not caplog.records


def test_a_student_without_names_takes_those_of_the_data():
    config = tiny_bert().config
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    data = raw_rows(20)
    assert align_labels_to_student(data, config, "training") is data and config.id2label[1] == "LABEL_1"
    adopt_label_names(config, data)
    assert (config.id2label, config.label2id) == ({0: "neg", 1: "pos"}, {"neg": 0, "pos": 1})


def test_names_that_contradict_the_students_are_refused():
    with pytest.raises(ValueError, match="labels of the evaluation set and of the student: .*contradict"):
        align_labels_to_student(raw_rows(20, names=("sad", "happy")), tiny_bert(**NEG_POS).config, "evaluation")


def test_data_of_more_labels_than_the_student_has_are_refused():
    with pytest.raises(ValueError, match="different numbers of labels: 3 .* and 2"):
        align_labels_to_student(raw_rows(20, names=("a", "b", "c")), tiny_bert().config, "training")


@pytest.mark.parametrize("label", [2, -1])
def test_a_label_out_of_range_names_its_row(label):
    data = Dataset.from_dict({"labels": [0, 1, -100, label, 5]})
    with pytest.raises(ValueError, match=f"row 3 of the training set has label {label} in column 'labels'.*0..1"):
        align_labels_to_student(data, tiny_bert().config, "training")


def test_an_unlabelled_row_of_glue_is_out_of_range_with_class_names_too():
    features = raw_rows(1).select_columns("label").features
    hidden = Dataset.from_dict({"label": [0, 1, -1]}, features=features)
    for names in (NEG_POS, POS_NEG):
        with pytest.raises(ValueError, match="row 2 of the evaluation set has label -1"):
            align_labels_to_student(hidden, tiny_bert(**names).config, "evaluation")


@pytest.mark.parametrize(("row", "labels"), [(0, ["pos", "neg"]), (1, [1, None])])
def test_labels_that_are_no_numbers_are_refused(row, labels):
    with pytest.raises(ValueError, match=f"row {row} .* has label {labels[row]!r} .*load_text_classification"):
        align_labels_to_student(Dataset.from_dict({"label": labels}), tiny_bert().config, "training")


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="the training set has no rows"):
        align_labels_to_student(Dataset.from_dict({"labels": []}), tiny_bert().config, "training")
    with pytest.raises(ValueError, match="the training set has no rows"):
        align_labels_to_student([], tiny_bert().config, "training")


def test_rows_without_labels_and_foreign_datasets_pass():
    data = Dataset.from_dict({"input_ids": [[1]]})
    assert align_labels_to_student(data, tiny_bert().config, "training") is data
    assert align_labels_to_student([1, 2], tiny_bert().config, "training") == [1, 2]
    assert align_labels_to_student(None, tiny_bert().config, "training") is None


# Labels of teacher and student


def test_the_teachers_order_is_found_by_name():
    classes = Classes.of_config(tiny_bert(**NEG_POS).config)
    assert label_order(tiny_bert(**POS_NEG), classes) == [1, 0]
    assert label_order(tiny_bert(**NEG_POS), classes) == [0, 1]
    assert label_order(tiny_bert(), classes) is None
    assert label_order(nn.Linear(1, 1), classes) is None


def test_a_teacher_of_other_names_or_another_number_of_labels_is_refused():
    with pytest.raises(ValueError, match="labels of the teacher and of the student: .*contradict"):
        label_order(tiny_bert(id2label={0: "sad", 1: "happy"}), Classes.of_config(tiny_bert(**NEG_POS).config))
    with pytest.raises(ValueError, match="labels of the teacher and of the student: different numbers of labels: 3"):
        label_order(tiny_bert(num_labels=3), Classes.of_config(tiny_bert(**NEG_POS).config))


def test_rows_longer_than_the_student_s_positions_are_told_before_training(rows, settings, tokenizer):
    student = tiny_bert(max_position_embeddings=6)
    with pytest.raises(ValueError, match=r"the student has 6 positions, and a row of the training set has \d+ tokens"):
        DistillationTrainer(student, tiny_bert(seed=1), settings(), train_dataset=rows, processing_class=tokenizer)


# The teacher against gold labels


def test_a_good_teacher_passes_in_silence(rows, tokenizer, caplog):
    teacher = live(Oracle(NEG_POS["id2label"]), [0, 1])
    hold(teacher, rows, tokenizer)
    assert teacher.order is None and not caplog.records


def test_a_teacher_without_names_is_given_the_order_that_fits(rows, tokenizer, caplog):
    teacher = live(Oracle({0: "LABEL_0", 1: "LABEL_1"}, swapped=True))
    with caplog.at_level(logging.WARNING):
        hold(teacher, rows, tokenizer)
    assert teacher.order.tolist() == [1, 0]
    assert "{'neg': 1, 'pos': 0}" in caplog.text
    batch = DistillationCollator(tokenizer)([rows[k] for k in range(8)])
    assert teacher.outputs(batch).logits.argmax(dim=-1).tolist() == batch["labels"].tolist()


@pytest.mark.parametrize("check", ["warn", "off"])
def test_an_order_is_settled_whatever_the_check(rows, tokenizer, check):
    teacher = live(Oracle({0: "LABEL_0", 1: "LABEL_1"}, swapped=True))
    hold(teacher, rows, tokenizer, check=check)
    assert teacher.order.tolist() == [1, 0]


def test_a_teacher_with_wrong_names_is_refused_with_the_order_that_fits(rows, tokenizer):
    teacher = live(Oracle(NEG_POS["id2label"], swapped=True), [0, 1])
    with pytest.raises(ValueError, match=r"0\.0 % of 120 .*\{'neg': 1, 'pos': 0\}.*id2label is wrong.*teacher_check"):
        hold(teacher, rows, tokenizer)


def test_a_teacher_that_teaches_noise_is_refused_warned_of_or_let_pass(rows, tokenizer, caplog):
    teacher = live(Oracle(NEG_POS["id2label"], constant=True), [0, 1])
    with pytest.raises(ValueError, match="no better than always answering"):
        hold(teacher, rows, tokenizer, check="error")
    with caplog.at_level(logging.WARNING):
        hold(teacher, rows, tokenizer, check="warn")
    assert "no better than always answering" in caplog.text
    caplog.clear()
    hold(teacher, rows, tokenizer, check="off")
    assert not caplog.records


@pytest.mark.parametrize("check", ["error", "warn", "off"])
def test_probabilities_nan_and_another_number_of_logits_are_refused_whatever_the_check(rows, tokenizer, check):
    names = NEG_POS["id2label"]
    with pytest.raises(ValueError, match="are probabilities"):
        hold(live(Probabilities(names)), rows, tokenizer, check=check)
    with pytest.raises(ValueError, match="NaN or infinite"):
        hold(live(Oracle(names, nan=True)), rows, tokenizer, check=check)
    with pytest.raises(ValueError, match="2 logits a row, the student has 3 labels"):
        hold(live(Oracle(names)), rows, tokenizer, check=check, config=tiny_bert(num_labels=3).config)


def test_probabilities_are_refused_without_gold_labels_too(rows, tokenizer):
    with pytest.raises(ValueError, match="are probabilities"):
        hold(live(Probabilities(NEG_POS["id2label"])), rows.remove_columns("labels"), tokenizer)


def test_a_cached_column_is_held_against_gold_in_the_students_order(rows, tokenizer):
    good = [[-1.0, 1.0] if label else [1.0, -1.0] for label in rows["labels"]]
    hold(CachedTeacher(), rows.add_column("teacher_logits", good), tokenizer)
    swapped = [row[::-1] for row in good]
    with pytest.raises(ValueError, match="id2label is wrong"):
        hold(CachedTeacher(), rows.add_column("teacher_logits", swapped), tokenizer)


def test_rows_of_which_none_is_labelled_pass(rows, tokenizer):
    unlabelled = rows.map(lambda row: {"labels": -100})
    hold(live(Oracle(NEG_POS["id2label"], constant=True)), unlabelled, tokenizer)


# Tokenizers


def other_tokenizer() -> BertTokenizer:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *reversed(WORDS)]
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=64)


def prefix(tokenizer, teacher_tokenizer, columns=(), match_tokens=(), teacher=None):
    teacher = tiny_bert(seed=1) if teacher is None else teacher
    return teacher_prefix(tiny_bert(), teacher, tokenizer, teacher_tokenizer, columns, match_tokens)


def test_the_same_tokenizer_of_another_class_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    same = DistilBertTokenizer.from_pretrained(tmp_path)
    assert type(same) is not type(tokenizer)
    assert prefix(tokenizer, same, match_tokens=["attention_mse"]) == ""


def test_a_teacher_with_the_same_vocabulary_needs_no_tokenizer(tokenizer):
    assert prefix(tokenizer, None, ["input_ids"], ["attention_mse"]) == ""


def test_another_vocabulary_without_the_teachers_tokenizer_is_refused(tokenizer):
    with pytest.raises(ValueError, match="vocabularies of 99 and 24 tokens.*teacher_processing_class"):
        prefix(tokenizer, None, ["input_ids"], teacher=tiny_bert(vocab_size=99))
    assert prefix(tokenizer, None, ["teacher_input_ids"], teacher=tiny_bert(vocab_size=99)) == "teacher_"


def test_a_tokenizer_beside_the_teachers_weights_is_read(tokenizer, tmp_path):
    teacher = tiny_bert(seed=1)
    teacher.save_pretrained(tmp_path)
    other_tokenizer().save_pretrained(tmp_path)
    teacher = type(teacher).from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the teacher has another tokenizer than the student"):
        prefix(tokenizer, None, ["input_ids"], teacher=teacher)
    tokenizer.save_pretrained(tmp_path)
    assert prefix(tokenizer, None, ["input_ids"], teacher=teacher) == ""


def test_the_teachers_own_tokenizer_reads_the_teachers_own_columns(tokenizer):
    assert prefix(tokenizer, other_tokenizer(), ["input_ids", "teacher_input_ids"]) == "teacher_"
    with pytest.raises(ValueError, match="no column teacher_input_ids.*teacher_tokenizer="):
        prefix(tokenizer, other_tokenizer(), ["input_ids"])


def test_the_columns_of_a_second_tokenizer_are_found_by_their_own_prefix(tokenizer):
    pair = tiny_bert(), tiny_bert(seed=1), tokenizer, other_tokenizer()
    columns = ["input_ids", "teacher_input_ids"]
    assert teacher_prefix(*pair, [*columns, "teacher_2_input_ids"], [], "teacher_2_") == "teacher_2_"
    with pytest.raises(ValueError, match="no column teacher_2_input_ids"):
        teacher_prefix(*pair, columns, [], "teacher_2_")


def test_matching_tokens_across_tokenizers_is_refused_by_the_objectives_names(tokenizer):
    with pytest.raises(ValueError, match="hidden_state_mse, attention_mse match token with token"):
        prefix(tokenizer, other_tokenizer(), ["teacher_input_ids"], ["hidden_state_mse", "attention_mse"])
