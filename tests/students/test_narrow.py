"""A narrower student starts from the teacher's weights: the same dimensions, heads and units everywhere."""

import copy

import pytest
import torch
from families import NAMES, SIZE, bert, distilbert, electra, logits_of, modernbert, roberta
from samples import QUIET, WORDS, raw_rows, tiny_bert
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    IBertConfig,
    IBertForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    NystromformerConfig,
    NystromformerForSequenceClassification,
)

from nlpkd import distill, make_student
from nlpkd.students import SHAPES
from nlpkd.students.narrow import narrow_student


def mpnet():
    return MPNetForSequenceClassification(MPNetConfig(**SIZE, max_position_embeddings=40, **NAMES))


def electra_base():
    return type(electra())(type(electra().config)(**SIZE, embedding_size=16, **NAMES))


FAMILIES = [bert, distilbert, roberta, electra, electra_base, mpnet]
NARROW = {"hidden_size": 8, "intermediate_size": 12}


@pytest.fixture(params=FAMILIES, ids=lambda family: family.__name__)
def teacher(request):
    torch.manual_seed(0)
    return request.param()


def plain_norms(model) -> None:
    """Set every layer norm to scale 1 and shift 0, where a turned stream loses nothing."""
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.ones_(module.weight)
            torch.nn.init.zeros_(module.bias)


@pytest.mark.parametrize("initialization", ["slice", "svd"])
def test_a_student_of_full_width_gives_the_teachers_logits(teacher, batch, initialization):  # noqa: F811
    plain_norms(teacher)
    student = narrow_student(teacher, initialization=initialization)
    torch.testing.assert_close(logits_of(student, batch), logits_of(teacher, batch), rtol=0, atol=2e-5)
    turned = [not torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True)]
    assert any(turned) == (initialization == "svd")


@pytest.mark.parametrize("initialization", ["slice", "svd"])
def test_layers_of_full_width_are_those_that_make_student_takes(teacher, batch, initialization):  # noqa: F811
    plain_norms(teacher)
    student = narrow_student(teacher, layers=3, initialization=initialization)
    taken = make_student(teacher, 3)
    torch.testing.assert_close(logits_of(student, batch), logits_of(taken, batch), rtol=0, atol=2e-5)


@pytest.mark.parametrize("initialization", ["slice", "svd"])
def test_what_a_teacher_does_not_use_can_be_left_out(teacher, batch, initialization):  # noqa: F811
    """Half of the feed-forward units write nothing: without them the logits stay."""
    plain_norms(teacher)
    unused = torch.randperm(32, generator=torch.Generator().manual_seed(1))[:16]
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if parameter.shape == (16, 32):
                parameter[:, unused] = 0
            elif parameter.shape == (32, 16) and "embedding" not in name and "relative" not in name:
                parameter[unused] *= 0.1
    student = narrow_student(teacher, intermediate_size=16, initialization=initialization)
    torch.testing.assert_close(logits_of(student, batch), logits_of(teacher, batch), rtol=0, atol=2e-5)


def test_a_slice_of_one_layer_by_hand(batch):  # noqa: F811
    """Two heads of four dimensions of the teacher's four heads, eight of sixteen dimensions, by plain indexing."""
    torch.manual_seed(0)
    teacher = tiny_bert(layers=1, heads=4, num_labels=3, initializer_range=0.3)
    stream, units, pooled = [0, 3, 4, 7, 9, 10, 12, 15], list(range(1, 32, 3)), [1, 2, 5, 6, 8, 11, 13, 14]
    heads = [4, 5, 6, 7, 12, 13, 14, 15]
    layer, embeddings = teacher.bert.encoder.layer[0], teacher.bert.embeddings
    attention = layer.attention
    with torch.no_grad():
        for weight in (embeddings.word_embeddings.weight, embeddings.position_embeddings.weight):
            weight[:, stream] *= 30
        for projection in (attention.self.query, attention.self.key, attention.self.value):
            projection.weight[heads] *= 30
        layer.intermediate.dense.weight[units] *= 30
        teacher.bert.pooler.dense.weight[pooled] *= 30
    student = narrow_student(
        teacher, hidden_size=8, num_attention_heads=2, intermediate_size=11, initialization="slice"
    ).eval()

    def linear(states, module, rows, columns):
        return F.linear(states, module.weight[rows][:, columns], module.bias[rows])

    def norm(states, module):
        return F.layer_norm(states, (8,), module.weight[stream], module.bias[stream], module.eps)

    with torch.no_grad():
        ids, mask = batch["input_ids"], batch["attention_mask"]
        states = embeddings.word_embeddings.weight[ids][..., stream]
        states = states + embeddings.position_embeddings.weight[: ids.shape[1], stream]
        states = norm(states + embeddings.token_type_embeddings.weight[0, stream], embeddings.LayerNorm)
        query, key, value = (
            linear(states, module, heads, stream).view(*ids.shape, 2, 4).transpose(1, 2)
            for module in (attention.self.query, attention.self.key, attention.self.value)
        )
        scores = (query @ key.transpose(-1, -2) / 2).masked_fill(mask[:, None, None] == 0, float("-inf"))
        context = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        states = norm(states + linear(context, attention.output.dense, stream, heads), attention.output.LayerNorm)
        inner = F.gelu(linear(states, layer.intermediate.dense, units, stream))
        states = norm(states + linear(inner, layer.output.dense, stream, units), layer.output.LayerNorm)
        first = linear(states[:, 0], teacher.bert.pooler.dense, pooled, stream).tanh()
        expected = F.linear(first, teacher.classifier.weight[:, pooled], teacher.classifier.bias)
    torch.testing.assert_close(logits_of(student, batch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("initialization", ["slice", "svd"])
def test_heads_wider_than_the_teachers_are_made_of_several(initialization):
    teacher = tiny_bert(layers=1, heads=4)
    student = narrow_student(teacher, hidden_size=8, num_attention_heads=1, initialization=initialization)
    sizes = teacher.bert.encoder.layer[0].attention.self.query.weight.square()
    assert student.config.num_attention_heads == 1
    assert student.bert.encoder.layer[0].attention.self.query.weight.shape == (8, 8) and sizes.shape == (16, 16)


def test_svd_keeps_a_stream_that_fills_a_part_of_its_width_alone(batch):  # noqa: F811
    """A wide teacher that is a narrow one turned into more dimensions: the narrow one's logits come back."""
    torch.manual_seed(0)
    small = tiny_bert(layers=2, hidden=8, heads=2, num_labels=3, initializer_range=0.3)
    plain_norms(small)
    wide = copy.deepcopy(small.config)
    wide.hidden_size = 16
    wide = type(small)(wide)
    plain_norms(wide)
    pairs = torch.zeros(16, 8)
    pairs[torch.randperm(16), torch.arange(16) % 8] = 1  # every dimension twice: mean and variance stay the same
    with torch.no_grad():
        for name, parameter in wide.named_parameters():
            narrow = dict(small.named_parameters())[name]
            if "LayerNorm" in name:
                continue
            if any(part in name for part in ("query", "key", "value")):
                # Heads of 8 dimensions of which 4 are used; sdpa divides by their root.
                scale = 2**0.25 if "value" not in name else 1.0
                full = torch.zeros(parameter.shape)
                rows = [0, 1, 2, 3, 8, 9, 10, 11]
                full[rows] = narrow * scale if narrow.ndim == 1 else narrow @ pairs.T / 2 * scale
                parameter.copy_(full)
            elif "attention.output.dense.weight" in name:
                full = torch.zeros(parameter.shape)
                full[:, [0, 1, 2, 3, 8, 9, 10, 11]] = pairs @ narrow
                parameter.copy_(full)
            elif "pooler" in name:
                full = torch.zeros(parameter.shape)
                full[:8] = narrow if narrow.ndim == 1 else narrow @ pairs.T / 2
                parameter.copy_(full)
            elif name == "classifier.weight":
                parameter.copy_(F.pad(narrow, (0, 8)))
            elif name.endswith("intermediate.dense.weight"):
                parameter.copy_(narrow @ pairs.T / 2)
            elif narrow.shape[-1] == 8 and "embeddings" in name:
                parameter.copy_(narrow @ pairs.T)
            elif narrow.shape[0] == 8:
                parameter.copy_(pairs @ narrow)
            else:
                parameter.copy_(narrow)
    torch.testing.assert_close(logits_of(wide, batch), logits_of(small, batch), rtol=0, atol=1e-4)
    student = narrow_student(wide, hidden_size=8, initialization="svd")
    with torch.no_grad():
        for layer in student.bert.encoder.layer:  # heads are half as wide, and sdpa divides by their root
            for projection in (layer.attention.self.query, layer.attention.self.key):
                projection.weight.div_(2**0.25), projection.bias.div_(2**0.25)
    torch.testing.assert_close(logits_of(student, batch), logits_of(small, batch), rtol=0, atol=1e-3)


@pytest.mark.parametrize("initialization", ["slice", "svd", "random"])
def test_a_narrower_student_is_a_plain_model_of_its_own(teacher, batch, tmp_path, initialization):  # noqa: F811
    before = copy.deepcopy(teacher.state_dict())
    state = torch.random.get_rng_state()
    student = narrow_student(teacher, layers=[2, 5], **NARROW, initialization=initialization)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert student.training and student.config.num_hidden_layers == 2 and student.config.hidden_size == 8
    assert student.config.id2label == NAMES["id2label"]
    owned = {parameter.untyped_storage().data_ptr() for parameter in teacher.parameters()}
    assert owned.isdisjoint(parameter.untyped_storage().data_ptr() for parameter in student.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    student.save_pretrained(tmp_path)
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits_of(loaded, batch), logits_of(student, batch))


def test_only_the_random_start_depends_on_the_seed():
    for initialization in ("slice", "svd", "random"):
        first, second = (
            narrow_student(bert_of_zero(), **NARROW, initialization=initialization, seed=s) for s in (1, 2)
        )
        equal = all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
        assert equal == (initialization != "random")


def bert_of_zero():
    torch.manual_seed(0)
    return bert()


def test_electra_narrows_its_embedding_table_too(batch):  # noqa: F811
    student = narrow_student(electra(), hidden_size=8, embedding_size=4)
    assert student.electra.embeddings.word_embeddings.weight.shape == (30, 4)
    assert student.electra.embeddings_project.weight.shape == (8, 4)
    assert logits_of(student, batch).shape == (3, 3)


# Shapes by name


def test_a_published_shape_by_name():
    torch.manual_seed(0)
    teacher = tiny_bert(layers=4, hidden=384, heads=12, intermediate_size=1536)
    student = make_student(teacher, "tinybert-4l-312")
    config = student.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (4, 312, 12)
    assert config.intermediate_size == 1200
    direct = narrow_student(teacher, **SHAPES["tinybert-4l-312"])
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), direct.parameters(), strict=True))


def test_the_published_students_have_the_published_number_of_parameters():
    published = {"bert-tiny": 4.4, "bert-mini": 11.3, "bert-small": 29.1, "bert-medium": 41.7, "tinybert-4l-312": 14.5}
    published |= {"tinybert-6l-768": 67.0, "minilm-6l-384": 22.7, "minilm-12l-384": 33.4}
    assert published.keys() == SHAPES.keys()
    with torch.device("meta"):
        teacher = tiny_bert(layers=12, hidden=768, heads=12, vocab_size=30522, max_position_embeddings=512)
    for name, millions in published.items():
        config = copy.deepcopy(teacher.config)
        sizes = dict(SHAPES[name])
        config.num_hidden_layers = sizes.pop("layers")
        config.update(sizes)
        with torch.device("meta"):
            model = type(teacher)(config)
        # Turc et al. count the head of the language model too, 0.3 million of bert-small.
        assert -0.05 < millions - model.num_parameters() / 1e6 < 0.4, name


def test_distil_into_a_shape(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setitem(SHAPES, "bert-minute", {"layers": 2, "hidden_size": 8, "num_attention_heads": 2})
    teacher = tiny_bert(layers=4, id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1})
    result = distill(
        teacher, "bert-minute", raw_rows(24), raw_rows(16, seed=1), teacher_tokenizer=tokenizer, output_dir=tmp_path,
        objectives="tinybert", max_steps=1, **QUIET,
        teacher_check="off",
    )  # fmt: skip
    assert result.student.config.hidden_size == 8 and result.student.config.vocab_size == 5 + len(WORDS)


# What is refused


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"hidden_size": 32}, "hidden_size=32 is not within the teacher's 16.*checkpoint"),
        ({"layers": 7}, "7 layers out of 6"),
        ({"layers": [3, 2]}, "ascending numbers from 1 to 6"),
        ({"hidden_size": 9}, "no multiple of num_attention_heads=2"),
        ({"embedding_size": 4}, "embedding_size=4 is not within the teacher's None"),
        ({"initialization": "pca"}, "'svd', 'slice' or 'random'"),
        ({"hidden_size": 12, "num_attention_heads": 1}, "1 heads of 12 dimensions can't be made"),
    ],
)
def test_sizes_that_the_teacher_can_not_give_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        narrow_student(bert(), **sizes)


def test_families_whose_weights_are_not_known_are_refused():
    with pytest.raises(ValueError, match="weights of other names"):
        narrow_student(modernbert(), hidden_size=8)
    with pytest.raises(ValueError, match="relative_attention_bias.*keep the number of heads"):
        narrow_student(mpnet(), hidden_size=8, num_attention_heads=1)


@pytest.mark.parametrize("widths", [{}, {"hidden_size": 8}, {"intermediate_size": 8}, {"num_attention_heads": 1}])
def test_a_family_with_weights_of_another_meaning_is_refused_for_what_its_logits_say(widths):
    """A Longformer's first token has queries, keys and values of its own, by names that BERT has not."""
    teacher = LongformerForSequenceClassification(LongformerConfig(**SIZE, attention_window=4, **NAMES))
    state = torch.random.get_rng_state()
    for initialization in ("slice", "svd"):
        with pytest.raises(ValueError, match=r"weights of another meaning .*logits are .* off.*: take layers"):
            narrow_student(teacher, layers=2, **widths, initialization=initialization)
    assert torch.equal(torch.random.get_rng_state(), state)
    # Its shape alone needs no weights; a list of the config has an entry for each layer.
    shape = narrow_student(teacher, layers=2, **widths, initialization="random")
    assert shape.config.attention_window == [4, 4]


def test_an_ibert_is_narrowed_as_the_roberta_that_it_is():
    """Its layer norms are of a class of its own."""
    torch.manual_seed(0)
    teacher = IBertForSequenceClassification(IBertConfig(**SIZE, max_position_embeddings=40, pad_token_id=1, **NAMES))
    twin = roberta()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.normal_()
            teacher.get_parameter(name.replace("roberta.", "ibert.")).copy_(parameter)
    narrow, expected = (narrow_student(each, layers=3, **NARROW) for each in (teacher, twin))
    for name, parameter in expected.named_parameters():
        assert torch.equal(narrow.get_parameter(name.replace("roberta.", "ibert.")), parameter), name


def test_a_family_that_reads_texts_of_one_length_alone_is_narrowed_untried():
    config = NystromformerConfig(
        **SIZE, max_position_embeddings=40, segment_means_seq_len=32, num_landmarks=8, **NAMES
    )
    student = narrow_student(NystromformerForSequenceClassification(config), hidden_size=8)
    assert student.config.hidden_size == 8


def test_the_pad_token_may_be_the_last_of_a_large_vocabulary():
    student = narrow_student(tiny_bert(vocab_size=100, pad_token_id=99), hidden_size=8)
    assert student.bert.embeddings.word_embeddings.weight.shape == (100, 8)
