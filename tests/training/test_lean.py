"""Training that leaves out what nothing reads, against training that computes everything."""

import copy
import dataclasses
import math

import pytest
import torch
from samples import looking_at, raw_rows, tiny_bert
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import (
    Adafactor,
    AutoConfig,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers.models.bert.modeling_bert import BertIntermediate

from nlpkd import DistillationTrainer, cache_teacher_outputs, load_text_classification
from nlpkd.data.collator import DistillationCollator
from nlpkd.evaluation.prediction import predict_logits
from nlpkd.models.attention import CAPTURING_SDPA, QuickDropout
from nlpkd.models.capture import Capture
from nlpkd.models.inference import first_token_only, reads_first_token
from nlpkd.objectives import AttentionMSELoss, CrossEntropyLoss, ForwardKLLoss, HiddenStateMSELoss
from nlpkd.pipeline.jobs.roles import supervised_trainer
from nlpkd.teachers.teacher import LiveTeacher
from nlpkd.training.speed.lean import QuickDropouts, refused_speed_ups

SHAPE = {"vocab_size": 40, "num_labels": 3, "pad_token_id": 0, "max_position_embeddings": 64}
BERT_SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SHAPES = {
    **dict.fromkeys(["bert", "camembert", "electra", "roberta", "xlm-roberta"], BERT_SHAPE),
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
}


def model_of(family: str, **config) -> nn.Module:
    torch.manual_seed(0)
    settings = AutoConfig.for_model(family, **(SHAPE | SHAPES.get(family, BERT_SHAPE) | config))
    model = AutoModelForSequenceClassification.from_config(settings)
    for parameter in model.parameters():
        # Fresh biases of 0 and norms of 1 would hide a bias or a norm that is left out.
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def padded() -> dict[str, torch.Tensor]:
    mask = torch.ones(4, 9, dtype=torch.long)
    mask[1, 5:] = mask[3, 2:] = 0
    return {"input_ids": torch.randint(5, 40, (4, 9), generator=torch.Generator().manual_seed(1)) * mask} | {
        "attention_mask": mask
    }


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**padded()).logits.square().sum().backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", sorted(SHAPES))
def test_a_last_layer_of_the_first_token_alone_gives_the_same_logits_and_gradients(family, attention):
    model = model_of(family)
    model.set_attn_implementation(attention)
    logits, before, names = model(**padded()).logits, gradients(model), list(model.state_dict())
    width = []
    norm = [module for module in model.modules() if isinstance(module, nn.LayerNorm)][-1]
    norm.register_forward_hook(lambda module, inputs, output: width.append(output.shape[1]))
    change = first_token_only(model)
    torch.testing.assert_close(model(**padded()).logits, logits)
    after = gradients(model)
    assert width == [1, 1] and after.keys() == before.keys() and list(model.state_dict()) == names
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-5, msg=name)
    change.end()
    assert torch.equal(model(**padded()).logits, logits) and width[-1] == 9


@pytest.mark.parametrize("family", ["albert", "mpnet", "deberta-v2"])
def test_a_family_that_is_not_known_to_read_the_first_token_alone_is_left_alone(family):
    model = model_of(family)
    layers = [type(module) for module in model.modules()]
    assert first_token_only(model) is None and [type(module) for module in model.modules()] == layers


def test_a_decoder_is_left_alone():
    assert first_token_only(model_of("bert", is_decoder=True)) is None


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_dropout_drops_as_many_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    # A number that is no multiple of four.
    ones = torch.ones(333, 1001, dtype=dtype, requires_grad=True)
    dropped = QuickDropout(p)(ones)
    share = (dropped == 0).double().mean().item()
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / ones.numel())
    kept = dropped[dropped != 0].double().unique()
    assert kept.tolist() == pytest.approx([1 / (1 - p)], rel=1e-2 if dtype == torch.bfloat16 else 1e-4)
    dropped.sum().backward()
    assert torch.equal(ones.grad, dropped)


def test_quick_dropout_has_no_pattern_among_the_elements_of_one_draw():
    torch.manual_seed(0)
    dropped = (QuickDropout(0.5)(torch.ones(100_000, 4)) == 0).double()
    # 0.5 off by five standard errors, for each place and each pair of places.
    assert (dropped.mean(dim=0) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(100_000)
    assert (torch.corrcoef(dropped.T) - torch.eye(4)).abs().max() < 5 / math.sqrt(100_000)


def test_quick_dropout_follows_the_seed_and_does_nothing_in_eval_mode():
    quick, ones = QuickDropout(0.3), torch.ones(64, 64)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(quick(ones))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert quick.eval()(ones) is ones


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_quick_dropout_of_nothing_and_of_everything_is_torchs(p):
    ones = torch.ones(3, 5)
    assert torch.equal(QuickDropout(p)(ones), ones * (1 - p))


def test_every_dropout_of_a_model_is_quick_for_a_while():
    model = model_of("bert", hidden_dropout_prob=0.2).train()
    own = [module for module in model.modules() if type(module) is nn.Dropout]
    change = QuickDropouts(model)
    quick = [module for module in model.modules() if isinstance(module, QuickDropout)]
    assert [module.p for module in quick] == [module.p for module in own] and len(own) == 8
    assert not [module for module in model.modules() if type(module) is nn.Dropout]
    change.end()
    assert [module for module in model.modules() if type(module) is nn.Dropout] == own


@pytest.mark.parametrize("p", [0.1, 0.6])
def test_attention_with_quick_dropout_has_the_mean_of_sdpa_and_drops_nothing_in_eval_mode(p):
    model = model_of("bert", attention_probs_dropout_prob=p, hidden_dropout_prob=0.0)
    attention, batch = model.bert.encoder.layer[0].attention.self, padded()
    with torch.no_grad():
        hidden = model.bert.embeddings(batch["input_ids"])
        mask = batch["attention_mask"].bool()[:, None, None, :].expand(4, 1, 9, 9)
        expected = attention(hidden, mask)[0]
        QuickDropouts(model)
        model.set_attn_implementation(CAPTURING_SDPA)
        assert torch.equal(attention(hidden, mask)[0], expected)
        model.train()
        torch.manual_seed(0)
        draws = torch.stack([attention(hidden, mask)[0] for _ in range(2000)])
    assert draws.std(dim=0).min() > 0
    error = draws.std(dim=0) / math.sqrt(len(draws))
    assert ((draws.mean(dim=0) - expected).abs() < 6 * error).all()


def test_recorded_maps_of_quick_attention_are_those_before_dropout():
    model = model_of("bert", attention_probs_dropout_prob=0.5)
    capture = Capture(model, {"attentions": frozenset({1, 2})}, "student")
    expected = capture(model, padded()).attentions
    model.train()
    QuickDropouts(model)
    first = capture(model, padded()).attentions[0]
    torch.testing.assert_close(first.sum(dim=-1), torch.ones_like(first.sum(dim=-1)))
    assert not (first[0] == 0).any() and expected[0].shape == first.shape


class OwnHead(nn.Module):
    def forward(self, features):
        return features.mean(dim=1)[:, :3]


def replaced_head(model):
    model.classifier = OwnHead()


def replaced_layer(model):
    layers = model.roberta.encoder.layer
    layers[-1] = type("RobertaLayer", (type(layers[-1]),), {"__module__": "mine"})(model.config)


def hooked_layer(model):
    model.roberta.encoder.layer[-1].attention.register_forward_hook(lambda *_: None)


def asking(model):
    model.config.output_hidden_states = True


@pytest.mark.parametrize("change", [replaced_head, replaced_layer, hooked_layer, asking])
def test_what_is_not_transformers_own_from_the_last_layer_on_is_left_alone(change):
    model = model_of("roberta")
    assert reads_first_token(model)
    change(model)
    assert not reads_first_token(model) and first_token_only(model) is None


def test_a_feed_forward_by_chunks_takes_a_single_token_too():
    model = model_of("distilbert", chunk_size_feed_forward=3)
    logits = model(**padded()).logits
    first_token_only(model)
    torch.testing.assert_close(model(**padded()).logits, logits)


def test_under_an_adapter_the_names_stay_and_the_gradients_are_the_same():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model_of("bert"), LoraConfig(task_type="SEQ_CLS", target_modules=["query", "output.dense"]))
    before, names = gradients(model), list(model.state_dict())
    assert first_token_only(model) is not None
    after = gradients(model)
    assert list(model.state_dict()) == names and before.keys() == after.keys() and len(before) > 8
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-5, msg=name)


class WhileTraining:
    """Notes how a student looks while it is trained; no callback, which might read what is left out."""

    def __init__(self, model):
        self.model = model

    def look(self, *_):
        self.quick = any(isinstance(module, QuickDropout) for module in self.model.modules())
        self.whole = type(self.model.bert.encoder.layer[-1]).__name__ == "BertLayer"
        self.rows = len(self.model.get_input_embeddings().weight)
        self.model.eval()

    def __enter__(self):
        self.hook = register_optimizer_step_post_hook(self.look)
        return self

    def __exit__(self, *_):
        self.hook.remove()


def trained(rows, args, tokenizer, objectives, teacher=None, resume=None, **config):
    student = tiny_bert(seed=3, **{"hidden_dropout_prob": 1e-9} | config)
    modules, attention = list(student.modules()), student.config._attn_implementation
    trainer = DistillationTrainer(student, teacher, args, objectives, train_dataset=rows, processing_class=tokenizer)
    wanted = student.config._attn_implementation
    with WhileTraining(student) as seen:
        trainer.train(resume)
    assert list(trainer.model.modules()) == modules and wanted in (attention, CAPTURING_SDPA)
    assert student.config._attn_implementation == wanted
    assert {module.training for module in modules} == {student.training}
    assert len(student(**trainer.data_collator([rows[0]]), output_hidden_states=True).hidden_states) == 3
    return trainer, seen


OBJECTIVES = {
    "logits": lambda: [CrossEntropyLoss(weight=0.5), ForwardKLLoss(weight=0.5)],
    "attention maps": lambda: [ForwardKLLoss(), AttentionMSELoss()],
    "hidden states": lambda: [ForwardKLLoss(), HiddenStateMSELoss()],
}


@pytest.mark.parametrize("wanted", OBJECTIVES)
def test_without_dropout_lean_training_makes_the_same_student(wanted, make_rows, settings, tokenizer):
    rows, teacher, models = make_rows(40), tiny_bert(4, seed=1), []
    for lean in (True, False):
        args = settings(num_train_epochs=2, lean_training=lean, cache_teacher="off")
        trainer, seen = trained(rows, args, tokenizer, OBJECTIVES[wanted](), copy.deepcopy(teacher))
        assert seen.quick == lean and seen.whole == (not lean or wanted == "hidden states")
        models.append(trainer.model.state_dict())
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("objective", [ForwardKLLoss, HiddenStateMSELoss])
def test_after_training_in_bf16_the_student_runs_in_float32_again(objective, make_rows, settings, tokenizer, tmp_path):
    rows, args = make_rows(40), settings(bf16=True, learning_rate=1e-2)
    trainer, _ = trained(rows, args, tokenizer, [objective()], tiny_bert(4, seed=1))
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert (predict_logits(trainer.model, rows, tokenizer) == predict_logits(saved, rows, tokenizer)).all()
    trainer.train()
    assert trainer.state.global_step == 5


def test_lean_training_is_the_default_with_a_teacher_and_not_without(make_rows, settings, tokenizer):
    rows = make_rows(16)
    _, seen = trained(rows, settings(), tokenizer, [ForwardKLLoss()], tiny_bert(4, seed=1))
    assert seen.quick and not seen.whole
    _, seen = trained(rows, settings(), tokenizer, [CrossEntropyLoss()])
    assert not seen.quick and seen.whole
    _, seen = trained(rows, settings(lean_training=True), tokenizer, [CrossEntropyLoss()])
    assert seen.quick and not seen.whole


def test_activation_checkpointing_keeps_the_last_layer_whole(make_rows, settings, tokenizer):
    args = settings(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    _, seen = trained(make_rows(16), args, tokenizer, [ForwardKLLoss()], tiny_bert(4, seed=1))
    assert seen.quick and seen.whole


def test_a_lean_run_that_is_resumed_ends_as_the_uninterrupted_one(make_rows, settings, tokenizer, tmp_path):
    rows, teacher = make_rows(40), tiny_bert(4, seed=1)
    dropping = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    args = settings(save_strategy="steps", save_steps=3, num_train_epochs=2)
    whole, seen = trained(rows, args, tokenizer, [ForwardKLLoss()], teacher, **dropping)
    assert seen.quick and not seen.whole
    checkpoint = str(tmp_path / "out" / "checkpoint-6")
    again, seen = trained(rows, args, tokenizer, [ForwardKLLoss()], teacher, resume=checkpoint, **dropping)
    assert seen.quick and not seen.whole
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, whole.model.state_dict()[name]), name


def test_a_student_is_whole_again_after_a_training_that_failed(make_rows, settings, tokenizer):
    class Fails(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise RuntimeError("stop here")

    student = tiny_bert(hidden_dropout_prob=0.1)
    layers, attention = [type(module) for module in student.modules()], student.config._attn_implementation
    trainer = DistillationTrainer(
        student, tiny_bert(4, seed=1), settings(), [ForwardKLLoss()], train_dataset=make_rows(16),
        processing_class=tokenizer, callbacks=[Fails()],
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="stop here"):
        trainer.train()
    assert [type(module) for module in student.modules()] == layers
    assert student.config._attn_implementation == attention


@pytest.mark.parametrize(("asked", "lean"), [(None, True), (False, False)])
def test_gold_labels_for_a_teacher_or_a_baseline_are_learnt_leanly_unless_refused(asked, lean, tokenizer, settings):
    data = load_text_classification(raw_rows(16), tokenizer=tokenizer)
    student = tiny_bert(hidden_dropout_prob=0.1)
    with WhileTraining(student) as seen:
        supervised_trainer(student, settings(lean_training=asked), data, tokenizer, [CrossEntropyLoss()]).train()
    assert seen.quick == lean and seen.whole != lean


def test_a_cache_of_logits_has_those_of_the_whole_teacher(make_rows, tokenizer, tmp_path):
    rows, teacher = make_rows(20), model_of("bert", vocab_size=len(tokenizer))
    cached = cache_teacher_outputs(teacher, rows, tokenizer, cache_dir=tmp_path, bf16=False)
    expected = [teacher(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in rows]
    torch.testing.assert_close(torch.tensor(cached["teacher_logits"][:]), torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert type(teacher.bert.encoder.layer[-1]).__name__ == "BertLayer"


def widths_of(model, run):
    """Widths `(batch, seq, hidden)` of the last layer's feed-forward block while something runs the model."""
    seen = []
    with looking_at(BertIntermediate, lambda module, inputs, output: seen.append(output.shape[1])):
        run()
    return set(seen[model.config.num_hidden_layers - 1 :: model.config.num_hidden_layers])


def test_cache_predictions_and_a_live_teacher_compute_the_last_layer_for_one_token(make_rows, tokenizer, tmp_path):
    rows, teacher = make_rows(20), model_of("bert", vocab_size=len(tokenizer))
    assert widths_of(teacher, lambda: predict_logits(teacher, rows, tokenizer)) == {1}
    assert widths_of(teacher, lambda: cache_teacher_outputs(teacher, rows, tokenizer, cache_dir=tmp_path)) == {1}
    batch = {name: torch.tensor([rows[0][name]]) for name in ("input_ids", "attention_mask")}
    assert widths_of(teacher, lambda: LiveTeacher(teacher, {}, torch.device("cpu")).outputs(batch)) == {1}
    whole = LiveTeacher(teacher, {"hidden_states": frozenset({1})}, torch.device("cpu"))
    assert widths_of(teacher, lambda: whole.outputs(batch)) == {batch["input_ids"].shape[1]}


def test_an_eager_student_whose_maps_are_matched_keeps_torchs_dropout(make_rows, settings, tokenizer):
    rows, teacher, student = make_rows(16), tiny_bert(4, seed=1), tiny_bert(attention_probs_dropout_prob=0.5)
    student.set_attn_implementation("eager")
    trainer = DistillationTrainer(
        student, teacher, settings(), [ForwardKLLoss(), AttentionMSELoss()], train_dataset=rows,
        processing_class=tokenizer,
    )  # fmt: skip
    with WhileTraining(student) as seen:
        trainer.train()
    assert not seen.quick and seen.whole


def test_a_student_is_whole_again_if_a_later_change_fails(make_rows, settings, tokenizer):
    student, rows = tiny_bert(hidden_dropout_prob=0.1), make_rows(16)
    modules = list(student.modules())
    trainer = DistillationTrainer(
        student, tiny_bert(4, seed=1), settings(), [ForwardKLLoss()], train_dataset=rows, processing_class=tokenizer
    )
    # The scan for used embedding rows finds none of the column that it reads.
    trainer.train_dataset = rows.rename_column("input_ids", "elsewhere")
    with pytest.raises(ValueError, match="input_ids"):
        trainer.train()
    assert list(student.modules()) == modules


class Looks(TrainerCallback):
    """A callback of the user's, like one that keeps an average of the weights."""


class OtherLoss(DistillationTrainer):
    def compute_loss(self, *arguments, **options):
        return super().compute_loss(*arguments, **options)


class OtherOptimizer(DistillationTrainer):
    def create_optimizer(self, model=None):
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        return self.optimizer


class Logs(DistillationTrainer):
    def log(self, *arguments, **options):
        super().log(*arguments, **options)


class CutsTexts(DistillationCollator):
    """A collator of the user's."""


def on(student, register, *path):
    register(student.get_submodule(".".join(path)) if path else student)
    return {}


def replaced_forward(student):
    layer = student.bert.encoder.layer[0]
    own = layer.forward
    layer.forward = lambda *arguments, **options: own(*arguments, **options)
    return {}


CACHE, TABLE, EVERY_TOKEN = "cached teacher", "compact embeddings", "first token"
STUDENT = {EVERY_TOKEN, "quick dropout", "own attention", TABLE}
READERS = {
    "callback": ({EVERY_TOKEN, TABLE}, lambda student: {"callbacks": [Looks()]}),
    "callback of transformers": (set(), lambda student: {"callbacks": [EarlyStoppingCallback()]}),
    "compute_loss": ({CACHE, EVERY_TOKEN, TABLE}, lambda student: {"kind": OtherLoss}),
    "create_optimizer": ({CACHE, EVERY_TOKEN, TABLE}, lambda student: {"kind": OtherOptimizer}),
    "log": (set(), lambda student: {"kind": Logs}),
    "forward hook": (STUDENT, lambda student: on(student, lambda m: m.register_forward_hook(lambda *_: None))),
    "inner hook": (
        STUDENT, lambda student: on(student, lambda m: m.register_forward_pre_hook(lambda *_: None), "bert", "encoder")
    ),
    "backward hook": (
        STUDENT, lambda student: on(student, lambda m: m.register_full_backward_hook(lambda *_: None), "classifier")
    ),
    "hook on a gradient": (
        STUDENT, lambda student: on(student, lambda m: m.weight.register_hook(lambda grad: grad), "classifier")
    ),
    "hook on a summed gradient": (
        STUDENT,
        lambda student: on(
            student, lambda m: m.weight.register_post_accumulate_grad_hook(lambda parameter: None), "classifier"
        ),
    ),
    "replaced forward": (STUDENT, replaced_forward),
    "collator": ({CACHE, TABLE}, lambda student: {"collator": CutsTexts}),
    "collator of another tokenizer": (
        {CACHE, TABLE}, lambda student: {"collator": lambda own: DistillationCollator(copy.copy(own))}
    ),
    "collator of transformers": (set(), lambda student: {"collator": DataCollatorWithPadding}),
    "transform": ({CACHE, TABLE}, lambda student: {"rows": lambda rows: rows.with_transform(lambda batch: batch)}),
    "format": (set(), lambda student: {"rows": lambda rows: rows.with_format("torch")}),
    "list": ({CACHE, TABLE}, lambda student: {"rows": list}),
    "optimizer class": (
        {TABLE}, lambda student: {"optimizer_cls_and_kwargs": (Adafactor, {"lr": 1e-3, "relative_step": False})}
    ),
    "optimizer": ({TABLE}, lambda student: {"optimizers": (torch.optim.SGD(student.parameters(), lr=0.1), None)}),
    "NEFTune": ({TABLE}, lambda student: {"neftune_noise_alpha": 5.0}),
    "NEFTune of 0": (set(), lambda student: {"neftune_noise_alpha": 0.0}),
    "weight decay": ({TABLE}, lambda student: {"weight_decay": 0.1}),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_who_may_read_what_a_speed_up_leaves_out_turns_it_off_and_the_first_line_says_so(
    reader, make_rows, settings, tokenizer, caplog
):
    """Everything is on that nothing reads, and the student is the one that is trained without any of it."""
    refused, make = READERS[reader]
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    students = []
    for fast in (True,) if refused == STUDENT and reader != "inner hook" else (True, False):
        student, plain = tiny_bert(seed=3, vocab_size=200), {} if fast else PLAIN
        more = {"kind": DistillationTrainer, "rows": lambda rows: rows} | make(student)
        of_args = {name: more.pop(name) for name in fields & more.keys()}
        collator, kind, rows = more.pop("collator", None), more.pop("kind"), more.pop("rows")(make_rows(16))
        if "callbacks" in more and reader != "callback":
            of_args |= {"eval_strategy": "epoch", "load_best_model_at_end": True, "save_strategy": "epoch"}
            more["eval_dataset"] = rows
        torch.manual_seed(0)
        trainer = kind(
            student, tiny_bert(4, seed=1, vocab_size=200), settings(num_train_epochs=2, **of_args, **plain),
            [CrossEntropyLoss(), ForwardKLLoss()], rows, processing_class=tokenizer,
            data_collator=None if collator is None else collator(tokenizer), **more,
        )  # fmt: skip
        if fast:
            found = {name for name, reason in refused_speed_ups(trainer._parts()).items() if reason}
            assert found == refused
        trainer.train()
        students.append(student.state_dict())
    line = next(each.getMessage() for each in caplog.records if each.getMessage().startswith("Training with"))
    said, unsaid = line.partition(" no ")[::2]
    for name in STUDENT | {CACHE}:
        kept = "the teacher's outputs kept with the rows" if name == CACHE else name
        assert (kept in said) == (name not in refused), line
        assert (name in unsaid) == (name in refused), line
    for name in students[0] if reader != "NEFTune" else ():
        torch.testing.assert_close(students[0][name], students[-1][name], rtol=1e-3, atol=1e-5, msg=name)


PLAIN = {"cache_teacher": "off", "lean_training": False, "compact_embeddings": False}


def test_an_average_of_the_weights_sees_the_whole_table(make_rows, settings, tokenizer):
    class Average(TrainerCallback):
        def __init__(self, model):
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.average.update_parameters(model)

    averages = []
    for plain in ({}, PLAIN):
        student = tiny_bert(vocab_size=200)
        average = Average(student)
        DistillationTrainer(
            student, tiny_bert(4, seed=1, vocab_size=200), settings(learning_rate=1e-2, **plain),
            train_dataset=make_rows(24), processing_class=tokenizer, callbacks=[average],
        ).train()  # fmt: skip
        averages.append(average.average.state_dict())
    for name in averages[0]:
        torch.testing.assert_close(averages[0][name], averages[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_noise_on_the_embeddings_changes_a_training_with_the_defaults(make_rows, settings, tokenizer):
    found = []
    for alpha in (None, 50.0):
        trainer = DistillationTrainer(
            tiny_bert(vocab_size=200), args=settings(neftune_noise_alpha=alpha, learning_rate=1e-2),
            train_dataset=make_rows(24), processing_class=tokenizer,
        )  # fmt: skip
        found.append(trainer.train().training_loss)
    assert found[0] != found[1]


def test_a_dropout_that_a_callback_changes_stays_changed(make_rows, settings, tokenizer):
    class Fades(TrainerCallback):
        def on_epoch_end(self, args, state, control, model=None, **kwargs):
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p /= 2

    student = tiny_bert(hidden_dropout_prob=0.4)
    trainer = DistillationTrainer(
        student, tiny_bert(4, seed=1), settings(num_train_epochs=2), train_dataset=make_rows(16),
        processing_class=tokenizer, callbacks=[Fades()],
    )  # fmt: skip
    trainer.train()
    assert student.bert.embeddings.dropout.p == pytest.approx(0.1)


def test_lean_training_that_is_asked_for_stays_beside_callbacks_of_ones_own(make_rows, settings, tokenizer):
    trainer = DistillationTrainer(
        tiny_bert(vocab_size=200), tiny_bert(4, seed=1, vocab_size=200), settings(lean_training=True),
        train_dataset=make_rows(16), processing_class=tokenizer, callbacks=[Looks()],
    )  # fmt: skip
    refused = refused_speed_ups(trainer._parts())
    assert "first token" not in refused and refused["compact embeddings"] == "Looks may read the whole table"
