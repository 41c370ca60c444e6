"""A student of the teacher's layers is exactly those layers, and shares nothing with the teacher."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import NAMES, SIZE, bert, distilbert, electra, logits_of, modernbert, roberta
from samples import tiny_bert
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from nlpkd import make_student
from nlpkd.data.labels.classes import thresholds_of
from nlpkd.students.budget import make_candidates
from nlpkd.students.checkpoint import with_fresh_pooler
from nlpkd.students.kinds import KINDS, StudentKind, kind_of
from nlpkd.students.narrow import narrow_student
from nlpkd.students.small import small_student

STACKS = {
    bert: "bert.encoder.layer", distilbert: "distilbert.transformer.layer", roberta: "roberta.encoder.layer",
    electra: "electra.encoder.layer", modernbert: "model.layers",
}  # fmt: skip


@pytest.mark.parametrize(
    ("student", "sizes"),
    [
        (np.int64(2), {"hidden_size": np.int64(8)}), (np.array([2, 4]), {"embedding_size": np.int64(4)}),
        ("bilstm", {"hidden_size": np.int64(4)}), ("textcnn", {"num_filters": np.int64(5)}),
    ],
)  # fmt: skip
def test_a_student_of_numpys_sizes_is_saved(student, sizes, tmp_path):
    make_student(tiny_bert(layers=4), student, seed=np.int64(1), **sizes).save_pretrained(tmp_path)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path).config
    assert {name: getattr(saved, name) for name in sizes} == sizes


@pytest.mark.parametrize(
    "family, layers, chosen",
    [
        (family, layers, chosen)
        for family in STACKS
        for layers, chosen in [(3, [2, 4, 6]), ("layers:2", [3, 6]), ([1, 5], [1, 5]), ("layers:1,5", [1, 5])]
        if family is not modernbert or chosen[0] == 1
    ],
)
def test_the_student_is_the_teacher_without_the_other_layers(family, layers, chosen, batch):
    torch.manual_seed(0)
    teacher = family()
    student = make_student(teacher, layers)
    assert student.config.num_hidden_layers == len(chosen)
    assert (student.config.id2label, student.config.label2id) == (teacher.config.id2label, teacher.config.label2id)

    stack, ours, theirs = STACKS[family], student.state_dict(), teacher.state_dict()
    sources = {}
    for name in ours:
        source = name
        for position, layer in enumerate(chosen):
            if name.startswith(f"{stack}.{position}."):
                source = name.replace(f"{stack}.{position}.", f"{stack}.{layer - 1}.", 1)
        sources[name] = source
        assert torch.equal(ours[name], theirs[source]), name
    dropped = [f"{stack}.{k}." for k in range(6) if k + 1 not in chosen]
    assert set(theirs) - set(sources.values()) == {name for name in theirs if name.startswith(tuple(dropped))}


@pytest.mark.parametrize("family", [bert, distilbert, roberta, electra], ids=lambda family: family.__name__)
def test_the_student_gives_what_the_teachers_chosen_layers_give_by_hand(family, batch):
    torch.manual_seed(0)
    teacher = family()
    student = make_student(teacher, 3)
    by_hand = copy.deepcopy(teacher)
    *path, last = STACKS[family].split(".")
    parent = by_hand.get_submodule(".".join(path))
    stack = getattr(parent, last)
    setattr(parent, last, torch.nn.ModuleList([stack[1], stack[3], stack[5]]))
    torch.testing.assert_close(logits_of(student, batch), logits_of(by_hand, batch), rtol=0, atol=1e-6)
    assert not torch.allclose(logits_of(student, batch), logits_of(teacher, batch), atol=1e-4)


def test_modernbert_whose_first_layer_lacks_a_norm_must_start_with_it():
    with pytest.raises(ValueError, match=r"layers \[2, 4, 6\].*attn_norm.*start with 1"):
        make_student(modernbert(), 3)


def test_modernbert_keeps_what_kind_of_attention_each_layer_has():
    teacher = modernbert()
    student = make_student(teacher, [1, 2, 4])
    assert student.config.layer_types == [teacher.config.layer_types[k] for k in (0, 1, 3)]
    assert len(set(student.config.layer_types)) == 2


def test_all_layers_give_the_teacher_again(batch):
    teacher = bert()
    assert torch.equal(logits_of(make_student(teacher, 6), batch), logits_of(teacher, batch))


def test_no_memory_is_shared_and_the_teacher_stays_as_it_is():
    teacher = bert()
    before = copy.deepcopy(teacher.state_dict())
    config = teacher.config.to_dict()
    student = make_student(teacher, 3)
    owned = {parameter.untyped_storage().data_ptr() for parameter in teacher.parameters()}
    assert owned.isdisjoint(parameter.untyped_storage().data_ptr() for parameter in student.parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    student.config.id2label[0] = "changed"
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert teacher.config.to_dict() == config


def test_the_student_of_a_frozen_bfloat16_teacher_is_trained_in_float32():
    teacher = bert().to(torch.bfloat16).eval().requires_grad_(False)
    student = make_student(teacher, 3)
    assert student.training and all(p.requires_grad and p.dtype == torch.float32 for p in student.parameters())
    assert torch.equal(student.classifier.weight, teacher.classifier.weight.float())


def test_a_saved_student_loads_in_plain_transformers_without_a_missing_or_unexpected_key(tmp_path, batch):
    student = make_student(bert(), 3)
    student.save_pretrained(tmp_path)
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits_of(loaded, batch), logits_of(student, batch))


@pytest.mark.parametrize("layers", [[], [2, 1], [1, 1], [0, 3], [7]])
def test_lists_of_layers_that_are_not_ascending_or_do_not_exist_are_refused(layers):
    with pytest.raises(ValueError, match="ascending numbers from 1 to 6"):
        make_student(bert(), layers)


@pytest.mark.parametrize(
    "layers, message", [(0, "0 layers out of 6"), (7, "7 layers out of 6"), ("three", "layers:3")]
)
def test_numbers_of_layers_that_make_no_sense_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        make_student(bert(), layers)


def test_a_teacher_whose_layers_are_shared_in_groups_is_refused():
    teacher = AlbertForSequenceClassification(AlbertConfig(**SIZE, embedding_size=8, num_hidden_groups=2))
    with pytest.raises(ValueError, match="no single stack of 6 layers .*checkpoint"):
        make_student(teacher, 3)


def test_either_layers_or_a_checkpoint_and_never_both(tmp_path):
    for arguments in ({}, {"layers": 3, "checkpoint": tmp_path}):
        with pytest.raises(ValueError, match="either layers .* or checkpoint"):
            make_student(bert(), **arguments)
    with pytest.raises(ValueError, match="pass the teacher"):
        make_student(layers=3)


# Checkpoints


def test_a_checkpoint_of_another_width_and_number_of_labels_takes_the_teachers_labels(tmp_path, batch):
    source = tiny_bert(layers=2, hidden=8, num_labels=5)
    source.save_pretrained(tmp_path)
    student = make_student(bert(), checkpoint=tmp_path)
    assert student.config.hidden_size == 8 and student.training
    assert (student.config.id2label, student.config.label2id) == (NAMES["id2label"], NAMES["label2id"])
    assert logits_of(student, batch).shape == (3, 3)
    assert torch.equal(
        student.bert.encoder.layer[1].output.dense.weight, source.bert.encoder.layer[1].output.dense.weight
    )


def test_a_backbone_without_a_head_is_given_one_that_depends_on_the_seed_alone(tmp_path):
    BertModel(tiny_bert().config).save_pretrained(tmp_path)
    heads = []
    for outside, seed in [(0, 1), (5, 1), (0, 2)]:
        torch.manual_seed(outside)
        heads.append(make_student(bert(), checkpoint=tmp_path, seed=seed).classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_head_that_fits_is_kept(tmp_path):
    source = tiny_bert(num_labels=3)
    source.save_pretrained(tmp_path)
    assert torch.equal(make_student(bert(), checkpoint=tmp_path).classifier.weight, source.classifier.weight)


def test_labels_may_be_given_without_a_teacher(tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    student = make_student(checkpoint=tmp_path, id2label={0: "a", 1: "b", 2: "c", 3: "d"})
    assert student.config.num_labels == 4 and student.config.label2id == {"a": 0, "b": 1, "c": 2, "d": 3}


@pytest.mark.parametrize("source", ["layers", "checkpoint"])
def test_global_random_state_is_left_alone(tmp_path, source):
    BertModel(tiny_bert().config).save_pretrained(tmp_path)
    teacher = bert()
    before = torch.random.get_rng_state()
    make_student(teacher, 3) if source == "layers" else make_student(teacher, checkpoint=tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


# Widths and vocabulary


def test_widths_given_are_those_of_a_narrowed_student():
    teacher = bert()
    for way in ("svd", "slice"):
        asked = {"hidden_size": 8, "intermediate_size": 16, "initialization": way}
        found, wanted = make_student(teacher, "layers:2,5", **asked), narrow_student(teacher, layers=[2, 5], **asked)
        assert found.config.hidden_size == 8 and found.config.num_hidden_layers == 2
        assert all(torch.equal(tensor, wanted.state_dict()[name]) for name, tensor in found.state_dict().items())
    assert make_student(teacher, "bilstm", hidden_size=12).config.hidden_size == 12


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"checkpoint": "somewhere", "hidden_size": 8}, "hidden_size: a checkpoint has the shape that it has"),
        ({"layers": "bert-tiny", "hidden_size": 8}, r"hidden_size of bert-tiny is \[128\]: leave it out"),
        ({"layers": 2, "max_latency": 3.0}, "make_student has no argument max_latency; widths are hidden_size"),
        ({"layers": 2, "vocabulary": "trim"}, "give vocabulary='trim', a tokenizer and a list of texts together"),
        ({"layers": 2, "texts": ["good"]}, "give vocabulary='trim', a tokenizer and a list of texts together"),
        ({"layers": 2, "vocabulary": "trim", "tokenizer": 0, "texts": "good"}, "texts must be .*; got str"),
    ],
)
def test_widths_and_vocabularies_that_make_no_sense_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        make_student(bert(), **asked)


@pytest.mark.parametrize("kind", [2, "bilstm", "checkpoint"])
def test_a_trimmed_student_reads_its_texts_as_the_whole_one_does(kind, tokenizer, tmp_path):
    teacher, texts = tiny_bert(layers=4, num_labels=3, initializer_range=0.2), ["good film", "a bad plot"]
    teacher.save_pretrained(tmp_path)
    asked = {"checkpoint": tmp_path} if kind == "checkpoint" else {"layers": kind}
    whole = make_student(teacher, **asked)
    small, trimmed = make_student(teacher, **asked, vocabulary="trim", tokenizer=tokenizer, texts=iter(texts))
    assert set(trimmed.get_vocab()) < set(tokenizer.get_vocab())
    assert small.get_input_embeddings().num_embeddings == small.config.vocab_size == len(trimmed)
    with torch.no_grad():
        logits = [
            model.eval()(**reads(texts, padding=True, return_tensors="pt")).logits
            for model, reads in ((whole, tokenizer), (small, trimmed))
        ]
    assert torch.equal(*logits)


def test_a_fresh_pooler_is_drawn_from_the_seed_and_nothing_else_changes():
    model = tiny_bert(hidden=64, initializer_range=0.05)
    with torch.no_grad():
        model.bert.pooler.dense.weight.mul_(0.01)
        model.bert.pooler.dense.bias.add_(1.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    first, again, other = (with_fresh_pooler(copy.deepcopy(model), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [each.bert.pooler.dense.weight for each in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    # Of 4,096 numbers the standard deviation is known to 1.1 %.
    assert weights[0].std().item() == pytest.approx(0.05, rel=0.06) and not first.bert.pooler.dense.bias.any()
    changed = {name for name, tensor in first.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def test_a_model_without_a_pooler_is_refused_a_fresh_one():
    config = DistilBertConfig(vocab_size=30, dim=16, n_heads=2, n_layers=1, hidden_dim=32)
    with pytest.raises(ValueError, match="DistilBertForSequenceClassification has no pooler"):
        with_fresh_pooler(DistilBertForSequenceClassification(config))


WAYS = {
    "layers": {"layers": 2}, "narrower layers": {"layers": 2, "hidden_size": 8}, "width": {"layers": "width:0.5"},
    "bilstm": {"layers": "bilstm"}, "static": {"layers": "static", "embeddings": "random"},
    "factorised": {"layers": 2, "embedding_size": 4},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_student_has_no_thresholds_of_its_teacher(way, tokenizer):
    teacher = tiny_bert(problem_type="multi_label_classification", thresholds=[0.2, 0.7])
    rows = Dataset.from_dict({**tokenizer(["a good film", "bad"]), "labels": [[1.0, 0.0], [0.0, 1.0]]})
    student = make_student(teacher, rows=rows, tokenizer=tokenizer, **WAYS[way])
    assert student.config.problem_type == teacher.config.problem_type
    assert "thresholds" not in student.config.to_dict() and teacher.config.thresholds == [0.2, 0.7]


def test_a_checkpoint_keeps_its_thresholds_by_the_names_that_it_goes_by(tmp_path):
    several = {"problem_type": "multi_label_classification", "id2label": {0: "a", 1: "b"}}
    tiny_bert(**several, thresholds={"a": 0.2, "b": 0.7}).save_pretrained(tmp_path)
    for names, expected in ((["b", "a"], [0.7, 0.2]), (["A", "B"], [0.2, 0.7]), (["a", "b", "c"], None)):
        assert thresholds_of(make_student(checkpoint=tmp_path, id2label=names).config) == expected


def test_a_kind_of_student_is_an_entry_that_make_student_and_budgets_read():
    """It goes by its name, messages list it, and it is one of a budget's candidates."""

    def wide(teacher, name, *, id2label, seed):
        return tiny_bert(layers=9)

    kind = StudentKind("wide".__eq__, "'wide'", wide, lambda teacher: ["wide"])
    KINDS.append(kind)
    try:
        assert kind_of("wide") is kind and kind_of("wider") is None
        assert make_student(bert(), "wide").config.num_hidden_layers == 9
        with pytest.raises(ValueError, match="names no student of a teacher: use .*, or 'wide'"):
            make_student(bert(), "wider")
        assert "wide" in make_candidates(
            bert(), None, lambda name, config: getattr(config, "num_hidden_layers", 0) == 9
        )
    finally:
        KINDS.remove(kind)


@pytest.mark.parametrize("layers", [2, "layers:2", "bilstm"])
def test_a_path_in_place_of_a_teacher_is_refused(layers):
    with pytest.raises(ValueError, match="the teacher is 'runs/teacher', and must be a model: load it first"):
        make_student("runs/teacher", layers)


@pytest.mark.parametrize("names", [["neg", "pos"], ("neg", "pos"), {0: "neg", 1: "pos"}, {"0": "neg", "1": "pos"}])
def test_label_names_may_be_given_in_order_or_by_id(names, tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    for student in (
        small_student("static", id2label=names, vocab_size=24),
        make_student(checkpoint=tmp_path, id2label=names),
    ):
        assert student.config.id2label == {0: "neg", 1: "pos"}
        assert student.config.label2id == {"neg": 0, "pos": 1}


@pytest.mark.parametrize("names, said", [("ab", "got the text 'ab'"), ({1: "a", 2: "b"}, "must count from 0")])
def test_label_names_that_name_no_ids_are_refused(names, said):
    with pytest.raises(ValueError, match=said):
        small_student("static", id2label=names, vocab_size=24)


@pytest.mark.parametrize("layers", [True, [True, 2], [1.5], ["1"]])
def test_layers_are_whole_numbers(layers):
    with pytest.raises(ValueError, match="layers.* whole number"):
        make_student(tiny_bert(layers=2), layers)
