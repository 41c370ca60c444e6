"""Training the used rows of an embedding table alone, against training the whole table."""

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from samples import tiny_bert
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import TrainerCallback

from nlpkd import DistillationTrainer
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss, HiddenStateMSELoss
from nlpkd.training.speed.compact_embeddings import CompactEmbedding, compact_training, used_rows

UNUSED = 30
"""An id that the tests' texts don't have."""


def student(**config):
    return tiny_bert(vocab_size=200, hidden_dropout_prob=0.1, **config)


def trained(rows, args, tokenizer, model=None, resume=None, objectives=None, **more):
    trainer = DistillationTrainer(
        student() if model is None else model, args=args, train_dataset=rows, processing_class=tokenizer,
        objectives=objectives or [CrossEntropyLoss()], **more,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def word_table(model: nn.Module) -> torch.Tensor:
    return model.get_input_embeddings().weight


def with_table(sizes: set[int], model: nn.Module, run):
    """Run a training and note how many embedding rows it trains; a callback might read them, and get them all."""
    hook = register_optimizer_step_post_hook(lambda *_: sizes.add(len(word_table(model))))
    try:
        return run()
    finally:
        hook.remove()


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_without_clipping_the_student_is_bit_equal_to_one_trained_on_the_whole_table(
    make_rows, settings, tokenizer, one_thread
):
    rows, model, sizes = make_rows(48), student(), set()
    args = settings(num_train_epochs=2, max_grad_norm=0.0)
    compact = with_table(sizes, model, lambda: trained(rows, args, tokenizer, model))
    whole = trained(rows, settings(num_train_epochs=2, max_grad_norm=0.0, compact_embeddings=False), tokenizer)
    assert max(sizes) < 30
    assert same(compact.model, whole.model)
    assert not torch.equal(word_table(compact.model)[:25], word_table(student())[:25])


def test_with_clipping_and_objectives_that_have_weights_compact_training_differs_by_rounding(
    make_rows, settings, tokenizer
):
    rows, teacher = make_rows(48), tiny_bert(4, 24, seed=1, vocab_size=200)
    models = []
    for compact in (True, False):
        args = settings(num_train_epochs=2, max_grad_norm=0.5, compact_embeddings=compact)
        objectives = [ForwardKLLoss(), HiddenStateMSELoss()]
        models.append(trained(rows, args, tokenizer, objectives=objectives, teacher_model=teacher).model)
    ours, theirs = (model.state_dict() for model in models)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_rows_of_unused_tokens_stay_as_they_were_and_the_table_is_a_plain_embedding_again(
    make_rows, settings, tokenizer, caplog
):
    model, rows = student(), make_rows(16)
    table = model.get_input_embeddings()
    before = table.weight.detach().clone()
    trained(rows, settings(), tokenizer, model)
    used = {token for row in rows for token in row["input_ids"]} | set(tokenizer.all_special_ids)
    assert f"Training the {len(used)} of {len(before)} embedding rows that the text uses." in caplog.text
    assert model.get_input_embeddings() is table and type(table) is nn.Embedding
    assert torch.equal(table.weight[UNUSED:], before[UNUSED:])


@pytest.mark.parametrize("first, second", [(True, False), (False, True)])
def test_a_run_goes_on_bit_equal_the_other_way_since_checkpoints_keep_whole_tables(
    first, second, make_rows, settings, tokenizer, tmp_path, one_thread
):
    rows = make_rows(48)
    saving = {"max_steps": 10, "max_grad_norm": 0.0, "save_strategy": "steps", "save_steps": 4}
    uninterrupted = trained(rows, settings(output_dir=str(tmp_path / "a"), **saving), tokenizer)
    args = settings(output_dir=str(tmp_path / "b"), compact_embeddings=first, **saving)
    trained(rows, args, tokenizer)
    checkpoint = tmp_path / "b" / "checkpoint-4"
    moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    assert any(state["exp_avg"].shape == (200, 16) for state in moments.values())
    assert load_file(checkpoint / "model.safetensors")["bert.embeddings.word_embeddings.weight"].shape == (200, 16)
    args = settings(output_dir=str(tmp_path / "b"), compact_embeddings=second, **saving)
    resumed = trained(rows, args, tokenizer, resume=str(checkpoint))
    assert same(resumed.model, uninterrupted.model)


def test_training_on_goes_on_with_the_moments_of_the_first_time(make_rows, settings, tokenizer, one_thread):
    rows, models = make_rows(48), []
    for compact in (True, False):
        trainer = trained(rows, settings(max_grad_norm=0.0, compact_embeddings=compact), tokenizer)
        trainer.train()
        models.append(trainer.model)
    assert same(*models)


def test_a_step_that_fails_leaves_the_model_with_its_table(make_rows, settings, tokenizer):
    class Stop(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise KeyboardInterrupt

    model = student()
    with pytest.raises(KeyboardInterrupt):
        trained(make_rows(16), settings(), tokenizer, model, callbacks=[Stop()])
    assert type(model.get_input_embeddings()) is nn.Embedding


def test_evaluation_while_training_reads_tokens_that_no_training_row_has():
    torch.manual_seed(0)
    table = nn.Embedding(10, 4, padding_idx=0)
    compact = CompactEmbedding(table, torch.tensor([0, 3, 7])).eval()
    ids = torch.tensor([[0, 3, 5, 9], [7, 7, 1, 0]])
    assert torch.equal(compact(ids), table(ids))
    assert torch.equal(compact.train()(ids[:1, :2]), table(ids[:1, :2]))
    with pytest.raises(IndexError):
        compact(ids)


def test_padding_gets_no_gradient():
    compact = CompactEmbedding(nn.Embedding(10, 4, padding_idx=3), torch.tensor([1, 3]))
    compact(torch.tensor([[1, 3]])).sum().backward()
    assert torch.equal(compact.weight.grad, torch.tensor([[1.0] * 4, [0.0] * 4]))


def test_used_rows_are_those_of_the_selected_rows_and_what_is_always_kept():
    rows = Dataset.from_dict({"input_ids": [[5, 9], [7], [], [100]]}).select([2, 1, 0])
    assert used_rows(rows, [1, 7]).tolist() == [1, 5, 7, 9]


@pytest.mark.parametrize(
    "settings_of, rows, why",
    [
        ({"weight_decay": 0.01}, 16, "decay moves rows without gradient"),
        ({"optim": "adafactor"}, 16, "its moments are shared by rows and columns"),
        ({"compact_embeddings": False}, 16, "not asked for"),
        ({"anchor_weight": 0.1}, 16, "it pulls parameters it knows"),
    ],
)
def test_the_whole_table_is_trained_where_that_would_be_another_result(
    settings_of, rows, why, make_rows, settings, tokenizer
):
    model, sizes = student(), set()
    with_table(sizes, model, lambda: trained(make_rows(rows), settings(**settings_of), tokenizer, model))
    assert sizes == {200}, why


def test_a_table_that_modules_share_or_that_is_frozen_is_left_alone(make_rows):
    rows = make_rows(8)
    assert compact_training(student(), rows, [], log=False) is not None
    frozen = student()
    frozen.get_input_embeddings().weight.requires_grad_(False)
    assert compact_training(frozen, rows, [], log=False) is None
    tied = student()
    tied.output = nn.Linear(16, 200, bias=False)
    tied.output.weight = tied.get_input_embeddings().weight
    assert compact_training(tied, rows, [], log=False) is None
    assert compact_training(nn.Linear(2, 2), rows, [], log=False) is None
