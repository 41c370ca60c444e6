"""Small real models, tokenizers and data, all made on the spot, without network.

What takes seconds to import is imported where it is used: the process that starts pytest's workers needs none of it.
"""

from __future__ import annotations

import copy
import functools
import gc
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# An export of a small model takes a quarter longer with it.
os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")

import pytest
from forks import share
from hub_server import hub_fixture  # noqa: F401

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import BertTokenizer

# Before pytest's workers start, so that they share the servers.
share()

# The longest first: were one of these last, the other processes would have nothing left to do.
LONG_FILES = [
    *("test_recipes.py", "test_faults.py", "test_trainer_arguments.py", "test_onnx.py", "test_families.py"),
    *("test_cli.py", "test_readme.py", "test_properties.py", "test_ddp.py", "test_classifier.py", "test_secrets.py"),
    *("test_every_class_order.py", "test_trainer.py", "test_small_models.py", "test_frontier.py", "test_distill.py"),
    *("test_budget.py", "test_lean.py", "test_push.py", "test_cache.py", "test_two_hosts.py", "test_objectives.py"),
    *("test_distill_without_labels.py", "test_width.py", "test_verify.py"),
]


LONG_TESTS = {
    "test_a_backbone_is_taught_again_by_the_average_of_its_fine_tunings",
    "test_a_bilstm_is_distilled_on_augmented_text",
    "test_a_larger_model_takes_as_much_more_memory_as_its_weights",
    "test_a_launcher_that_loses_processes_is_noticed",
    "test_a_lost_machine_is_noticed_and_both_resume_to_the_student_of_one_process",
    "test_a_student_a_seed_is_shipped_in_8_bits_and_the_table_says_what_it_keeps",
    "test_damaged_files_are_named_by_all_that_read_them",
    "test_each_order_of_one_holder_alone_changes_nothing_by_name",
    "test_every_part_runs_in_small_on_the_cpu_and_its_checks_hold",
    "test_fsdp_is_refused_where_accelerate_would_stay_with_ddp",
    "test_quickstart_on_two_processes",
    "test_the_comparison_gives_every_method_the_same_steps_and_resumes_where_it_stopped",
    "test_the_recipe_gives_teacher_student_and_baseline",
    "test_the_recipe_of_few_labels_measures_both_teachers_and_their_students",
    "test_the_recipe_without_labels_asks_once_and_measures_teacher_and_student",
}
"""Tests of half a minute and more, by name, which `make test-long` runs."""

FEW_OBJECTS = 30_000
"""As many are looked through in some milliseconds."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that runs long tests too."""
    parser.addoption("--long", action="store_true", help="run the tests of half a minute and more too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put long files first, leave the others in their order, and skip long tests unless they are asked for."""
    place = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    for item in items:
        if getattr(item, "originalname", item.name) in LONG_TESTS and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="takes half a minute and more: make test-long"))


def pytest_collection_finish() -> None:
    """Leave what is imported and collected out of garbage collection: every training collects garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _imports_out_of_garbage_collection():
    """Leave what the files before imported out of garbage collection too, which took up to half a second each time."""
    if len(gc.get_objects()) > FEW_OBJECTS:
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _phases_as_before():
    """Take back what a command of this process set up to show its phases: its stream is closed after its test."""
    logger, phases = logging.getLogger("nlpkd"), logging.getLogger("nlpkd.utils.progress")
    handlers, propagate, level = logger.handlers, logger.propagate, phases.level
    yield
    logger.handlers, logger.propagate = handlers, propagate
    phases.setLevel(level)


@pytest.fixture(scope="session")
def tokenizer() -> BertTokenizer:
    """A WordPiece tokenizer of some twenty words."""
    from samples import WORDS
    from transformers import BertTokenizer

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=64)


@pytest.fixture(scope="session")
def make_rows(tokenizer):
    """Make tokenised rows with labels, as `load_text_classification` gives them."""
    from samples import raw_rows

    from nlpkd import load_text_classification

    @functools.cache
    def made(rows: int, seed: int, names: tuple[str, ...]) -> Dataset:
        return load_text_classification(raw_rows(rows, seed, names), tokenizer=tokenizer)["train"]

    def make(rows: int, seed: int = 0, names: tuple[str, ...] = ("neg", "pos")) -> Dataset:
        # A format that is set on the copy is not set on what the next test gets.
        return copy.copy(made(rows, seed, tuple(names)))

    return make


@pytest.fixture
def settings(tmp_path: Path):
    """Make a DistillationConfig for a short exact run: float32, no bars, no saving, no rehearsal."""
    from samples import QUIET

    from nlpkd import DistillationConfig

    def make(**config):
        defaults = {
            **QUIET, "output_dir": str(tmp_path / "out"), "save_strategy": "no", "teacher_check": "off",
            "per_device_train_batch_size": 8, "num_train_epochs": 1, "logging_steps": 1,
        }  # fmt: skip
        return DistillationConfig(**(defaults | config))

    return make


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Three texts of token ids, the last two padded."""
    import torch

    ids = torch.randint(5, 24, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 6 + [0]])
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.fixture
def said_by_transformers():
    """What transformers logs meanwhile."""
    records, logger = [], logging.getLogger("transformers")
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.fixture(scope="module")
def small(tmp_path_factory, tokenizer) -> Path:
    """The folder of a small classifier with its tokenizer."""
    from samples import tiny_bert

    folder = tmp_path_factory.mktemp("small")
    tiny_bert().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
