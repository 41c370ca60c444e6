"""A teacher's outputs on disk are its own, row by row; what does not belong or is damaged is refused by name."""

import copy
import hashlib
import json
import logging
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk
from paths import TESTS
from processes import Program, warm_python
from processes import run as run_program
from samples import looking_at, raw_rows, tiny_bert
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import nn
from transformers import AutoModelForSequenceClassification, BertTokenizer

from nlpkd import DistillationTrainer, load_text_classification
from nlpkd.compression import export_onnx
from nlpkd.data.collator import pack_states, pad_states
from nlpkd.data.columns import HIDDEN_STATES
from nlpkd.data.labels.classes import Classes
from nlpkd.data.soft_labels import PROBABILITY_FLOOR
from nlpkd.models.ensemble import TeacherEnsemble
from nlpkd.models.onnx_classifier import OnnxClassifier
from nlpkd.objectives import EmbeddingMSELoss, ForwardKLLoss, HiddenStateMSELoss
from nlpkd.teachers.cache import cache_teacher_outputs
from nlpkd.teachers.shards import ShardFolder

ROWS = 53
# Not bit-equal: other batch shapes pick other kernels.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture
def teacher():
    """Three labels, and dropout that would show if it were left on."""
    return tiny_bert(layers=3, num_labels=3, seed=1, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)


@pytest.fixture
def rows(make_rows) -> Dataset:
    return make_rows(ROWS, seed=5)


@pytest.fixture
def cache(tokenizer, tmp_path):
    """Cache in float32 in shards of 16 rows, several batches each."""

    def cached(teacher, rows, folder="cache", **settings):
        defaults = {"cache_dir": tmp_path / folder, "bf16": False, "shard_rows": 16, "batch_tokens": 48}
        return cache_teacher_outputs(teacher, rows, tokenizer, **(defaults | settings))

    return cached


def row_by_row(model: nn.Module, rows: Dataset, layers=(), prefix: str = "") -> tuple[torch.Tensor, list[list]]:
    """Run a model on single rows, without padding: the logits, and for each row the states of the layers."""
    model = copy.deepcopy(model).eval()
    logits, states = [], []
    names = ["input_ids", "attention_mask", "token_type_ids"]
    for row in rows.with_format(None):
        inputs = {name: torch.tensor([row[prefix + name]]) for name in names if prefix + name in row}
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True)
        logits.append(outputs.logits[0])
        states.append([outputs.hidden_states[layer][0] for layer in layers])
    return torch.stack(logits), states


def logits_of(cached: Dataset) -> torch.Tensor:
    return torch.tensor(cached["teacher_logits"][:])


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.arrow"))


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in shards(folder)}


class Counting(nn.Module):
    """Counts the rows that a model is run on."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.rows, self.widths = model, 0, []

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        self.rows += len(input_ids)
        self.widths.append((int(attention_mask.sum()), input_ids.numel()))
        return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)


class Bag(nn.Module):
    """Adds whole numbers up, whose bits depend on no kernel."""

    def __init__(self):
        super().__init__()
        weights = torch.arange(72.0).view(24, 3) % 7
        self.embedding = nn.EmbeddingBag.from_pretrained(weights, freeze=False, mode="sum", padding_idx=0)

    def forward(self, input_ids):
        return self.embedding(input_ids)


# Logits


def test_the_logits_are_the_models_own_row_by_row(cache, teacher, rows, tmp_path):
    cached = cache(teacher, rows)
    assert len(shards(tmp_path / "cache")) == 4
    torch.testing.assert_close(logits_of(cached), row_by_row(teacher, rows)[0], **CLOSE)
    assert cached.features["teacher_logits"].length == 3
    assert cached.features["teacher_logits"].feature.dtype == "float32"
    assert cached.remove_columns("teacher_logits").to_list() == rows.to_list()
    files = {Path(file["filename"]).parent for file in cached.cache_files}
    assert tmp_path / "cache" in files, "the column is not memory-mapped"


def test_rows_in_another_order_and_with_a_format_keep_their_own_logits(cache, teacher, rows):
    shuffled = rows.shuffle(seed=1).select(range(30)).with_format("torch")
    cached = cache(teacher, shuffled)
    assert cached.format["type"] == "torch"
    torch.testing.assert_close(cached["teacher_logits"][:], row_by_row(teacher, shuffled)[0], **CLOSE)


def test_the_teacher_is_left_as_it_was(cache, teacher, rows):
    teacher.train()
    teacher.classifier.eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    cache(teacher, rows)
    assert teacher.training and teacher.bert.training and not teacher.classifier.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_batches_hold_rows_of_similar_length_within_the_budget_of_tokens(cache, teacher, rows):
    model = Counting(teacher)
    cache(model, rows, shard_rows=64)
    assert model.rows == ROWS and max(width for _, width in model.widths) <= 48
    real, padded = (sum(counts) for counts in zip(*model.widths, strict=True))
    assert real == sum(rows["length"][:]) and real / padded > 0.9


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_on_the_right_and_a_missing_mask_is_made(rows, teacher, tokenizer, tmp_path, side):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = side
    seen = []

    class Reader(nn.Module):
        def forward(self, input_ids, attention_mask):
            seen.append((input_ids, attention_mask))
            return input_ids[:, :2].float()

    plain = rows.remove_columns(["attention_mask", "token_type_ids"])
    cache_teacher_outputs(Reader(), plain, tokenizer, cache_dir=tmp_path, shard_rows=64, bf16=False)
    expected = {tuple(ids) for ids in rows["input_ids"]}
    found = [row[mask.bool()].tolist() for ids, masks in seen for row, mask in zip(ids, masks, strict=True)]
    assert {tuple(ids) for ids in found} == expected and len(found) == ROWS
    ids, mask = seen[0]
    assert not mask.all() and bool(mask[:, 0].all())
    assert (ids[mask == 0] == tokenizer.pad_token_id).all()


def test_label_order_is_the_students(cache, teacher, rows):
    ordered = cache(teacher, rows, order=[2, 0, 1])
    torch.testing.assert_close(logits_of(ordered), row_by_row(teacher, rows)[0][:, [2, 0, 1]], **CLOSE)


def test_a_teacher_with_its_own_tokenizer_reads_its_own_columns(teacher, tokenizer, tmp_path):
    own = BertTokenizer(vocab={token: (n + 3) % 24 for token, n in tokenizer.get_vocab().items()}, model_max_length=64)
    assert own.pad_token_id == 3
    data = load_text_classification(raw_rows(20), tokenizer=tokenizer, teacher_tokenizer=own)["train"]
    cached = cache_teacher_outputs(teacher, data, own, cache_dir=tmp_path, bf16=False)
    expected = row_by_row(teacher, data, prefix="teacher_")[0]
    torch.testing.assert_close(logits_of(cached), expected, **CLOSE)
    assert not torch.allclose(expected, row_by_row(teacher, data)[0], **CLOSE)


def test_bf16_runs_the_teacher_under_autocast(cache, teacher, rows):
    exact = row_by_row(teacher, rows)[0]
    rough = logits_of(cache(teacher, rows, bf16=True))
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.02)
    assert not torch.allclose(rough, exact, **CLOSE)


def test_training_on_the_column_is_training_with_the_live_teacher(cache, make_rows, settings, tokenizer):
    teacher, rows = tiny_bert(layers=3, seed=1, initializer_range=0.5), make_rows(40, seed=2)

    def losses(data, live):
        trainer = DistillationTrainer(
            model=tiny_bert(seed=3), teacher_model=live, args=settings(learning_rate=1e-2, num_train_epochs=2),
            objectives=[ForwardKLLoss(temperature=2.0)], train_dataset=data, processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    expected = losses(rows, teacher)
    assert losses(cache(teacher, rows), None) == pytest.approx(expected, rel=1e-4)
    assert len(expected) == 10 and expected[-1] < 0.9 * expected[0]


# Resuming


def test_training_on_cached_states_is_training_with_the_live_teacher(cache, make_rows, settings, tokenizer):
    """Within the rounding of bf16, in which the states are kept; the model is not run on the training rows."""
    rows, results = make_rows(24, seed=5), []
    for kept in (False, True):
        teacher, ran = tiny_bert(layers=4, seed=1), []
        train = cache(teacher, rows, hidden_states=(0, 2, 4)) if kept else rows
        trainer = DistillationTrainer(
            model=tiny_bert(layers=2, seed=2), teacher_model=teacher, train_dataset=train, processing_class=tokenizer,
            objectives=[ForwardKLLoss(), HiddenStateMSELoss(layers="uniform"), EmbeddingMSELoss()],
            args=settings(learning_rate=1e-3, cache_teacher="off"),
        )  # fmt: skip
        teacher.register_forward_hook(lambda *ignored, ran=ran: ran.append(1))
        trainer.train()
        results.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert bool(ran) is not kept
    assert results[1] == pytest.approx(results[0], rel=5e-3) and results[1] != results[0]


def test_a_second_call_computes_nothing(cache, teacher, rows, tmp_path, caplog):
    first = cache(Counting(teacher), rows)
    before, again = times(tmp_path / "cache"), Counting(teacher)
    with caplog.at_level(logging.INFO, "nlpkd.teachers.cache"):
        second = cache(again, rows)
    assert again.rows == 0 and times(tmp_path / "cache") == before
    assert second["teacher_logits"][:] == first["teacher_logits"][:]
    assert "4 of 4 shards found" in caplog.text


def test_only_missing_shards_are_computed_whatever_shard_size_is_asked_for(cache, teacher, rows, tmp_path):
    first = cache(Counting(teacher), rows)
    before = times(tmp_path / "cache")
    gone = shards(tmp_path / "cache")[2]
    gone.unlink()
    again = Counting(teacher)
    second = cache(again, rows, shard_rows=5)
    assert again.rows == 16 and second["teacher_logits"][:] == first["teacher_logits"][:]
    after = times(tmp_path / "cache")
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == [gone.name]


KILLED = """
import sys, time
from datasets import load_from_disk
from torch.nn.modules.module import register_module_forward_hook
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from nlpkd.teachers.cache import cache_teacher_outputs
from nlpkd.teachers.shards import ShardFolder

given, folder = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(given + "/teacher")
register_module_forward_hook(lambda module, *_: time.sleep(0.2 * (type(module) is type(model))))
cache_teacher_outputs(
    model, load_from_disk(given + "/rows"), AutoTokenizer.from_pretrained(given + "/teacher"),
    cache_dir=folder, bf16=False, shard_rows=4, batch_tokens=1000,
)
"""


def save_given(folder: Path, teacher, rows: Dataset, tokenizer) -> Path:
    teacher.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    rows.save_to_disk(folder / "rows")
    return folder


def environment() -> dict[str, str]:
    return os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(TESTS / "teachers")}


def test_a_killed_call_leaves_whole_shards_and_is_taken_up_where_it_stopped(tmp_path, teacher, rows, tokenizer):
    given, folder = save_given(tmp_path / "given", teacher, rows, tokenizer), tmp_path / "cache"
    words, log = ["-c", KILLED, str(given), str(folder)], tmp_path / "log"
    process = Program(words, tmp_path, log, log, environment()).process
    deadline = time.monotonic() + 120
    while len(shards(folder)) < 3 and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.02)
    process.kill()
    process.join()
    before = times(folder)
    assert 3 <= len(before) < 14, "the kill came too late to say anything"
    # What a kill in the middle of a write leaves behind.
    (folder / ".shard-00013.tmp").write_bytes(b"half")

    again = Counting(AutoModelForSequenceClassification.from_pretrained(given / "teacher"))
    with pytest.raises(ValueError, match="the teacher's configuration; the teacher's weights"):
        cache_teacher_outputs(again, rows, tokenizer, cache_dir=folder, bf16=False)
    reread = load_from_disk(given / "rows")
    counted = []
    with looking_at(type(again.model), lambda module, inputs, output: counted.append(len(output.logits))):
        cached = cache_teacher_outputs(again.model, reread, tokenizer, cache_dir=folder, bf16=False, batch_tokens=1000)
    assert sum(counted) == ROWS - 4 * len(before)
    after = times(folder)
    assert len(after) == 14 and {name: after[name] for name in before} == before
    torch.testing.assert_close(logits_of(cached), row_by_row(teacher, rows)[0], **CLOSE)


WORKER = """
import sys, json, os
from pathlib import Path
from accelerate import PartialState
from datasets import load_from_disk
from torch.nn.modules.module import register_module_forward_hook
from transformers import AutoTokenizer
from nlpkd.teachers.cache import cache_teacher_outputs
from nlpkd.teachers.shards import ShardFolder
from test_cache import Bag

given, folder, out = sys.argv[1:]
model, ran = Bag(), []
register_module_forward_hook(lambda module, inputs, output: ran.append(len(output)) if module is model else None)
record = {}
try:
    cached = cache_teacher_outputs(
        model, load_from_disk(given + "/rows"), AutoTokenizer.from_pretrained(given + "/teacher"),
        cache_dir=folder, bf16=False, shard_rows=16, batch_tokens=48,
    )
    record["logits"] = cached["teacher_logits"][:]
except ValueError as error:
    record["error"] = str(error)
state = PartialState()
record |= {"rows": sum(ran), "world_size": state.num_processes}
Path(out, f"rank-{state.process_index}.json").write_text(json.dumps(record))
state.wait_for_everyone()
sys.stdout.flush()
# gloo sometimes aborts while Python shuts down, after all work is done.
os._exit(0)
"""


def launch_two(tmp_path: Path, given: Path, folder: Path, name: str) -> list[dict]:
    out = tmp_path / name
    out.mkdir()
    (tmp_path / "worker.py").write_text(WORKER)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(tmp_path / "worker.py"), str(given), str(folder), str(out)]
    done = run_program(command, tmp_path, environment() | {"PYTHON_EXEC": warm_python()})
    records = [json.loads(path.read_text()) for path in sorted(out.glob("rank-*.json"))]
    assert [record["world_size"] for record in records] == [2, 2], f"{done.stdout}\n{done.stderr}"
    return records


def test_two_processes_share_the_work_and_write_the_bytes_of_one(cache, teacher, rows, tokenizer, tmp_path):
    given = save_given(tmp_path / "given", teacher, rows, tokenizer)
    alone = cache(Bag(), rows)
    first, second = launch_two(tmp_path, given, tmp_path / "pair", "both")
    assert (first["rows"], second["rows"]) == (32, 21)
    assert first["logits"] == second["logits"] == alone["teacher_logits"][:]
    bytes_of = [{path.name: path.read_bytes() for path in shards(tmp_path / name)} for name in ("cache", "pair")]
    assert len(bytes_of[0]) == 4 and bytes_of[0] == bytes_of[1]

    # One process takes up what two have left, and a damaged shard of one process is refused by both.
    shards(tmp_path / "pair")[1].unlink()
    again = cache(Bag(), rows, folder="pair")
    assert again["teacher_logits"][:] == alone["teacher_logits"][:]
    damaged = shards(tmp_path / "pair")[1]
    flip(damaged, 100)
    for record in launch_two(tmp_path, given, tmp_path / "pair", "damaged"):
        assert f"{damaged} is damaged" in record["error"] and record["rows"] == 0


# Damage


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_folder_in_the_place_of_a_shard_is_named(cache, teacher, rows, tmp_path):
    first = cache(teacher, rows)["teacher_logits"][:]
    bad = shards(tmp_path / "cache")[1]
    bad.unlink()
    bad.mkdir()
    with pytest.raises(ValueError, match=f"{bad.name} is no file. Delete what is named here"):
        cache(teacher, rows)
    bad.rmdir()
    assert cache(teacher, rows)["teacher_logits"][:] == first


@pytest.mark.parametrize("damage", ["a bit", "the last bit", "half", "all"])
def test_a_damaged_shard_is_named_and_never_used(cache, teacher, rows, tmp_path, damage):
    first = cache(teacher, rows)["teacher_logits"][:]
    bad = shards(tmp_path / "cache")[1]
    size = bad.stat().st_size
    if damage in ("half", "all"):
        os.truncate(bad, size // 2 if damage == "half" else 0)
    else:
        flip(bad, size - 1 if damage == "the last bit" else size // 2)
    with pytest.raises(ValueError, match=f"{bad.name} is damaged: .* Delete what is named here") as refused:
        cache(teacher, rows)
    assert "shard-00000" not in str(refused.value)
    bad.unlink()
    assert cache(teacher, rows)["teacher_logits"][:] == first


def test_a_whole_shard_of_another_cache_is_refused(cache, teacher, rows, tmp_path):
    cache(teacher, rows)
    cache(tiny_bert(layers=3, num_labels=3, seed=2), rows, folder="other")
    mine, theirs = (shards(tmp_path / name)[1] for name in ("cache", "other"))
    mine.unlink()
    (tmp_path / "cache" / theirs.name).write_bytes(theirs.read_bytes())
    with pytest.raises(ValueError, match=f"{theirs.name} belongs to another cache"):
        cache(teacher, rows)


def test_a_shard_under_another_number_is_refused(cache, teacher, rows, tmp_path):
    cache(teacher, rows)
    _, second, third, _ = shards(tmp_path / "cache")
    third.unlink()
    second.rename(second.with_name(second.name.replace("00001", "00002")))
    with pytest.raises(ValueError, match="shard-00002.* belongs to another cache"):
        cache(teacher, rows)


def test_a_broken_manifest_is_refused(cache, teacher, rows, tmp_path):
    cache(teacher, rows)
    manifest = tmp_path / "cache" / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    with pytest.raises(ValueError, match="manifest.json is damaged .*: delete the folder"):
        cache(teacher, rows)


# What does not belong


def test_a_teacher_that_was_saved_and_loaded_is_the_same(cache, teacher, rows, tmp_path):
    cache(teacher, rows)
    teacher.save_pretrained(tmp_path / "teacher")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "teacher")
    before = times(tmp_path / "cache")
    cache(loaded, rows)
    assert times(tmp_path / "cache") == before


def other_weights(teacher):
    with torch.no_grad():
        teacher.bert.encoder.layer[1].output.dense.bias[3] += 1e-3
    return teacher


def other_activation(teacher):
    teacher.config.hidden_act = "relu"
    return teacher


REFUSED = {
    "weights": (other_weights, None, {}, "the teacher's weights"),
    "configuration": (other_activation, None, {}, "the teacher's configuration"),
    "half": (lambda teacher: teacher.to(torch.bfloat16), None, {}, "the teacher's weights"),
    "texts": (None, lambda rows: rows.select([1, 0, *range(2, ROWS)]), {}, r"the token ids \(of texts, .*\)"),
    "bf16": (None, None, {"bf16": True}, r"the precision \(no autocast in the cache, bf16 autocast here\)"),
    "order": (None, None, {"order": [1, 0, 2]}, r"the label order \(the teacher's in the cache, \[1, 0, 2\] here\)"),
    "layers": (None, None, {"hidden_states": [1]}, r"the layers \(\[\] in the cache, \[1\] here\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_cache_that_does_not_belong_is_refused_with_the_reason(cache, teacher, rows, tmp_path, case):
    change_teacher, change_rows, settings, reason = REFUSED[case]
    cache(teacher, rows)
    before = times(tmp_path / "cache")
    teacher = change_teacher(teacher) if change_teacher else teacher
    rows = change_rows(rows) if change_rows else rows
    with pytest.raises(ValueError, match=f"what differs: {reason}. Use another cache_dir"):
        cache(teacher, rows, **settings)
    assert times(tmp_path / "cache") == before


def test_fewer_rows_and_a_shorter_max_length_are_refused_and_told_apart(cache, teacher, tokenizer):
    def rows(count, max_length):
        return load_text_classification(raw_rows(count), tokenizer=tokenizer, max_length=max_length)["train"]

    cache(teacher, rows(30, 64))
    with pytest.raises(ValueError, match=r"the number of rows \(30 in the cache, 29 here\); the token ids"):
        cache(teacher, rows(29, 64))
    with pytest.raises(ValueError, match=r"the longest row \(14 tokens in the cache, 8 tokens here\); the token ids"):
        cache(teacher, rows(30, 8))


def test_a_cache_of_another_tokenizer_is_refused_by_that_name(cache, teacher, tokenizer, tmp_path):
    cache(teacher, load_text_classification(raw_rows(30), tokenizer=tokenizer)["train"])
    vocabulary = tokenizer.get_vocab()
    swapped = vocabulary | {"film": vocabulary["plot"], "plot": vocabulary["film"]}
    other = BertTokenizer(vocab=swapped, model_max_length=64)
    rows = load_text_classification(raw_rows(30), tokenizer=other)["train"]
    with pytest.raises(ValueError, match=r"the token ids .*; the tokenizer\. Use"):
        cache_teacher_outputs(teacher, rows, other, cache_dir=tmp_path / "cache", bf16=False)


def test_how_the_rows_are_stored_is_no_difference(cache, teacher, rows, tmp_path):
    cache(teacher, rows)
    before = times(tmp_path / "cache")
    backwards = rows.select(range(ROWS - 1, -1, -1))
    cache(teacher, backwards.select(range(ROWS - 1, -1, -1)).remove_columns("text"))
    assert times(tmp_path / "cache") == before


# A teacher that is no transformer


@pytest.fixture(scope="module")
def pipeline():
    rows = raw_rows(100, 8)
    return make_pipeline(CountVectorizer(), LogisticRegression()).fit(rows["text"][:], rows["label"][:])


def test_a_scikit_learn_pipeline_teaches_by_its_log_probabilities(pipeline, cache, rows):
    cached = cache(pipeline.predict_proba, rows, outputs="probabilities", teacher_name="words 1", order=[1, 0])
    expected = pipeline.predict_log_proba(rows["text"][:])[:, [1, 0]]
    np.testing.assert_allclose(logits_of(cached), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"the teacher's name \(words 1 in the cache, words 2 here\)"):
        cache(pipeline.predict_proba, rows, outputs="probabilities", teacher_name="words 2", order=[1, 0])
    with pytest.raises(ValueError, match="what differs: the texts"):
        moved = rows.map(lambda row: {"text": row["text"] + " good"})
        cache(pipeline.predict_proba, moved, outputs="probabilities", teacher_name="words 1", order=[1, 0])


def test_outputs_of_an_estimator_carry_the_names_of_its_classes_in_their_order(cache, rows):
    learned = raw_rows(100, 8)
    names = np.array(["pos", "neg"])[learned["label"][:]]
    words = make_pipeline(CountVectorizer(), LogisticRegression()).fit(learned["text"][:], names)
    given = {"outputs": "probabilities", "teacher_name": "words"}
    for order, expected in ((None, ("neg", "pos")), ([1, 0], ("pos", "neg"))):
        cached = cache(words.predict_proba, rows, f"cache {order}", order=order, **given)
        assert Classes.of_feature(cached.features["teacher_logits"]).names == expected
        logits = words.predict_log_proba(rows["text"][:])[:, order or [0, 1]]
        np.testing.assert_allclose(logits_of(cached), logits, rtol=1e-4, atol=1e-5)


def test_probabilities_of_zero_are_floored(cache, rows):
    cached = cache(lambda texts: np.eye(2)[[0] * len(texts)], rows, outputs="probabilities", teacher_name="sure")
    assert cached[0]["teacher_logits"] == pytest.approx([0.0, np.log(PROBABILITY_FLOOR)])


def test_logits_of_a_function_and_of_a_plain_module(cache, rows, tmp_path):
    def by_pair(texts, others):
        return torch.tensor([[len(text), 10.0 * len(other)] for text, other in zip(texts, others, strict=True)])

    cached = cache(by_pair, rows, text_columns=["text", "text"], teacher_name="lengths")
    assert cached["teacher_logits"][:] == [[len(text), 10.0 * len(text)] for text in rows["text"]]

    bag = Bag()
    cached = cache(bag, rows, folder="bag")
    assert torch.equal(logits_of(cached), torch.cat([bag(torch.tensor([ids])) for ids in rows["input_ids"]]).detach())


class Scaled(nn.Module):
    """A module with a setting of its own, that names its columns as an ensemble does."""

    def __init__(self, model: nn.Module, scale: float, columns: set[str]):
        super().__init__()
        self.model, self.scale, self.columns = model, scale, columns

    def forward(self, **batch):
        return self.model(**batch).logits / self.scale


class Multiplied(Scaled):
    def forward(self, **batch):
        return self.model(**batch).logits * self.scale


def test_settings_of_a_plain_module_and_of_models_within_count(cache, teacher, rows):
    names = {"input_ids", "attention_mask"}
    cached = cache(Scaled(teacher, 2.0, names), rows)
    torch.testing.assert_close(logits_of(cached), row_by_row(teacher, rows)[0] / 2, **CLOSE)
    with pytest.raises(ValueError, match="what differs: the teacher's configuration. Use"):
        cache(Scaled(teacher, 3.0, names), rows)
    with pytest.raises(ValueError, match="what differs: the teacher's configuration. Use"):
        cache(Scaled(other_activation(teacher), 2.0, names), rows)
    cache(TeacherEnsemble([Scaled(teacher, 2.0, names), teacher]), rows, folder="several")
    with pytest.raises(ValueError, match="what differs: the teacher's configuration. Use"):
        cache(TeacherEnsemble([Scaled(teacher, 3.0, names), teacher]), rows, folder="several")
    with pytest.raises(ValueError, match="what differs: the teacher's configuration. Use"):
        cache(TeacherEnsemble([Multiplied(teacher, 2.0, names), teacher]), rows, folder="several")


class Weighted(nn.Module):
    """A module whose settings are no single numbers."""

    def __init__(self, model: nn.Module, settings):
        super().__init__()
        self.model, self.settings = model, settings

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits * self.settings["scales"][0]


def test_settings_of_any_kind_count_and_what_nothing_tells_apart_is_refused(cache, teacher, rows, tmp_path):
    cache(Weighted(teacher, {"scales": [1.0]}), rows)
    before = times(tmp_path / "cache")
    cache(Weighted(teacher, {"scales": [1.0]}), rows)
    for scales in ([2.0], [torch.tensor(2.0)], np.array([2.0])):
        with pytest.raises(ValueError, match="what differs: the teacher's configuration. Use"):
            cache(Weighted(teacher, {"scales": scales}), rows)
    with pytest.raises(ValueError, match=r"answers owe to Weighted\.settings: a _thread\.lock: keep it in numbers"):
        cache(Weighted(teacher, {"scales": [1.0], "lock": threading.Lock()}), rows)
    assert times(tmp_path / "cache") == before


def test_teachers_with_several_tokenizers_are_refused(cache, teacher, rows):
    with pytest.raises(ValueError, match=r"tokenizers of their own \(teacher_2_input_ids\), which can't be cached"):
        cache(Scaled(teacher, 1.0, {"input_ids", "teacher_2_input_ids"}), rows)


class Softmax(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits.softmax(dim=-1)


def test_probabilities_passed_as_logits_are_refused_and_the_other_way_round(cache, teacher, rows, tmp_path):
    with pytest.raises(ValueError, match="are probabilities: .* Pass outputs='probabilities'"):
        cache(Softmax(teacher), rows)
    assert not shards(tmp_path / "cache")
    with pytest.raises(ValueError, match="rows 0 to 15 are no probabilities"):
        cache(teacher, rows, folder="other", outputs="probabilities")
    with pytest.raises(ValueError, match="are probabilities"):
        cache(lambda texts: np.full((len(texts), 2), 0.5), rows, folder="function", teacher_name="even")
    assert cache(Softmax(teacher), rows, folder="right", outputs="probabilities").num_rows == ROWS


def test_probabilities_of_several_labels_a_row_are_refused_with_what_to_give_instead(cache, rows):
    def several(texts):
        return np.tile([[0.9, 0.8]], (len(texts), 1))

    with pytest.raises(ValueError, match=r"of one class a row, .* give logits, log\(p / \(1 - p\)\), and pass "):
        cache(several, rows, outputs="probabilities", teacher_name="several")
    with pytest.raises(ValueError, match=r"which lie in \[0, 1\] and sum to 1: pass outputs='logits'"):
        cache(lambda texts: 2 * several(texts), rows, folder="2", outputs="probabilities", teacher_name="more")


def test_logits_that_are_nan_are_refused_with_their_row(cache, rows, tmp_path):
    def function(texts):
        values = np.arange(2.0 * len(texts)).reshape(-1, 2) + 3
        values[5] = np.nan if texts[0] == rows[16]["text"] else 7
        return values

    with pytest.raises(ValueError, match="NaN or infinite logits for row 21"):
        cache(function, rows, teacher_name="broken")
    assert [path.name[:11] for path in shards(tmp_path / "cache")] == ["shard-00000"]


WRONG = {
    "no function": ({"teacher": object()}, "a module or a function, got object: .* predict_proba"),
    "no name": ({"teacher": len}, "pass teacher_name"),
    "no text": ({"teacher": len, "teacher_name": "x", "text_columns": "review"}, "no column 'review', only"),
    "states of a function": ({"teacher": len, "teacher_name": "x", "hidden_states": [1]}, "only be had of a transf"),
    "one number": ({"teacher": lambda t: np.zeros(len(t)), "teacher_name": "x"}, r"shape \(16,\) for 16 rows"),
    "kind": ({"outputs": "scores"}, "must be 'logits' or 'probabilities', got 'scores'"),
    "order": ({"order": [0, 0, 1]}, r"each index of the teacher's labels once, got \[0, 0, 1\]"),
    "short order": ({"order": [0, 1]}, "order has 2 labels, the teacher gives 3"),
    "layer": ({"hidden_states": [4]}, r"hidden_states=\[4\]: .* 0 \(the embeddings\) to 3"),
    "shard": ({"shard_rows": 0}, "shard_rows must be at least 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused(cache, teacher, rows, case):
    settings, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        cache(**({"teacher": teacher, "rows": rows} | settings))


def test_data_that_cannot_be_cached_are_refused(cache, teacher, rows, tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        cache(teacher, rows.select([]))
    with pytest.raises(ValueError, match="no column input_ids, only .*load_text_classification"):
        cache(teacher, raw_rows(3))
    with pytest.raises(ValueError, match="has a column teacher_logits already"):
        cache(teacher, cache(teacher, rows))
    with pytest.raises(ValueError, match="pass its tokenizer"):
        cache_teacher_outputs(teacher, rows, cache_dir=tmp_path)


# Hidden states


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_states_of_a_rows_tokens_are_the_models(tokenizer, rows, teacher, tmp_path, side):
    if side == "left":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.padding_side = "left"
        # Absolute positions would count the padding.
        teacher.bert.embeddings.position_embeddings.weight.data.zero_()
    cached = cache_teacher_outputs(
        teacher, rows, tokenizer, cache_dir=tmp_path, hidden_states=(3, 0), bf16=False, shard_rows=20, batch_tokens=60
    )
    logits, states = row_by_row(teacher, rows, (0, 3))
    if side == "right":
        # BERT's logits are made of the first place, which holds padding on the left.
        torch.testing.assert_close(logits_of(cached), logits, **CLOSE)
    for at, layer in enumerate((0, 3)):
        column = cached[HIDDEN_STATES.format(layer)][:]
        for row, expected in zip(column, states, strict=True):
            found = torch.frombuffer(bytearray(row), dtype=torch.bfloat16).view(-1, 16)
            torch.testing.assert_close(found.float(), expected[at], rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("left", [False, True])
def test_states_are_padded_as_they_were_packed(left):
    states = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    lengths = [5, 2, 3]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    mask = mask.flip(1) if left else mask
    packed = pack_states(states, lengths, left)
    assert [len(row) for row in packed] == [40, 16, 24]
    assert torch.equal(pad_states(packed, lengths, 5, left), states * mask[..., None])
    with pytest.raises(ValueError, match="row 1 of the batch has cached states of 16 bytes, and 3 tokens"):
        pad_states(packed, [5, 3, 3], 5, left)


def test_states_over_the_budget_are_refused_before_anything_is_written(cache, teacher, rows, tmp_path):
    tokens = sum(rows["length"][:])
    needed = 2 * 2 * tokens * 16 / 1e9
    with pytest.raises(ValueError, match=rf"layers \[1, 2\] on 53 rows take {needed:.3g} GB, more than budget_gb="):
        cache(teacher, rows, hidden_states=[1, 2], budget_gb=needed * 0.99)
    assert not (tmp_path / "cache").exists()
    cached = cache(teacher, rows, hidden_states=[1, 2], budget_gb=needed * 1.01)
    taken = sum(len(row) for layer in (1, 2) for row in cached[HIDDEN_STATES.format(layer)])
    assert taken == needed * 1e9


@pytest.mark.parametrize(
    ("rows", "asked", "kept"),
    [(10**9, 4096, 61_036), (300_000_000, 4096, 18_311), (67_108_864, 4096, 4096), (53, 1, 1)],
)
def test_a_cache_never_has_more_shards_than_a_process_may_map(rows, asked, kept, tmp_path):
    ShardFolder.create(tmp_path, rows, asked, {"teacher": "one"}, {})
    folder = ShardFolder.open(tmp_path, {"teacher": "one"}, {})
    assert folder.shard_rows == kept and len(folder) < 65_530 / 3
    assert folder.span(len(folder) - 1).stop == rows


def test_the_checksum_is_what_sha256_gives(cache, teacher, rows, tmp_path):
    cache(teacher, rows)
    for path in shards(tmp_path / "cache"):
        assert path.name.split(".")[1] == hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def with_another_buffer(model):
    model.register_buffer("offset", torch.ones(1), persistent=False)


def with_a_function(model):
    model.classifier.activation = torch.tanh


CHANGES = {
    "a hook": lambda model: model.classifier.register_forward_hook(lambda module, inputs, output: output / 3),
    "a forward": lambda model: setattr(model.classifier, "forward", lambda states: states[:, :2]),
    "another activation": lambda model: setattr(
        model.bert.encoder.layer[0].intermediate, "intermediate_act_fn", torch.nn.ReLU()
    ),
    "another epsilon": lambda model: [setattr(m, "eps", 0.5) for m in model.modules() if hasattr(m, "eps")],
    "a module of one's own": lambda model: setattr(model, "classifier", OwnHead()),
    "a buffer": with_another_buffer,
    "a function": with_a_function,
    "another kernel": lambda model: model.set_attn_implementation("eager"),
    "half precision": lambda model: model.half(),
    "weights": lambda model: model.classifier.bias.data.add_(1.0),
}


class OwnHead(torch.nn.Module):
    def forward(self, states):
        return states[:, :2]


@pytest.mark.parametrize("change", CHANGES)
def test_a_teacher_that_was_changed_in_any_way_does_not_get_the_outputs_of_before(change, cache, teacher, rows):
    cache(teacher, rows)
    CHANGES[change](teacher)
    with pytest.raises(ValueError, match=r"the teacher's (weights|configuration)|has a hook on"):
        cache(teacher, rows)


def test_what_changes_no_output_finds_the_outputs_of_before(cache, teacher, rows):
    first = cache(teacher, rows)
    teacher.train().requires_grad_(False)
    teacher.config.use_cache = True
    assert cache(teacher, rows)["teacher_logits"][:] == first["teacher_logits"][:]


def test_the_outputs_of_one_onnx_file_are_not_those_of_another(teacher, rows, tokenizer, tmp_path):
    settings = {"cache_dir": tmp_path / "cache", "shard_rows": 16}
    for number, model in enumerate((teacher, tiny_bert(layers=3, num_labels=3, seed=2))):
        export_onnx(model, tokenizer, tmp_path / str(number))
    first, other = (OnnxClassifier.from_pretrained(tmp_path / str(number)) for number in range(2))
    kept = cache_teacher_outputs(first, rows, tokenizer, **settings)
    same = cache_teacher_outputs(OnnxClassifier.from_pretrained(tmp_path / "0"), rows, tokenizer, **settings)
    assert same["teacher_logits"][:] == kept["teacher_logits"][:]
    with pytest.raises(ValueError, match="what differs: the teacher's weights"):
        cache_teacher_outputs(other, rows, tokenizer, **settings)


def test_columns_that_no_cache_pads_and_rows_with_a_transform_are_refused_by_name(cache, teacher, rows):
    class ReadsStars(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = teacher

        def forward(self, input_ids, attention_mask=None, stars=None):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits + stars[:, None]

    starred = rows.add_column("stars", list(range(len(rows))))
    with pytest.raises(ValueError, match="reads the columns stars too"):
        cache(ReadsStars(), starred)
    with pytest.raises(ValueError, match="have a transform"):
        cache(teacher, rows.with_transform(lambda batch: batch))


def test_a_format_is_kept_and_shows_the_outputs(cache, teacher, rows):
    row = cache(teacher, rows.with_format("torch", columns=["input_ids", "attention_mask"]))[0]
    assert sorted(row) == ["attention_mask", "input_ids", "teacher_logits"]
    assert isinstance(row["input_ids"], torch.Tensor)


@pytest.mark.parametrize("names", [None, ("neg", "pos")], ids=["labels without names", "named labels"])
def test_logits_of_another_teacher_beside_the_rows_are_refused(names, cache, make_rows, settings, tokenizer, caplog):
    """The column would teach, and the teacher that is given would be recorded."""
    # Teachers of random weights, whom no gold label finds out.
    rows = make_rows(48).map(lambda row: {"labels": -100})
    more = {} if names is None else {"id2label": dict(enumerate(names))}
    first, second = (tiny_bert(2, seed=seed, initializer_range=0.5, **more) for seed in (1, 2))

    def trainer(column_of, given, check, **config):
        folder = f"{id(column_of)}-{config}"
        kept = cache(column_of, rows, folder, **config) if column_of is not None else rows
        student, args = tiny_bert(1, **more), settings(teacher_check=check, learning_rate=0.0)
        return DistillationTrainer(student, given, args, [ForwardKLLoss()], kept, processing_class=tokenizer)

    with pytest.raises(ValueError, match="column teacher_logits. that are not those of the teacher"):
        trainer(first, second, "error")
    trainer(first, second, "warn")
    assert "are not those of the teacher" in caplog.text
    caplog.clear()
    trainer(first, second, "off")
    for bf16 in (False, True):
        trainer(first, first, "warn", bf16=bf16)
    trainer(None, second, "warn")
    assert "are not those of the teacher" not in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        lambda texts: [{"label": "neg", "score": 0.5}] * len(texts),
        lambda texts: ["pos"] * len(texts),
        lambda texts: None,
    ],
)
def test_a_function_that_gives_no_numbers_is_refused(answer, cache, rows):
    with pytest.raises(ValueError, match="must give numbers|shape"):
        cache(answer, rows, teacher_name="a")


def test_a_file_in_place_of_the_folder_is_refused(cache, teacher, rows, tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="can't be a folder, since a file is there"):
            cache(teacher, rows, cache_dir=folder)
