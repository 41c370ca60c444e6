"""Training on two or four processes equals training on one: real processes, gloo on the CPU."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import worker
from datasets import load_from_disk
from processes import run as run_program
from processes import warm_python
from safetensors.torch import load_file
from samples import QUIET_FLAGS, raw_rows, tiny_bert
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from nlpkd import load_text_classification

HERE = Path(__file__).parent
TRAIN_ROWS, VALIDATION_ROWS, GLOBAL_BATCH = 37, 23, 16
PARTS = ["loss/cross_entropy", "loss/forward_kl", "loss/hidden_state_mse", "loss/attention_mse"]
# Rows that share a micro-batch are other ones there.
SPLIT_OTHERWISE = ("coupled.", "streamed.", "unsized.")
# Not bit-equal: other batch shapes pick other kernels, and floats are summed in another order.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


@dataclass
class Outcome:
    """What the processes of one launch wrote, by rank."""

    records: list[dict]
    weights: list[dict[str, Tensor]]

    @classmethod
    def read(cls, out: Path) -> Outcome:
        records = [json.loads(path.read_text()) for path in sorted(out.glob("rank-*.json"))]
        return cls(records, [load_file(path) for path in sorted(out.glob("rank-*.safetensors"))])

    @property
    def steps(self) -> list[dict[str, float]]:
        return self.logged("matching")

    def logged(self, name: str) -> list[dict[str, float]]:
        return [entry for entry in self.records[0]["logs"][name] if "loss" in entry]


@pytest.fixture(scope="module")
def given(tmp_path_factory, tokenizer) -> Path:
    """Teacher, a narrower student and rows of uneven length, none of whose numbers the batch divides."""
    folder = tmp_path_factory.mktemp("given")
    tiny_bert(layers=4, hidden=16, seed=1).save_pretrained(folder / "teacher")
    tiny_bert(layers=2, hidden=8, seed=2).save_pretrained(folder / "student")
    tokenizer.save_pretrained(folder / "student")
    rows = load_text_classification(raw_rows(TRAIN_ROWS, 3), raw_rows(VALIDATION_ROWS, 4), tokenizer=tokenizer)
    raw_rows(TRAIN_ROWS, 3).to_csv(folder / "train.csv")
    for split in ("train", "validation"):
        rows[split].save_to_disk(folder / split)
    assert len(set(rows["train"]["length"][:])) > 5
    return folder


def launch(launcher: list[str], given: Path, out: Path, batch: int, accumulation: int) -> Outcome:
    out.mkdir()
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHON_EXEC": warm_python()}
    command = [*launcher, str(HERE / "worker.py"), str(given), str(out), str(batch), str(accumulation)]
    done = run_program(command, given, environment, timeout=400)
    # The files tell, not the exit status: gloo may abort a process that has done its work.
    outcome = Outcome.read(out)
    assert outcome.records, f"{command} gave {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return outcome


@pytest.fixture(scope="module")
def alone(given, tmp_path_factory) -> Outcome:
    """This process by itself, 8 rows, 2 micro-batches a step."""
    out = tmp_path_factory.mktemp("alone")
    worker.run(given, out, 8, 2)
    return Outcome.read(out)


@pytest.fixture(scope="module", params=["torchrun 2 x 4 x 2", "torchrun 4 x 4 x 1", "accelerate 2 x 8 x 1"])
def several(request, given, tmp_path_factory) -> Outcome:
    """Processes x rows x micro-batches of a step, which has as many rows as the step of one process."""
    out = tmp_path_factory.mktemp("ddp") / "several"
    name, *numbers = request.param.replace(" x", "").split()
    processes, batch, accumulation = map(int, numbers)
    if name == "torchrun":
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        return launch(launcher, given, out, batch, accumulation)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
                "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
                "--main_process_port", str(port)]  # fmt: skip
    return launch(launcher, given, out, batch, accumulation)


def test_all_processes_take_part_and_run_the_same_number_of_steps(alone, several):
    assert [record["world_size"] for record in alone.records] == [1]
    assert [record["world_size"] for record in several.records] == [len(several.records)] * len(several.records)
    assert len(several.records) > 1
    steps = worker.EPOCHS * -(-TRAIN_ROWS // GLOBAL_BATCH)
    assert len(alone.steps) == len(several.steps) == steps


def test_every_step_logs_the_same_losses_and_gradient_norm(alone, several):
    for one, two in zip(alone.steps, several.steps, strict=True):
        for name in ["loss", "grad_norm", "learning_rate", *PARTS]:
            torch.testing.assert_close(two[name], one[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def test_the_parts_add_up_to_the_loss_by_weight(alone, several):
    weights = dict(zip(PARTS, [0.5, 0.5, 1.0, 10.0], strict=True))
    for step in alone.steps + several.steps:
        assert step["loss"] == pytest.approx(sum(weight * step[name] for name, weight in weights.items()), rel=1e-5)


def test_student_and_projections_end_the_same(alone, several, given):
    start = AutoModelForSequenceClassification.from_pretrained(given / "student").state_dict()
    equal = {name: tensor for name, tensor in alone.weights[0].items() if not name.startswith(SPLIT_OTHERWISE)}
    assert sum(name.startswith(("matching.objectives.", "annealed.objectives.")) for name in equal) > 5
    for name, expected in equal.items():
        torch.testing.assert_close(
            several.weights[0][name], expected, **CLOSE, msg=lambda text, n=name: f"{n}: {text}"
        )
    moved = [(equal[f"matching.student.{name}"] - tensor).abs().max() for name, tensor in start.items()]
    assert max(moved) > 1e-2, "the student did not move, so that the comparison says nothing"


def assert_logged_alike(alone: Outcome, several: Outcome, name: str) -> None:
    """Compare every figure of every step."""
    for one, two in zip(alone.logged(name), several.logged(name), strict=True):
        for figure in (figure for figure in one if figure.startswith(("loss", "weight/", "grad_norm"))):
            torch.testing.assert_close(two[figure], one[figure], **CLOSE, msg=lambda text, f=figure: f"{f}: {text}")


def test_moving_weights_discriminator_and_anchor_end_the_same(alone, several):
    last = alone.logged("moving")[-1]
    assert abs(last["weight/forward_kl"] - 1.0) > 0.05, "the weights did not move"
    assert last["loss/anchor"] > 0
    assert_logged_alike(alone, several, "moving")


def test_weights_that_move_to_the_gold_labels_and_further_objectives_end_the_same(alone, several):
    last = alone.logged("annealed")[-1]
    assert last["weight/cross_entropy"] > 0.5 > last["weight/gram"]
    assert min(last[f"loss/{name}"] for name in ("patient", "hidden_state_cosine", "embedding_mse", "gram")) > 0
    assert_logged_alike(alone, several, "annealed")


def test_coupled_rows_train_the_same_where_micro_batches_are_the_same_and_only_there(alone, several):
    if several.records[0]["batch"] == alone.records[0]["batch"]:
        assert_logged_alike(alone, several, "coupled")
    else:
        one, two = (outcome.logged("coupled")[0]["loss"] for outcome in (alone, several))
        assert abs(one - two) > 0.1, "fewer negatives make the choice easier"


def test_a_teacher_that_is_run_once_teaches_all_processes_the_same(alone, several):
    assert all(record["teacher_is_cached"] for record in alone.records + several.records)
    assert_logged_alike(alone, several, "cached")


def test_checkpointed_activations_and_a_head_without_gradients_train_the_same(alone, several):
    assert all(len(outcome.logged("headless")) == len(alone.steps) for outcome in (alone, several))
    assert_logged_alike(alone, several, "headless")


def test_processes_share_out_the_rows_of_a_stream(several):
    step = several.records[0]["batch"] * len(several.records)
    shares = [record["streamed_rows"] for record in several.records]
    assert {len(rows) for rows in shares} == {TRAIN_ROWS // step * several.records[0]["batch"]}
    assert len({row for rows in shares for row in rows}) == sum(map(len, shares)), "a row was read twice"


def test_processes_share_out_rows_without_a_length_and_fill_the_last_batches_up_with_the_first(given, several):
    rows = load_from_disk(given / "train")["input_ids"][:]
    batch = several.records[0]["batch"]
    shares = [record["unsized_rows"] for record in several.records]
    read = [row for at in range(0, len(shares[0]), batch) for share in shares for row in share[at : at + batch]]
    assert read == (rows + rows)[: -(-TRAIN_ROWS // (batch * len(shares))) * batch * len(shares)]
    assert len(several.logged("unsized")) == 5


def test_in_every_order_each_row_comes_once_an_epoch(alone, several):
    for outcome in (alone, several):
        for order in outcome.records[0]["rows_by_order"]:
            rows = [row for record in outcome.records for row in record["rows_by_order"][order]]
            assert sorted(rows) == list(range(TRAIN_ROWS)), order


def test_projections_and_student_are_identical_on_all_processes(several):
    first, *others = several.weights
    for other in others:
        assert first.keys() == other.keys()
        assert [name for name in first if not torch.equal(first[name], other[name])] == []


def test_evaluation_counts_each_row_once(alone, several, given, tokenizer):
    """The reference goes row by row through the final student, without padding."""
    teacher = AutoModelForSequenceClassification.from_pretrained(given / "teacher").eval()
    student = AutoModelForSequenceClassification.from_pretrained(given / "student").eval()
    rows = raw_rows(VALIDATION_ROWS, 4)
    for outcome in (alone, several):
        weights = outcome.weights[0].items()
        student.load_state_dict(
            {name.removeprefix("matching.student."): tensor for name, tensor in weights if "matching.student" in name}
        )
        right, agreed = 0, 0
        for row in rows:
            encoded = tokenizer(row["text"], return_tensors="pt")
            with torch.no_grad():
                predicted, taught = (int(model(**encoded).logits.argmax()) for model in (student, teacher))
            right, agreed = right + (predicted == row["label"]), agreed + (predicted == taught)
        for record in outcome.records:
            assert record["metrics"]["eval_accuracy"] == pytest.approx(right / VALIDATION_ROWS)
            assert record["metrics"]["eval_agreement"] == pytest.approx(agreed / VALIDATION_ROWS)


def test_evaluation_gives_the_same_metrics(alone, several):
    timings = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
    expected = alone.records[0]["metrics"]
    for record in several.records:
        assert record["metrics"].keys() == expected.keys()
        for name in expected.keys() - timings:
            assert record["metrics"][name] == pytest.approx(expected[name], abs=1e-5), name


def test_fewer_rows_than_processes_are_evaluated_as_by_one(alone, several):
    expected = alone.records[0]["metrics_of_one_row"]
    for record in several.records:
        for name in ("eval_loss", "eval_accuracy", "eval_agreement"):
            assert record["metrics_of_one_row"][name] == pytest.approx(expected[name], abs=1e-5), name


def test_a_batch_size_is_found_by_one_process_only(alone, several):
    assert alone.records[0]["auto_find_batch_size"] is None
    for record in several.records:
        assert f"for one process, and there are {len(several.records)}" in record["auto_find_batch_size"]


def test_predictions_are_gathered_as_objects_by_one_process_only(alone, several):
    assert alone.records[0]["eval_use_gather_object"] is None
    for record in several.records:
        assert (
            f"of each process, and not the rows in their order, on {len(several.records)}"
            in (record["eval_use_gather_object"])
        )


def test_fewer_rows_than_processes_are_refused_on_all_of_them(alone, several):
    assert alone.records[0]["one_row"] is None
    for record in several.records:
        assert f"1 rows can't be shared out to {len(several.records)} processes" in record["one_row"]


def test_a_command_under_a_launcher_is_one_run_of_all_processes(given, tmp_path):
    """Nothing tells that they are on CPUs: no flag, and no variable."""
    rows = ["--train", "train.csv", "--validation", "train.csv", "--max-length", "32", "--max-steps", "2"]
    command = ["-m", "nlpkd", "distill", "--teacher", "student", "--student", "layers:1", "--objectives", "hinton"]
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    asked = [*launcher, *command, *rows, *QUIET_FLAGS, "--teacher-check", "off", "--output-dir", str(tmp_path / "out")]
    done = run_program(asked, given, environment | {"PYTHON_EXEC": warm_python()}, timeout=400)
    said = done.stdout + done.stderr
    assert "another run is writing" not in said
    report = tmp_path / "out/report.json"
    assert report.is_file(), said
    assert json.loads(report.read_text())["run"]["settings"]["processes"] == 2
    assert said.count("Training the student ...") == 1
