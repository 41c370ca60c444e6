"""A file as a stream: the rows of reading it whole, in bounded memory, in an order of seed and epoch alone."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset
from safetensors.torch import load_file
from samples import QUIET, raw_rows, sentences, tiny_bert

from nlpkd import DistillationTrainer, distill, load_text_classification, make_student
from nlpkd.data.columns import HIDDEN_STATES, TEACHER_LOGITS, Columns
from nlpkd.data.files.readers import stream_rows
from nlpkd.data.sources import read_splits
from nlpkd.data.streaming import TextStream
from nlpkd.data.text_classification import load_text_classification as load
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss

NAMES = {"id2label": {0: "pos", 1: "neg"}, "label2id": {"pos": 0, "neg": 1}}


def write(path, rows, seed=0, names=("neg", "pos")):
    texts, labels = sentences(rows, seed)
    lines = [json.dumps({"text": text, "label": names[label]}) for text, label in zip(texts, labels, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def stream(tmp_path, tokenizer):
    return load(write(tmp_path / "rows.jsonl", 230), tokenizer=tokenizer, streaming=True)["train"]


def seen(rows):
    return Counter((tuple(row["input_ids"]), row["labels"]) for row in rows)


def test_an_epoch_gives_each_row_once_with_the_tokens_and_labels_of_reading_it_whole(stream, tokenizer):
    whole = load(stream.path, tokenizer=tokenizer)["train"]
    for buffer_rows in (1, 50, 1000):
        stream.buffer_rows = buffer_rows
        assert seen(stream.batched(8)) == seen(whole)
    assert len(stream) == 230 and stream.names == whole.features["labels"].names


def test_the_order_depends_on_seed_and_epoch_alone(stream):
    stream.buffer_rows = 100

    def order(epoch, seed=42):
        rows = stream.batched(8, seed=seed)
        rows.set_epoch(epoch)
        return [row["input_ids"] for row in rows]

    assert order(1) == order(1) != order(0)
    assert order(1, seed=7) != order(1)


def test_batches_have_like_lengths_and_come_in_no_order_of_length(stream):
    lengths = [row["length"] for row in stream.batched(8)]
    batches = [lengths[at : at + 8] for at in range(0, 224, 8)]
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 1.5
    tops = [max(batch) for batch in batches]
    assert tops != sorted(tops) and tops != sorted(tops, reverse=True)


def test_processes_share_out_the_batches_that_one_would_have(stream):
    stream.buffer_rows = 60
    one = [row["input_ids"] for row in stream.batched(8)]
    parts = []
    for index in range(2):
        rows = stream.batched(4, num_processes=2, process_index=index)
        parts.append([row["input_ids"] for row in rows])
        assert len(parts[-1]) == len(rows) == 230 // 8 * 4
    joined = [row for at in range(0, len(parts[0]), 4) for part in parts for row in part[at : at + 4]]
    assert joined == one[:224]


def test_memory_does_not_grow_with_the_file(tmp_path, tokenizer):
    def peak(rows):
        stream = load(write(tmp_path / f"{rows}.jsonl", rows), tokenizer=tokenizer, streaming=True)["train"]
        stream.buffer_rows = 200
        rows = stream.batched(8)
        tracemalloc.start()
        for _ in rows:
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(400)
    assert peak(8000) < 1.2 * peak(800)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_rows_are_those_of_reading_the_file_whole(tmp_path, kind):
    rows = [{"text": 'a "b" c', "label": "NA"}, {"text": "ü, null", "label": "x"}]
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        path.write_bytes('\ufefftext,label\r\n"a ""b"" c",NA\r\n"ü, null",x\r\n'.encode())
    elif kind == "tsv":
        path.write_text('text\tlabel\na "b" c\tNA\nü, null\tx\n')
    else:
        Dataset.from_list(rows).to_parquet(path)
    assert list(stream_rows(path)) == rows == read_splits(path)[0]["train"].to_list()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "a", "label": 0}', "nonsense"], "Line 2 of .* is not a JSON value"),
        (['{"text": "a", "label": 0}', "[1]"], "Line 2 of .* is a list, not an object"),
        (['{"text": "a", "label": 0}', '{"text": " ", "label": 1}'], r"Row 1 of .*, column 'text', has no text: ' '"),
        (['{"text": "a", "label": 0}', '{"label": 1}'], "Row 1 of .* has no text: None"),
        (['{"text": "a", "label": 0}', '{"text": "b", "label": null}'], "rows.jsonl: Row 1 .* has no label.*None"),
        (
            ['{"text": "a", "label": 0}', '{"text": "\\ud83d", "label": 1}'],
            "Line 2 of .*, column 'text', holds half of",
        ),
        (['{"text": "a", "label": "\\ud83d"}'], "Line 1 of .*, column 'label', holds half of .*found '.ud83d'"),
        (
            ['{"text": "a", "label": "a"}', '{"text": "b", "label": 3}'],
            r"'label' of .* mix str .row 0. and int .row 1.",
        ),
        (['{"text": "a", "label": true}', '{"text": "b", "label": 1}'], "mix bool .row 0. and int .row 1."),
        (
            ['{"text": "a", "label": 0}', '{"text": "b", "label": 1%s}' % ("0" * 30)],
            "'label' of .*row 1 holds 10{30},",
        ),
        (['{"text": "a", "label": %s}' % ("7" * 5000)], "'label' of .*row 0 holds .*7{20}.*no column"),
        (['{"text": "a", "label": 0}', '{"text": "b", "label": "%s"}' % ("[" * 100_000)], "mix int .row 0. and str"),
        (['{"text": "a", "label": "%s"}' % ("[" * 100_000)], r"rows.jsonl: Label '\[{79} .row 0 .* 100000 letters"),
        (['{"text": "a", "label": ["x"]}'], "Row 0 of .* has the label"),
        (['{"text": "a", "label": 0}'], "same label"),
        (["{}"], "No column is known"),
        ([""], "has no rows"),
    ],
)
def test_what_is_wrong_is_told_by_its_row(tmp_path, tokenizer, lines, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        load(path, tokenizer=tokenizer, streaming=True)


def test_a_stream_reads_beside_a_column_that_no_table_can_hold(tmp_path, tokenizer):
    path = write(tmp_path / "rows.jsonl", 20)
    plain = seen(load(path, tokenizer=tokenizer, streaming=True)["train"])
    odd = ['"\\ud83d"', '{"a": ["\\ud83d"]}', "7" * 5000, "null"]
    lines = path.read_text().splitlines()
    path.write_text("\n".join(f'{{"bio": {odd[row % 4]}, {line[1:]}' for row, line in enumerate(lines)))
    stream = load(path, tokenizer=tokenizer, streaming=True)["train"]
    assert seen(stream) == plain == seen(load(path, tokenizer=tokenizer)["train"])
    assert len(list(stream.raw_texts())) == 20


CHANGES = {
    "a row of a new class": lambda lines: [*lines, '{"text": "new", "label": "new"}\n'],
    "a row without a label": lambda lines: [*lines, '{"text": "new"}\n'],
    "a row without a text": lambda lines: [*lines, '{"text": null, "label": "pos"}\n'],
    "a blank text": lambda lines: [*lines, '{"text": " ", "label": "pos"}\n'],
    "fewer rows": lambda lines: lines[:8],
    "other rows of the same size": lambda lines: lines[::-1],
    "half a line": lambda lines: [*lines, '{"text": "ne'],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_was_written_to_since_it_was_checked_is_refused(change, stream):
    lines = stream.path.read_text().splitlines(keepends=True)
    begun = iter(stream._with(buffer_rows=110))
    next(begun)
    stream.path.write_text("".join(CHANGES[change](lines)))
    for read in (stream, begun, stream.labelled(), stream.raw_texts()):
        with pytest.raises(ValueError, match="rows.jsonl has changed since it was checked"):
            list(read)
    for read in (stream.head, stream.sample):
        with pytest.raises(ValueError, match="has changed since it was checked"):
            read(4)


@pytest.mark.parametrize(
    ("labels", "bad", "message"),
    [
        ([0, 1], 0.5, r"Label 0.5 \(row 250 of the train split"),
        ([0, 1], None, "Row 250 of the train split has no label.*None"),
        ([0.0, 1.0], float("nan"), "Row 250 of the train split has no label"),
        ([0, 1], -1, "Row 250 of the train split has no label.*-1"),
        (["a", "b"], " ", "Row 250 of the train split has no label.*' '"),
        (["a", "b"], 3, r"mix str \(row 0\) and int \(row 250\)"),
    ],
)
def test_a_label_that_is_wrong_from_a_row_on_is_told_by_the_first_such_row(tmp_path, tokenizer, labels, bad, message):
    path = tmp_path / ("rows.parquet" if bad != bad else "rows.jsonl")
    rows = [{"text": "good", "label": bad if at >= 250 else labels[at % 2]} for at in range(1500)]
    if bad != bad:
        Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=message):
        load(path, tokenizer=tokenizer, streaming=True)


def test_many_classes_are_classes_where_each_has_rows(tmp_path, tokenizer):
    path, rows = tmp_path / "rows.jsonl", [{"text": "good", "label": f"c{at % 25}"} for at in range(250)]
    path.write_text("\n".join(map(json.dumps, rows)))
    data = load(path, rows[:30], tokenizer=tokenizer, streaming=True)
    assert data["train"].names == load(path, tokenizer=tokenizer)["train"].features["labels"].names
    assert data["validation"].features["labels"].names == data["train"].names
    path.write_text("\n".join(map(json.dumps, rows[:25])))
    with pytest.raises(ValueError, match="25 different labels in 25 rows.*is this the text column, or an id"):
        load(path, tokenizer=tokenizer, streaming=True)


def test_names_of_classes_in_a_parquet_file_are_kept(tmp_path, tokenizer):
    names = ClassLabel(names=["never", "pos", "neg"])
    rows = Dataset.from_dict({"text": ["good", "bad"] * 4, "label": [1, 2] * 4}).cast_column("label", names)
    rows.to_parquet(tmp_path / "train.parquet")
    rows.select(range(2)).to_parquet(tmp_path / "held.parquet")
    train, held_out = tmp_path / "train.parquet", tmp_path / "held.parquet"
    data = load(train, held_out, tokenizer=tokenizer, streaming=True)
    assert data["train"].names == names.names and data["validation"]["labels"][:] == [1, 2]
    assert seen(data["train"]) == seen(load(train, tokenizer=tokenizer)["train"])
    assert data["train"].summary.class_counts == {"never": 0, "pos": 4, "neg": 4}


def test_a_parquet_file_with_a_wrong_id_or_a_column_twice_is_refused(tmp_path, tokenizer):
    named = Dataset.from_dict({"text": ["good", "bad"], "label": [0, 1]}).cast_column("label", ClassLabel(2))
    named.to_parquet(tmp_path / "rows.parquet")
    schema = pq.read_schema(tmp_path / "rows.parquet")
    pq.write_table(pa.table([["good", "bad", "a"], [0, 1, 7]], schema=schema), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows.parquet: Label 7 \(row 2 of the train split.* outside 0..1"):
        load(tmp_path / "rows.parquet", tokenizer=tokenizer, streaming=True)
    twice = pa.table([["a", "b"], ["c", "d"], ["x", "y"]], names=["text", "text", "label"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    for streaming in (True, False):
        with pytest.raises(ValueError, match=r"twice.parquet has columns with the same name: \['text'\]"):
            load(tmp_path / "twice.parquet", tokenizer=tokenizer, streaming=streaming)


def test_classes_are_balanced_by_the_rows_of_the_whole_file(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    labels = ["b"] * 30 + ["a"] * 10 + ["-100"] * 5
    path.write_text("\n".join(json.dumps({"text": "good", "label": label}) for label in labels))
    data = load(path, tokenizer=tokenizer, streaming=True)
    assert data.class_weights == [40 / (2 * 10), 40 / (2 * 30)] == load(path, tokenizer=tokenizer).class_weights
    turned = data["train"].with_classes(data["train"].names[::-1], [1, 0])
    assert turned.names == ["b", "a"] and data["train"].names == ["a", "b"]
    assert replace(data, splits={"train": turned}).class_weights == [2.0, 40 / 60]


def test_a_test_set_whose_labels_are_hidden_is_left_out(tmp_path, tokenizer, caplog):
    hidden = [{"text": "good", "label": None}]
    data = load(write(tmp_path / "rows.jsonl", 20), None, hidden, tokenizer=tokenizer, streaming=True)
    assert list(data) == ["train"] and "its labels are hidden" in caplog.text


@pytest.mark.parametrize("asked", [{"validation_split": 0.1}, {"window_stride": 2}, {"problem_type": "regression"}])
def test_what_a_stream_can_t_do_is_refused(tmp_path, tokenizer, stream, asked):
    with pytest.raises(ValueError, match="streaming reads a file with one class a row"):
        load(write(tmp_path / "rows.jsonl", 20), tokenizer=tokenizer, streaming=True, **asked)
    with pytest.raises(ValueError, match="streaming reads a file"):
        load(raw_rows(20), tokenizer=tokenizer, streaming=True)
    with pytest.raises(ValueError, match="can't be streamed"):
        load(write(tmp_path / "rows.json", 20), tokenizer=tokenizer, streaming=True)
    with pytest.raises(ValueError, match="buffer_rows must be at least 1"):
        TextStream(tmp_path / "rows.jsonl", Columns("text", None, "label"), dict, stream.summary, buffer_rows=0)


def test_a_stream_follows_the_student_s_label_order(stream, settings, tokenizer):
    before = seen(stream)
    student = tiny_bert(**NAMES)
    trainer = DistillationTrainer(student, None, settings(), [CrossEntropyLoss()], stream, processing_class=tokenizer)
    followed = trainer.train_dataset
    assert followed.names == ["pos", "neg"]
    assert seen(followed) == Counter({(ids, 1 - label): count for (ids, label), count in before.items()})
    assert stream.names == ["neg", "pos"] and seen(stream) == before


def test_a_resumed_run_sees_the_rows_that_the_whole_run_sees(stream, settings, tokenizer, tmp_path):
    def run(folder, **more):
        student = make_student(tiny_bert(3, seed=4), 1)
        args = settings(output_dir=str(tmp_path / folder), num_train_epochs=2, learning_rate=1e-3, **more)
        stream.buffer_rows = 64
        return DistillationTrainer(
            student, tiny_bert(3, seed=4), args, [ForwardKLLoss()], stream, processing_class=tokenizer
        )

    whole = run("whole", save_strategy="steps", save_steps=40)
    whole.train()
    assert whole.state.max_steps == 2 * 29
    resumed = run("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-40"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_whole_job_on_a_stream(tmp_path, tokenizer):
    train, held_out = write(tmp_path / "train.jsonl", 160), write(tmp_path / "held.jsonl", 60, seed=1)
    with train.open("a") as lines:
        lines.writelines(json.dumps({"text": f"good film {word}", "label": "-100"}) + "\n" for word in ("a", "the"))
    teacher = tmp_path / "teacher"
    tiny_bert(3, **NAMES).save_pretrained(teacher)
    tokenizer.save_pretrained(teacher)
    result = distill(
        teacher, "layers:1", str(train), str(held_out), streaming=True, baseline=True, vocabulary="trim",
        output_dir=tmp_path / "out", **QUIET, teacher_check="off",
        per_device_train_batch_size=8, num_train_epochs=2, save_strategy="no", max_length=32,
    )  # fmt: skip
    report = result.report
    assert report.run.data.train_rows == 162 and report.run.settings["steps"] == 2 * 21
    assert report.task.labels == ["pos", "neg"] and "same_start" in report.candidates
    assert load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize("label", [{}, {"label": "-100"}])
def test_the_teacher_alone_labels_a_stream_without_labels(tmp_path, tokenizer, label):
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps({"text": text} | label) + "\n" for text in sentences(40, 0)[0]))
    tiny_bert(2, **NAMES).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    result = distill(
        tmp_path / "teacher", "layers:1", str(train), str(write(tmp_path / "held.jsonl", 60, seed=1)), streaming=True,
        objectives="hinton", output_dir=tmp_path / "out", **QUIET, num_train_epochs=1, save_strategy="no",
    )  # fmt: skip
    assert result.report.run.data.train_rows == 40


def test_labels_of_other_splits_are_those_of_the_stream(tmp_path, tokenizer):
    train = write(tmp_path / "train.jsonl", 40)
    with pytest.raises(ValueError, match="is not a label of the train split"):
        load_text_classification(
            train, write(tmp_path / "held.jsonl", 5, names=("bad", "pos")), tokenizer=tokenizer, streaming=True
        )


def test_a_sample_of_a_sorted_file_has_every_class(tokenizer, tmp_path):
    path = tmp_path / "sorted.jsonl"
    rows = [{"text": "bad film", "label": "no"}] * 40 + [{"text": "good film", "label": "yes"}] * 5
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stream = load_text_classification(path, rows[-9:], tokenizer=tokenizer, streaming=True)["train"]
    sample = stream.sample(20)
    assert Counter(sample["labels"]) == {0: 10, 1: 5} and "input_ids" in sample.column_names
    turned = stream.with_classes(["yes", "no"], [1, 0]).sample(20)
    assert Counter(turned["labels"]) == {1: 10, 0: 5}


@pytest.mark.parametrize("labelled", [0, 1, 2])
def test_a_sample_of_few_or_no_labels_has_rows_to_look_at(tokenizer, tmp_path, labelled):
    path = tmp_path / "rows.jsonl"
    labels = ["yes", "no"][:labelled] + [-100] * 9
    path.write_text("".join(json.dumps({"text": "bad film", "label": str(label)}) + "\n" for label in labels))
    held_out = [{"text": "good film", "label": name} for name in ("no", "yes")]
    asked = {"streaming": True, "label_names": ["no", "yes"]}
    stream = load_text_classification(path, held_out, tokenizer=tokenizer, **asked)["train"]
    assert stream.sample(4)["labels"][:] == ([1, 0][:labelled] or [-100] * 4)


def test_no_texts_have_the_columns_of_some_and_lose_no_tokens(stream):
    some, none = ({"text": texts} for texts in (["a film"], []))
    assert stream.encode(none) == {column: [] for column in stream.encode(some)}
    assert stream.encode.truncated(none) == {"": 0}


@pytest.mark.parametrize("place", [0, 3, 6])
@pytest.mark.parametrize(
    "odd",
    [{"text": "a"}, {"label": "x"}, {"review": "b"}, {"stars": "x"}, {"id": 3}, {"Premise": "a", "hypothesis": "b"}],
)
def test_a_row_of_other_keys_means_the_same_wherever_it_is_and_however_the_file_is_read(
    tmp_path, tokenizer, odd, place
):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "good", "label": "x"}, {"text": "bad", "label": "y"}] * 3
    rows.insert(place, odd if odd.keys() & rows[0].keys() else rows[0] | odd)
    path.write_text("\n".join(map(json.dumps, rows)))

    def columns(**asked):
        try:
            data = load(path, tokenizer=tokenizer, **asked)
        except ValueError as error:
            # Of a row without a text or a label each reader speaks in its own words.
            return str(error) if "could be the" in str(error) else "refused"
        return data.text_columns, data.label_column

    named = {"text_column": "text", "label_column": "label"}
    assert columns(streaming=True) == columns()
    assert columns(streaming=True, **named) == columns(**named)


@pytest.mark.parametrize(
    "name",
    ["labels", "length", "input_ids", "teacher_2_input_ids", TEACHER_LOGITS, HIDDEN_STATES.format(3)],
)
def test_a_text_column_with_a_name_made_here_is_refused_of_a_stream_too(tmp_path, tokenizer, name):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({name: text, "label": text}) for text in ("good", "bad")))
    for streaming in (True, False):
        with pytest.raises(ValueError, match=f"A text column may not be called '{name}'"):
            load(path, tokenizer=tokenizer, streaming=streaming, text_column=name, label_column="label")


FORMS = {
    "names": ["pos", "neg", "neu"], "another case": ["Pos", "NEG", "neu "], "ids": [0, 1, 2], "stars": [1, 2, 3],
    "LABEL": ["LABEL_0", "LABEL_1", "LABEL_2"], "label": ["label_0", "label_1", "label_2"], "some ids": [1, 2, 1],
}  # fmt: skip


@pytest.mark.parametrize("names", [(), ("neg", "neu", "pos"), ("LABEL_0", "LABEL_1", "LABEL_2")], ids=len)
@pytest.mark.parametrize("train", FORMS)
def test_a_held_out_split_means_the_same_beside_a_stream_and_beside_rows_in_memory(tmp_path, tokenizer, train, names):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "good film", "label": label} for label in FORMS[train]]
    path.write_text("\n".join(map(json.dumps, rows)))

    def read(labels, **asked):
        held_out = [{"text": "good", "label": label} for label in labels]
        try:
            data = load(path, held_out, tokenizer=tokenizer, label_names=names, **asked)
        except ValueError:
            return "refused"
        return data.id2label, data["validation"]["labels"][:]

    for labels in FORMS.values():
        assert read(labels, streaming=True) == read(labels), labels
