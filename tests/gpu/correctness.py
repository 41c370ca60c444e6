"""Parts of the check on a GPU that compare it with the CPU, or with what must hold on any device."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from findings import Findings, Setup
from references import REFERENCES, batch, bound, changed, outputs, tensors
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoConfig, AutoModelForSequenceClassification, BertTokenizer, TrainerCallback

from nlpkd import DistillationConfig, DistillationTrainer, cache_teacher_outputs, evaluate_student, make_student
from nlpkd.models.capture import Capture
from nlpkd.objectives import (
    AttentionMSELoss,
    CrossEntropyLoss,
    ForwardKLLoss,
    HiddenStateMSELoss,
    Objective,
    ValueRelationLoss,
)
from nlpkd.objectives.temperature import LinearTemperature

CPU = torch.device("cpu")
WORDS = 997
FAMILIES = ("bert", "distilbert", "roberta", "electra", "modernbert")
KERNELS = (SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)


def losses(setup: Setup, findings: Findings) -> None:
    """Compare value and gradient of every objective with the CPU's, in float32."""
    values, gradients = {}, {}
    for kind, cases in REFERENCES.items():
        for number, (make, _) in enumerate(cases):
            here, there = (objective_on(device, make) for device in (CPU, setup.device))
            name = f"{kind.__name__} {number}"
            values[name] = apart(there[0], here[0])
            gradients[name] = max(
                (apart(b, a) for a, b in zip(here[1], there[1], strict=True) if a.norm() > 1e-8), default=0.0
            )
    for what, found in (("value", values), ("gradient", gradients)):
        worst = max(found, key=found.get)
        findings.at_most(f"{what} of {len(found)} objectives, relative to the CPU's ({worst})", found[worst], 1e-4)


def objective_on(device: torch.device, make: Callable) -> tuple[Tensor, list[Tensor]]:
    """Compute an objective on a device: its value, and the gradient of each of the student's outputs."""
    objective = bound(make(weight=1.0)).to(device)
    student, teacher = (
        changed(outputs(seed), lambda _, tensor: tensor.detach().to(device).requires_grad_()) for seed in (1, 2)
    )
    value = objective(student, teacher, {name: tensor.to(device) for name, tensor in batch().items()})
    value.backward()
    zeros = (tensor.grad if tensor.grad is not None else torch.zeros_like(tensor) for tensor in tensors(student))
    return value.detach().cpu(), [gradient.cpu() for gradient in zeros]


def capture(setup: Setup, findings: Findings) -> None:
    """Compare logits, hidden states and attention maps under each sdpa kernel with eager attention on the CPU."""
    # The map of a layer is computed by plain products for the model too, so that the kernel runs in the first layer.
    wanted = {"hidden_states": frozenset({0, 1, 2}), "attentions": frozenset({2})}
    for family in FAMILIES:
        model = family_model(family)
        padded, whole = texts(padding=True), texts(padding=False)
        for kernel in KERNELS if setup.on_card else (SDPBackend.MATH,):
            # Flash attention takes no mask, and no float32.
            flash = kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
            inputs, dtype, limit = (whole, torch.bfloat16, 3e-2) if flash else (padded, torch.float32, 1e-4)
            name = f"{family} under {kernel.name.lower()}, {str(dtype).removeprefix('torch.')}"
            eager = copy.deepcopy(model)
            eager.set_attn_implementation("eager")
            with torch.no_grad():
                reference = eager(**inputs, output_hidden_states=True, output_attentions=True)
                student = copy.deepcopy(model).to(setup.device, dtype)
                captured = Capture(student, wanted, "student")
                try:
                    with sdpa_kernel([kernel]):
                        found = captured(student, {key: value.to(setup.device) for key, value in inputs.items()})
                except RuntimeError as error:
                    findings.not_run(name, str(error).splitlines()[0][:120])
                    continue
            real = inputs["attention_mask"].bool()
            worst = apart(found.logits, reference.logits)
            for layer in (0, 1, 2):
                worst = max(worst, apart(found.hidden_states[layer].cpu()[real], reference.hidden_states[layer][real]))
            maps = (found.attentions[1], reference.attentions[1])
            worst = max(worst, apart(*(each.transpose(1, 2).cpu()[real] for each in maps)))
            findings.at_most(f"logits, states and maps of {name}", worst, limit)


def training(setup: Setup, findings: Findings) -> None:
    """Compare twelve steps of distillation with the CPU's in float32, and other precisions with float32."""
    reference = distil(setup, CPU, everything())
    found = distil(setup, setup.device, everything())
    findings.at_most("losses of 12 steps in float32, relative to the CPU's", furthest(found, reference), 1e-3)
    findings.at_most("the student's weights after them", apart(found[1], reference[1]), 1e-2)
    for name, settings in {"bf16": {"bf16": True}, "fp16, with its scaler": {"fp16": True}}.items():
        if name != "bf16" and not setup.on_card:
            findings.not_run(f"losses of 12 steps, {name}", "needs a GPU")
            continue
        found = distil(setup, setup.device, everything(), **settings)
        findings.at_most(f"losses of 12 steps, {name}, relative to float32", furthest(found, reference), 0.1)


def compiled(setup: Setup, findings: Findings) -> None:
    """Compare twelve steps of a student under `torch.compile` with the same without, in float32."""
    if not setup.on_card:
        findings.not_run("losses of 12 steps, torch.compile", "needs a GPU")
        return
    reference = distil(setup, setup.device, everything())
    found = distil(setup, setup.device, everything(), torch_compile=True)
    findings.at_most("losses of 12 steps, torch.compile, relative to without", furthest(found, reference), 1e-2)
    findings.at_most("the student's weights after them", apart(found[1], reference[1]), 1e-2)


def lean(setup: Setup, findings: Findings) -> None:
    """Compare first-token and compact training with training that computes everything, without dropout."""
    objectives = [CrossEntropyLoss(), ForwardKLLoss(temperature=2.0)]
    off = {"lean_training": False, "compact_embeddings": False, "cache_teacher": "off"}
    reference = distil(setup, setup.device, copy.deepcopy(objectives), **off)
    for name in ("lean_training", "compact_embeddings"):
        found = distil(setup, setup.device, copy.deepcopy(objectives), **(off | {name: True}))
        findings.at_most(f"losses of 12 steps with {name}, relative to without", furthest(found, reference), 1e-3)
        findings.at_most(f"the student's weights after them, {name}", apart(found[1], reference[1]), 1e-2)


def graphs(setup: Setup, findings: Findings) -> None:
    """Compare a training on recorded passes, dropout on, with the same training pass by pass."""
    moving = [ForwardKLLoss(LinearTemperature(4.0, 1.0)), CrossEntropyLoss()]
    cases: list[tuple[str, list[Objective], str, dict[str, object]]] = [
        ("all matched", everything(), "float32", {}),
        ("all matched", everything(), "bf16", {"bf16": True}),
        ("all matched", everything(), "fp16", {"fp16": True}),
        ("all matched, learned weights", everything(), "bf16", {"bf16": True, "weighting": "uncertainty"}),
        ("logits alone, kept", [ForwardKLLoss()], "bf16", {"bf16": True}),
        ("a moving temperature and moving weights", moving, "bf16", {"bf16": True, "weighting": "linear"}),
    ]
    for name, objectives, precision, settings in cases:
        if setup.on_card or precision != "fp16":
            steps = 6 if setup.tiny else 60
            runs = [
                distil(setup, setup.device, copy.deepcopy(objectives), steps=steps, dropout=0.1, cuda_graphs=on,
                       lean_training=True, **settings)
                for on in (False, True)
            ]  # fmt: skip
            text = f"{name}, {precision}, relative to passes of single kernels"
            findings.at_most(f"losses of {steps} steps, {text}", furthest(runs[1], runs[0]), 1e-3)
            findings.at_most(f"the student's weights after them, {text}", apart(runs[1][1], runs[0][1]), 1e-2)


def caching(setup: Setup, findings: Findings) -> None:
    """Compare cached logits with the teacher's own, and a training on them with one beside the live teacher."""
    rows, (teacher, _), tokenizer = rows_of(setup), pair(setup), vocabulary()
    with torch.no_grad():
        own = torch.cat([teacher(input_ids=torch.tensor([ids])).logits for ids in rows["input_ids"]])
    for bf16, limit in ((False, 1e-4), (True, 5e-2)):
        with tempfile.TemporaryDirectory() as folder:
            model = copy.deepcopy(teacher).to(setup.device)
            cached = cache_teacher_outputs(model, rows, tokenizer, cache_dir=folder, bf16=bf16)
            found = torch.tensor(np.asarray(cached["teacher_logits"]))
        name = "bf16" if bf16 else "float32"
        findings.at_most(
            f"cached logits in {name}, relative to one row at a time on the CPU", apart(found, own), limit
        )
    live = distil(setup, setup.device, [ForwardKLLoss()], cache_teacher="off")
    kept = distil(setup, setup.device, [ForwardKLLoss()], cache_teacher="auto")
    findings.at_most("losses of 12 steps on kept logits, relative to the live teacher's", furthest(kept, live), 1e-3)


def resume(setup: Setup, findings: Findings) -> None:
    """Compare a training that goes on from its checkpoint with one that was never stopped."""
    settings = {"save_strategy": "steps", "save_steps": 6}
    whole = distil(setup, setup.device, everything(), dropout=0.1, **settings)
    checkpoint = setup.folder / "training" / "checkpoint-6"
    again = distil(setup, setup.device, everything(), dropout=0.1, resume=str(checkpoint), **settings)
    findings.at_most(
        "the student's weights after resuming, relative to the uninterrupted", apart(again[1], whole[1]), 1e-4
    )


def evaluation(setup: Setup, findings: Findings) -> None:
    """Compare the report on the device with the CPU's, and its latency with the time that events measure."""
    rows, (teacher, student) = rows_of(setup), pair(setup)
    reports = []
    for device in (CPU, setup.device):
        models = (copy.deepcopy(model).to(device) for model in (student, teacher))
        reports.append(evaluate_student(*models, rows, vocabulary(), bootstrap_samples=100, latency_runs=10))
    here, there = (report.candidates["student"] for report in reports)
    different = abs(there.quality["accuracy"].value - here.quality["accuracy"].value) * len(rows)
    findings.at_most("rows that the device classifies otherwise than the CPU", round(different, 3), 1)
    if not setup.on_card:
        findings.not_run("latency, relative to CUDA events", "needs a GPU")
        return
    # Large enough that the kernels take many times as long as their launches.
    teacher, size, tokens = wide(6, 768).to(setup.device), 128, 128
    report = evaluate_student(
        copy.deepcopy(teacher), teacher, rows, vocabulary(), latency_batches=[size], latency_tokens=tokens,
        latency_runs=10,
    )  # fmt: skip
    reported = report.candidates["student"].latency[0]
    inputs = {"input_ids": torch.randint(5, WORDS, (size, tokens), device=setup.device)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    times = []
    with torch.inference_mode():
        for _ in range(8):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            teacher(**inputs)
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
    p50 = reported["p50_ms"] if isinstance(reported, dict) else reported.p50_ms
    findings.at_least("reported latency, relative to CUDA events", p50 / float(np.median(times[3:])), 0.9)


def synchronisation(setup: Setup, findings: Findings) -> None:
    """Count the times a step waits for the device, between the first steps and the log at the end."""
    if not setup.on_card:
        findings.not_run("waits for the device a step", "needs a GPU")
        return
    for name, objectives in (("all matched", everything()), ("logits alone, kept", [ForwardKLLoss()])):
        counter = _CountWaits(first=4, last=20)
        torch.set_warn_always(True)
        distil(setup, setup.device, objectives, steps=24, callbacks=[counter], logging_strategy="no", bf16=True)
        findings.at_most(f"waits for the device a step, {name}", counter.found.total() / 16, 0)
        for place, count in counter.found.most_common(8):
            findings.figure(f"waits in 16 steps, {name}, {place}", count)


class _CountWaits(TrainerCallback):
    """Let torch warn of every wait for the device between two steps, and count where they are."""

    def __init__(self, first: int, last: int):
        self.first, self.last, self.found = first, last, Counter()
        self.catch = warnings.catch_warnings(record=True)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.first:
            self.caught = self.catch.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        if state.global_step == self.last:
            torch.cuda.set_sync_debug_mode("default")
            waits = (each for each in self.caught if "called a synchronizing" in str(each.message))
            self.found.update(f"{'/'.join(Path(each.filename).parts[-2:])}:{each.lineno}" for each in waits)
            self.catch.__exit__(None, None, None)


def memory(setup: Setup, findings: Findings) -> None:
    """Compare the peak memory of distillation with the teacher's inference and the student's training together."""
    if not setup.on_card:
        findings.not_run("peak memory of distillation", "needs a GPU")
        return
    ids = np.random.default_rng(0).integers(5, WORDS, (320, 64)).tolist()
    rows = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 64] * 320, "labels": [0, 1] * 160})
    peaks = {}
    for part in ("the teacher's inference", "the student's training", "distillation"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        teacher = wide(12, 768)
        student = make_student(teacher, "layers:6")
        if part == "the teacher's inference":
            teacher.to(setup.device)
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
                teacher(
                    **{key: torch.tensor(rows[:32][key]).to(setup.device) for key in ("input_ids", "attention_mask")}
                )
        else:
            alone = part == "the student's training"
            objectives = [CrossEntropyLoss()] if alone else [ForwardKLLoss(), HiddenStateMSELoss(), AttentionMSELoss()]
            args = arguments(setup, setup.device, steps=5, bf16=True, per_device_train_batch_size=32)
            trainer = DistillationTrainer(
                student, None if alone else teacher, args, objectives, train_dataset=rows,
                processing_class=vocabulary(),
            )  # fmt: skip
            trainer.train()
            del trainer
        peaks[part] = (torch.cuda.max_memory_allocated() - before) / 1e6
        findings.figure(f"peak memory of {part}, MB", peaks[part])
        del teacher, student
    inference, alone, both = peaks.values()
    findings.at_most(
        "peak memory of distillation, relative to the other two together", both / (inference + alone), 1.15
    )


PARTS = {
    part.__name__: part
    for part in (
        losses,
        capture,
        training,
        compiled,
        lean,
        graphs,
        caching,
        resume,
        evaluation,
        synchronisation,
        memory,
    )
}


# What the parts share.


def distil(
    setup: Setup,
    device: torch.device,
    objectives: Sequence[Objective],
    *,
    steps: int = 12,
    dropout: float = 0.0,
    resume: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **settings,
) -> tuple[list[float], Tensor]:
    """Distil a fixed teacher into a fixed student on fixed rows; returns the loss of every step and all weights."""
    teacher, student = pair(setup, dropout)
    trainer = DistillationTrainer(
        student, teacher, arguments(setup, device, steps, **settings), list(objectives), train_dataset=rows_of(setup),
        processing_class=vocabulary(), callbacks=list(callbacks),
    )  # fmt: skip
    trainer.train(resume)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, torch.cat([weight.detach().float().cpu().flatten() for weight in trainer.model.parameters()])


def arguments(setup: Setup, device: torch.device, steps: int = 12, **settings) -> DistillationConfig:
    """Make the settings of a short training in float32 that logs every step."""
    defaults = {
        "output_dir": str(setup.folder / "training"), "use_cpu": device.type == "cpu", "bf16": False,
        "max_steps": steps, "per_device_train_batch_size": 16, "learning_rate": 1e-3, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "teacher_check": "off",
        "teacher_cache_dir": tempfile.mkdtemp(dir=made(setup.folder)),
    }  # fmt: skip
    return DistillationConfig(**(defaults | settings))


def made(folder: Path) -> Path:
    """Make a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def everything() -> list[Objective]:
    """Every kind of output is matched."""
    return [
        CrossEntropyLoss(weight=0.5), ForwardKLLoss(temperature=2.0), HiddenStateMSELoss(), AttentionMSELoss(),
        ValueRelationLoss(weight=0.1),
    ]  # fmt: skip


def pair(setup: Setup, dropout: float = 0.0) -> tuple[nn.Module, nn.Module]:
    """Make the teacher, and a student of half of its layers."""
    teacher = wide(4, 16 if setup.tiny else 256, dropout)
    return teacher, make_student(teacher, "layers:2")


def wide(layers: int, hidden: int, dropout: float = 0.0) -> nn.Module:
    """Make a BERT of a shape with fixed random weights."""
    config = AutoConfig.for_model(
        "bert", vocab_size=WORDS + 5, hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=max(2, hidden // 64), intermediate_size=4 * hidden, max_position_embeddings=512,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return seeded(config)


def family_model(family: str) -> nn.Module:
    """Make a model of two layers of a family."""
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    if family == "distilbert":
        shape = {"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128}
    return seeded(AutoConfig.for_model(family, vocab_size=WORDS + 5, pad_token_id=0, **shape))


def seeded(config) -> nn.Module:
    """Make a classifier from its config, with the same weights at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config).eval()


def rows_of(setup: Setup) -> Dataset:
    """Make rows of 3 to 40 tokens, whose label says whether a certain word is in them."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(64 if setup.tiny else 512):
        ids = [2, *generator.integers(6, WORDS, generator.integers(1, 38)).tolist(), 3]
        if number % 2:
            ids[1] = 5
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": number % 2})
    return Dataset.from_list(rows)


def texts(padding: bool) -> dict[str, Tensor]:
    """Make a batch of four texts of 16 tokens, or of fewer with padding."""
    mask = torch.ones(4, 16, dtype=torch.long)
    if padding:
        mask[1, 9:] = mask[3, 2:] = 0
    ids = torch.randint(5, WORDS, (4, 16), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids * mask, "attention_mask": mask}


def vocabulary() -> BertTokenizer:
    """Make a tokenizer of words without meaning: the rows are token ids already."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(WORDS))]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=512)


def apart(found: Tensor, reference: Tensor) -> float:
    """Compute |found - reference| / |reference|, of all numbers together."""
    found, reference = found.detach().double().cpu(), reference.detach().double().cpu()
    return ((found - reference).norm() / reference.norm().clamp(min=1e-12)).item()


def furthest(found: tuple[list[float], Tensor], reference: tuple[list[float], Tensor]) -> float:
    """Compute the largest relative difference of two trainings' losses; of a resumed one those that it has."""
    pairs = list(zip(found[0], reference[0], strict=True))
    return max(abs(a - b) / abs(b) for a, b in pairs)
