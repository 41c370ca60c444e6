"""A student of a share of the width has all layers, and of each the heads and neurons that matter most."""

import json

import pytest
import torch
from families import (
    bert,
    by_finite_differences,
    distilbert,
    electra,
    llama,
    logits_of,
    make,
    modernbert,
    reloaded,
    roberta,
)  # fmt: skip
from samples import raw_rows, tiny_bert
from transformers import AutoModelForSequenceClassification

from nlpkd import OnnxClassifier, distill, load_text_classification, make_student
from nlpkd.compression.onnx import export_onnx
from nlpkd.models.inference import first_token_only
from nlpkd.students.backbone import CONFIG_KEY, without_local_backbone
from nlpkd.students.budget import make_candidates
from nlpkd.students.small import small_student

FAMILIES = [bert, distilbert, roberta, electra, llama]


def four_heads(**settings):
    return tiny_bert(heads=4, initializer_range=0.3, seed=3, **settings).eval()


def kept(student, layer: int):
    """The weights by which heads and neurons of a layer can be told."""
    parts = student.base.bert.encoder.layer[layer]
    return parts.attention.self.query.weight, parts.intermediate.dense.weight


@pytest.mark.parametrize("family", [*FAMILIES, modernbert], ids=lambda family: family.__name__)
def test_the_whole_width_is_the_teacher_and_needs_no_rows(family, batch):
    teacher = make(family)
    for name in ("width:1.0", "width:1"):
        student = make_student(teacher, name)
        assert type(student) is type(teacher) and student.training
        torch.testing.assert_close(logits_of(student, batch), logits_of(teacher, batch), rtol=0, atol=1e-6)
        ours, theirs = ({tensor.data_ptr() for tensor in model.parameters()} for model in (student, teacher))
        assert ours.isdisjoint(theirs)


def test_what_is_kept_changes_the_loss_most_by_a_naive_loop(make_rows, tokenizer):
    """Of 4 heads 2, of 32 neurons 16; both measured on the whole teacher."""
    teacher, rows = four_heads(), make_rows(7)
    student = make_student(teacher, "width:0.5", rows=rows, tokenizer=tokenizer)
    for name, units, width in (("attention.output.dense", 4, 4), ("output.dense", 32, 1)):
        layers = [f"bert.encoder.layer.{layer}.{name}" for layer in range(2)]
        for layer, importance in enumerate(by_finite_differences(teacher, layers, units, rows[:])):
            best = importance.argsort(descending=True)[: units // 2].sort().values
            places = (best[:, None] * width + torch.arange(width)).flatten()
            theirs = teacher.bert.encoder.layer[layer]
            expected = (theirs.attention.self.query if width > 1 else theirs.intermediate.dense).weight[places]
            assert torch.equal(kept(student, layer)[0 if width > 1 else 1], expected)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_what_nothing_reads_is_what_goes_and_the_student_is_saved_and_loaded(
    family, make_rows, tokenizer, batch, tmp_path  # noqa: F811
):  # fmt: skip
    teacher = make(family)
    with torch.no_grad():
        for name, module in teacher.named_modules():
            if name.endswith(("attention.output.dense", "out_lin", "o_proj")):
                module.weight[:, :8] = 0
            elif isinstance(module, torch.nn.Linear) and module.in_features == 32:
                module.weight[:, 1::2] = 0
    student = make_student(teacher, "width:0.5", rows=make_rows(16), tokenizer=tokenizer)
    loaded = reloaded(student, tmp_path)
    assert loaded.config.num_attention_heads == teacher.config.num_attention_heads // 2
    assert (type(loaded) is type(teacher)) == (family is llama)
    torch.testing.assert_close(logits_of(loaded, batch), logits_of(teacher, batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "share, heads, neurons", [(0.67, 3, 24), (0.5, 2, 16), (0.25, 1, 8), (0.01, 1, 8), (0.9, 4, 32), (0.88, 4, 32)]
)
def test_parameters_are_counted_by_hand(share, heads, neurons, make_rows, tokenizer):
    """Heads of 4 dimensions in a stream of 16: three matrices into them with a bias each, one out of them."""
    teacher = four_heads()
    student = make_student(teacher, f"width:{share}", rows=make_rows(4), tokenizer=tokenizer)
    lost = 3 * 17 * 4 * (4 - heads) + 16 * 4 * (4 - heads) + (17 + 16) * (32 - neurons)
    assert student.num_parameters() == teacher.num_parameters() - 2 * lost
    # With all heads it is a plain checkpoint.
    assert student.config.model_type == ("bert" if heads == 4 else "nlpkd_reshaped")


@pytest.mark.parametrize(
    "name, message",
    [
        ("width:0", "'width:0' names no share of a teacher's width: write one above 0, at most 1"),
        ("width:1.5", "'width:1.5' names no share"),
        ("width:-0.5", "'width:-0.5' names no share"),
        ("width:", "'width:' names no share"),
        ("width:nan", "'width:nan' names no share"),
        ("width:half", "'width:half' names no share"),
        ("width:0.67,0.5", "'width:0.67,0.5' names no share"),
    ],
)
def test_other_widths_are_refused(name, message, make_rows, tokenizer):
    with pytest.raises(ValueError, match=message) as refusal:
        make_student(four_heads(), name, rows=make_rows(4), tokenizer=tokenizer)
    assert "\n" not in str(refusal.value)


def test_what_can_not_be_measured_or_made_narrower_is_refused(make_rows, tokenizer):
    teacher, rows = four_heads(), make_rows(4)
    data = {"rows": rows, "tokenizer": tokenizer}
    for given, found in [
        ({}, "NoneType .*tokenizer of type NoneType"), ({"rows": rows}, "tokenizer of type NoneType"),
        (data | {"rows": raw_rows(4)}, r"columns \['text', 'label'\]"), (data | {"rows": [1, 2]}, "rows of type list"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"give rows=.*found .*{found}"):
            make_student(teacher, "width:0.5", **given)
    with pytest.raises(ValueError, match="ModernBertForSequenceClassification has no matrices of its own for queries"):
        make_student(make(modernbert), "width:0.5", **data)
    with pytest.raises(ValueError, match="BiLSTMForSequenceClassification has no layers to make narrower"):
        make_student(small_student("bilstm", teacher), "width:0.5", **data)
    with pytest.raises(ValueError, match="hidden_size: width:0.5 has the widths that it says"):
        make_student(teacher, "width:0.5", hidden_size=8, **data)
    with pytest.raises(ValueError, match="there is none: pass the teacher"):
        make_student(layers="width:0.5", **data)
    with pytest.raises(ValueError, match="'layers:3'.*, 'width:0.67', a shape"):
        make_student(teacher, "wide:0.5")
    # A budget has no rows.
    assert not any(name.startswith("width") for name in make_candidates(tiny_bert(), None, lambda name, config: True))


def test_a_factorised_table_of_fewer_heads_is_refused_before_heads_are_ranked(make_rows, tokenizer):
    teacher = four_heads()
    for layers in ("width:0.5", "bilstm"):
        # Without rows nothing can be ranked.
        with pytest.raises(ValueError, match=f"embedding_size is for students .* and layers='{layers}'"):
            make_student(teacher, layers, embedding_size=4)
    student = make_student(teacher, "width:0.9", rows=make_rows(4), tokenizer=tokenizer, embedding_size=4)
    assert student.config.model_type == "mobilebert" and student.config.num_attention_heads == 4


def test_labels_are_the_teachers_by_name_and_its_own_where_nobody_labelled(make_rows, tokenizer):
    teacher, rows = four_heads(num_labels=3, id2label={0: "neg", 1: "pos", 2: "mixed"}), make_rows(24)

    def student(rows) -> list[bytes]:
        made = make_student(teacher, "width:0.5", rows=rows, tokenizer=tokenizer)
        return [weight.detach().numpy().tobytes() for layer in range(2) for weight in kept(made, layer)]

    swapped = make_rows(24, names=("pos", "neg"))
    swapped = swapped.remove_columns("labels").add_column(
        "labels", [1 - label for label in rows["labels"]], feature=swapped.features["labels"]
    )
    assert student(swapped) == student(rows)
    # Of its own answers the loss is another.
    answers = [int(teacher(torch.tensor([ids])).logits.argmax()) for ids in rows["input_ids"]]
    unlabelled = rows.remove_columns("labels").add_column("labels", [-100] * 24)
    answered = rows.remove_columns("labels").add_column("labels", answers)
    assert answers != rows["labels"][:] and student(unlabelled) == student(answered) != student(rows)
    # Of rows some of which are labelled, those alone count.
    some = rows["labels"][:10] + [-100] * 14
    partly = rows.remove_columns("labels").add_column("labels", some)
    assert student(partly) == student(rows.select(range(10)))


def test_rows_of_a_stream_are_sampled_of_every_class(make_rows, tokenizer, tmp_path):
    raw_rows(24).to_json(tmp_path / "rows.jsonl")
    teacher = four_heads(id2label={0: "0", 1: "1"})
    stream = load_text_classification(tmp_path / "rows.jsonl", tokenizer=tokenizer, streaming=True)["train"]
    ours, theirs = (
        make_student(teacher, "width:0.5", rows=rows, tokenizer=tokenizer) for rows in (stream, make_rows(24))
    )
    for layer in range(2):
        assert all(torch.equal(*pair) for pair in zip(kept(ours, layer), kept(theirs, layer), strict=True))


def test_scores_that_nobody_gave_are_refused_and_several_labels_are_answered(make_rows, tokenizer):
    rows = make_rows(8).remove_columns("labels")
    scores = rows.add_column("labels", [float("nan")] * 8)
    with pytest.raises(ValueError, match="no row has a gold score"):
        make_student(four_heads(num_labels=1), "width:0.5", rows=scores, tokenizer=tokenizer)
    teacher = four_heads(problem_type="multi_label_classification")
    several = rows.add_column("labels", [[-100.0] * 2] * 8)
    made = make_student(teacher, "width:0.5", rows=several, tokenizer=tokenizer)
    assert made.config.num_attention_heads == 2 and made.config.problem_type == "multi_label_classification"


def test_the_backbone_s_weights_are_chosen_by_the_teacher_s_loss(make_rows, tokenizer, tmp_path):
    teacher, other, rows = four_heads(), tiny_bert(heads=4, seed=9), make_rows(12)
    other.base_model.save_pretrained(tmp_path)
    setattr(teacher.config, CONFIG_KEY, {"name": str(tmp_path), "revision": None, "fresh_pooler": False})
    data = {"rows": rows, "tokenizer": tokenizer}
    ours, theirs = (make_student(teacher, "width:0.5", start=start, **data) for start in ("pretrained", "teacher"))
    before = other.bert.encoder.layer, teacher.bert.encoder.layer
    for layer in range(2):
        chosen = [
            [place for row in weight for place in torch.where((all_of == row).all(dim=1))[0].tolist()]
            for weight, all_of in zip(
                (kept(ours, layer)[1], kept(theirs, layer)[1]),
                (stack[layer].intermediate.dense.weight for stack in before), strict=True,
            )
        ]  # fmt: skip
        assert len(chosen[0]) == 16 and chosen[0] == chosen[1]
    # No folder of this machine is left inside, and one that is gets struck out before a push.
    assert str(tmp_path) not in ours.config.to_json_string() + theirs.config.to_json_string()
    theirs.config.base_config.update({CONFIG_KEY: {"name": str(tmp_path)}})
    published = without_local_backbone(theirs.config.to_json_string())
    assert published and json.loads(published)["base_config"]["hidden_size"] == 16 and str(tmp_path) not in published


def test_its_onnx_file_and_its_last_layer_of_the_first_token_alone_give_its_logits(
    make_rows, tokenizer, batch, tmp_path  # noqa: F811
):  # fmt: skip
    pytest.importorskip("onnxruntime")
    student = make_student(four_heads(layers=1), "width:0.5", rows=make_rows(8), tokenizer=tokenizer).eval()
    export_onnx(student, tokenizer, tmp_path, texts=["good film", "a bad plot"])
    logits, session = logits_of(student, batch), OnnxClassifier.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(session, batch), logits, rtol=0, atol=1e-4)
    first = first_token_only(student)
    assert first is not None and student.base.bert.encoder.layer[-1] is not first.whole
    torch.testing.assert_close(logits_of(student, batch), logits, rtol=0, atol=1e-5)
    first.end()
    assert student.base.bert.encoder.layer[-1] is first.whole


def test_the_whole_job_by_name_with_a_trimmed_vocabulary_and_hidden_states(make_rows, tokenizer, tmp_path, caplog):
    caplog.set_level("INFO", "nlpkd")
    teacher = four_heads(id2label={0: "neg", 1: "pos"})
    distill(
        teacher, "width:0.5", raw_rows(24), raw_rows(8, seed=7), teacher_tokenizer=tokenizer, objectives="dynabert",
        vocabulary="trim", output_dir=tmp_path, bf16=False, report_to="none", disable_tqdm=True, use_cpu=True,
        max_steps=2, per_device_train_batch_size=8, teacher_check="off", rehearsal=False, save_strategy="no",
        learning_rate=1e-30,
    )  # fmt: skip
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and loaded.config.num_attention_heads == 2
    assert caplog.messages.count("Measuring which heads and neurons matter ...") == 1
    # It is what make_student makes of the training rows.
    expected = make_student(teacher, "width:0.5", rows=make_rows(24), tokenizer=tokenizer)
    for layer in range(2):
        assert all(torch.equal(*pair) for pair in zip(kept(loaded, layer), kept(expected, layer), strict=True))
