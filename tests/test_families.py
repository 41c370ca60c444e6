"""Which model families teach and learn which objectives.

Covered, by one forward and backward of the trainer: every objective with every teacher family and every student
family, 4 layers to 2. Beside it: what is captured of each family against what the model itself
gives, `make_student` of each, and a teacher with a LoRA adapter. `python tests/test_families.py` prints the tables of
README.md.
"""

import copy
import functools
import importlib.util
import logging
import os
import re

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import pytest
import torch
from datasets import DatasetDict
from paths import TESTS
from samples import QUIET, raw_rows
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
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from nlpkd import DistillationConfig, DistillationTrainer, distill, make_student, objectives
from nlpkd.evaluation.benchmark import model_size_mb
from nlpkd.evaluation.evaluate import evaluate_student
from nlpkd.evaluation.prediction import predict_logits
from nlpkd.models.capture import Capture
from nlpkd.models.padding import refuse_unknown_padding
from nlpkd.objectives.base import text_state
from nlpkd.students.budget import student_within
from nlpkd.teachers.teacher import CachedTeacher, LiveTeacher
from nlpkd.utils.object_hashes import hash_configuration

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
    return copy.deepcopy(_built(family, layers, seed))


@functools.cache
def _built(family: str, layers: int, seed: int) -> torch.nn.Module:
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


OBJECTIVES = {name.removesuffix("Loss"): getattr(objectives, name) for name in objectives.__all__ if "Loss" in name}
OBJECTIVES["AttentionMSE on scores"] = functools.partial(objectives.AttentionMSELoss, on="scores")
TOKEN_WITH_TOKEN = {
    "AttentionKL", "AttentionMSE", "AttentionMSE on scores", "EmbeddingMSE", "FeatureDistribution", "Gram",
    "HiddenStateCosine", "HiddenStateMSE", "SelfAttentionRelation", "ValueRelation",
}  # fmt: skip
"""What needs the same tokens on both sides."""
QUERIES_WITH_QUERIES = {"AttentionMSE on scores", "SelfAttentionRelation", "ValueRelation"}
"""What needs queries, keys or values, which eager attention hides."""
REFUSALS = {
    "no Q, K, V": r"queries, keys or values of the (student|teacher).* has no other attention: match attention maps",
    "other tokens": r"match token with token, and student and teacher have different tokenizers: use objectives on",
}
"""What may be refused, as the table has it, and the message that says what to do."""
PAIRS = [(a, b) for a in CONFIGS for b in CONFIGS if a == b or b in STUDENTS]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A trainer makes its output folder where the test runs."""
    monkeypatch.chdir(tmp_path)


def trainer_of(teacher, student, *objective, families=("BERT", "BERT"), **settings) -> DistillationTrainer:
    args = DistillationConfig(
        output_dir="unused", **QUIET, save_strategy="no", teacher_check="off",
        **settings,
    )  # fmt: skip
    theirs, ours = (tokenizer_of(family) for family in families)
    return DistillationTrainer(
        student, teacher, args, objective, processing_class=ours, teacher_processing_class=theirs
    )


@functools.lru_cache(maxsize=1)
def pair(teacher_family: str, student_family: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A teacher and a student, which all objectives are tried on in turn: none takes a step."""
    return build(teacher_family, 4), build(student_family, 2, seed=1)


@functools.cache
def outcome(teacher_family: str, student_family: str, name: str) -> str:
    """Do one step's forward and backward: "yes", or why it is refused."""
    teacher, student = pair(teacher_family, student_family)
    student.zero_grad()
    for model in (teacher, student):
        # As it was before another objective looked inside.
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    try:
        trainer = trainer_of(teacher, student, OBJECTIVES[name](), families=(teacher_family, student_family))
    except ValueError as refusal:
        reasons = [reason for reason, message in REFUSALS.items() if re.search(message, str(refusal))]
        assert len(reasons) == 1, refusal
        return reasons[0]
    loss = trainer.compute_loss(student.train(), rows())
    loss.backward()
    gradients = torch.stack([p.grad.abs().max() for p in student.parameters() if p.grad is not None])
    assert torch.isfinite(loss) and loss.item() != 0
    assert torch.isfinite(gradients).all() and gradients.max() > 1e-6
    return "yes"


def refused(teacher: str, student: str) -> dict[str, str]:
    """Give the objectives that a pair can't have, with the reason."""
    found = {name: outcome(teacher, student, name) for name in OBJECTIVES}
    return {name: reason for name, reason in found.items() if reason != "yes"}


def tables() -> str:
    """The tables of README.md: objective by family, and teacher family by student family."""
    lines = [["", *CONFIGS], ["---"] * (len(CONFIGS) + 1)]
    lines += [[name, *(outcome(family, family, name) for family in CONFIGS)] for name in OBJECTIVES]
    pairs = [["teacher \\ student", *STUDENTS], ["---"] * (len(STUDENTS) + 1)]
    pairs += [[teacher, *(str(len(OBJECTIVES) - len(refused(teacher, s))) for s in STUDENTS)] for teacher in CONFIGS]
    return "\n\n".join("\n".join(f"| {' | '.join(line)} |" for line in table) for table in (lines, pairs)) + "\n"


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_an_objective_trains_the_student_or_is_refused_with_advice(teacher, student):
    found = refused(teacher, student)
    reasons = {}
    if SHARED.get(teacher, teacher) != SHARED.get(student, student):
        reasons["other tokens"] = TOKEN_WITH_TOKEN
    elif teacher in ("MPNet", "DeBERTa"):
        reasons["no Q, K, V"] = QUERIES_WITH_QUERIES
    if student in ("MPNet", "DeBERTa"):
        reasons["no Q, K, V"] = QUERIES_WITH_QUERIES
    assert found.keys() == set().union(*reasons.values())
    assert all(name in reasons[reason] for name, reason in found.items())


def test_the_tables_of_the_readme_are_those_that_the_code_gives():
    text = (TESTS / "README.md").read_text(encoding="utf-8")
    assert tables() in text, "run `python tests/test_families.py` and put what it prints into tests/README.md"


# What is captured


def batch() -> dict[str, torch.Tensor]:
    return ids_of([9, 5, 8, 3], seed=0)


def capture(model, given, **layers):
    return Capture(model, {kind: frozenset(chosen) for kind, chosen in layers.items()}, "student")(model, given)


@pytest.mark.parametrize("family", CONFIGS)
def test_attention_maps_and_hidden_states_are_those_that_the_model_gives(family):
    model, given = build(family, 4), batch()
    sdpa = model.config._attn_implementation == "sdpa"
    assert sdpa == (family not in ("MPNet", "DeBERTa"))
    with torch.no_grad():
        captured = capture(model, given, attentions=range(1, 5), hidden_states=range(5))
        if sdpa:
            model.set_attn_implementation("eager")
        own = model(**given, output_attentions=True, output_hidden_states=True)
    real = given["attention_mask"].bool()
    assert [len(captured.attentions), len(captured.hidden_states)] == [4, 5]
    for found, expected in zip(captured.attentions, own.attentions, strict=True):
        # (batch, seq, heads, seq)[real] leaves out the rows of padding, of which families make different things.
        torch.testing.assert_close(found.transpose(1, 2)[real], expected.transpose(1, 2)[real], rtol=0, atol=1e-5)
        assert found[1, :, :5, 5:].abs().max() == 0
    for found, expected in zip(captured.hidden_states, own.hidden_states, strict=True):
        assert found.shape[-1] == model.config.hidden_size
        torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_maps_of_a_student_in_training_are_those_before_dropout(family, implementation):
    """Eager attention gives them after dropout: zeros, whose logarithm would swamp a divergence."""
    config = CONFIGS[family](2)
    for name in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.5)
    for name in ("hidden_dropout_prob", "dropout", "embedding_dropout", "mlp_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    model = Auto.from_config(config)
    if implementation == "sdpa" and not model._supports_sdpa:
        pytest.skip("has eager attention alone")
    model.set_attn_implementation(implementation)
    given = batch()
    still = capture(model.eval(), given, attentions={1}).attentions[0]
    moving = capture(model.train(), given, attentions={1})
    assert len(moving.attentions) == 2 and moving.attentions[1] is None
    real = given["attention_mask"].bool()
    torch.testing.assert_close(moving.attentions[0].transpose(1, 2)[real], still.transpose(1, 2)[real])
    moving.attentions[0][:, :, 2].square().sum().backward()
    assert max(p.grad.abs().max() for p in model.parameters() if p.grad is not None) > 1e-6


SEPARATE = {
    "query": ("query", "q_lin", "q_proj"), "key": ("key", "k_lin", "k_proj"), "value": ("value", "v_lin", "v_proj")
}  # fmt: skip


@pytest.mark.parametrize("family", [f for f in CONFIGS if f not in ("MPNet", "DeBERTa", "ModernBERT")])
def test_queries_keys_and_values_are_what_the_layers_own_weights_give(family):
    model, given = build(family, 4), batch()
    layers = {"queries": {3}, "keys": {3}, "values": {3}}
    with torch.no_grad():
        captured = capture(model, given, hidden_states={2}, **layers)
        state = captured.hidden_states[2]
        # ALBERT has one layer, so the third is the last that is there.
        third = [m for m in model.modules() if any(hasattr(m, name) for name in SEPARATE["query"])][
            2 if family != "ALBERT" else 0
        ]
        if family in DECODERS:
            state = model.model.layers[2].input_layernorm(state)
        expected = {}
        for kind, names in SEPARATE.items():
            linear = next(getattr(third, name) for name in names if hasattr(third, name))
            expected[kind] = linear(state).unflatten(2, (-1, 8)).transpose(1, 2)
        if family in DECODERS:
            turns = model.model.rotary_emb(state, torch.arange(9)[None])
            expected["query"], expected["key"] = apply_rotary_pos_emb(expected["query"], expected["key"], *turns)
    heads = 2 if family in DECODERS else 4
    assert [getattr(captured, kind)[2].shape[1] for kind in layers] == [4, heads, heads]
    for kind, found in zip(layers, expected.values(), strict=True):
        torch.testing.assert_close(getattr(captured, kind)[2], found)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_text_is_read_at_its_first_token_and_by_a_decoder_at_its_last(family):
    model, given = build(family, 2), batch()
    captured = capture(model, given, hidden_states={2})
    changed = batch()
    changed["input_ids"][torch.arange(4), torch.tensor([8, 4, 7, 2])] += 1
    read, after = (text_state(c, c.hidden_states[2]) for c in (captured, capture(model, changed, hidden_states={2})))
    last = family in DECODERS
    for row, length in enumerate([9, 5, 8, 3]):
        assert torch.equal(read[row], captured.hidden_states[2][row, length - 1 if last else 0])
    # Whichever it is, the state depends on the whole text, and differs from text to text.
    assert ((read - after).abs().amax(dim=1) > 1e-4).all()
    assert torch.pdist(read).min() > 1e-3


def test_a_decoders_last_token_is_found_under_left_padding_without_a_mask_and_in_cached_states():
    model, given = build("Llama", 2), batch()
    left = {name: column.flip(1) for name, column in given.items()}
    assert Capture(model, {}, "teacher").pooled_index(left).tolist() == [8] * 4
    assert Capture(model, {}, "teacher").pooled_index({"input_ids": given["input_ids"]}).tolist() == [8] * 4
    own = {f"teacher_{name}": column for name, column in given.items()}
    live = LiveTeacher(model, {"hidden_states": frozenset({2})}, torch.device("cpu"), prefix="teacher_")
    ran = live.outputs(own)
    kept = {"teacher_logits": ran.logits, "teacher_hidden_states_2": ran.hidden_states[2]}
    cached = CachedTeacher(live.capture).outputs(own | kept)
    assert cached.pooled_index.tolist() == ran.pooled_index.tolist() == [8, 4, 7, 2]
    student = build("BERT", 2)
    teaching = trainer_of(model, student, objectives.RelationalDistanceLoss(), families=("Llama", "BERT"))._signals
    assert teaching.source(kept) is teaching.cached
    assert teaching.outputs(given | own | kept).pooled_index.tolist() == [8, 4, 7, 2]


def test_a_decoder_keeps_no_keys_and_values_for_a_next_token():
    model, kept = build("Llama", 2), []
    model.register_forward_hook(lambda module, given, output: kept.append(output.past_key_values))
    with torch.no_grad():
        capture(model, batch())
        model(**batch())
    assert kept[0] is None and kept[1] is not None


@pytest.mark.parametrize("padding", [None, 3])
def test_a_decoder_that_would_take_padding_for_text_is_refused(padding):
    """It classifies by the last token that is not what its config calls padding."""
    good, bad, student = (build("Llama", 2, seed) for seed in range(3))
    bad.config.pad_token_id = padding
    said = rf"the teacher classifies by .* pad_token_id {padding} and the tokenizer 0: set config.pad_token_id"
    for teacher, which in ((bad, ""), ([good, bad], "teacher 2 of 2: ")):
        with pytest.raises(ValueError, match=which + said):
            trainer_of(teacher, student, objectives.ForwardKLLoss(), families=("Llama", "Llama"))
    with pytest.raises(ValueError, match="the student classifies by"):
        refuse_unknown_padding(bad, tokenizer_of("Llama"), "student")
    encoder = build("BERT", 2)
    encoder.config.pad_token_id = padding
    refuse_unknown_padding(encoder, tokenizer_of("BERT"), "teacher")


# Students


@pytest.mark.parametrize("layers", [2, [1, 3]], ids=str)
@pytest.mark.parametrize("family", CONFIGS)
def test_a_student_is_the_teacher_with_the_other_layers_taken_out(family, layers, tmp_path):
    teacher, given = build(family, 4), batch()
    if family == "ModernBERT" and layers == 2:
        with pytest.raises(ValueError, match=r"layers \[2, 4\].*attn_norm.*'layers:1,3,5', or a checkpoint"):
            make_student(teacher, layers)
        return
    student = make_student(teacher, layers).eval()
    assert student.config.num_hidden_layers == 2
    by_hand = copy.deepcopy(teacher)
    if family == "ALBERT":
        by_hand.albert.encoder.config.num_hidden_layers = 2
    else:
        (name,) = [n for n, m in by_hand.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 4]
        by_hand.config.use_cache = False
        stack = by_hand.get_submodule(name)
        chosen = [stack[1], stack[3]] if layers == 2 else [stack[0], stack[2]]
        by_hand.set_submodule(name, torch.nn.ModuleList(chosen))
        by_hand.config.num_hidden_layers = 2
    with torch.no_grad():
        logits = student(**given).logits
        torch.testing.assert_close(logits, by_hand(**given).logits, rtol=0, atol=1e-5)
        assert not torch.allclose(logits, teacher(**given).logits, atol=1e-3)
        student.save_pretrained(tmp_path)
        loaded, info = Auto.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        torch.testing.assert_close(loaded(**given).logits, logits, rtol=0, atol=1e-6)


def test_a_student_of_albert_shares_no_memory_with_it():
    teacher = build("ALBERT", 4)
    owned = {parameter.data_ptr() for parameter in teacher.parameters()}
    assert owned.isdisjoint(parameter.data_ptr() for parameter in make_student(teacher, 2).parameters())


# Adapters


@pytest.fixture
def peft():
    if importlib.util.find_spec("peft") is None:
        pytest.skip("peft is not installed: pip install nlpkd[peft]")
    import peft

    return peft


def with_lora(peft, family: str):
    targets = {"BERT": ["query", "value"], "Llama": ["q_proj", "v_proj"]}[family]
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=targets, init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return peft.get_peft_model(build(family, 4), config).eval()


@pytest.mark.parametrize("family", ["BERT", "Llama"])
def test_a_teacher_with_a_lora_adapter_teaches_what_the_merged_one_does(peft, family):
    teacher = with_lora(peft, family)
    merged = copy.deepcopy(teacher).merge_and_unload()
    parts = [
        "ForwardKL", "HiddenStateMSE", "AttentionKL", "SelfAttentionRelation", "RelationalDistance",
    ]  # fmt: skip
    losses = []
    for model in (teacher, merged):
        student = build(family, 2, seed=1)
        trainer = trainer_of(model, student, *(OBJECTIVES[name]() for name in parts), families=(family, family))
        losses.append(trainer.compute_loss(student, rows()).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] != 0


def test_a_whole_job_takes_a_teacher_in_an_adapter_s_wrapper(peft, tmp_path):
    teacher = with_lora(peft, "BERT")
    names = ("neg", "pos", "other")
    splits = DatasetDict(train=raw_rows(24, 0, names), validation=raw_rows(12, 1, names))
    result = distill(
        teacher, "layers:2", splits, teacher_tokenizer=tokenizer_of("BERT"), output_dir=tmp_path, max_steps=2,
        teacher_check="off", **QUIET, max_length=16,
    )  # fmt: skip
    assert result.student.config.num_hidden_layers == 2 and not hasattr(result.student, "peft_config")
    assert set(result.report.candidates) == {"teacher", "student"}


def test_an_adapter_hides_no_column_from_the_model_inside(peft):
    """The wrapper's forward does not name token_type_ids, which tell the two texts of a pair apart."""
    teacher = with_lora(peft, "BERT")
    given = batch() | {"token_type_ids": (torch.arange(9)[None] > 3).long().expand(4, 9).contiguous()}
    with torch.no_grad():
        expected = copy.deepcopy(teacher).merge_and_unload()(**given).logits
        found = LiveTeacher(teacher, {}, torch.device("cpu")).outputs(given).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    dataset = datasets.Dataset.from_dict({name: column.tolist() for name, column in given.items()})
    predicted = predict_logits(teacher, dataset, tokenizer_of("BERT"))
    torch.testing.assert_close(torch.as_tensor(predicted), expected, rtol=0, atol=1e-5)


def test_a_student_of_a_teacher_with_an_adapter_is_made_of_the_merged_weights(peft):
    teacher = with_lora(peft, "BERT")
    expected = make_student(copy.deepcopy(teacher).merge_and_unload(), 2).state_dict()
    student = make_student(teacher, 2)
    assert student.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in student.state_dict().items())
    assert any("lora" in name for name, _ in teacher.named_parameters()), "the teacher keeps its adapter"
    size = model_size_mb(student)
    assert (
        student_within(teacher, max_size_mb=size, fits=lambda name, config: config.model_type == "bert") == "layers:2"
    )
    with pytest.raises(ValueError, match="has an adapter inside.*merge the adapter first"):
        make_student(teacher.get_base_model(), 2)


def test_an_adapter_of_another_strength_is_another_teacher_to_the_cache(peft):
    teacher, again, stronger, off = (with_lora(peft, "BERT") for _ in range(4))
    assert hash_configuration(again) == hash_configuration(teacher)
    for module in stronger.modules():
        if hasattr(module, "base_layer"):
            module.scaling["default"] *= 2
    off.base_model.disable_adapter_layers()
    assert len({hash_configuration(model) for model in (teacher, stronger, off)}) == 3
    assert len({hash_configuration(model.get_base_model()) for model in (teacher, stronger, off)}) == 3


def test_a_teacher_with_a_prompt_of_its_own_teaches_logits_alone(peft):
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    teacher, student = peft.get_peft_model(build("BERT", 4), config), build("BERT", 2, seed=1)
    assert trainer_of(teacher, student, objectives.ForwardKLLoss()).compute_loss(student, rows()).item() != 0
    with pytest.raises(ValueError, match="a prompt of its own before the tokens: use objectives on logits"):
        trainer_of(teacher, student, objectives.HiddenStateMSELoss())


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    print(tables(), end="")


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_is_measured_and_left_as_it_was(family):
    model, tokenizer = build(family, 2), tokenizer_of(family)
    # One parameter asks for no gradient, and none shall ask for one that did not.
    next(model.parameters()).requires_grad_(False)
    asking = [parameter.requires_grad for parameter in model.parameters()]
    texts = {name: tensor.tolist() for name, tensor in ids_of([5] * 4, seed=0).items()}
    dataset = datasets.Dataset.from_dict({**texts, "labels": [0, 1, 2, 0]})
    report = evaluate_student(
        model, None, dataset, tokenizer, bootstrap_samples=2, latency_batches=(1,), latency_tokens=6, latency_runs=1
    )
    measured = report.candidates["student"]
    assert measured.flops > 0 and measured.latency[0].p50_ms > 0 and measured.size_mb > 0
    assert [parameter.requires_grad for parameter in model.parameters()] == asking and not model.training
