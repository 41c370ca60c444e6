"""BiLSTM, TextCNN and bag of vectors against naive loops, padded, saved, made for a teacher and distilled."""

import json

import pytest
import torch
from packaging.version import Version
from processes import run as run_program
from samples import QUIET, raw_rows, tiny_bert
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from nlpkd import DistillationTrainer, distill, make_student
from nlpkd.compression.onnx import _export
from nlpkd.compression.vocabulary import trim_embeddings
from nlpkd.evaluation.evaluate import EvaluationReport
from nlpkd.hub.model_card import build_model_card
from nlpkd.models.small_models import SMALL_STUDENTS
from nlpkd.objectives import PRESETS, CrossEntropyLoss, ForwardKLLoss, HiddenStateMSELoss
from nlpkd.students.small import small_student

KINDS = sorted(SMALL_STUDENTS)
PAIRS = "static with pairs"
LENGTHS = [9, 1, 2, 4, 6]
NAMES = {0: "neg", 1: "neutral", 2: "pos"}


def small(kind: str, **settings):
    """One for a tiny BERT; of pairs of tokens too, which start as zeros, with seven vectors."""
    settings |= {"num_pairs": 7} if kind == PAIRS else {}
    model = small_student(kind.split()[0], tiny_bert(num_labels=3, initializer_range=0.5), **settings).eval()
    if kind == PAIRS:
        model.pairs.weight.data = torch.randn(model.pairs.weight.shape, generator=torch.Generator().manual_seed(0))
    return model


def several(kind: str):
    """One of several layers or unusual widths, with a projection, in float64."""
    shapes = {"bilstm": {"hidden_size": 7, "num_layers": 2}, "textcnn": {"filter_widths": (2, 5), "num_filters": 6}}
    model = small(kind, projection_size=11, **shapes.get(kind, {})).double()
    if kind in ("static", PAIRS):
        # At the start all tokens count alike.
        model.importance.weight.data = torch.linspace(-1, 2, 11, dtype=torch.float64)[None]
    return model


def texts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 24, (length,), generator=generator) for length in LENGTHS]


def padded(rows: list[torch.Tensor], side: str, width: int, token: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = torch.full((len(rows), width), token), torch.zeros(len(rows), width, dtype=torch.long)
    for row, text in enumerate(rows):
        places = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        ids[row, places], mask[row, places] = text, 1
    return ids, mask


# Against naive loops


def sigmoid(value: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-value))


def naive_lstm(weights: dict[str, torch.Tensor], name: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """All states of one direction, step by step (gates in torch's order: input, forget, cell, output)."""
    from_input, from_state = weights[f"{name}.weight_ih_l0"], weights[f"{name}.weight_hh_l0"]
    bias = weights[f"{name}.bias_ih_l0"] + weights[f"{name}.bias_hh_l0"]
    state = cell = torch.zeros(from_state.shape[1], dtype=torch.float64)
    states = []
    for token in inputs:
        i, f, g, o = (from_input @ token + from_state @ state + bias).chunk(4)
        cell = sigmoid(f) * cell + sigmoid(i) * torch.tanh(g)
        state = sigmoid(o) * torch.tanh(cell)
        states.append(state)
    return states


def naive_bilstm(model, tokens: list[torch.Tensor], weights: dict[str, torch.Tensor]) -> torch.Tensor:
    for layer in range(model.config.num_layers):
        ahead = naive_lstm(weights, f"forwards.{layer}", tokens)
        back = naive_lstm(weights, f"backwards.{layer}", tokens[::-1])
        tokens = [torch.cat(pair) for pair in zip(ahead, back[::-1], strict=True)]
    vector = weights["intermediate.weight"] @ torch.cat([ahead[-1], back[-1]]) + weights["intermediate.bias"]
    return vector.clamp(min=0)


def naive_textcnn(model, tokens: list[torch.Tensor], weights: dict[str, torch.Tensor]) -> torch.Tensor:
    found = []
    for position, width in enumerate(model.config.filter_widths):
        kernel, bias = weights[f"filters.{position}.weight"], weights[f"filters.{position}.bias"]
        filled = tokens + [torch.zeros_like(tokens[0])] * max(0, width - len(tokens))
        windows = [torch.stack(filled[at : at + width], dim=1) for at in range(len(filled) - width + 1)]
        for one in range(len(kernel)):
            found.append(max(max(0.0, float((kernel[one] * window).sum() + bias[one])) for window in windows))
    return torch.tensor(found, dtype=torch.float64)


def naive_static(
    model, tokens: list[torch.Tensor], weights: dict[str, torch.Tensor], ids: list[int]
) -> torch.Tensor:  # fmt: skip
    if model.config.num_pairs:
        hashed = [(1_000_003 * ids[at] + ids[at + 1]) % model.config.num_pairs for at in range(len(ids) - 1)]
        tokens = tokens + [weights["pairs.weight"][row] for row in hashed]
    counts = [float(torch.exp((weights["importance.weight"][0] * token).sum())) for token in tokens]
    mean = sum(count * token for count, token in zip(counts, tokens, strict=True)) / sum(counts)
    mean = (mean - mean.mean()) / (mean.var(unbiased=False) + 1e-5).sqrt() * weights["norm.weight"] + weights[
        "norm.bias"
    ]
    return (weights["intermediate.weight"] @ mean + weights["intermediate.bias"]).clamp(min=0)


@pytest.mark.parametrize("kind", [*KINDS, PAIRS])
def test_logits_are_those_of_a_naive_loop_over_tokens(kind):
    model = several(kind)
    naive = {"bilstm": naive_bilstm, "textcnn": naive_textcnn}.get(kind)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for text in texts():
        tokens = [weights["projection.weight"] @ weights["embeddings.weight"][token] + weights["projection.bias"]
                  for token in text]  # fmt: skip
        vector = naive(model, tokens, weights) if naive else naive_static(model, tokens, weights, text.tolist())
        expected = weights["classifier.weight"] @ vector + weights["classifier.bias"]
        torch.testing.assert_close(model(text[None]).logits[0], expected, rtol=0, atol=1e-10)


# Padding


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", [*KINDS, PAIRS])
def test_padding_changes_nothing_wherever_it_stands_and_whatever_token_it_is(kind, side):
    """Every row alone is the reference, gradients included; of the shortest, filters overhang."""
    model, rows = several(kind), texts()
    alone = torch.cat([model(text[None]).logits for text in rows])
    alone.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    ids, mask = padded(rows, side, width=14, token=17)
    together = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
    together.square().sum().backward()
    for ours, expected in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(ours.grad, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [*KINDS, PAIRS])
def test_without_a_mask_the_padding_token_is_padding(kind):
    model, (ids, mask) = small(kind), padded(texts(), "right", width=12, token=0)
    assert torch.equal(model(ids).logits, model(ids, attention_mask=mask).logits)
    assert not torch.allclose(model(ids).logits, model(ids, attention_mask=torch.ones_like(ids)).logits, atol=1e-4)


@pytest.mark.parametrize("kind", [*KINDS, PAIRS])
def test_a_text_without_tokens_has_logits_that_do_not_depend_on_the_padding(kind):
    model, mask = small(kind), torch.zeros(1, 4, dtype=torch.long)
    logits = model(torch.full((1, 4), 3), attention_mask=mask).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(model(torch.full((1, 6), 9), attention_mask=torch.zeros(1, 6)).logits, logits)


@pytest.mark.parametrize("kind", [*KINDS, PAIRS])
def test_bfloat16_autocast_trains_and_is_near_to_float32(kind):
    model, (ids, mask) = small(kind), padded(texts(), "left", width=12, token=0)
    exact = model(ids, attention_mask=mask).logits
    with torch.autocast("cpu", torch.bfloat16):
        output = model(ids, attention_mask=mask, labels=torch.tensor([0, 1, 2, 0, 1]))
    torch.testing.assert_close(output.logits.float(), exact, rtol=0, atol=0.03)
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in model.parameters())


# As models of transformers


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_the_problem_type(kind):
    ids = torch.stack([texts()[0]] * 2)
    hard, soft = torch.tensor([2, 0]), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    cases = {
        "single_label_classification": (hard, F.cross_entropy),
        "multi_label_classification": (soft, F.binary_cross_entropy_with_logits),
        "regression": (soft, F.mse_loss),
    }
    for problem, (labels, loss) in cases.items():
        model = small(kind, problem_type=problem)
        output = model(ids, labels=labels)
        torch.testing.assert_close(output.loss, loss(output.logits, labels))


@pytest.mark.parametrize("kind", KINDS)
def test_embedded_inputs_and_token_types(kind):
    model, (ids, mask) = small(kind), padded(texts(), "right", width=9, token=0)
    expected = model(ids, attention_mask=mask).logits
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embedded, attention_mask=mask).logits, expected)
    assert torch.equal(model(ids, attention_mask=mask, token_type_ids=torch.ones_like(ids)).logits, expected)
    for arguments in ({}, {"input_ids": ids, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model(**arguments)


IMPORTS = [
    "import nlpkd\nfrom transformers import AutoModelForSequenceClassification",
    "from transformers import AutoModelForSequenceClassification\nimport nlpkd",
]


def test_saved_students_load_in_a_fresh_process_that_imports_nlpkd_first_or_last(tmp_path, tokenizer):
    """Whoever imports in the other order would be told that there is no such model."""
    ids, expected = texts()[0], {}
    for kind in KINDS:
        model = small(kind)
        model.save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        assert [path.name for path in (tmp_path / kind).glob("*.*t*rs")] == ["model.safetensors"]
        expected[kind] = model(ids[None]).logits[0].tolist()
    program = f"""
from transformers import AutoTokenizer, pipeline
for kind in {KINDS}:
    model, info = AutoModelForSequenceClassification.from_pretrained(kind, output_loading_info=True)
    assert not any(info.values()), info
    import torch
    print(kind, model(torch.tensor([{ids.tolist()}])).logits[0].tolist())
    assert len(AutoTokenizer.from_pretrained(kind)) == 24
    pipeline("text-classification", model=kind)("good film")
"""
    for imports in IMPORTS:
        done = run_program(["-c", imports + program], tmp_path, timeout=120, fresh=True)
        assert done.returncode == 0, f"{imports}\n{done.stderr}"
        printed = dict(line.split(" ", 1) for line in done.stdout.splitlines())
        assert printed.keys() == expected.keys()
        for kind, logits in printed.items():
            assert json.loads(logits) == pytest.approx(expected[kind], abs=1e-6)


@pytest.mark.parametrize("kind", [*KINDS, PAIRS])
def test_an_onnx_file_takes_other_batches_and_lengths(kind, tmp_path):
    """A loop over tokens, or a length read in Python, would fix what the example had."""
    if kind == "bilstm" and Version(torch.__version__) < Version("2.13"):
        pytest.skip("torch 2.11 fixes an LSTM's length in the file")
    runtime = pytest.importorskip("onnxruntime")
    model, example = small(kind), padded(texts()[2:4], "right", width=7, token=0)
    # torch remembers how it ran an LSTM in the first export of a process.
    for _ in range(2 if kind == "bilstm" else 1):
        _export(model, dict(zip(["input_ids", "attention_mask"], example, strict=True)), tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    for side in ("right", "left"):
        ids, mask = padded(texts(), side, width=11, token=0)
        (logits,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(ids, attention_mask=mask).logits)


def test_pairs_are_nothing_at_the_start_tell_the_order_and_need_ids_that_stay():
    ids, mask = padded(texts(), "left", width=12, token=0)
    plain, with_pairs = small("static"), small("static", num_pairs=64)
    assert not with_pairs.pairs.weight.any()
    with_pairs.load_state_dict(plain.state_dict(), strict=False)
    assert with_pairs.num_parameters() == plain.num_parameters() + 64 * 16
    # A mean over as many zeros more is shorter, which the layer norm takes back.
    logits = [model(ids, attention_mask=mask).logits for model in (with_pairs, plain)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-3)
    # Words in another order are another text to pairs alone.
    swapped = ids.flip(1)
    trained = small(PAIRS)
    ahead, back = ({"input_ids": ids, "attention_mask": mask}, {"input_ids": swapped, "attention_mask": mask.flip(1)})
    torch.testing.assert_close(plain(**back).logits, plain(**ahead).logits)
    assert not torch.allclose(trained(**back).logits, trained(**ahead).logits, atol=1e-3)
    with pytest.raises(ValueError, match="does not say which tokens stand side by side"):
        trained(inputs_embeds=trained.get_input_embeddings()(ids), attention_mask=mask)
    # A trim renumbers the ids: at the start nothing depends on them.
    assert trim_embeddings(with_pairs, range(10)).config.vocab_size == 10
    with pytest.raises(ValueError, match="trim, then train"):
        trim_embeddings(trained, range(10))


# For a teacher


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocabulary, width", [(30522, 384), (100, 768), (100, 1024)])
def test_beside_the_table_there_are_under_a_million_parameters(kind, vocabulary, width):
    config = BertConfig(vocab_size=vocabulary, hidden_size=width, num_hidden_layers=0, num_attention_heads=4)
    student = small_student(kind, BertForSequenceClassification(config))
    table = student.get_input_embeddings().weight
    assert table.shape == (vocabulary, width)
    beside = sum(parameter.numel() for parameter in student.parameters()) - table.numel()
    assert (0 if kind == "static" else 200_000) < beside < 1_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_is_a_copy_of_the_teachers_and_trained_in_float32(kind):
    teacher = tiny_bert(num_labels=3, id2label=NAMES, problem_type="multi_label_classification", pad_token_id=4)
    teacher = teacher.to(torch.bfloat16).requires_grad_(False)
    student = make_student(teacher, kind)
    ours, theirs = student.get_input_embeddings().weight, teacher.get_input_embeddings().weight
    assert torch.equal(ours, theirs.float()) and ours.data_ptr() != theirs.data_ptr()
    assert student.training and all(p.requires_grad and p.dtype == torch.float32 for p in student.parameters())
    config = student.config
    assert (config.id2label, config.label2id) == (NAMES, {"neg": 0, "neutral": 1, "pos": 2})
    assert (config.vocab_size, config.pad_token_id, config.problem_type) == (24, 4, "multi_label_classification")
    drawn = small_student(kind, teacher, embeddings="random").get_input_embeddings().weight
    assert drawn.shape == (24, 300)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_depend_on_the_seed_alone_and_the_global_random_state_is_left_alone(kind):
    made = []
    for outside, seed in [(0, 1), (5, 1), (0, 2)]:
        torch.manual_seed(outside)
        before = torch.random.get_rng_state()
        made.append(small_student(kind, id2label=NAMES, vocab_size=30, seed=seed).state_dict())
        assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    # Weights of tokens start at 0 and the norm at 1 and 0, whatever the seed.
    drawn = [name for name in made[0] if name != "importance.weight" and not name.startswith("norm.")]
    assert not any(torch.equal(made[0][name], made[2][name]) for name in drawn)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kind": "gru"}, r"no small student 'gru': choose one of \['bilstm', 'static', 'textcnn'\]"),
        ({"kind": "bilstm", "teacher": None}, "needs id2label and vocab_size"),
        ({"kind": "bilstm", "num_filters": 3}, "num_filters: no setting of BiLSTMConfig"),
        ({"kind": "textcnn", "embeddings": "glove"}, "must be 'teacher', .* got 'glove'"),
        ({"kind": "textcnn", "teacher": None, "id2label": NAMES, "vocab_size": 9, "embeddings": "teacher"}, "must be"),
        ({"kind": "textcnn", "vocab_size": 9}, r"table is \(24, 16\), and \(9, 16\) is asked for"),
        ({"kind": "bilstm", "embedding_size": 8}, r"table is \(24, 16\), and \(24, 8\) is asked for"),
    ],
)
def test_what_makes_no_student_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_student(**{"teacher": tiny_bert()} | arguments)


def test_a_small_model_has_no_layers_to_take():
    with pytest.raises(ValueError, match="3 layers out of 0"):
        make_student(small("bilstm"), 3)
    with pytest.raises(ValueError, match=r"another kind of student \(bilstm, textcnn, static\)"):
        make_student(tiny_bert(), "gru")


# Distilled


@pytest.fixture(scope="module")
def taught(make_rows, tokenizer, tmp_path_factory):
    """A tiny BERT that tells good from bad."""
    from nlpkd import DistillationConfig

    args = DistillationConfig(
        output_dir=str(tmp_path_factory.mktemp("taught")), **QUIET, save_strategy="no",
        learning_rate=3e-3, num_train_epochs=8, per_device_train_batch_size=16,
    )  # fmt: skip
    trainer = DistillationTrainer(
        model=tiny_bert(), args=args, objectives=[CrossEntropyLoss()], train_dataset=make_rows(160),
        eval_dataset=make_rows(64, seed=5), processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.95
    return trainer.model


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_learns_from_soft_targets(kind, bf16, taught, make_rows, settings, tokenizer):
    trainer = DistillationTrainer(
        model=make_student(taught, kind), teacher_model=taught,
        args=settings(learning_rate=3e-3, num_train_epochs=5, bf16=bf16, teacher_check="error"),
        objectives=[CrossEntropyLoss(0.5), ForwardKLLoss(2.0, 0.5)],
        train_dataset=make_rows(96, seed=3), eval_dataset=make_rows(64, seed=5), processing_class=tokenizer,
    )  # fmt: skip
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.5 * before["eval_loss"] and after["eval_accuracy"] > 0.9


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"hinton", "soft_targets", "best", "dist"}))
@pytest.mark.parametrize("kind", KINDS)
def test_objectives_on_layers_are_refused_with_what_to_use(kind, name, make_rows, settings, tokenizer):
    teacher = tiny_bert()
    with pytest.raises(ValueError, match="student has none to give .*use objectives on logits, such as .*'hinton'"):
        DistillationTrainer(
            model=make_student(teacher, kind), teacher_model=teacher, args=settings(),
            objectives=PRESETS[name].stages()[0].objectives, train_dataset=make_rows(8), processing_class=tokenizer,
        )  # fmt: skip


def test_a_small_teacher_of_hidden_states_is_refused_too(make_rows, settings, tokenizer):
    with pytest.raises(ValueError, match="teacher has none to give"):
        DistillationTrainer(
            model=tiny_bert(), teacher_model=make_student(tiny_bert(), "textcnn"), args=settings(),
            objectives=[HiddenStateMSELoss()], train_dataset=make_rows(8), processing_class=tokenizer,
        )  # fmt: skip


def test_the_whole_job_by_name_leaves_a_student_that_loads_and_a_card_that_says_how(tmp_path, taught, tokenizer):
    result = distill(
        taught, "bilstm", raw_rows(40), raw_rows(16, seed=7), teacher_tokenizer=tokenizer, objectives="hinton",
        baseline=True, output_dir=tmp_path, **QUIET, max_steps=2,
    )  # fmt: skip
    assert result.student.config.model_type == "nlpkd_bilstm"
    for folder in (tmp_path, tmp_path / "baseline" / "same_start"):
        loaded, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        assert type(loaded) is type(result.student) and not any(info.values())
    report = EvaluationReport.load(tmp_path)
    assert "import nlpkd" in str(build_model_card(report, model_name="x"))
    assert report.candidates["student"].parameters == sum(p.numel() for p in result.student.parameters())
    with pytest.raises(ValueError, match="'bilstm' is made of parts of a teacher"):
        distill(None, "bilstm", raw_rows(8), soft_label_column="votes", output_dir=tmp_path / "other")


# What is refused


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("textcnn", {"filter_widths": ()}), ("textcnn", {"filter_widths": (0,)}), ("textcnn", {"filter_widths": 3}),
        ("textcnn", {"filter_widths": ("3",)}), ("textcnn", {"num_filters": 0}), ("bilstm", {"num_layers": 0}),
        ("bilstm", {"num_layers": True}), ("bilstm", {"hidden_size": -1}), ("static", {"intermediate_size": 0}),
        ("static", {"num_pairs": -1}), *((kind, {"vocab_size": "30"}) for kind in KINDS),
        *((kind, {"embedding_size": 0}) for kind in KINDS), *((kind, {"projection_size": 0}) for kind in KINDS),
        *((kind, {"embedding_dropout": "much"}) for kind in KINDS),
    ],
)  # fmt: skip
def test_what_is_no_size_is_refused_by_its_name_given_or_read_from_a_file(kind, settings, tmp_path):
    [name] = settings
    with pytest.raises(ValueError, match=f"{name}.* must be"):
        small_student(kind, **{"id2label": NAMES, "vocab_size": 24} | settings)
    small(kind).config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(ValueError, match=f"{name}.* must be"):
        AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tmp_path))
