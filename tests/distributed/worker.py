"""What each process of the distributed tests runs: train on what the test saved, and write down what came out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import load_from_disk
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nlpkd import DistillationConfig, DistillationTrainer, load_text_classification
from nlpkd.objectives import (
    AdversarialLoss,
    AttentionMSELoss,
    ContrastiveLoss,
    CrossEntropyLoss,
    EmbeddingMSELoss,
    ForwardKLLoss,
    GramLoss,
    HiddenStateCosineLoss,
    HiddenStateMSELoss,
    Objective,
    PatientLoss,
)
from nlpkd.training.batches.loaders import ROWS

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


def annealed() -> list[Objective]:
    """Further objectives with projections, for weights that move to the gold labels."""
    return [CrossEntropyLoss(), PatientLoss(), HiddenStateCosineLoss(), EmbeddingMSELoss(), GramLoss()]


def contrastive() -> list[Objective]:
    """An objective that couples the rows of a micro-batch, and has maps of its own."""
    return [ContrastiveLoss(width=8)]


def make_trainer(
    given: Path, out: Path, batch: int, accumulation: int, rows: Any, objectives: list[Objective], **more: Any
) -> DistillationTrainer:
    """Make the trainer; SGD, because Adam would hide a gradient of the wrong scale."""
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
        train_dataset=rows,
        eval_dataset=load_from_disk(given / "validation"),
        processing_class=AutoTokenizer.from_pretrained(given / "student"),
    )


def refusal(call: Callable[[], Any]) -> str | None:
    """Give what a call is refused with."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def parts(trainer: DistillationTrainer, name: str) -> dict[str, Tensor]:
    """Give the tensors of a trainer's student and objectives."""
    modules = {"student": trainer.model, "objectives": trainer.objectives}
    return {
        f"{name}.{kind}.{key}": tensor.contiguous()
        for kind, module in modules.items()
        for key, tensor in module.state_dict().items()
    }


def run(given: Path, out: Path, batch: int, accumulation: int) -> None:
    """Train, evaluate and write `rank-N.json` and `rank-N.safetensors`."""
    make, rows = partial(make_trainer, given, out, batch, accumulation), load_from_disk(given / "train")
    tokenizer = AutoTokenizer.from_pretrained(given / "student")
    stream = load_text_classification(given / "train.csv", tokenizer=tokenizer, streaming=True)["train"]
    trainers = {
        "matching": make(rows, matching()),
        "moving": make(rows, moving(), **MOVING),
        "annealed": make(rows, annealed(), weighting="linear"),
        # Without a smaller last step, one process with two micro-batches has the same ones as two processes.
        "coupled": make(rows.select(range(32)), contrastive()),
        "streamed": make(stream, matching()),
        # Rows without a length, of which the last batches lack some.
        "unsized": make(rows.to_iterable_dataset(), matching(), max_steps=5),
        "cached": make(rows, [CrossEntropyLoss(), ForwardKLLoss()]),
        # Nothing reads the logits, so that the head gets no gradient.
        "headless": make(rows, [HiddenStateMSELoss(), AttentionMSELoss()], gradient_checkpointing=True),
    }
    for trainer in trainers.values():
        trainer.train()
    for order in ("random", "sequential"):
        trainers[order] = make(rows, matching(), train_sampling_strategy=order)
        trainers[order].train()
    matched, streamed = trainers["matching"], trainers["streamed"]
    record = {
        "world_size": matched.args.world_size,
        "batch": batch,
        "metrics": matched.evaluate(),
        "metrics_of_one_row": matched.evaluate(matched.eval_dataset.select([0])),
        "logs": {name: trainer.state.log_history for name, trainer in trainers.items()},
        "teacher_is_cached": Path(trainers["cached"].args.teacher_cache).is_dir(),
        "rows_by_order": {
            name: [row for batch in trainers[name].get_train_dataloader() for row in batch[ROWS]]
            for name in ("matching", "random", "sequential")
        },
        "streamed_rows": [number for batch in streamed.get_train_dataloader() for number in batch[ROWS]],
        "unsized_rows": [
            row[mask.bool()].tolist()
            for batch in trainers["unsized"].get_train_dataloader()
            for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ],
        "one_row": refusal(lambda: make(rows.select([0]), matching()).train()),
        "auto_find_batch_size": refusal(lambda: make(rows, matching(), auto_find_batch_size=True)),
        "eval_use_gather_object": refusal(lambda: make(rows, matching(), eval_use_gather_object=True).evaluate()),
    }
    rank = matched.args.process_index
    weights = {key: tensor for name, trainer in trainers.items() for key, tensor in parts(trainer, name).items()}
    save_file(weights, out / f"rank-{rank}.safetensors")
    (out / f"rank-{rank}.json").write_text(json.dumps(record), encoding="utf-8")
    matched.accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.flush()
    # gloo sometimes aborts while Python shuts down, after all work is done.
    os._exit(0)
