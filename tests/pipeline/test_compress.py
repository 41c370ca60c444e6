"""A saved model is compressed into a folder that says what was done to it, loads plainly, and can be distilled on."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from commands import Command, finish
from families import llama, make, modernbert, reloaded, roberta
from samples import QUIET, raw_rows, tiny_bert
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from nlpkd import DistillationConfig, DistillationTrainer, load_text_classification
from nlpkd.cli import app
from nlpkd.compression import (
    compress,
    factorize_embeddings,
    factorize_linear,
    measure_change,
    prune_heads,
    prune_neurons,
    to_half,
)
from nlpkd.objectives import AttentionMSELoss, CrossEntropyLoss, ForwardKLLoss, HiddenStateMSELoss
from nlpkd.pipeline.compress import METHODS
from nlpkd.pipeline.export import export_student

NAMES = {"id2label": {0: "pos", 1: "neg"}, "label2id": {"pos": 0, "neg": 1}}


@pytest.fixture
def saved(tmp_path, tokenizer) -> Path:
    """A model whose labels come in another order than the data's."""
    folder = tmp_path / "student"
    model = tiny_bert(initializer_range=0.3, problem_type="single_label_classification", **NAMES)
    model.classifier.weight.data *= 5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def predictions(folder: Path, texts: list[str]) -> list[int]:
    """What a text gets, one text after the other."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in texts]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", [tiny_bert, roberta, modernbert, llama])
def test_half_precision_is_half_the_file_and_loads_in_it(family, dtype, tmp_path):
    """Rotary frequencies are no weights: they stay in float32, as they are when the file is loaded."""
    model = make(family)
    half, record = to_half(model, dtype=dtype)
    loaded = reloaded(half, tmp_path)
    assert loaded.dtype == half.dtype == getattr(torch, dtype) and model.dtype == torch.float32
    for (name, tensor), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(tensor.to(half.dtype), other), name
    for (name, tensor), other in zip(half.named_buffers(), loaded.buffers(), strict=True):
        assert tensor.dtype == other.dtype and torch.equal(tensor, other), name
    assert 0.45 < record.size_mb_after / record.size_mb_before < 0.65
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype


def test_half_precision_is_refused_where_it_does_not_hold():
    model = tiny_bert()
    with pytest.raises(ValueError, match="dtype must be one of .*, got 'int8'"):
        to_half(model, dtype="int8")
    with pytest.raises(ValueError, match="float32 already|bfloat16 already"):
        to_half(to_half(model)[0])
    model.classifier.bias.data[0] = 1e5
    with pytest.raises(ValueError, match="classifier.bias has values that float16 can't hold"):
        to_half(model, dtype=torch.float16)


def test_agreement_and_difference_are_those_of_the_logits(tokenizer, make_rows):
    before, after, rows = tiny_bert(initializer_range=0.5), tiny_bert(initializer_range=0.5, seed=1), make_rows(20)
    logits = [
        [model.eval()(input_ids=torch.tensor([ids])).logits[0].tolist() for ids in rows["input_ids"]]
        for model in (before, after)
    ]
    same = [(a[0] > a[1]) == (b[0] > b[1]) for a, b in zip(*logits, strict=True)]
    apart = [abs(x - y) for a, b in zip(*logits, strict=True) for x, y in zip(a, b, strict=True)]
    assert 0 < sum(same) < 20
    agreement, difference = measure_change(before, after, rows, tokenizer)
    assert agreement == pytest.approx(sum(same) / 20)
    assert difference == pytest.approx(sum(apart) / 40, abs=1e-5)


def test_compressing_again_goes_on_with_the_record(saved, tmp_path):
    rows = raw_rows(30)
    first = compress(saved, "prune-neurons", rows, output_dir=tmp_path / "one", keep=0.5)
    second = compress(tmp_path / "one", "half", rows, output_dir=tmp_path / "two")
    third = compress(tmp_path / "two", "factorize-embeddings", rows, output_dir=tmp_path / "three", rank=4)
    records = json.loads((tmp_path / "three" / "compression.json").read_text())
    assert records == third.records and records[:1] == first.records and records[:2] == second.records
    assert [record["method"] for record in records] == ["prune_neurons", "to_half", "factorize_embeddings"]
    assert all("arXiv" in record["paper"] for record in records)
    for before, after in zip(records, records[1:], strict=False):
        assert after["parameters_before"] == before["parameters_after"]
        assert after["size_mb_before"] == pytest.approx(before["size_mb_after"], rel=0.05)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "three")
    assert loaded.dtype == torch.bfloat16 and loaded.config.intermediate_size == 16
    assert loaded.config.model_type == "mobilebert" and loaded.config.id2label == NAMES["id2label"]
    texts = rows["text"]
    same = [a == b for a, b in zip(predictions(saved, texts), predictions(tmp_path / "one", texts), strict=True)]
    assert records[0]["agreement"] == pytest.approx(sum(same) / 30)


def test_a_vocabulary_is_trimmed_with_its_tokenizer(saved, tmp_path, tokenizer):
    rows = raw_rows(4)
    made = compress(saved, "trim-vocabulary", rows, output_dir=tmp_path / "out")
    words = {word for text in rows["text"] for word in tokenizer.tokenize(text)}
    dropped = tokenizer.get_vocab().keys() - made.tokenizer.get_vocab().keys()
    assert words <= made.tokenizer.get_vocab().keys() and dropped
    (record,) = json.loads((tmp_path / "out" / "compression.json").read_text())
    assert record["method"] == "trim_vocabulary" and record["details"]["tokens_after"] == len(made.tokenizer)
    assert record["parameters_before"] - record["parameters_after"] == 16 * len(dropped)
    assert (record["agreement"], record["logits_difference"]) == (1.0, 0.0)
    assert predictions(tmp_path / "out", rows["text"]) == predictions(saved, rows["text"])


def test_what_a_trimmed_vocabulary_costs_is_measured_with_both_tokenizers(saved, tmp_path, monkeypatch):
    rows = raw_rows(40)
    rows.to_pandas().assign(label=["neg" if label == 0 else "pos" for label in rows["label"]]).to_csv(
        tmp_path / "rows.csv", index=False
    )
    monkeypatch.chdir(tmp_path)
    command = ["compress", "student", "--method", "trim-vocabulary", "--min-count", "12", "--data", "rows.csv"]
    read_as = ["--max-length", "32", "--window-stride", "2"]
    made = CliRunner().invoke(app, [*command, "--output-dir", "out", *read_as])
    assert made.exit_code == 0, made.output
    following = made.output.partition("Next:\n")[2].strip().splitlines()
    assert len(following) == 2 and all(line.endswith(" ".join(read_as)) for line in following)
    (record,) = json.loads((tmp_path / "out" / "compression.json").read_text())
    # The vocabulary has no letters to spell a word with.
    assert record["details"]["lost"] > 0 == record["details"]["respelled"] and record["logits_difference"] > 0
    both = zip(predictions(saved, rows["text"]), predictions(tmp_path / "out", rows["text"]), strict=True)
    assert record["agreement"] == pytest.approx(sum(a == b for a, b in both) / 40)


def test_a_configuration_of_a_hub_data_set_reaches_the_loader(saved, tmp_path):
    with pytest.raises(ValueError, match="dataset_config and dataset_revision belong to a Hub dataset"):
        compress(saved, "half", raw_rows(8), output_dir=tmp_path / "out", dataset_config="sst2")
    with pytest.raises(ValueError, match="dataset_config and dataset_revision belong to a Hub dataset"):
        export_student(saved, data=raw_rows(8), dataset_revision="main")


def test_a_model_is_not_compressed_in_its_own_folder(saved):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(ValueError, match="is the folder of the model"):
        compress(saved, "half", raw_rows(8), output_dir=saved / "." / "")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_labels_in_another_order_are_the_models_own(saved, tmp_path, tokenizer):
    """Importance is measured by the loss, for which "neg" has to be what the model calls so."""
    made = compress(saved, "prune-neurons", raw_rows(30), output_dir=tmp_path / "out", keep=0.5)
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    rows = load_text_classification(raw_rows(30), tokenizer=tokenizer)["train"]
    turned = rows.remove_columns("labels").add_column("labels", [1 - label for label in rows["labels"]])
    right, _ = prune_neurons(model, turned, tokenizer, keep=0.5)
    wrong, _ = prune_neurons(model, rows, tokenizer, keep=0.5)
    weights = [torch.cat([p.flatten() for p in each.parameters()]) for each in (made.model, right, wrong)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("prune", {}, "there is no method 'prune': choose one of prune-neurons, prune-heads"),
        ("half", {"keep": 0.5}, "half has no option keep: its options are dtype"),
        ("prune-neurons", {"dataset": 1}, "no option dataset: its options are keep, intermediate_size"),
    ],
)
def test_what_is_no_method_or_option_is_refused(method, options, message, saved, tmp_path):
    with pytest.raises(ValueError, match=message):
        compress(saved, method, raw_rows(8), output_dir=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_model_in_memory_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="(?s)a model is named by a path.*save it first, or call a method"):
        compress(tiny_bert(), "half", tmp_path / "missing.csv", output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def smaller_ones(tokenizer, rows) -> dict:
    """One compression of each kind, of a trained model."""
    return {
        "prune-neurons": lambda model: prune_neurons(model, rows, tokenizer, keep=0.25),
        "prune-heads": lambda model: prune_heads(model, rows, tokenizer, keep=0.5),
        "factorize-embeddings": lambda model: factorize_embeddings(model, rank=3),
        "factorize-linear": lambda model: factorize_linear(model, rank=2),
        "half": to_half,
    }


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    """A teacher that knows the task."""
    args = DistillationConfig(
        output_dir=str(tmp_path_factory.mktemp("trained")), **QUIET, save_strategy="no",
        max_steps=40, learning_rate=5e-3, per_device_train_batch_size=16, teacher_check="off",
    )  # fmt: skip
    rows = load_text_classification(raw_rows(200), tokenizer=tokenizer)["train"]
    trainer = DistillationTrainer(
        model=tiny_bert(initializer_range=0.2), args=args, objectives=[CrossEntropyLoss()], train_dataset=rows,
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    return trainer.model.eval()


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"trim-vocabulary"}))  # tested in test_vocabulary.py
def test_what_was_compressed_can_be_distilled_on(method, trained, tokenizer, make_rows, settings, tmp_path):
    """A few steps bring it back towards the model that it was, and the result loads bit-equal."""
    rows = make_rows(160)
    smaller, _ = smaller_ones(tokenizer, rows)[method](trained)
    if method == "half":
        smaller = smaller.float()
    matched = [HiddenStateMSELoss(weight=0.1)] + ([] if method == "prune-heads" else [AttentionMSELoss(weight=0.1)])
    trainer = DistillationTrainer(
        model=smaller, teacher_model=trained, objectives=[ForwardKLLoss(temperature=1.0), *matched],
        train_dataset=rows, processing_class=tokenizer, args=settings(max_steps=30, learning_rate=3e-3),
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if method != "half":  # where there was next to nothing to win back
        assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    reloaded(trainer.model, tmp_path / "distilled")


def test_the_command_compresses_and_says_what_it_did(saved, tmp_path):
    rows = raw_rows(30).to_pandas()
    rows["label"] = rows["label"].map({0: "neg", 1: "pos"})
    rows.to_csv(tmp_path / "train.csv", index=False)
    command = ["compress", "student", "--data", "train.csv", "--max-length", "32", "--output-dir", "out"]
    working = Command(*command, "--method", "prune-neurons", "--keep", "0.5", cwd=tmp_path)
    failing = Command(*command, "--method", "prune-neurons", "--rank", "4", cwd=tmp_path)
    code, out, err = finish(working)
    assert code == 0, err
    (record,) = json.loads((tmp_path / "out" / "compression.json").read_text())
    assert record["details"] == {"intermediate_size": [32, 16], "rows": 30} and 0 <= record["agreement"] <= 1
    before, after = record["parameters_before"], record["parameters_after"]
    cells = [line.split() for line in out.splitlines()]
    assert ["parameters", f"{before:,}", f"{after:,}", f"{100 * after / before:.1f}", "%"] in cells
    assert "How: intermediate_size [32, 16], rows 30." in out and "{" not in out
    assert f"the agreement with the model before is {record['agreement']:.3f}, and a logit differs by " in out
    assert "The model is in out, with compression.json (what was done to it)." in out
    assert "evaluate before=student student=out --data HELD_OUT.csv --max-length 32\n" in out
    kept = yaml.safe_load((tmp_path / "out" / "compress.yaml").read_text())
    assert (kept["command"], kept["model"], kept["keep"]) == ("compress", "student", 0.5)
    assert predictions(tmp_path / "out", ["a good film"])[0] in (0, 1)
    code, _, err = finish(failing)
    assert code == 2 and "nlpkd: prune-neurons has no option rank" in err and "Traceback" not in err
