"""Bad numbers are found however seldom anybody looks."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from nlpkd import DistillationConfig
from nlpkd.training.failures import explain_lost_process, explain_out_of_memory
from nlpkd.training.loss_log import LossAccumulator


def make() -> LossAccumulator:
    return LossAccumulator(["first", "second"], Accelerator(cpu=True), torch.device("cpu"))


def test_means_are_over_the_steps_since_the_last_time():
    window = make()
    for step in range(3):
        window.set_step(step + 7)
        window.add(torch.tensor([1.0, step]), [step])
    assert window.means(10) == {"first": 1.0, "second": 1.0}
    assert window.means(10) == {}
    window.set_step(10)
    window.add(torch.tensor([4.0, 2.0]), None)
    window.add_last(3.0)
    assert window.means(11) == {"first": 4.0, "second": 5.0}


def test_the_first_bad_batch_is_named_though_all_after_it_are_bad_too():
    window = make()
    for step in range(6):
        window.set_step(step)
        window.add(torch.tensor([float("inf") if step > 2 else 1.0, float("nan") if step > 3 else 1.0]), [step, 40])
        window.add_norm(torch.tensor(1.0 if step < 3 else float("nan")))
    with pytest.raises(FloatingPointError, match="first became NaN or infinite in step 4, on rows 3, 40 of"):
        window.check()


def test_losses_are_checked_for_nan_within_a_thousand_steps_though_nobody_reads_them():
    window = make()
    with pytest.raises(FloatingPointError, match="second became NaN or infinite in step 6, on rows 5 of"):
        for step in range(1_001):
            window.set_step(step)
            window.add(torch.tensor([1.0, float("nan") if step == 5 else 0.0]), [step])


def test_a_training_starts_with_no_losses_of_the_one_before():
    window = make()
    window.set_step(3)
    window.add(torch.tensor([float("nan"), 1.0]), [1])
    window.restart()
    window.set_step(0)
    window.add(torch.tensor([2.0, 1.0]), [1])
    assert window.means(1) == {"first": 2.0, "second": 1.0}


@pytest.mark.parametrize(
    "words",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.77.0.2]:20132",
        # Without its file's name: what operations say that end because another one timed out.
        "Application timeout caused pair closure",
    ],
)
def test_a_lost_connection_is_told_from_other_errors_by_the_words_of_gloo(words, tmp_path, monkeypatch):
    args = DistillationConfig(output_dir=str(tmp_path))
    with pytest.raises(RuntimeError, match="pair"), explain_lost_process(args):
        raise RuntimeError(words)
    monkeypatch.setattr(DistillationConfig, "world_size", 2)
    with pytest.raises(ConnectionError, match="process 0 of 2 can't reach another one any more: it ended"):
        with explain_lost_process(args):
            raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="size mismatch"), explain_lost_process(args):
        raise RuntimeError("size mismatch")


@pytest.mark.parametrize("order", ["group_by_length", "random", "sequential", "batch_rebalance"])
def test_where_memory_runs_out_smaller_batches_are_advised_to_be_found_where_that_is_taken(order, tmp_path):
    def args(**options):
        return DistillationConfig(output_dir=str(tmp_path), train_sampling_strategy=order, **options)

    with pytest.raises(MemoryError) as told, explain_out_of_memory(args()):
        raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
    if "auto_find_batch_size=True" in str(told.value):
        assert args(auto_find_batch_size=True).auto_find_batch_size
    else:
        with pytest.raises(ValueError, match="auto_find_batch_size=True can't be had with .*batch_rebalance"):
            args(auto_find_batch_size=True)
    assert ("auto_find_batch_size=True" in str(told.value)) == (order != "batch_rebalance")
