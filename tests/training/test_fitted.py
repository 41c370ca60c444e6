"""What is assigned to a trainer that was made already: it is followed, or refused before the first step."""

from __future__ import annotations

import pytest
import torch
from samples import tiny_bert

from nlpkd import DistillationTrainer

SETTINGS = {
    "label_smoothing_factor": 0.3, "anchor_weight": 1.0, "weighting": "linear", "bf16": True, "learning_rate": 1e-2,
    "weight_decay": 0.5, "seed": 7, "max_grad_norm": 0.01, "gradient_accumulation_steps": 2, "num_train_epochs": 2,
    "per_device_train_batch_size": 4, "train_sampling_strategy": "random", "neftune_noise_alpha": 5.0,
    "optim": "sgd", "adam_beta1": 0.5, "adam_beta2": 0.9, "adam_epsilon": 0.1, "data_seed": 9, "warmup_steps": 2,
    "lr_scheduler_type": "constant", "dataloader_drop_last": True, "compact_embeddings": False, "max_steps": 2,
    "ensemble_average": "logits", "lean_training": False,
}  # fmt: skip


def half(outputs, labels, num_items_in_batch=None):
    return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / (2 * num_items_in_batch)


@pytest.fixture
def trainer(settings, make_rows, tokenizer):
    """Make a trainer of rows whose number is no multiple of the batch."""

    def make(**config):
        return DistillationTrainer(
            tiny_bert(seed=1), tiny_bert(seed=2), settings(**config), None, make_rows(20),
            processing_class=tokenizer,
        )  # fmt: skip

    return make


def _learned(trainer):
    trainer.train()
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_is_assigned_is_followed_as_one_that_is_given_or_refused(name, trainer):
    assigned, given = trainer(), trainer(**{name: SETTINGS[name]})
    setattr(assigned.args, name, SETTINGS[name])
    try:
        found = _learned(assigned)
    except ValueError as error:
        assert f"args.{name} was" in str(error) and f"DistillationConfig({name}=...)" in str(error)
        return
    torch.testing.assert_close(found, _learned(given))
    assert assigned.run_record == given.run_record


@pytest.mark.parametrize(("name", "value"), [("model", tiny_bert(seed=5)), ("compute_loss_func", half)])
def test_a_part_that_is_assigned_is_refused(name, value, trainer):
    made = trainer()
    setattr(made, name, value)
    with pytest.raises(ValueError, match=rf"{name} was assigned since .* DistillationTrainer\({name}=...\)"):
        made.train()
