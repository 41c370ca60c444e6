"""Small real models, tokenizers and data, all made on the spot, without network."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from hub_server import hub_fixture  # noqa: F401
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

WORDS = "good great fine bad poor awful film plot actor the a was is very not at all and it".split()


# Were one of these last, the other processes would have nothing left to do.
LONG_FILES = ("test_recipes.py", "test_secrets.py", "test_real_text.py", "test_cli.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, and leave the others in their order."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


@pytest.fixture(scope="session")
def tokenizer() -> BertTokenizer:
    """A WordPiece tokenizer of some twenty words."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=64)


def tiny_bert(
    layers: int = 2, hidden: int = 16, heads: int = 2, seed: int = 0, **config
) -> BertForSequenceClassification:
    """A BERT with random weights; dropout is off unless asked for."""
    settings = {
        "vocab_size": 5 + len(WORDS), "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": 2 * hidden, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "num_labels": 2,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForSequenceClassification(BertConfig(**(settings | config)))


def sentences(rows: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Texts of 1 to 12 words whose label (1 good, 0 bad) is told by their only word of judgement."""
    generator = torch.Generator().manual_seed(seed)
    texts, labels = [], []
    for _ in range(rows):
        label = int(torch.randint(2, (), generator=generator))
        judgement = WORDS[int(torch.randint(3, (), generator=generator)) + (0 if label else 3)]
        filler = [WORDS[6 + int(torch.randint(11, (), generator=generator))] for _ in range(int(torch.randint(12, (), generator=generator)))]  # fmt: skip  # noqa: E501
        texts.append(" ".join([*filler, judgement]))
        labels.append(label)
    return texts, labels


def raw_rows(rows: int, seed: int = 0, names: tuple[str, ...] = ("neg", "pos")) -> Dataset:
    """Such texts as a data set with columns text and label."""
    texts, labels = sentences(rows, seed)
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


def fine_tuned_teacher(folder: Path, tokenizer: BertTokenizer, layers: int = 4) -> Path:
    """Fine-tune and save a small teacher that gets such texts right."""
    from nlpkd import train_teacher

    train_teacher(
        tiny_bert(layers=layers), raw_rows(160, seed=1), tokenizer=tokenizer, output_dir=folder, bf16=False,
        num_train_epochs=8, per_device_train_batch_size=8, learning_rate=2e-3, report_to="none", save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def make_rows(tokenizer):
    """Make tokenised rows with labels, as `load_text_classification` gives them."""
    from nlpkd import load_text_classification

    def make(rows: int, seed: int = 0, names: tuple[str, ...] = ("neg", "pos")) -> Dataset:
        return load_text_classification(raw_rows(rows, seed, names), tokenizer=tokenizer)["train"]

    return make


@pytest.fixture
def settings(tmp_path: Path):
    """Make a DistillationConfig for a short exact run: float32, no bars, no saving."""
    from nlpkd import DistillationConfig

    def make(**config):
        defaults = {
            "output_dir": str(tmp_path / "out"), "bf16": False, "report_to": "none", "save_strategy": "no",
            "disable_tqdm": True, "teacher_check": "off", "per_device_train_batch_size": 8, "num_train_epochs": 1,
            "logging_steps": 1,
        }  # fmt: skip
        return DistillationConfig(**(defaults | config))

    return make
