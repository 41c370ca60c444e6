"""The token that a family's head reads is the one that stands for a text, and padding is never read in its place."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, BertTokenizer
from transformers import AutoModelForSequenceClassification as Auto

from nlpkd import TextClassifier, cache_teacher_outputs, load_text_classification
from nlpkd.compression import export_onnx, factorize_embeddings, prune_neurons
from nlpkd.evaluation.prediction import predict_logits
from nlpkd.models.capture import Capture
from nlpkd.models.padding import is_causal, reads_padding, refuse_unknown_padding
from nlpkd.models.structure import forward_arguments, readable
from nlpkd.objectives.base import text_state
from nlpkd.teachers import ZeroShotTeacher

SIZE = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
OWN = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
SPECIAL = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
BART = {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in {"layers": 1, "attention_heads": 2, "ffn_dim": 16}.items()
}
FIRST = {
    "bert": SIZE, "convbert": SIZE | {"embedding_size": 16, "head_ratio": 1, "conv_kernel_size": 3}, "fnet": SIZE,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}, "yoso": SIZE,
    "nystromformer": SIZE | {"segment_means_seq_len": 64, "num_landmarks": 64, "conv_kernel_size": 3},
    "roformer": SIZE | {"embedding_size": 16},
    "mobilebert": SIZE | {"embedding_size": 16, "intra_bottleneck_size": 16, "normalization_type": "layer_norm",
                         "num_hidden_layers": 1, "num_feedforward_networks": 1},
}  # fmt: skip
"""Families whose heads read the first token."""
LAST = {
    "gpt2": OWN, "openai-gpt": OWN, "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "mpt": {"d_model": 16, "n_layers": 2, "n_heads": 2}, "ctrl": OWN | {"dff": 32},
    "llama": SIZE, "modernbert-decoder": SIZE | {"cls_token_id": 2, "sep_token_id": 3}, "falcon": SIZE,
}  # fmt: skip
"""Those whose heads read the last token that is no padding."""
SEQUENCES = {"bart": BART | {"d_model": 16}, "mvp": BART | {"d_model": 16}, "bigbird_pegasus": BART | {"d_model": 16}}
"""Those that read their end token in a decoder behind the encoder."""
XLNET = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, "d_head": 8}
TEXTS = ["good film", "a bad plot and it is not good", "the actor", "was very poor at all", "good", "not bad"]


def model_of(family: str, **settings):
    sizes = {**FIRST, **LAST, **SEQUENCES, "xlnet": XLNET}[family]
    special = SPECIAL if family in SEQUENCES else {"vocab_size": 40, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Auto.from_config(AutoConfig.for_model(family, **special | sizes | settings)).eval()
        for parameter in model.parameters():
            # Every weight matters, biases too.
            torch.nn.init.normal_(parameter, std=0.3)
    return model


class XLNetTokenizer(BertTokenizer):
    """Has the name by which a tokenizer is known that pads on the left."""


@pytest.fixture(scope="module")
def rows(tokenizer) -> Dataset:
    given = Dataset.from_dict({"text": TEXTS, "label": [1, 0] * 3})
    return load_text_classification(given, tokenizer=tokenizer).splits["train"]


def alone(model, rows: Dataset) -> torch.Tensor:
    """The logits of each row without any padding."""
    names = forward_arguments(model) & {"input_ids", "attention_mask"}
    with torch.no_grad():
        return torch.cat([model(**{name: torch.tensor([row[name]]) for name in names}).logits for row in rows])


def padded(tokenizer, rows: Dataset) -> dict[str, torch.Tensor]:
    columns = {name: rows[name][:] for name in ("input_ids", "attention_mask")}
    return dict(tokenizer.pad(columns, return_tensors="pt"))


# The token that is read


@pytest.mark.parametrize("family", ["bert", "distilbert", "roformer", "fnet", *LAST])
def test_the_token_that_stands_for_a_text_is_the_one_that_its_head_reads(family, rows, tokenizer):
    model, batch = model_of(family), readable(model_of(family), padded(tokenizer, rows))
    captured = Capture(model, {"hidden_states": frozenset({2})}, "student")(model, batch)
    states = captured.hidden_states[2]
    states.retain_grad()
    captured.logits[:, 0].sum().backward()
    read = states.grad.abs().sum(dim=-1) > 0  # (batch, seq)
    assert read.sum(dim=1).tolist() == [1] * len(rows)
    assert torch.equal(text_state(captured, states), states[read])
    assert is_causal(model) == (family in LAST)


def test_the_token_that_stands_for_a_text_of_xlnet_is_the_last_place(rows, tokenizer):
    model = model_of("xlnet")
    left = XLNetTokenizer(vocab=tokenizer.get_vocab(), padding_side="left")
    captured = Capture(model, {"hidden_states": frozenset({2})}, "student")(model, padded(left, rows))
    states = captured.hidden_states[2]
    assert torch.equal(text_state(captured, states), states[:, -1])
    assert torch.equal(model.logits_proj(model.sequence_summary(states)), captured.logits)


@pytest.mark.parametrize("family", LAST)
def test_a_decoder_is_given_no_segments_which_it_would_look_up_among_the_words(family):
    assert "token_type_ids" not in forward_arguments(model_of(family))


@pytest.mark.parametrize(("family", "reads"), [("xlnet", True), ("bert", True), ("distilbert", False)])
def test_an_encoder_is_given_the_segments_that_it_reads(family, reads):
    assert ("token_type_ids" in forward_arguments(model_of(family))) == reads


# Padding in its place


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("family", [*LAST, *FIRST, *SEQUENCES])
def test_a_family_that_would_take_padding_for_text_is_refused_and_no_other(family, padding, tokenizer):
    model = model_of(family)
    refuse_unknown_padding(model, tokenizer, "student")
    # Some families' configs check what they are given.
    vars(model.config)["pad_token_id"] = padding
    refuse_unknown_padding(model, tokenizer, "student", at_once=1)
    if family in LAST:
        with pytest.raises(ValueError, match=f"student .* pad_token_id {padding} and the tokenizer 0: set config.pad"):
            refuse_unknown_padding(model, tokenizer, "student")
    else:
        refuse_unknown_padding(model, tokenizer, "student")


def test_an_xlnet_whose_tokenizer_pads_where_it_reads_is_refused(rows, tokenizer):
    left = XLNetTokenizer(vocab=tokenizer.get_vocab())
    found = predict_logits(model_of("xlnet"), rows, left)
    torch.testing.assert_close(torch.tensor(found), alone(model_of("xlnet"), rows))
    with pytest.raises(ValueError, match="the student classifies by the last place, where a BertTokenizer pads"):
        predict_logits(model_of("xlnet"), rows, tokenizer, name="student")


DOORS = {
    "predict_logits": lambda model, rows, tokenizer, folder: predict_logits(model, rows, tokenizer),
    "served": lambda model, rows, tokenizer, folder: TextClassifier(model=model, tokenizer=tokenizer)(
        TEXTS, batch_size=2
    ),
    "cached": lambda model, rows, tokenizer, folder: cache_teacher_outputs(model, rows, tokenizer, cache_dir=folder),
    "pruned": lambda model, rows, tokenizer, folder: prune_neurons(model, rows, tokenizer, keep=0.5),
    "exported": lambda model, rows, tokenizer, folder: export_onnx(model, tokenizer, folder, texts=TEXTS),
    "asked": lambda model, rows, tokenizer, folder: ZeroShotTeacher(
        model, ["good", "bad"], tokenizer=tokenizer
    ).probabilities(TEXTS),
}


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_a_decoder_that_would_take_padding_for_text(door, padding, rows, tokenizer, tmp_path):
    if door == "exported":
        pytest.importorskip("onnxruntime")
    names = {"contradiction": 0, "entailment": 1}
    model = model_of("llama", label2id=names, id2label={number: name for name, number in names.items()})
    model.config.pad_token_id = padding
    with pytest.raises(ValueError, match=f"classifies by the last token .* pad_token_id {padding} and the tokenizer"):
        DOORS[door](model, rows, tokenizer, tmp_path / "new")


def test_a_decoder_without_a_padding_token_answers_texts_one_at_a_time(rows, tokenizer):
    model = model_of("llama", pad_token_id=None)
    expected = alone(model, rows)
    found = predict_logits(model, rows, tokenizer, batch_size=1)
    torch.testing.assert_close(torch.tensor(found), expected)
    answers = TextClassifier(model=model, tokenizer=tokenizer)(TEXTS)
    assert [each["label"] for each in answers] == [f"LABEL_{label}" for label in expected.argmax(dim=1)]


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_tokenizer_that_was_set_up_to_generate_text_pads_as_classifiers_read(family, rows, tokenizer, tmp_path):
    pytest.importorskip("onnxruntime")
    model, left = model_of(family), copy.deepcopy(tokenizer)
    left.padding_side = "left"
    expected = alone(model, rows).softmax(dim=-1).amax(dim=-1).tolist()
    answers = TextClassifier(model=model, tokenizer=left)(TEXTS, batch_size=4)
    assert [each["score"] for each in answers] == pytest.approx(expected, abs=1e-5)
    assert export_onnx(model, left, tmp_path, texts=TEXTS).largest_difference < 1e-4
    assert left.padding_side == "left"


# Families that read padding whatever the mask says


@pytest.mark.parametrize("family", [*FIRST, *LAST])
def test_the_families_that_read_padding_are_known(family, tokenizer):
    texts = [" ".join(["a good film"] * count) for count in (10, 1, 2, 3)]
    rows = Dataset.from_dict(dict(tokenizer(texts)))
    model = model_of(family)
    with torch.no_grad():
        together = model(**readable(model, padded(tokenizer, rows))).logits
    moved = (together - alone(model, rows)).abs().max() > 1e-4
    assert reads_padding(model) == moved
    # Without padding such a family reads the shortest text too.
    assert not moved or model(input_ids=torch.tensor([[5]])).logits.isfinite().all()


def test_a_mobilebert_that_reads_no_token_beside_another_reads_no_padding(tokenizer):
    assert not reads_padding(model_of("mobilebert", trigram_input=False))
    # A vocabulary in two factors is a MobileBERT of that kind.
    smaller, _ = factorize_embeddings(model_of("bert"), rank=4)
    assert smaller.config.model_type == "mobilebert"
    assert not reads_padding(smaller)


@pytest.mark.parametrize("family", ["fnet", "mobilebert", "bert"])
def test_a_text_is_measured_and_served_as_it_is_alone_whatever_is_beside_it(family, rows, tokenizer):
    model = model_of(family)
    expected = alone(model, rows)
    for size in (1, 2, 64):
        found = predict_logits(copy.deepcopy(model), rows, tokenizer, batch_size=size)
        torch.testing.assert_close(torch.tensor(found), expected)
    classifier = TextClassifier(model=model, tokenizer=tokenizer)
    for size in (1, 4):
        answers = classifier(TEXTS, batch_size=size, top_k=None)
        scores = [[score for _, score in sorted((one["label"], one["score"]) for one in each)] for each in answers]
        torch.testing.assert_close(torch.tensor(scores), expected.softmax(dim=-1), rtol=0, atol=1e-5)


def test_the_last_window_of_a_long_text_is_read_without_padding(tokenizer):
    model, text = model_of("fnet"), " ".join(TEXTS)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    windows = [[2, *ids[at : at + 6], 3] for at in range(0, len(ids), 6)]
    assert len(windows) > 2 and len(windows[-1]) < 8
    expected = alone(model, Dataset.from_dict({"input_ids": windows})).mean(dim=0)
    classifier = TextClassifier(model=model, tokenizer=tokenizer, truncation=True)
    found = classifier(text, window_stride=0, max_length=8, top_k=None, function_to_apply="none")
    by_label = {each["label"]: each["score"] for each in found}
    assert by_label == pytest.approx(
        dict(zip(model.config.id2label.values(), expected.tolist(), strict=True)), abs=1e-5
    )


def test_the_file_of_a_family_that_reads_padding_is_compared_on_the_same_padding(tokenizer, tmp_path):
    pytest.importorskip("onnxruntime")
    record = export_onnx(model_of("fnet"), tokenizer, tmp_path, texts=TEXTS)
    assert record.largest_difference < 1e-4
