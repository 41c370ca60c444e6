"""What a training leaves for readers: its measurement, its card, and pushes over real HTTP to a server on loopback."""

import pytest
import yaml
from hub_server import WRITE_TOKEN, hub_environment
from paths import TESTS
from processes import run as run_program
from samples import tiny_bert

from nlpkd.training.publishing import card_facts, measurement_sha256

SCRIPT = f"""
import sys
from pathlib import Path
from huggingface_hub import ModelCard
sys.path.insert(0, {str(TESTS)!r})
from samples import raw_rows, tiny_bert, WORDS
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer, TrainerCallback
from nlpkd import DistillationConfig, DistillationTrainer, load_text_classification
from nlpkd.training import resumable
from nlpkd.utils.disk.files import has_checksums
import torch

begin, whole = resumable.push_checkpoint, []
def watched(folder, *rest):
    whole.append(has_checksums(Path(folder)))
    return begin(folder, *rest)
resumable.push_checkpoint = watched

class Kept(TrainerCallback):
    seen = {{}}
    def on_save(self, args, state, control, **_):
        under_way = [path for push, path in trainer._pushes if not push.done()]
        self.seen[state.global_step] = all(path.is_dir() for path in under_way)

tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
tokenizer = BertTokenizer(vocab={{token: number for number, token in enumerate(tokens)}}, model_max_length=64)
data = load_text_classification(raw_rows(32), raw_rows(16, seed=1), tokenizer=tokenizer)
trainer = DistillationTrainer(
    model=tiny_bert(), teacher_model=tiny_bert(layers=4, seed=1), processing_class=tokenizer,
    train_dataset=data["train"], eval_dataset=data["validation"],
    args=DistillationConfig(
        output_dir="out", push_to_hub=True, hub_model_id="alice/tiny", hub_strategy="every_save", bf16=False,
        teacher_check="off", num_train_epochs=2, per_device_train_batch_size=8, save_strategy="epoch",
        disable_tqdm=True, hub_always_push=True, report_to="none", save_total_limit=1,
    ),
    callbacks=[Kept()],
)
trainer.train()
assert whole == [True, True], whole
# The first push is slow: its checkpoint is kept until it is done, however slow the steps are.
assert Kept.seen == {{4: True, 8: True}}, Kept.seen
try:
    trainer.push_to_hub(tasks="summarization")
except ValueError as error:
    assert "tasks='summarization'" in str(error) and not Path("out/model.safetensors").exists()
else:
    raise AssertionError("another task is taken")
print("PUSHED", trainer.push_to_hub(
    language="en", license="mit", tags=["movies", "nlpkd"], finetuned_from="org/base", tasks="text-classification",
    dataset_tags="org/reviews", dataset="Film reviews", dataset_args="plain",
))
loaded, info = AutoModelForSequenceClassification.from_pretrained("alice/tiny", output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"]
assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), trainer.model.state_dict().values()))
assert AutoTokenizer.from_pretrained("alice/tiny").vocab_size == tokenizer.vocab_size
trainer.create_model_card("de")
card = ModelCard.load("out/README.md").data
assert (card.language, card.license, card.base_model) == ("de", "mit", "org/base"), card
"""


def test_the_trainer_pushes_while_training_and_at_the_end_and_never_a_pickle(hub, tmp_path):
    environment = hub_environment(hub, tmp_path / "home", token=WRITE_TOKEN) | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "0",
    }
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    hub.fail_next("commit", "slow", seconds=3)
    done = run_program([str(script)], tmp_path, environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "PUSHED http" in done.stdout and WRITE_TOKEN not in done.stdout + done.stderr
    titles = [str(commit) for commit in hub.commits("alice/tiny")]
    wanted = ["Training in progress, step 4", "Training in progress, step 8", "End of training"]
    assert [want for title in titles for want in wanted if want in title] == wanted, titles
    assert "was not pushed" not in done.stderr
    files = hub.files("alice/tiny")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "report.json"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl")) or "/" in name]
    metadata = yaml.safe_load(files["README.md"].decode().split("---")[1])
    result = metadata["model-index"][0]["results"][0]
    assert metadata["license"] == "mit" and metadata["language"] == "en"
    assert metadata["tags"] == ["text-classification", "knowledge-distillation", "nlpkd", "movies"]
    assert metadata["base_model"] == "org/base" and metadata["datasets"] == ["org/reviews"]
    about = {"type": "org/reviews", "name": "Film reviews", "config": "plain", "split": "evaluation"}
    assert result["dataset"] == about and {"accuracy"} <= {metric["type"] for metric in result["metrics"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model_name": "x"}, "set hub_model_id"),
        ({"finetuned_from": "./runs/x"}, "no id on the Hub"),
        ({"tasks": ["text-classification", "fill-mask"]}, "is text-classification"),
        ({"dataset": ["a", "b"]}, "one data set"),
    ],
)
def test_what_a_card_cannot_say_is_refused_with_advice(arguments, said):
    with pytest.raises(ValueError, match=said):
        card_facts(**arguments)


def test_each_part_of_a_measurement_counts(make_rows):
    rows, held_out = make_rows(8), make_rows(6, seed=1)

    def hashed(measured=rows, fitted=held_out, seed=1, **settings):
        teacher = None if seed is None else tiny_bert(layers=1, seed=seed)
        return measurement_sha256({"measured": measured, "held-out": fitted}, teacher, {"latency_runs": 0} | settings)

    found = [
        hashed(), hashed(make_rows(8, seed=2)), hashed(rows.remove_columns("text")), hashed(fitted=None),
        hashed(fitted=make_rows(6, seed=2)), hashed(rows, rows), hashed(held_out, rows), hashed(seed=2),
        hashed(seed=None), hashed(latency_runs=1),
    ]  # fmt: skip
    assert len(set(found)) == len(found) and hashed() == found[0]
