"""A table or matrix of lower rank is the best one of that rank, really smaller, and loads again."""

import numpy as np
import pytest
import torch
from families import NAMES, SIZE, bert, distilbert, electra, logits_of, make, modernbert, reloaded, roberta
from processes import run as run_program
from samples import raw_rows, tiny_bert
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    MobileBertForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from nlpkd import distill, make_student
from nlpkd.compression import factorize_embeddings, factorize_linear, prune_heads


def xlmr():
    return XLMRobertaForSequenceClassification(XLMRobertaConfig(**SIZE, max_position_embeddings=40, **NAMES))


def deberta():
    config = DebertaV2Config(
        **SIZE, type_vocab_size=0, position_biased_input=False, relative_attention=True, pos_att_type=["p2c", "c2p"],
        **NAMES,
    )  # fmt: skip
    return DebertaV2ForSequenceClassification(config)


def table_of(model) -> np.ndarray:
    return model.get_input_embeddings().weight.detach().double().numpy()


def product_of(smaller) -> np.ndarray:
    """The whole table that a factorised one stands for."""
    projection = smaller.mobilebert.embeddings.embedding_transformation
    table = table_of(smaller) @ projection.weight.detach().double().numpy().T
    return table + projection.bias.detach().double().numpy()


def best_approximation(table: np.ndarray, rank: int, counts: np.ndarray) -> np.ndarray:
    """Each row on the axes along which the rows' differences from their mean, each counted n times, spread most."""
    mean = table.mean(axis=0)
    spread = sum(n * np.outer(row - mean, row - mean) for n, row in zip(counts, table, strict=True))
    axes = np.linalg.eigh(spread)[1][:, len(spread) - rank :]
    return mean + (table - mean) @ axes @ axes.T


def of_rank(model, rank: int):
    """Give the table so low a rank, at a size beside which an epsilon is nothing."""
    table = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(1)
    factors = (torch.randn(shape, generator=generator) for shape in ((len(table), rank), (rank, table.shape[1])))
    table.data = torch.linalg.multi_dot([*factors])
    return model


@pytest.mark.parametrize("counted", [False, True])
def test_the_table_is_the_best_one_of_its_rank(counted, make_rows):
    model, rows = make(bert), make_rows(20)
    counts = np.ones(24)
    for ids in rows["input_ids"]:
        for number in ids:
            counts[number] += counted
    smaller, record = factorize_embeddings(model, rank=5, dataset=rows if counted else None)
    expected = best_approximation(table_of(model), 5, counts)
    np.testing.assert_allclose(product_of(smaller), expected, atol=1e-5)
    kept, whole = ((part - table_of(model).mean(axis=0)) ** 2 for part in (expected, table_of(model)))
    share = (counts[:, None] * kept).sum() / (counts[:, None] * whole).sum()
    assert record.details["energy"] == pytest.approx(share, abs=1e-5)


def test_the_energy_chooses_the_smallest_rank_that_keeps_it():
    model = make(bert)
    table = table_of(model) - table_of(model).mean(axis=0)
    shares = [
        1 - ((table - best_approximation(table, r, np.ones(24))) ** 2).sum() / (table**2).sum() for r in range(1, 16)
    ]
    wanted = 1 + next(place for place, share in enumerate(shares) if share >= 0.6)
    _, record = factorize_embeddings(model, energy=0.6)
    assert record.details["rank"] == wanted


@pytest.mark.parametrize("family", [bert, roberta, xlmr, deberta])
def test_factorising_an_embedding_table_of_low_rank_keeps_the_logits_in_a_plain_checkpoint(family, tmp_path):
    """RoBERTa counts positions from behind its padding token: text that starts elsewhere would show it."""
    model = of_rank(make(family), 3)
    pad = model.config.pad_token_id
    ids = torch.randint(5, 24, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 6 + [0]])
    inputs = {"input_ids": ids * mask + pad * (1 - mask), "attention_mask": mask}
    smaller, record = factorize_embeddings(model, rank=4)
    loaded = reloaded(smaller, tmp_path)
    assert isinstance(
        loaded, DebertaV2ForSequenceClassification if family is deberta else MobileBertForSequenceClassification
    )
    assert loaded.config.id2label == NAMES["id2label"] and table_of(loaded).shape == (len(table_of(model)), 4)
    torch.testing.assert_close(logits_of(loaded, inputs), logits_of(model, inputs), rtol=0, atol=5e-4)
    assert record.size_mb_after < record.size_mb_before
    assert record.parameters_after < record.parameters_before


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (bert, {}, "either rank or energy"),
        (bert, {"rank": 4, "energy": 0.5}, "either rank or energy"),
        (bert, {"energy": 1.0}, "energy must be a share above 0 and below 1"),
        (bert, {"rank": 16}, "its embedding_size. must be at least 1 and below the full rank, 16: got 16"),
        (bert, {"rank": 0}, "its embedding_size. must be at least 1 and below the full rank, 16: got 0"),
        (bert, {"rank": 12}, "a table of 24 x 16 gets no smaller with rank 12"),
        (distilbert, {"rank": 4}, "trim its vocabulary instead"),
        (modernbert, {"rank": 4}, "trim its vocabulary instead"),
        (electra, {"rank": 4}, "make_student with a hidden_size makes them narrower"),
    ],
)
def test_embeddings_that_can_not_be_factorised_are_refused(family, settings, message):
    with pytest.raises(ValueError, match=message):
        factorize_embeddings(make(family), **settings)


@pytest.mark.parametrize("layers", [2, "layers:2", [2, 4]])
def test_a_student_may_have_factorised_embeddings(layers):
    teacher = tiny_bert(layers=4)
    student = make_student(teacher, layers, embedding_size=4)
    expected, _ = factorize_embeddings(make_student(teacher, layers), rank=4)
    assert student.training and student.config.num_hidden_layers == 2
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, student.state_dict()[name])
    with pytest.raises(ValueError, match="embedding_size is for students that are built from a teacher"):
        make_student(teacher, "bilstm", embedding_size=4)


def test_a_student_with_factorised_embeddings_goes_through_the_whole_job(tokenizer, settings):
    """Matched layer by layer, embeddings included, as the default preset does."""
    args = settings(max_steps=3)
    result = distill(
        tiny_bert(layers=4), "layers:2", raw_rows(40), raw_rows(20, seed=1), args=args, tokenizer=tokenizer,
        teacher_tokenizer=tokenizer, embedding_size=4,
    )  # fmt: skip
    assert isinstance(result.student, MobileBertForSequenceClassification)
    assert result.student.config.embedding_size == 4


@pytest.mark.parametrize("family", [bert, distilbert, roberta, electra, modernbert, deberta])
def test_factorising_matrices_of_low_rank_keeps_the_logits(family, batch, tmp_path):  # noqa: F811
    model = make(family)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for module in linear.values():
        left, values, right = np.linalg.svd(module.weight.detach().double().numpy(), full_matrices=False)
        module.weight.data = torch.tensor((left[:, :2] * values[:2]) @ right[:2], dtype=torch.float32)
    smaller, record = factorize_linear(model, rank=2)
    loaded = reloaded(smaller, tmp_path)
    torch.testing.assert_close(logits_of(loaded, batch), logits_of(model, batch), rtol=0, atol=1e-4)
    assert record.size_mb_after < record.size_mb_before and record.parameters_after < record.parameters_before
    assert record.details == {"layers": len(linear), "rank": [2, 2]}


def test_a_factorised_matrix_is_the_best_one_of_its_rank():
    model = make(bert)
    smaller, record = factorize_linear(model, energy=0.5)
    ranks = []
    for name, shape in smaller.config.linears.items():
        weight = model.get_submodule(name).weight.detach().double().numpy()
        left, values, right = np.linalg.svd(weight, full_matrices=False)
        rank = next(r for r in range(1, 17) if (values[:r] ** 2).sum() >= 0.5 * (values**2).sum())
        ranks.append(rank)
        factors = smaller.base.get_submodule(name)
        product = (factors[1].weight @ factors[0].weight).detach().numpy()
        assert shape == [weight.shape[1], rank, weight.shape[0]]
        np.testing.assert_allclose(product, (left[:, :rank] * values[:rank]) @ right[:rank], atol=1e-5)
        assert torch.equal(factors[1].bias, model.get_submodule(name).bias)
    assert record.details["rank"] == [min(ranks), max(ranks)]


def test_a_rank_at_which_nothing_gets_smaller_is_refused():
    with pytest.raises(ValueError, match="no linear layer of .* gets smaller with rank=15"):
        factorize_linear(make(bert), rank=15)


def test_feed_forward_layers_are_factorised_after_heads_are_pruned(make_rows, tokenizer, batch, tmp_path):  # noqa: F811
    once, _ = prune_heads(make(bert), make_rows(8), tokenizer, heads=1)
    twice, record = factorize_linear(once, rank=3)
    loaded = reloaded(twice, tmp_path)
    assert record.parameters_after < record.parameters_before
    # The classifier's three rows are thinner than two factors.
    assert loaded.config.num_attention_heads == 1 and "classifier" not in loaded.config.linears
    assert loaded.base.bert.encoder.layer[0].attention.self.query[1].out_features == 8
    torch.testing.assert_close(logits_of(loaded, batch), logits_of(twice, batch), rtol=0, atol=1e-6)


def test_a_reshaped_model_loads_in_another_process_that_imports_nlpkd_first(tmp_path, batch, tokenizer):  # noqa: F811
    smaller, _ = factorize_linear(make(bert), rank=3)
    smaller.save_pretrained(tmp_path)
    program = (
        "import nlpkd, torch, transformers; "
        f"model = transformers.AutoModelForSequenceClassification.from_pretrained({str(tmp_path)!r}); "
        f"print(model(input_ids=torch.tensor({batch['input_ids'].tolist()})).logits.tolist())"
    )
    done = run_program(["-c", program], tmp_path, timeout=120, fresh=True)
    assert done.returncode == 0, done.stderr
    expected = logits_of(smaller, {"input_ids": batch["input_ids"]})
    torch.testing.assert_close(torch.tensor(eval(done.stdout)), expected, rtol=0, atol=1e-6)


def test_a_reshaped_model_has_the_loss_of_its_task(batch):  # noqa: F811
    model = make(bert)
    labels = torch.tensor([0, 2, 1])
    smaller, _ = factorize_linear(model, rank=3)
    smaller.config.problem_type = "single_label_classification"
    logits = logits_of(smaller, batch)
    expected = -torch.stack([row.log_softmax(0)[label] for row, label in zip(logits, labels, strict=True)]).mean()
    torch.testing.assert_close(smaller(**batch, labels=labels).loss, expected)
