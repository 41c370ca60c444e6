"""Labelling: every text asked once, kills survived, errors with their rows."""

import collections
import contextlib
import copy
import hashlib
import json
import os
import random
import signal
import time

import numpy as np
import pytest
from chat_models import save_chat_model
from datasets import Dataset
from label_server import LabelServer, broken, label_at, right_answer, too_many
from paths import ways_to
from processes import server as process_server
from samples import tiny_bert
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from nlpkd import label, read_splits
from nlpkd.labelling.costs import LabelPlan
from nlpkd.teachers import DecisionTeacher, EmbeddingTeacher, FunctionTeacher, ZeroShotTeacher

QUESTION = {"type": "choice", "instructions": "About what?", "criteria": {"sport": None, "art": None}}
KILLS = int(os.environ.get("NLPKD_TEST_KILLS", "3"))
TEXTS = [{"text": "x" * (number % 9 + 1) + str(number), "id": number} for number in range(40)]


def labelled(path):
    rows = read_splits(path)[0]["train"]
    return rows, np.array([list(each.values()) for each in rows["probabilities"]])


def long_or_short(texts):
    return [[min(len(text), 10) / 10, 1 - min(len(text), 10) / 10] for text in texts]


def test_a_function_labels_rows_that_have_no_label_column(tmp_path):
    rows = [{"text": "abc", "id": 1}, {"text": "abcdef", "id": 2}, {"text": "abc", "id": 3}]
    seen = []

    def teacher(texts):
        seen.extend(texts)
        return long_or_short(texts)

    output = label(teacher, rows, output=tmp_path / "labels.parquet", classes=["long", "short"])
    found, probabilities = labelled(output)
    assert seen == ["abc", "abcdef"], "equal texts are asked about once"
    assert found["id"][:] == [1, 2, 3] and found["teacher"][0].endswith("teacher")
    assert list(found[0]["probabilities"]) == ["long", "short"]
    np.testing.assert_allclose(probabilities[:, 0], [0.3, 0.6, 0.3], atol=1e-6)
    label(teacher, rows, output=output, classes=["long", "short"])
    assert len(seen) == 2, "a second run asks nothing"


@pytest.fixture(scope="module")
def fitted():
    """An estimator of 0 and 1, 1 for a text that is good."""
    texts, classes = ["good film", "great plot", "bad film", "awful plot"] * 5, [1, 1, 0, 0] * 5
    return make_pipeline(CountVectorizer(), LogisticRegression()).fit(texts, classes)


@pytest.mark.parametrize("known", [["neg", "pos"], ["pos", "neg"], [0, 1], [3, 7], [False, True]])
@pytest.mark.parametrize("reversed_order", [False, True])
def test_columns_of_an_estimator_get_the_names_of_its_classes_in_whatever_order_they_are_given(
    tmp_path, fitted, known, reversed_order
):
    estimator = copy.deepcopy(fitted)
    # Those that scikit-learn sorted when it was fitted, of other labels.
    estimator.steps[-1][1].classes_ = np.array(known)
    given = known[::-1] if reversed_order else known
    given = list(map(str, given)) if isinstance(known[0], bool) else given
    rows = [{"text": "good great"}, {"text": "bad awful"}]
    output = label(estimator.predict_proba, rows, output=tmp_path / "labels.parquet", classes=given)
    likeliest = [max(each, key=each.get) for each in labelled(output)[0]["probabilities"]]
    assert likeliest == [str(known[1]), str(known[0])]


def test_names_of_an_estimators_numbers_are_in_their_order_and_other_names_are_refused(tmp_path, fitted):
    given = {"output": tmp_path / "labels.parquet", "classes": ["dislike", "like"]}
    rows = [{"text": "good great"}]
    found, _ = labelled(label(fitted.predict_proba, rows, **given))
    assert found[0]["probabilities"]["like"] > 0.5
    named = copy.deepcopy(fitted)
    named.steps[-1][1].classes_ = np.array(["neg", "pos"])
    with pytest.raises(
        ValueError, match=r"\['dislike', 'like'\] are not those of .*predict_proba, .* 0: 'neg', 1: 'pos'"
    ):
        label(named.predict_proba, rows, **given)


def test_answers_that_are_taken_from_a_file_are_counted_and_their_teacher_is_named(tmp_path, caplog):
    def teacher(texts):
        return [[0.25, 0.75]] * len(texts)

    given = {"output": tmp_path / "rows.parquet", "classes": ["a", "b"]}
    label(teacher, [{"text": "one"}, {"text": "two"}, {"text": "two"}], **given)
    assert "an earlier run" not in caplog.text
    label(teacher, [{"text": "two"}, {"text": "three"}, {"text": "two"}], **given)
    assert f"1 texts were answered by an earlier run of {teacher.__qualname__}, whose answers are taken" in caplog.text


def test_a_server_labels_all_rows_through_its_faults(tmp_path):
    with LabelServer(faults=(broken, too_many("1"), broken)) as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url, concurrency=4)
        output = label(teacher, TEXTS, output=tmp_path / "labels.parquet")
    found, probabilities = labelled(output)
    np.testing.assert_allclose(probabilities[:, 0], [len(text) % 10 / 10 for text in found["text"]], atol=1e-6)
    assert sorted(server.states) == sorted(row["text"] for row in TEXTS) and server.most_busy <= 4


def test_kills_at_random_moments_lose_no_row_and_no_kept_answer_is_asked_for_twice(tmp_path):
    rows = [{"text": "x" * (number % 9 + 1) + str(number)} for number in range(20 * KILLS + 20)]
    Dataset.from_list(rows).to_parquet(tmp_path / "texts.parquet")
    answers, output = tmp_path / "labels.parquet.answers.jsonl", tmp_path / "labels.parquet"
    moments, concurrency, kept, kept_again = random.Random(0), 2, set(), 0
    processes = process_server("nlpkd.pipeline.label", "transformers.decision.template_utils", "label_server")
    with LabelServer() as server:
        server.delay_s = 0.02
        for _ in range(KILLS):
            asked = len(server.states)
            process = processes.start(label_at, server.url, QUESTION, str(tmp_path), concurrency)
            deadline = time.monotonic() + 60
            while len(server.states) == asked and process.is_alive() and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.15))
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL, "it was killed in the middle of its work"
            # What was kept before this life is not asked for in it.
            kept_again += len(kept & set(server.states[asked:]))
            kept = kept_texts(answers, rows)
        assert KILLS <= len(kept) < len(rows)
        process = processes.start(label_at, server.url, QUESTION, str(tmp_path), concurrency)
        process.join(120)
        assert process.exitcode == 0
    found, probabilities = labelled(output)
    assert len(found) == len(rows) and kept_again == 0
    np.testing.assert_allclose(probabilities[:, 0], [len(row["text"]) % 10 / 10 for row in rows], atol=1e-6)
    # Only a request that was under way when a kill came was sent again.
    again = sum(count - 1 for count in collections.Counter(server.states).values())
    assert again <= KILLS * concurrency


def kept_texts(answers, rows):
    """The texts with a whole line in the file of answers."""
    lines = answers.read_bytes().split(b"\n")[1:-1] if answers.exists() else []
    by_key = {hashlib.sha256(row["text"].encode()).hexdigest()[:32]: row["text"] for row in rows}
    return {by_key[json.loads(line)[0]] for line in lines}


def test_a_line_cut_short_is_asked_for_again_and_no_other(tmp_path):
    output, seen = tmp_path / "labels.parquet", []

    def teacher(texts):
        seen.extend(texts)
        return long_or_short(texts)

    label(teacher, TEXTS, output=output, classes=["long", "short"])
    answers = tmp_path / "labels.parquet.answers.jsonl"
    answers.write_bytes(answers.read_bytes()[:-20])
    seen.clear()
    label(teacher, TEXTS, output=output, classes=["long", "short"])
    assert seen == [TEXTS[-1]["text"]] and len(labelled(output)[0]) == len(TEXTS)


def refusing(*texts):
    """Answer, but for some texts, each in another wrong way."""

    def answer(request):
        reply = right_answer(request)
        if request["state"] in texts:
            wrong = [float("nan"), 2.0, None][texts.index(request["state"]) % 3]
            reply["answers"]["label"]["probabilities"]["sport"] = wrong
        return reply

    return answer


@pytest.mark.parametrize("concurrency", [1, 4])
def test_texts_that_are_not_answered_are_left_out_and_asked_about_by_two_runs_at_most(tmp_path, caplog, concurrency):
    # The first and the last one too.
    refused = [TEXTS[row]["text"] for row in (0, 5, 39)]
    output, answers = tmp_path / "labels.parquet", tmp_path / "labels.parquet.answers.jsonl"
    with LabelServer(refusing(*refused)) as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url, concurrency=concurrency, max_retries=0)
        label(teacher, [*TEXTS, TEXTS[5]], output=output)
        assert "did not answer 3 texts" in caplog.text and "row 5 (" in caplog.text and "row 39 (" in caplog.text
        found, probabilities = labelled(output)
        assert found["text"][:] == [row["text"] for row in TEXTS if row["text"] not in refused]
        np.testing.assert_allclose(probabilities[:, 0], [len(text) % 10 / 10 for text in found["text"]], atol=1e-6)
        caplog.clear()
        label(teacher, TEXTS, output=output)
        assert len(server.times) == len(TEXTS) + 3 and "did not answer 3 texts" in caplog.text
        label(teacher, TEXTS, output=output)
        assert label(teacher, TEXTS, output=output, dry_run=True).requests == 0
        assert len(server.times) == len(TEXTS) + 3, "two runs have asked about them"
        # Without their lines they are asked about again.
        server.answer = right_answer
        owner, *kept = answers.read_text().splitlines()
        kept = [line for line in kept if json.loads(line)[1] is not None]
        answers.write_text("\n".join([owner, *kept, ""]))
        label(teacher, TEXTS, output=output)
    assert len(server.times) == len(TEXTS) + 6 and len(labelled(output)[0]) == len(TEXTS)


def test_a_text_that_a_server_could_not_answer_is_answered_in_the_next_run(tmp_path, caplog):
    output = tmp_path / "labels.parquet"
    with LabelServer() as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url, concurrency=1, max_retries=0)
        label(teacher, TEXTS[:3], output=output)
        server.faults = [broken]
        label(teacher, TEXTS[:6], output=output)
        assert "did not answer 1 texts" in caplog.text and len(labelled(output)[0]) == 5
        caplog.clear()
        label(teacher, TEXTS[:6], output=output)
    assert "did not answer" not in caplog.text and len(labelled(output)[0]) == 6 and len(server.times) == 7


def test_more_texts_than_end_a_run_are_passed_where_others_between_them_are_answered(tmp_path):
    refused = [row["text"] for row in TEXTS if row["id"] % 4]
    with LabelServer(refusing(*refused)) as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url, concurrency=1, max_retries=0)
        for asked in (40, 70, 70):
            output = label(teacher, TEXTS, output=tmp_path / "labels.parquet")
            assert len(server.times) == asked and len(labelled(output)[0]) == 10


def test_a_teacher_that_answers_nothing_stops_each_run_and_nothing_is_held_against_the_texts(tmp_path):
    output = tmp_path / "labels.parquet"
    with LabelServer(refusing(*(row["text"] for row in TEXTS))) as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url, concurrency=1, max_retries=0)
        for _ in range(3):
            with pytest.raises(ValueError, match=r"row 0 \('xxxx3'\): .*nan.*none of 1 texts.*answers.jsonl"):
                label(teacher, TEXTS[3:4], output=output)
        for told in ("row 0 .* and 19 more in a row", "row 0 .* none of 30 texts"):
            with pytest.raises(ValueError, match=told):
                label(teacher, TEXTS[:30], output=output)
        server.answer = right_answer
        label(teacher, TEXTS, output=output)
    assert len(labelled(output)[0]) == len(TEXTS)


@pytest.mark.parametrize("answered_first", [True, False])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_refused_texts_beside_each_other_are_passed_and_no_text_is_asked_about_three_times(
    tmp_path, answered_first, concurrency
):
    # What ends two runs, with one text before all of them or behind.
    good = TEXTS[0] if answered_first else TEXTS[-1]
    refused = [row["text"] for row in TEXTS if row is not good]
    output = tmp_path / "labels.parquet"
    with LabelServer(refusing(*refused)) as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url, concurrency=concurrency, max_retries=0)
        for _ in range(2):
            with contextlib.suppress(ValueError):
                label(teacher, TEXTS, output=output)
        for _ in range(2):
            assert labelled(label(teacher, TEXTS, output=output))[0]["text"][:] == [good["text"]]
            asked = len(server.states)
        assert label(teacher, TEXTS, output=output) and len(server.states) == asked
        assert max(collections.Counter(server.states).values()) <= (2 if answered_first else 3)


def test_a_refused_text_that_is_added_to_labelled_rows_is_left_out(tmp_path):
    with LabelServer(refusing("new")) as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url, concurrency=1, max_retries=0)
        label(teacher, TEXTS[:3], output=tmp_path / "labels.parquet")
        for asked in (4, 5, 5):
            output = label(teacher, [*TEXTS[:3], {"text": "new", "id": 3}], output=tmp_path / "labels.parquet")
            assert len(labelled(output)[0]) == 3 and len(server.times) == asked


def test_a_server_that_is_away_ends_the_run_and_holds_nothing_against_texts_that_it_once_failed_on(tmp_path):
    output = tmp_path / "labels.parquet"
    with LabelServer() as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url, concurrency=1, max_retries=0)
        label(teacher, TEXTS[:3], output=output)
        server.faults = [broken] * 7
        with pytest.raises(ValueError, match=r"row 3 \('xxxx3'\): .*500"):
            label(teacher, TEXTS[:10], output=output)
        for _ in range(2):
            server.faults = [broken] * 20
            with pytest.raises(ValueError, match="row 3 .*500.* and 19 more in a row"):
                label(teacher, TEXTS, output=output)
        label(teacher, TEXTS, output=output)
    assert len(labelled(output)[0]) == len(TEXTS)


def test_the_right_answers_of_a_call_with_a_wrong_one_are_kept(tmp_path, caplog):
    seen, rows = [], [{"text": f"text {number}"} for number in range(100)]

    def one_wrong(texts):
        seen.extend(texts)
        return [[0.5, 0.6 if text == "text 7" else 0.5] for text in texts]

    for _ in range(2):
        output = label(one_wrong, rows, output=tmp_path / "labels.parquet", classes=["a", "b"])
        assert len(labelled(output)[0]) == 99 and "row 7 (" in caplog.text
    assert len(seen) == 101


@pytest.mark.parametrize(("given", "most"), [({}, 32), ({"rows_per_call": 5}, 5)])
def test_a_function_that_fails_loses_no_more_than_a_call(tmp_path, given, most):
    seen, rows = [], [{"text": f"text {number}"} for number in range(100)]

    def hangs_up(texts):
        assert len(texts) <= most
        for text in texts:
            if text == "text 71" and len(seen) < 100:
                raise RuntimeError("hung up")
            seen.append(text)
        return [[0.5, 0.5]] * len(texts)

    settings = {"output": tmp_path / "labels.parquet", "classes": ["a", "b"], **given}
    with pytest.raises(RuntimeError, match="hung up"):
        label(hangs_up, rows, **settings)
    paid = len(seen)
    assert paid == 71
    kept = len((tmp_path / "labels.parquet.answers.jsonl").read_text().splitlines()) - 1
    assert paid - kept < most


def test_a_cost_that_no_server_counts_is_kept_over_all_runs(tmp_path):
    with LabelServer() as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url, concurrency=1)
        price = teacher.expected_tokens(TEXTS[0]["text"])[0]
        output = tmp_path / "a.parquet"
        for _ in range(3):
            with pytest.raises(ValueError, match="max_cost"):
                label(teacher, TEXTS, output=output, prices=(1e6, 0), max_cost=5 * price)
        assert 3 <= len(server.times) <= 5
        # Also where an earlier version kept nothing of what was expected.
        answers = tmp_path / "a.parquet.answers.jsonl"
        owner, *lines = answers.read_text().splitlines()
        answers.write_text("\n".join([owner, *(json.dumps(json.loads(line)[:4]) for line in lines), ""]))
        with pytest.raises(ValueError, match="max_cost"):
            label(teacher, TEXTS, output=output, prices=(1e6, 0), max_cost=5 * price)
        assert 3 <= len(server.times) <= 5


def test_a_budget_stops_and_a_dry_run_says_what_is_left(tmp_path):
    output = tmp_path / "labels.parquet"
    with LabelServer() as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url)
        letters = sum(len(row["text"]) for row in TEXTS)
        tokens = sum(teacher.expected_tokens(row["text"])[0] for row in TEXTS)
        planned = LabelPlan(40, 40, 0, 40, letters, requests=40, input_tokens=tokens, output_tokens=0)
        assert label(teacher, TEXTS, output=output, dry_run=True) == planned
        assert not server.times and not list(tmp_path.iterdir())
        with pytest.raises(ValueError, match="max_requests=15 was reached: 25 calls are left of 40"):
            label(teacher, TEXTS, output=output, max_requests=15)
        assert len(server.times) == 15
        plan = label(teacher, TEXTS, output=output, dry_run=True)
        assert (plan.known, plan.calls) == (15, 25) and "calls: 25" in plan.to_text()


def counting(request):
    """Answer, and count a token for each letter of the text."""
    return right_answer(request) | {"usage": {"input_tokens": len(request["state"]), "output_tokens": 0}}


def test_a_cost_is_not_exceeded_over_all_runs_and_every_row_has_its_own(tmp_path):
    output, rows = tmp_path / "labels.parquet", [*TEXTS, TEXTS[0]]
    letters = sum(len(row["text"]) for row in TEXTS)
    options = {"output": output, "prices": (1e6, 0.0)}  # a token costs 1
    with LabelServer(counting) as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url, concurrency=3)
        assert label(teacher, rows, dry_run=True, **options).cost == sum(
            teacher.expected_tokens(row["text"])[0] for row in TEXTS
        )
        for _ in range(2):
            with pytest.raises(
                ValueError, match=r"max_cost=120 \(spent: \d+\) was reached: \d+ calls are left of \d+"
            ):
                label(teacher, rows, max_cost=120, **options)
            spent = sum(map(len, server.states))
            assert 60 < spent <= 120, "about as much as may be spent, and the second run spends what the first left"
        label(teacher, rows, max_cost=10**6, **options)
        assert sorted(server.states) == sorted(row["text"] for row in TEXTS)
    found = labelled(output)[0]
    assert found["teacher_cost"][:] == [len(row["text"]) for row in TEXTS] + [0.0]
    assert sum(found["teacher_input_tokens"][:]) == letters and set(found["teacher_output_tokens"][:]) == {0}
    with pytest.raises(ValueError, match="max_cost=3 needs the prices"):
        label(teacher, rows, output=output, max_cost=3)


@pytest.mark.parametrize("kept", [4, 3], ids=["", "without what was expected, as earlier versions kept it"])
def test_a_further_run_goes_beyond_the_cost_no_more_than_the_first(tmp_path, kept):
    def dear(request):
        return right_answer(request) | {"usage": {"input_tokens": 1000, "output_tokens": 0}}

    options = {"output": tmp_path / "a.parquet", "prices": (1e6, 0.0), "max_cost": 5500}
    answers = tmp_path / "a.parquet.answers.jsonl"
    with LabelServer(dear) as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url, concurrency=1)
        for _ in range(3):
            with pytest.raises(ValueError, match="max_cost=5500 .*was reached"):
                label(teacher, TEXTS, **options)
            assert len(server.times) == 5
            owner, *lines = answers.read_text().splitlines()
            answers.write_text("\n".join([owner, *(json.dumps(json.loads(line)[: 1 + kept]) for line in lines), ""]))
        if kept == 4:
            # Of other texts too.
            with pytest.raises(ValueError, match="max_cost"):
                label(teacher, [{"text": "another"}], **options)
            assert len(server.times) == 5


def test_a_teacher_that_does_not_count_is_held_to_what_it_is_expected_to_cost(tmp_path):
    with LabelServer() as server:
        teacher = DecisionTeacher("m", QUESTION, base_url=server.url, concurrency=1)
        price = teacher.expected_tokens(TEXTS[0]["text"])[0]
        with pytest.raises(ValueError, match="max_cost"):
            label(teacher, TEXTS, output=tmp_path / "a.parquet", prices=(1e6, 0), max_cost=5 * price)
        assert 3 <= len(server.times) <= 5
        output = label(teacher, TEXTS, output=tmp_path / "a.parquet", prices=(1e6, 0))
    assert set(labelled(output)[0]["teacher_cost"][:]) == {None}


def test_answers_of_another_teacher_are_not_taken(tmp_path):
    output = tmp_path / "labels.parquet"
    label(long_or_short, TEXTS, output=output, classes=["long", "short"])
    with pytest.raises(ValueError, match="another teacher or question"):
        label(long_or_short, TEXTS, output=output, classes=["short", "long"])


def zero_shot_folder(folder, tokenizer, seed):
    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    labels = {name: number for number, name in names.items()}
    tiny_bert(seed=seed, num_labels=3, id2label=names, label2id=labels).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def embedding_folder(folder, tokenizer, seed):
    tiny_bert(seed=seed).bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def decision_folder(folder, tokenizer, seed):
    return str(save_chat_model(folder, seed))


LOCAL = {
    "zero-shot": (zero_shot_folder, lambda model: ZeroShotTeacher(model, ["good", "bad"]), "transformers"),
    "embedding": (
        embedding_folder, lambda model: EmbeddingTeacher(model, {"good": "fine", "bad": "poor"}),
        "sentence_transformers",
    ),
    "decision": (decision_folder, lambda model: DecisionTeacher(model, QUESTION), "transformers.decision"),
}  # fmt: skip
"""Of each kind of model that runs here: how a tiny one is saved, what asks it, and what that needs."""


@pytest.mark.parametrize("kind", LOCAL)
def test_answers_of_a_local_model_are_not_taken_once_it_was_trained_anew(tmp_path, tokenizer, kind):
    save, make, needed = LOCAL[kind]
    pytest.importorskip(needed)
    rows, output = [{"text": "good film"}, {"text": "bad plot"}], tmp_path / "labels.parquet"
    model = save(tmp_path / "model", tokenizer, 1)
    before = labelled(label(make(model), rows, output=output))[1]
    np.testing.assert_array_equal(labelled(label(make(model), rows, output=output))[1], before)
    save(tmp_path / "model", tokenizer, 2)
    with pytest.raises(ValueError, match="or of other weights of the model.*what differs: weights"):
        label(make(model), rows, output=output)


def test_answers_that_an_earlier_version_kept_are_called_another_model_s_and_not_damaged(tmp_path, tokenizer):
    save, make, _ = LOCAL["zero-shot"]
    rows, output = [{"text": "good film"}], tmp_path / "labels.parquet"
    teacher = make(save(tmp_path / "model", tokenizer, 1))
    label(teacher, rows, output=output)
    kept = tmp_path / "labels.parquet.answers.jsonl"
    owner, *answers = kept.read_text().splitlines()
    owner = json.loads(owner)
    del owner["teacher"]["weights"]
    kept.write_text("\n".join([json.dumps(owner), *answers, ""]))
    with pytest.raises(ValueError, match="which earlier versions did not note") as refused:
        label(teacher, rows, output=output)
    assert "damaged" not in str(refused.value)


@pytest.mark.parametrize(
    ("rows", "settings", "told"),
    [
        ([{"text": "a"}], {}, "with classes= beside it"),
        ([{"words": "a"}], {"classes": ["a", "b"]}, "No column is known to be the text"),
        ([{"text": "a"}], {"classes": ["a", "b"], "text_column": "x"}, "There is no column 'x'"),
        ([{"text": " "}], {"classes": ["a", "b"]}, "empty texts"),
        ([{"text": "a", "teacher": "b"}], {"classes": ["a", "b"]}, r"columns \['teacher'\] already"),
    ],
)
def test_what_cannot_be_labelled_is_refused(tmp_path, rows, settings, told):
    with pytest.raises(ValueError, match=told):
        label(long_or_short, rows, output=tmp_path / "labels.parquet", **settings)


@pytest.mark.parametrize("given", [{"classes": ["b", "a"]}, {"classes": ["a", "b"]}, {"rows_per_call": 32}], ids=repr)
def test_what_is_of_a_function_is_refused_beside_a_teacher_that_has_its_own(tmp_path, given):
    teacher = FunctionTeacher(long_or_short, ["a", "b"], rows_per_call=1)
    with pytest.raises(ValueError, match="of a function, and a FunctionTeacher has its own .*rows_per_call=1"):
        label(teacher, TEXTS, output=tmp_path / "labels.parquet", **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dry_run", [False, True], ids=["", "a dry run"])
def test_rows_that_are_read_are_not_overwritten(tmp_path, dry_run):
    file = tmp_path / "rows.parquet"
    Dataset.from_list(TEXTS).to_parquet(file)
    before = file.read_bytes()
    settings = {"classes": ["a", "b"], "dry_run": dry_run}
    budget = {"budget": 8, "rounds": 2, "student": "nobody/asks"}

    def unasked(texts):
        raise AssertionError("it was asked")

    for path in ways_to(file):
        for given in ({}, budget):
            with pytest.raises(ValueError, match="source=.* would be overwritten"):
                label(unasked, path, output=file, **settings, **given)
        with pytest.raises(ValueError, match="test=.* would be overwritten"):
            label(unasked, TEXTS, output=path, test=file, **settings, **budget)
    assert file.read_bytes() == before
    assert not list(tmp_path.glob("*.answers.jsonl"))
