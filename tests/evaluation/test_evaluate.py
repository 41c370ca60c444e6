import json
import logging
import math
import re
import time
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors import safe_open
from samples import tiny_bert
from scipy.stats import binomtest
from sklearn.metrics import f1_score, matthews_corrcoef
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
from transformers.modeling_outputs import SequenceClassifierOutput

from nlpkd import load_text_classification
from nlpkd.evaluation.benchmark import count_flops, describe_environment, measure_latency, model_size_mb
from nlpkd.evaluation.evaluate import evaluate_student
from nlpkd.evaluation.html_report import render_page
from nlpkd.evaluation.metrics import classification_metrics
from nlpkd.evaluation.prediction import predict_logits
from nlpkd.evaluation.records import DECISIONS, Interval
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.evaluation.report_text import short_verdict
from nlpkd.hub.model_card import build_model_card

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = 60
LABELLED = Dataset.from_dict({"text": ["w1 w2", "w3"] * 2, "label": ["a", "b"] * 2})
QUICK = {"bootstrap_samples": 50, "latency_runs": 0}


def word_tokenizer():
    words = SPECIAL + [f"w{number}" for number in range(VOCABULARY - len(SPECIAL))]
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    roles = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


def bert(names=("neg", "pos"), seed=0, layers=1):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
        initializer_range=0.5,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    return BertForSequenceClassification(config)


def several_labels(names=("a", "b", "c"), **config):
    model = bert(names)
    model.config.update({"problem_type": "multi_label_classification", **config})
    return model.eval()


def reordered_head(model, order):
    state = model.state_dict()
    return state | {name: state[name][order] for name in ("classifier.weight", "classifier.bias")}


def rows(count=37, seed=0, labels=2, prefix=""):
    generator = np.random.default_rng(seed)
    ids = [generator.integers(5, VOCABULARY, size=generator.integers(3, 30)).tolist() for _ in range(count)]
    return Dataset.from_dict(
        {
            f"{prefix}input_ids": ids,
            f"{prefix}attention_mask": [[1] * len(row) for row in ids],
            "text": ["some text"] * count,
            "labels": generator.integers(labels, size=count).tolist(),
        }
    )


def one_by_one(model, dataset, prefix=""):
    model.eval()
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([ids])).logits[0] for ids in dataset[f"{prefix}input_ids"]]
    return torch.stack(logits).numpy()


class FixedLogits(nn.Module):
    """Gives the logits that the first token of a row stands for, counted again from 0 where there are no more."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table))

    def forward(self, input_ids):
        return self.table[input_ids[:, 0] % len(self.table)]


def fixed_rows(labels):
    return Dataset.from_dict({"input_ids": [[row] for row in range(len(labels))], "labels": labels})


def answers(predictions, labels=2):
    return FixedLogits(np.eye(labels, dtype=np.float32)[predictions])


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def test_predictions_follow_the_rows_whatever_their_lengths(tokenizer):
    model, dataset = bert(), rows()
    expected = one_by_one(model, dataset)
    for batch_size in (1, 4, 64):
        logits = predict_logits(model, dataset, tokenizer, batch_size=batch_size)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_prediction_reads_only_the_columns_the_model_takes(tokenizer):
    model, dataset = bert(), rows()
    second_segment = dataset.add_column("token_type_ids", [[1] * len(ids) for ids in dataset["input_ids"]])
    assert np.abs(predict_logits(model, second_segment, tokenizer) - one_by_one(model, dataset)).max() > 1e-3
    labels = [0, 1, 1]
    extra = fixed_rows(labels).add_column("attention_mask", [[1]] * 3).add_column("token_type_ids", [[0]] * 3)
    assert predict_logits(answers(labels), extra, tokenizer).argmax(axis=1).tolist() == labels


def test_prediction_is_in_eval_mode_and_leaves_every_training_flag_as_it_was(tokenizer):
    model, dataset = bert(), rows()
    model.train()
    model.bert.embeddings.eval()
    before = {name: module.training for name, module in model.named_modules()}
    logits = predict_logits(model, dataset, tokenizer)
    assert {name: module.training for name, module in model.named_modules()} == before
    np.testing.assert_allclose(logits, one_by_one(model, dataset), atol=1e-5)


def test_prediction_takes_formatted_datasets_and_half_precision_models(tokenizer):
    model, dataset = bert(), rows()
    expected = one_by_one(model, dataset)
    for formatted in (dataset.with_format("torch"), dataset.with_format("numpy", columns=["labels"])):
        np.testing.assert_allclose(predict_logits(model, formatted, tokenizer), expected, atol=1e-5)
    logits = predict_logits(model.to(torch.bfloat16), dataset, tokenizer)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=0.3)


def test_quality_agrees_with_scikit_learn_and_intervals_enclose_it(tokenizer):
    student, dataset = bert(("a", "b", "c")), rows(labels=3)
    predictions, labels = one_by_one(student, dataset).argmax(axis=1), np.array(dataset["labels"][:])
    report = evaluate_student(student, None, dataset, tokenizer, **QUICK)
    quality = report.candidates["student"].quality
    assert quality["accuracy"].value == pytest.approx(np.mean(predictions == labels))
    assert quality["f1_macro"].value == pytest.approx(f1_score(labels, predictions, average="macro"))
    assert quality["f1_weighted"].value == pytest.approx(f1_score(labels, predictions, average="weighted"))
    assert quality["matthews_correlation"].value == pytest.approx(matthews_corrcoef(labels, predictions))
    assert 0 < quality["expected_calibration_error"].value < 1
    for metric in ("accuracy", "f1_macro", "f1_weighted", "matthews_correlation"):
        assert quality[metric].low < quality[metric].value < quality[metric].high


def test_the_task_names_labels_rows_and_majority(tokenizer):
    report = evaluate_student(bert(), None, rows(), tokenizer, **QUICK)
    ones = sum(rows()["labels"])
    assert report.to_dict()["task"] == {
        "problem_type": "single_label_classification",
        "headline": "accuracy",
        "labels": ["neg", "pos"],
        "rows": 37,
        "majority_share": pytest.approx(max(ones, 37 - ones) / 37),
    }
    assert report.comparisons == {}
    assert report.candidates["student"].agreement is None


def test_mcnemar_difference_retention_and_agreement_follow_hand_arithmetic(tokenizer):
    labels = [0] * 20
    student = answers([0] * 14 + [1] * 6)
    baseline = answers([0] * 10 + [1] * 6 + [0, 0, 1, 1])
    teacher = answers([0] * 16 + [1] * 4)
    report = evaluate_student(student, teacher, fixed_rows(labels), tokenizer, baseline=baseline, **QUICK)
    against = report.comparisons["student_vs_baseline"]
    # Rows 10-13 are right in the student alone, 16 and 17 in the baseline alone: p = 2 * P(Binomial(6, 1/2) <= 2).
    assert (against.student_only_correct, against.other_only_correct) == (4, 2)
    assert against.mcnemar_p == pytest.approx(2 * (1 + 6 + 15) / 64)
    assert against.differences["accuracy"].value == pytest.approx(0.1)
    assert against.differences["accuracy"].low < 0.1 < against.differences["accuracy"].high
    towards = report.comparisons["student_vs_teacher"]
    assert (towards.student_only_correct, towards.other_only_correct) == (0, 2)
    assert towards.mcnemar_p == pytest.approx(binomtest(0, 2).pvalue) == 0.5
    assert towards.retention == pytest.approx(14 / 16)
    assert report.candidates["student"].agreement.value == pytest.approx(18 / 20)
    assert report.candidates["teacher"].agreement is None
    assert list(report.candidates) == ["teacher", "student", "baseline"]


def test_the_gap_closed_follows_hand_arithmetic_and_its_interval_the_same_resamples(tokenizer):
    labels = np.zeros(100, dtype=int)
    right = {"student": range(84), "teacher": range(90), "no_teacher": range(30, 90), "same_start": range(80)}
    given = {name: np.isin(np.arange(100), list(hits), invert=True).astype(int) for name, hits in right.items()}
    models = {name: answers(list(predicted)) for name, predicted in given.items()}
    report = evaluate_student(
        models.pop("student"), models.pop("teacher"), fixed_rows(labels.tolist()), tokenizer, candidates=models,
        bootstrap_samples=200, latency_runs=0, seed=3,
    )  # fmt: skip
    assert list(report.candidates) == ["teacher", "student", "no_teacher", "same_start"]
    against = report.comparisons["student_vs_no_teacher"]
    assert against.gap.value == pytest.approx(0.9 - 0.6) and against.gap_closed.value == pytest.approx(24 / 30)
    generator, shares = np.random.default_rng(3), []
    for _ in range(200):
        drawn = generator.integers(100, size=100)
        student, teacher, without = (np.mean(given[name][drawn] == 0) for name in ("student", "teacher", "no_teacher"))
        shares.append((student - without) / (teacher - without))
    assert [against.gap_closed.low, against.gap_closed.high] == pytest.approx(np.percentile(shares, [2.5, 97.5]))
    assert all(report.comparisons[f"student_vs_{name}"].gap is None for name in ("same_start", "teacher"))
    assert "It closes 80 % (95 % interval" in report.verdict() and "gap to the teacher" in report.to_markdown()
    assert EvaluationReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_there_is_no_gap_to_close_where_teacher_and_no_teacher_do_not_differ(tokenizer):
    # The teacher is right on one row more, and a resample without it is not rare.
    student, teacher, without = (answers([0] * hits + [1] * (50 - hits)) for hits in (43, 42, 41))
    report = evaluate_student(
        student, teacher, fixed_rows([0] * 50), tokenizer, candidates={"no_teacher": without}, **QUICK
    )
    against = report.comparisons["student_vs_no_teacher"]
    assert against.gap_closed is None and against.gap.value == pytest.approx(0.02) and against.gap.low == 0
    assert "There is no gap to close: the teacher's accuracy is +2.0 points" in report.verdict()
    assert report.to_dict()["comparisons"]["student_vs_no_teacher"]["gap_closed"] is None
    assert EvaluationReport.from_dict(report.to_dict()) == report


def test_equal_candidates_have_no_difference_at_all(tokenizer):
    predictions = [0, 1, 1, 0, 1]
    report = evaluate_student(
        answers(predictions), None, fixed_rows([0, 1, 0, 0, 1]), tokenizer, baseline=answers(predictions), **QUICK
    )
    against = report.comparisons["student_vs_baseline"]
    assert against.mcnemar_p == 1.0
    assert against.differences["accuracy"] == Interval(0.0, 0.0, 0.0)


def test_a_teacher_with_another_label_order_is_aligned_by_name(tokenizer):
    student, teacher, dataset = bert(("a", "b", "c")), bert(("C", "a", "B"), seed=1), rows(labels=3)
    report = evaluate_student(student, teacher, dataset, tokenizer, **QUICK)
    reordered = one_by_one(teacher, dataset)[:, [1, 2, 0]]
    expected = classification_metrics(reordered, np.array(dataset["labels"][:]))
    measured = {metric: interval.value for metric, interval in report.candidates["teacher"].quality.items()}
    assert measured == pytest.approx(expected, abs=1e-6)
    same = one_by_one(student, dataset).argmax(axis=1) == reordered.argmax(axis=1)
    assert report.candidates["student"].agreement.value == pytest.approx(same.mean())


def test_every_candidate_answers_by_its_own_thresholds_when_agreement_is_measured(tokenizer):
    student, teacher = several_labels(thresholds={"a": 0.2, "b": 0.5, "c": 0.9}), several_labels(("c", "a", "b"))
    teacher.load_state_dict(reordered_head(student, [2, 0, 1]))
    dataset = rows(labels=2).map(lambda row: {"labels": [row["labels"], 1, 0]})
    quality = {"dataset": dataset, "tokenizer": tokenizer, **QUICK}
    given = torch.from_numpy(one_by_one(student, dataset)).sigmoid()
    cuts = torch.tensor([0.2, 0.5, 0.9])
    agreement = evaluate_student(student, teacher, **quality).candidates["student"].agreement
    assert 0 < agreement.value < 1
    assert agreement.value == pytest.approx(((given > cuts) == (given > 0.5)).double().mean().item())
    teacher.config.thresholds = [0.9, 0.2, 0.5]
    assert evaluate_student(student, teacher, **quality).candidates["student"].agreement.value == 1.0


CUTS = [0.2, 0.5, 0.9]


@pytest.mark.parametrize("student_cuts", [None, CUTS])
@pytest.mark.parametrize("teacher_cuts", [None, CUTS])
@pytest.mark.parametrize("baseline_cuts", [None, CUTS])
def test_each_candidate_says_by_which_rule_it_decides_and_two_rules_are_no_fair_comparison(
    student_cuts, teacher_cuts, baseline_cuts, tokenizer
):
    cuts = {"teacher": teacher_cuts, "student": student_cuts, "baseline": baseline_cuts}
    models = {name: several_labels(**({} if cut is None else {"thresholds": cut})) for name, cut in cuts.items()}
    dataset = rows(labels=2).map(lambda row: {"labels": [row["labels"], 1, 0]})
    given = {"dataset": dataset, "tokenizer": tokenizer, **QUICK}
    report = evaluate_student(**models, **given)
    named = {name: dict(zip("abc", cut, strict=True)) for name, cut in cuts.items() if cut is not None}
    assert report.run.thresholds == named
    rules = {name: each.decides_by for name, each in report.candidates.items()}
    assert rules == {name: "0.5" if cut is None else "config" for name, cut in cuts.items()}
    assert EvaluationReport.from_dict(report.to_dict()) == report
    # Whatever shows the comparison shows the rules.
    short = short_verdict(report.task, report.candidates, report.comparisons)
    card = build_model_card(report, model_name="student").content
    shown = [report.to_markdown(), card] + ([] if find_spec("jinja2") is None else [render_page(report)])
    for name, rule in rules.items():
        assert all(re.search(rf"\b{name}\b[^;:]*: {re.escape(DECISIONS[rule])}", each) for each in shown)
    unequal = len(named) not in (0, 3)
    assert all(("decide by different rules" in each) == unequal for each in (short, *shown))
    fitted = evaluate_student(**models, **given, threshold_dataset=rows(seed=3).map(lambda _: {"labels": [1, 0, 1]}))
    assert {each.decides_by for each in fitted.candidates.values()} == {"held-out"}
    assert "different rules" not in fitted.verdict()


def test_a_teacher_decides_by_thresholds_that_were_chosen_for_it_before(tokenizer):
    student, teacher = several_labels(), several_labels(("c", "a", "b"), thresholds=[0.1, 0.1, 0.1])
    dataset = rows(labels=2).map(lambda row: {"labels": [row["labels"], 1, 0]})
    given = {"dataset": dataset, "tokenizer": tokenizer, **QUICK}
    report = evaluate_student(student, teacher, teacher_thresholds=CUTS, **given)
    teacher.config.thresholds = [0.9, 0.2, 0.5]
    expected = evaluate_student(student, teacher, **given)
    assert report.candidates["teacher"].decides_by == "report"
    assert report.candidates["teacher"].quality == expected.candidates["teacher"].quality
    assert report.run.thresholds == expected.run.thresholds == {"teacher": {"a": 0.2, "b": 0.5, "c": 0.9}}
    with pytest.raises(ValueError, match="2 teacher_thresholds, and 3 labels"):
        evaluate_student(student, teacher, teacher_thresholds=[0.5, 0.5], **given)


def test_generic_label_names_go_by_position_unless_an_order_is_given(tokenizer):
    student, teacher, dataset = bert(), bert(("LABEL_0", "LABEL_1"), seed=1), rows()
    straight = evaluate_student(student, teacher, dataset, tokenizer, **QUICK)
    swapped = evaluate_student(student, teacher, dataset, tokenizer, teacher_order=[1, 0], **QUICK)
    hits = one_by_one(teacher, dataset).argmax(axis=1) == np.array(dataset["labels"][:])
    assert straight.candidates["teacher"].quality["accuracy"].value == pytest.approx(hits.mean())
    assert swapped.candidates["teacher"].quality["accuracy"].value == pytest.approx(1 - hits.mean())
    with pytest.raises(ValueError, match=r"teacher_order.*\[1, 1\]"):
        evaluate_student(student, teacher, dataset, tokenizer, teacher_order=[1, 1], **QUICK)


def test_a_teacher_reads_its_own_columns_with_its_own_tokenizer(tokenizer):
    student, teacher = bert(), bert(seed=1)
    dataset, own = rows(), rows(seed=5, prefix="teacher_")
    for column in ("teacher_input_ids", "teacher_attention_mask"):
        dataset = dataset.add_column(column, own[column][:])
    expected = classification_metrics(one_by_one(teacher, dataset, "teacher_"), np.array(dataset["labels"][:]))
    report = evaluate_student(student, teacher, dataset, tokenizer, teacher_tokenizer=word_tokenizer(), **QUICK)
    assert report.candidates["teacher"].quality["accuracy"].value == expected["accuracy"]
    with pytest.raises(ValueError, match="give teacher_tokenizer"):
        evaluate_student(student, teacher, dataset, tokenizer, **QUICK)


def test_further_candidates_are_measured_by_name(tokenizer):
    report = evaluate_student(
        bert(), bert(seed=1), rows(), tokenizer, candidates={"student-int8": bert(seed=2)}, **QUICK
    )
    assert list(report.candidates) == ["teacher", "student", "student-int8"]
    assert report.candidates["student-int8"].agreement is not None
    with pytest.raises(ValueError, match="can't be called.*teacher"):
        evaluate_student(bert(), None, rows(), tokenizer, candidates={"teacher": bert()}, **QUICK)


def test_training_seconds_belong_to_the_student_or_go_by_name(tokenizer):
    single = evaluate_student(bert(), None, rows(), tokenizer, baseline=bert(), training_seconds=12.5, **QUICK)
    named = evaluate_student(
        bert(), None, rows(), tokenizer, baseline=bert(), training_seconds={"baseline": 3.0}, **QUICK
    )
    assert [single.candidates[name].training_seconds for name in ("student", "baseline")] == [12.5, None]
    assert [named.candidates[name].training_seconds for name in ("student", "baseline")] == [None, 3.0]


def test_the_run_is_completed_and_what_the_caller_recorded_is_kept(tokenizer):
    report = evaluate_student(bert(), None, rows(), tokenizer, run={"command": "c", "machine": {"cpu": "x"}}, **QUICK)
    assert report.run.command == "c"
    assert report.run.machine == {"cpu": "x"}
    assert report.run.versions["torch"] == torch.__version__
    assert "37 rows, 50 resamples, seed 42" in report.run.interval_protocol
    assert "not measured" in report.run.latency_protocol
    assert set(describe_environment()["machine"]) == {"cpu", "cores", "threads", "platform", "gpu"}


def test_the_report_of_real_models_survives_saving(tokenizer, tmp_path):
    report = evaluate_student(
        bert(), bert(seed=1, layers=3), rows(), tokenizer, baseline=bert(seed=2), bootstrap_samples=50, latency_runs=3
    )
    report.save(tmp_path)
    assert type(report).load(tmp_path) == report
    assert "The student keeps" in (tmp_path / "report.md").read_text()


def test_parameters_and_size_are_those_of_the_saved_file(tokenizer, tmp_path):
    model = bert()
    candidate = evaluate_student(model, None, rows(), tokenizer, **QUICK).candidates["student"]
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        stored = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    assert candidate.parameters == stored
    assert candidate.size_mb == (tmp_path / "model.safetensors").stat().st_size / 1e6 == model_size_mb(tmp_path)
    assert model_size_mb(nn.Linear(100, 10)) == pytest.approx(4 * 1010 / 1e6, abs=3e-4)
    with pytest.raises(ValueError, match="safetensors"):
        model_size_mb(tmp_path / "nowhere")


class Recorder(nn.Module):
    """Records what it is called with."""

    def __init__(self, name, calls):
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, input_ids, attention_mask):
        self.calls.append((self.name, input_ids, attention_mask, self.training, torch.is_inference_mode_enabled()))
        return SequenceClassifierOutput(logits=torch.zeros(len(input_ids), 2))


def test_latency_takes_the_models_in_turn_on_ordinary_unpadded_tokens(tokenizer):
    calls = []
    models = {"teacher": Recorder("teacher", calls), "student": Recorder("student", calls)}
    timed = measure_latency(models, dict.fromkeys(models, tokenizer), batches=(1, 4), tokens=40, runs=7)
    turns = [name for passes in (5, 6, 3) for name in ("teacher", "student") for _ in range(passes)]
    assert [call[0] for call in calls] == turns * 2
    assert [tuple(call[1].shape) for call in calls] == [(1, 40)] * 28 + [(4, 40)] * 28
    for _, ids, mask, training, inference in calls:
        assert (ids >= len(SPECIAL)).all() and (ids < VOCABULARY).all() and mask.all()
        assert inference and not training
    assert [(entry.batch, entry.tokens, entry.threads) for entry in timed["student"]] == [
        (batch, 40, torch.get_num_threads()) for batch in (1, 4)
    ]


class Sleeper(nn.Module):
    """Takes 20 ms, or only for its first calls."""

    def __init__(self, calls=10**6):
        super().__init__()
        self.calls = calls

    def forward(self, input_ids):
        self.calls -= 1
        time.sleep(0.02 if self.calls >= 0 else 0)


def test_latency_is_in_milliseconds_by_model_and_leaves_out_the_warm_up(tokenizer):
    models = {"slow": Sleeper(), "fast": Sleeper(calls=5)}
    timed = measure_latency(models, dict.fromkeys(models, tokenizer), batches=(1,), runs=5)
    assert 20 <= timed["slow"][0].p50_ms <= timed["slow"][0].p95_ms < 500
    assert timed["fast"][0].p50_ms <= timed["fast"][0].p95_ms < 20


def test_latency_records_its_protocol_and_warns_of_unlike_candidates(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        report = evaluate_student(
            bert(),
            bert().to(torch.bfloat16),
            rows(),
            tokenizer,
            bootstrap_samples=20,
            latency_runs=1,
            latency_tokens=8,
        )
    assert "8 random ordinary tokens" in report.run.latency_protocol
    assert "bfloat16 on cpu, float32 on cpu" in report.run.latency_protocol
    assert "don't compare" in caplog.text
    assert [entry.batch for entry in report.candidates["teacher"].latency] == [1, 32]


def test_more_tokens_than_positions_are_refused(tokenizer):
    with pytest.raises(ValueError, match="latency_tokens=49 is more than the 48 tokens that the student takes"):
        evaluate_student(bert(), None, rows(), tokenizer, bootstrap_samples=20, latency_tokens=49)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (None, "needs the tokenised dataset"),
        (rows().select([]), "no rows"),
        (rows().remove_columns("labels"), 'column "labels", found'),
        (rows().remove_columns("input_ids"), "column input_ids.*found"),
        (fixed_rows([0, 2]), r"0\.\.1, found 0\.\.2"),
        (fixed_rows([0, -100]), r"found -100\.\.0"),
        (fixed_rows([0.5, 1.0]), "one integer a row.*float64"),
        (fixed_rows([[0, 1], [1, 0]]), r"one integer a row.*\(2, 2\)"),
        (fixed_rows([[0, 1], [1]]), r"one integer a row.*object of shape \(2,\)"),
        (fixed_rows([0, None]), r"one integer a row.*object of shape \(2,\)"),
    ],
)
def test_rows_that_cannot_be_measured_are_refused(dataset, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        evaluate_student(bert(), None, dataset, tokenizer, **QUICK)


def test_a_model_without_an_embedding_for_a_token_of_the_rows_is_refused_by_name(tokenizer):
    small, given = tiny_bert(1, vocab_size=10), rows()
    highest = max(max(ids) for ids in given["input_ids"])
    for models in ({"student": small}, {"teacher": small}, {"baseline": small}, {"candidates": {"other": small}}):
        (name,) = models.get("candidates", models)
        with pytest.raises(ValueError, match=f"the {name} has embeddings of 10 tokens.* rows have token {highest}:"):
            evaluate_student(**{"student": bert(), "dataset": given, "tokenizer": tokenizer} | models, **QUICK)


def test_candidates_with_other_labels_are_refused_by_name(tokenizer):
    with pytest.raises(ValueError, match="teacher.*different numbers of labels"):
        evaluate_student(bert(), bert(("a", "b", "c")), rows(), tokenizer, **QUICK)
    with pytest.raises(ValueError, match="teacher can't be compared.*contradict"):
        evaluate_student(bert(), bert(("cats", "dogs")), rows(), tokenizer, **QUICK)
    with pytest.raises(ValueError, match="baseline gives 3 logits a row, the student 2"):
        evaluate_student(
            answers([0, 1]), None, fixed_rows([0, 1]), tokenizer, baseline=answers([0, 1], labels=3), **QUICK
        )


def test_logits_that_are_not_finite_are_refused_with_candidate_and_row(tokenizer):
    broken = FixedLogits([[0.0, 1.0], [1.0, 0.0], [math.nan, 0.0], [math.inf, 0.0]])
    with pytest.raises(ValueError, match="baseline gives logits that are not finite, first in row 2"):
        evaluate_student(answers([0, 1, 0, 1]), None, fixed_rows([0, 1, 0, 1]), tokenizer, baseline=broken, **QUICK)


def test_operations_are_those_counted_by_hand(tokenizer):
    model = bert()
    d, inner, n = 16, 32, 10
    layer = 4 * 2 * n * d * d + 2 * 2 * n * d * inner + 2 * 2 * n * n * d
    assert count_flops(model, tokenizer, tokens=n) == layer + 2 * d * d + 2 * d * 2
    assert count_flops(bert(layers=3), tokenizer, tokens=n) == 3 * layer + 2 * d * d + 2 * d * 2
    assert count_flops(Sleeper(), tokenizer, tokens=n) is None


def test_what_costs_can_not_be_measured_is_left_out_and_the_rest_is_reported(tokenizer, caplog):
    class Particular(FixedLogits):
        """Takes texts of one token alone."""

        def forward(self, input_ids):
            if input_ids.shape[1] > 1:
                raise TypeError("one token alone")
            return super().forward(input_ids)

    model = Particular(np.tile(np.float32([[2.0, 0.0], [0.0, 2.0]]), (30, 1)))
    timing = {"latency_runs": 1, "latency_batches": (1,), "bootstrap_samples": 5}
    report = evaluate_student(model, None, fixed_rows([0, 1, 0, 0]), tokenizer, **timing)
    student = report.candidates["student"]
    assert student.quality["accuracy"].value == 0.75 and student.size_mb > 0
    assert student.flops is None and student.latency == []
    assert "latency was not measured" in report.run.latency_protocol
    told = [record.getMessage() for record in caplog.records]
    assert "The latency was not measured: TypeError: one token alone" in told
    assert "The number of operations of the student was not measured: TypeError: one token alone" in told
    with pytest.raises(ValueError, match="latency_tokens=60 is more than the 48 tokens that the teacher takes"):
        evaluate_student(model, bert(), fixed_rows([0, 1]), tokenizer, **timing, latency_tokens=60)


def test_recurrent_products_are_not_passed_off_as_counted(tokenizer):
    class Recurrent(FixedLogits):
        def __init__(self):
            super().__init__(np.eye(VOCABULARY, dtype=np.float32))
            self.lstm = nn.LSTM(2, 2)

    assert count_flops(Recurrent(), tokenizer) is None


def test_a_latency_grid_has_an_entry_a_batch_and_length(tokenizer):
    timed = measure_latency({"a": bert()}, {"a": tokenizer}, batches=(1, 2), tokens=(4, 8), runs=3)["a"]
    assert [(entry.tokens, entry.batch) for entry in timed] == [(4, 1), (4, 2), (8, 1), (8, 2)]
    assert all(entry.p50_ms <= entry.p95_ms <= entry.p99_ms for entry in timed)


def test_breakdowns_follow_hand_arithmetic(tokenizer):
    labels = [0, 0, 0, 1, 1, 2]
    table = np.full((6, 3), -20.0, dtype=np.float32)
    table[range(6), [0, 0, 1, 1, 1, 0]] = 20.0
    report = evaluate_student(FixedLogits(table), None, fixed_rows(labels), tokenizer, **QUICK)
    parts = report.candidates["student"].to_dict()["breakdown"]
    assert parts["confusion"] == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert parts["per_class"][1] == {"precision": 2 / 3, "recall": 1.0, "f1": pytest.approx(0.8), "rows": 2}
    assert parts["per_class"][2]["f1"] == 0.0
    assert parts["reliability"] == [{"confidence": pytest.approx(1.0), "accuracy": pytest.approx(4 / 6), "rows": 6}]
    assert parts["per_length"] == [{"shortest": 1, "longest": 1, "rows": 6, "value": pytest.approx(4 / 6)}]
    assert "disagreements" not in parts


def test_lengths_are_grouped_in_quarters(tokenizer):
    lengths = [1, 2, 2, 3, 5, 6, 8, 9]
    ids = [[row] + [0] * (length - 1) for row, length in enumerate(lengths)]
    dataset = Dataset.from_dict({"input_ids": ids, "labels": [0] * 8})
    report = evaluate_student(answers([0, 0, 0, 1, 0, 0, 1, 1]), None, dataset, tokenizer, **QUICK)
    groups = report.candidates["student"].breakdown.per_length
    assert [(each.shortest, each.longest, each.rows, each.value) for each in groups] == [
        (1, 2, 3, 1.0), (3, 3, 1, 0.0), (5, 6, 2, 1.0), (8, 9, 2, 0.0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("problem_type", "labels", "told"),
    [
        # Texts of 1, 2, 3 and 4 tokens: the longest is one alone, those of 3 have one score, or no label.
        ("regression", [0.1, 0.9, 0.2, 0.8, 0.5, 0.5, 1.0], [True, True, False, False]),
        ("multi_label_classification", [[1.0], [1.0], [1.0], [0.0], [0.0], [0.0], [1.0]], [True, True, False, True]),
    ],
)
def test_a_group_of_which_the_metric_says_nothing_has_no_value(tokenizer, problem_type, labels, told):
    ids = [[row] + [0] * (length - 1) for row, length in enumerate([1, 1, 2, 2, 3, 3, 4])]
    model = FixedLogits(np.linspace(0.1, 1.0, 7)[:, None].tolist())
    model.config = BertConfig(num_labels=1, problem_type=problem_type)
    dataset = Dataset.from_dict({"input_ids": ids, "labels": labels})
    report = evaluate_student(model, None, dataset, tokenizer, **QUICK)
    groups = report.candidates["student"].breakdown.per_length
    assert [each.value is not None for each in groups] == told
    again = EvaluationReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again.candidates["student"].breakdown.per_length == groups


def test_disagreements_are_ordered_by_total_variation(tokenizer):
    def logits(*probabilities):
        return FixedLogits(np.log(np.array([[p, 1 - p] for p in probabilities], dtype=np.float32)).tolist())

    report = evaluate_student(logits(0.9, 0.6, 0.5), logits(0.8, 0.1, 0.3), fixed_rows([0, 1, 0]), tokenizer, **QUICK)
    found = report.candidates["student"].breakdown.disagreements
    assert [(each.row, round(each.distance, 6)) for each in found] == [(1, 0.5), (2, 0.2), (0, 0.1)]
    assert (found[0].gold, found[0].predicted, found[0].teacher_predicted) == (1, 0, 1)
    assert (found[0].probability, found[0].teacher_probability) == (pytest.approx(0.6), pytest.approx(0.9))
    assert "disagreements" not in report.candidates["teacher"].to_dict()["breakdown"]


def test_a_temperature_is_fitted_on_the_held_out_rows_alone(tokenizer):
    """The held-out rows are right 3 times of 4: at confidence 3/4 the logits' distance is log 3."""
    student = FixedLogits([[2.0, 0.0]] * 8)
    held_out = fixed_rows([0] * 11 + [1]).select(range(8, 12))
    report = evaluate_student(student, None, fixed_rows([1] * 8), tokenizer, threshold_dataset=held_out, **QUICK)
    scaling = report.candidates["student"].temperature_scaling
    assert scaling.temperature == pytest.approx(2 / math.log(3), rel=1e-3)
    assert scaling.rows == 4
    assert scaling.ece_before == pytest.approx(1 / (1 + math.exp(-2)))
    assert scaling.ece_after == pytest.approx(0.75, rel=1e-3)
    assert "takes its ECE from 0.881 to 0.750 (fitted on 4 rows)" in report.to_markdown()


@pytest.mark.parametrize("role", ["student", "teacher", "baseline", "x"])
def test_a_path_in_place_of_a_model_is_refused_by_its_role(role, tokenizer):
    given = {"candidates": {"x": "runs/model"}} if role == "x" else {role: "runs/model"}
    with pytest.raises(ValueError, match=f"the {role} is 'runs/model', and must be a model: load it first"):
        evaluate_student(**{"student": bert(), "dataset": rows(), "tokenizer": tokenizer} | given, **QUICK)


@pytest.mark.parametrize("teacher_tokenizer", [None, "runs/model"])
def test_a_path_in_place_of_a_tokenizer_is_refused(tokenizer, teacher_tokenizer):
    own = "runs/model" if teacher_tokenizer is None else tokenizer
    with pytest.raises(ValueError, match="a tokenizer is 'runs/model': load it first"):
        evaluate_student(bert(), bert(), rows(), own, teacher_tokenizer=teacher_tokenizer, **QUICK)


@pytest.mark.parametrize("name", ["dataset", "threshold_dataset"])
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda tokenizer: load_text_classification(LABELLED, tokenizer=tokenizer), r"one split.*\['train'\]"),
        (lambda tokenizer: DatasetDict(test=rows()), r"one split.*\['test'\]"),
        (lambda tokenizer: rows().to_iterable_dataset(), "must be a datasets.Dataset, .* got IterableDataset"),
        (lambda tokenizer: list(rows()), "must be a datasets.Dataset, .* got list"),
    ],
)  # fmt: skip
def test_rows_of_other_kinds_are_refused(name, make, told, tokenizer):
    given = {"dataset": rows()} | {name: make(tokenizer)}
    with pytest.raises(ValueError, match=told):
        evaluate_student(bert(), bert(), tokenizer=tokenizer, **given, **QUICK)
