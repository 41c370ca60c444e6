"""What each process of the distributed tests runs: train on what the test saved, and write down what came out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from datasets import load_from_disk
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nlpkd import DistillationConfig, DistillationTrainer
from nlpkd.objectives import (
    AdversarialLoss,
    AttentionMSELoss,
    CrossEntropyLoss,
    ForwardKLLoss,
    HiddenStateMSELoss,
    Objective,
)

EPOCHS = 3


def matching() -> list[Objective]:
    """Objectives with projections, in fixed weights."""
    return [
        CrossEntropyLoss(weight=0.5),
        ForwardKLLoss(temperature=2.0, weight=0.5),
        HiddenStateMSELoss(),
        AttentionMSELoss(weight=10.0),
    ]


def moving() -> list[Objective]:
    """Objectives with learned layers and a discriminator, for learned weights."""
    return [ForwardKLLoss(), HiddenStateMSELoss(layers="learned"), AdversarialLoss(weight=0.1, width=8)]


MOVING = {"weighting": "uncertainty", "weighting_learning_rate": 0.5, "anchor_weight": 0.1}


def make_trainer(
    given: Path, out: Path, rows: int | None, batch: int, accumulation: int, objectives: list[Objective], **more: Any
) -> DistillationTrainer:
    """Make the trainer; SGD, because Adam would hide a gradient of the wrong scale."""
    train = load_from_disk(given / "train")
    args = DistillationConfig(
        output_dir=str(out), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        num_train_epochs=EPOCHS, optim="sgd", learning_rate=0.05, objective_learning_rate=0.5, max_grad_norm=1.0,
        per_device_eval_batch_size=4, bf16=False, save_strategy="no", logging_steps=1, disable_tqdm=True,
        report_to="none", teacher_check="off", **more,
    )  # fmt: skip
    return DistillationTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(given / "student"),
        teacher_model=AutoModelForSequenceClassification.from_pretrained(given / "teacher"),
        args=args,
        objectives=objectives,
        train_dataset=train if rows is None else train.select(range(rows)),
        eval_dataset=load_from_disk(given / "validation"),
        processing_class=AutoTokenizer.from_pretrained(given / "student"),
    )


def run(given: Path, out: Path, batch: int, accumulation: int) -> None:
    """Train, evaluate and write `rank-N.json` and `rank-N.safetensors`."""
    trainer = make_trainer(given, out, None, batch, accumulation, matching())
    trainer.train()
    record = {"world_size": trainer.args.world_size, "metrics": trainer.evaluate(), "log": trainer.state.log_history}
    try:
        make_trainer(given, out, 1, batch, accumulation, matching()).train()
    except ValueError as error:
        record["one_row"] = str(error)
    other = make_trainer(given, out, None, batch, accumulation, moving(), **MOVING)
    other.train()
    record["moving_log"] = other.state.log_history
    cached = make_trainer(given, out, None, batch, accumulation, [CrossEntropyLoss(), ForwardKLLoss()])
    cached.train()
    record["cached_log"] = cached.state.log_history
    record["cached_columns"] = cached.train_dataset.column_names
    rank = trainer.args.process_index
    weights = {f"student.{name}": tensor for name, tensor in trainer.model.state_dict().items()}
    weights |= {f"objectives.{name}": tensor for name, tensor in trainer.objectives.state_dict().items()}
    weights |= {f"moving.student.{name}": tensor for name, tensor in other.model.state_dict().items()}
    weights |= {f"moving.objectives.{name}": tensor for name, tensor in other.objectives.state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, out / f"rank-{rank}.safetensors")
    (out / f"rank-{rank}.json").write_text(json.dumps(record), encoding="utf-8")
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.flush()
    # gloo sometimes aborts while Python shuts down, after all work is done.
    os._exit(0)
