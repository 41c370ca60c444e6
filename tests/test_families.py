"""Which model families teach and learn which objectives.

Covered: every objective with each family as its own teacher (4 layers to 2); every teacher family with every student
family for one objective on logits, one on tokens and one on examples, and one on attention heads where tokenizers are
shared; what is captured of each family against what the model itself gives; `make_student` of each family; a teacher
with a LoRA adapter. `python tests/test_families.py` prints the tables of README.md.
"""

import functools
import re
from pathlib import Path

import pytest
import torch
from transformers import (
    AlbertConfig,
    BertConfig,
    BertTokenizer,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    Qwen2Config,
    RobertaConfig,
    XLMRobertaConfig,
)
from transformers import AutoModelForSequenceClassification as Auto

from nlpkd import DistillationConfig, DistillationTrainer, make_student, objectives

COMMON = {
    "vocab_size": 100, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_labels": 3,
    "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "BERT": lambda n: BertConfig(**COMMON, num_hidden_layers=n),
    "DistilBERT": lambda n: DistilBertConfig(
        vocab_size=100, dim=32, n_heads=4, n_layers=n, hidden_dim=64, num_labels=3, initializer_range=0.2
    ),
    "ELECTRA": lambda n: ElectraConfig(**COMMON, num_hidden_layers=n, embedding_size=16),
    "RoBERTa": lambda n: RobertaConfig(**COMMON, num_hidden_layers=n),
    "XLM-R": lambda n: XLMRobertaConfig(**COMMON, num_hidden_layers=n),
    "ALBERT": lambda n: AlbertConfig(**COMMON, num_hidden_layers=n, embedding_size=16),
    "MPNet": lambda n: MPNetConfig(**COMMON, num_hidden_layers=n),
    "DeBERTa": lambda n: DebertaV2Config(
        **COMMON, num_hidden_layers=n, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8,
        share_att_key=True, norm_rel_ebd="layer_norm", conv_kernel_size=3,
    ),
    # A window of 4 tokens, and all but every second layer local.
    "ModernBERT": lambda n: ModernBertConfig(
        **COMMON, num_hidden_layers=n, local_attention=4, global_attn_every_n_layers=2, cls_token_id=2, sep_token_id=3
    ),
    "Qwen2": lambda n: Qwen2Config(**COMMON, num_hidden_layers=n, num_key_value_heads=2),
    "Llama": lambda n: LlamaConfig(**COMMON, num_hidden_layers=n, num_key_value_heads=2),
}  # fmt: skip
DECODERS = ("Qwen2", "Llama")
STUDENTS = [family for family in CONFIGS if family not in DECODERS]
SHARED = {"DistilBERT": "BERT", "ELECTRA": "BERT"}
"""Families whose checkpoints have another's tokenizer."""


def build(family: str, layers: int, seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Auto.from_config(CONFIGS[family](layers)).eval()


@functools.cache
def tokenizer_of(family: str) -> BertTokenizer:
    """A tokenizer whose words have other ids in each family that has a tokenizer of its own."""
    family = SHARED.get(family, family)
    shift = list(CONFIGS).index(family)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{(k + shift) % 95}" for k in range(95))]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=64)


def ids_of(lengths: list[int], seed: int) -> dict[str, torch.Tensor]:
    """Texts of so many tokens, which all start with the same one, as those of a tokenizer do."""
    ids = torch.randint(5, 100, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    ids[:, 0] = 2
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def rows() -> dict[str, torch.Tensor]:
    """Texts with labels, as cut by the tokenizers of student and teacher."""
    theirs = {f"teacher_{name}": column for name, column in ids_of([7, 4, 6, 3], seed=1).items()}
    return ids_of([9, 5, 8, 3], seed=0) | theirs | {"labels": torch.tensor([0, 2, 1, 0])}


def trainer_of(teacher, student, objective, teacher_tokenizer, student_tokenizer) -> DistillationTrainer:
    args = DistillationConfig(
        output_dir="unused", bf16=False, use_cpu=True, report_to="none", save_strategy="no", teacher_check="off"
    )
    return DistillationTrainer(
        student, teacher, args, [objective], processing_class=student_tokenizer,
        teacher_processing_class=teacher_tokenizer,
    )  # fmt: skip


def outcome(teacher_family: str, student_family: str, objective: objectives.Objective) -> str:
    """Do one step's forward and backward: "yes", or the message of the refusal."""
    teacher, student = build(teacher_family, 4), build(student_family, 2, seed=1)
    tokenizers = [tokenizer_of(family) for family in (teacher_family, student_family)]
    try:
        trainer = trainer_of(teacher, student, objective, *tokenizers)
        loss = trainer.compute_loss(student.train(), rows())
    except ValueError as refusal:
        return str(refusal)
    loss.backward()
    gradients = [p.grad.abs().max().item() for p in student.parameters() if p.grad is not None]
    assert torch.isfinite(loss) and loss.item() != 0, loss
    assert max(gradients, default=0.0) > 1e-7, gradients
    assert all(torch.isfinite(torch.tensor(gradients)))
    return "yes"
