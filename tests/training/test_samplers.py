"""The order of batches: every row once an epoch, whoever trains and however a step is split."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from nlpkd.training.batches.samplers import LengthGroupedBatchSampler, OrderedBatchSampler


def lengths_of(rows: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 128, rows).tolist()


def all_processes(rows, batch_size, num_processes, accumulation_steps=1, **options):
    lengths = options.pop("lengths", None) or lengths_of(rows)
    epoch = options.pop("epoch", 0)
    samplers = []
    for process in range(num_processes):
        sampler = LengthGroupedBatchSampler(
            lengths,
            batch_size,
            num_processes=num_processes,
            process_index=process,
            accumulation_steps=accumulation_steps,
            **options,
        )
        sampler.set_epoch(epoch)
        samplers.append(sampler)
    return samplers


def rows_of_steps(rows, batch_size, num_processes, accumulation_steps=1, **options):
    """The set of rows of each optimizer step, put together from what each process is given."""
    batches = [
        list(sampler) for sampler in all_processes(rows, batch_size, num_processes, accumulation_steps, **options)
    ]
    together = [sum(parts, []) for parts in zip(*batches, strict=True)]
    return [
        frozenset(sum(together[at : at + accumulation_steps], []))
        for at in range(0, len(together), accumulation_steps)
    ]


SHAPES = [
    (rows, batch, processes, accumulation)
    for rows in (1, 2, 3, 7, 16, 17, 31, 33, 100, 801)
    for batch in (1, 3, 8)
    for processes in (1, 2, 3, 4)
    for accumulation in (1, 2, 5)
    if rows >= processes
]


@pytest.mark.parametrize("rows, batch, processes, accumulation", SHAPES)
def test_each_row_comes_exactly_once_and_no_process_waits_for_another(rows, batch, processes, accumulation):
    samplers = all_processes(rows, batch, processes, accumulation)
    batches = [list(sampler) for sampler in samplers]
    counts = Counter(row for micro_batches in batches for rows_ in micro_batches for row in rows_)
    assert counts == Counter(range(rows))
    assert {len(micro_batches) for micro_batches in batches} == {len(sampler) for sampler in samplers}
    assert len({len(sampler) for sampler in samplers}) == 1
    assert all(rows_ for micro_batches in batches for rows_ in micro_batches)


@pytest.mark.parametrize("batch, processes, accumulation", [(8, 1, 3), (4, 2, 2), (2, 4, 5)])
def test_only_the_last_step_may_be_smaller(batch, processes, accumulation):
    steps = rows_of_steps(204, batch, processes, accumulation)
    size = batch * processes * accumulation
    assert [len(step) for step in steps[:-1]] == [size] * (204 // size)
    assert len(steps[-1]) == 204 % size


@pytest.mark.parametrize(
    "batch, processes, accumulation", [(4, 1, 2), (2, 1, 4), (4, 2, 1), (2, 4, 1), (2, 2, 2), (1, 8, 1)]
)
def test_a_step_holds_the_same_rows_however_it_is_split(batch, processes, accumulation):
    for epoch in range(3):
        expected = rows_of_steps(203, 8, 1, 1, epoch=epoch, lengths=lengths_of(203))
        found = rows_of_steps(203, batch, processes, accumulation, epoch=epoch, lengths=lengths_of(203))
        # 203 rows leave 3 for a last step, which 4 and 8 processes can't share: it joins the step before.
        full = 24 if processes > 3 else 25
        assert found[:full] == expected[:full]
        assert frozenset().union(*found[full:]) == frozenset().union(*expected[full:])


def test_the_order_does_not_depend_on_global_random_state():
    orders = []
    for seed in (0, 1):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        orders.append(list(LengthGroupedBatchSampler(lengths_of(100), 8)))
    assert orders[0] == orders[1]


def test_drawing_an_order_leaves_global_random_state_alone():
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    list(LengthGroupedBatchSampler(lengths_of(100), 8))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


def test_an_epoch_can_be_drawn_again_after_a_resume():
    straight = LengthGroupedBatchSampler(lengths_of(100), 8)
    for epoch in range(3):
        straight.set_epoch(epoch)
        third = list(straight)
    resumed = LengthGroupedBatchSampler(lengths_of(100), 8)
    resumed.set_epoch(2)
    assert list(resumed) == third


def test_epochs_and_seeds_differ():
    orders = [list(all_processes(100, 8, 1, epoch=e, seed=s)[0]) for e, s in [(0, 1), (1, 1), (0, 2), (1, 0)]]
    assert len({str(order) for order in orders}) == 4
    contents = [{frozenset(rows) for rows in order} for order in orders]
    assert contents[0] != contents[1] and contents[0] != contents[2]


@pytest.mark.parametrize("epoch", range(5))
def test_the_longest_text_of_the_full_steps_comes_first(epoch):
    lengths = lengths_of(160)
    first, *others = rows_of_steps(160, 8, 1, 2, epoch=epoch)
    assert max(lengths[row] for row in first) == max(lengths) >= max(lengths[row] for step in others for row in step)


def test_full_batches_are_not_in_order_of_length_after_the_first():
    lengths = lengths_of(400)  # one pool
    longest = [max(lengths[row] for row in rows) for rows in LengthGroupedBatchSampler(lengths, 8)]
    assert longest[1:] != sorted(longest[1:]) and longest[1:] != sorted(longest[1:], reverse=True)


def test_padding_is_a_small_part_of_what_random_batches_have():
    lengths = lengths_of(3200)

    def padding(batches):
        return sum(
            len(rows) * max(lengths[row] for row in rows) - sum(lengths[row] for row in rows) for rows in batches
        )

    shuffled = np.random.default_rng(0).permutation(3200).reshape(-1, 32).tolist()
    assert padding(LengthGroupedBatchSampler(lengths, 32)) < 0.1 * padding(shuffled)


@pytest.mark.parametrize("rows, processes, accumulation", [(35, 1, 1), (35, 2, 2), (33, 2, 1), (32, 2, 2)])
def test_drop_last_leaves_out_only_the_smaller_step(rows, processes, accumulation):
    size = 8 * processes * accumulation
    steps = rows_of_steps(rows, 8, processes, accumulation, drop_last=True)
    assert [len(step) for step in steps] == [size] * (rows // size)
    assert len(frozenset().union(*steps)) == rows // size * size


def test_drop_last_drops_other_rows_in_another_epoch():
    kept = [frozenset().union(*rows_of_steps(35, 8, 1, epoch=epoch, drop_last=True)) for epoch in range(3)]
    assert len(set(kept)) > 1


def test_fewer_rows_than_processes_are_refused():
    with pytest.raises(ValueError, match="3 rows can't be shared out to 4 processes"):
        LengthGroupedBatchSampler([5, 6, 7], 8, num_processes=4)


@pytest.mark.parametrize(
    "rows, drop_last, message", [(7, True, "7 rows make no whole batch of 8"), (0, False, "0 rows")]
)
def test_no_batch_at_all_is_refused(rows, drop_last, message):
    with pytest.raises(ValueError, match=message):
        LengthGroupedBatchSampler([5] * rows, 8, drop_last=drop_last)


@pytest.mark.parametrize("batch_size", [4, 3, 2])
def test_a_step_keeps_its_rows_however_many_micro_batches_it_takes(batch_size):
    """Where memory is short, fewer rows at a time must not become another batch."""
    lengths = lengths_of(61)
    accumulation = -(-8 // batch_size)
    whole = LengthGroupedBatchSampler(lengths, 8)
    split = LengthGroupedBatchSampler(lengths, batch_size, accumulation_steps=accumulation, step_rows=8)
    batches = list(split)
    assert max(map(len, batches)) <= batch_size
    full = [sorted(sum(batches[at : at + accumulation], [])) for at in range(0, 7 * accumulation, accumulation)]
    assert full == [sorted(rows) for rows in list(whole)[:7]]
    assert sorted(sum(batches[7 * accumulation :], [])) == sorted(list(whole)[7])


def ordered(rows, batch_size, num_processes=1, accumulation_steps=1, **options):
    """A sampler of each process, in the order that a seed draws."""
    return [
        OrderedBatchSampler(
            SeedableRandomSampler(range(rows), data_seed=7), batch_size, num_processes=num_processes,
            process_index=process, accumulation_steps=accumulation_steps, **options,
        )
        for process in range(num_processes)
    ]  # fmt: skip


@pytest.mark.parametrize("rows, batch, processes, accumulation", SHAPES)
def test_in_a_given_order_too_each_row_comes_once_in_the_step_that_it_has_on_one_process(
    rows, batch, processes, accumulation
):
    samplers, size = ordered(rows, batch, processes, accumulation), batch * processes * accumulation
    steps = [[sorted(step) for step in sampler.steps()] for sampler in samplers]
    order = list(SeedableRandomSampler(range(rows), data_seed=7))
    expected = [sorted(order[at : at + size]) for at in range(0, rows, size)]
    if 0 < rows % size < processes:
        expected[-2:] = [sorted(sum(expected[-2:], []))]
    assert steps == [expected] * processes
    # An order is drawn anew with each pass.
    batches = [list(sampler) for sampler in samplers]
    counts = Counter(row for micro_batches in batches for each in micro_batches for row in each)
    assert counts == Counter(range(rows))
    assert {len(micro_batches) for micro_batches in batches} == {len(sampler) for sampler in samplers}
    assert all(each for micro_batches in batches for each in micro_batches)


@pytest.mark.parametrize("rows", [32, 35])
def test_in_a_given_order_the_batches_of_one_process_are_those_of_torch(rows):
    order = SequentialSampler(range(rows))
    assert list(OrderedBatchSampler(order, 8)) == list(BatchSampler(order, 8, drop_last=False))
    assert list(OrderedBatchSampler(order, 8, drop_last=True)) == list(BatchSampler(order, 8, drop_last=True))


def test_an_epoch_in_a_drawn_order_goes_on_where_it_stopped():
    def epoch(skipped):
        [sampler, _] = ordered(50, 4, 2, 2)
        loader = prepare_data_loader(DataLoader(range(50), batch_sampler=sampler), num_processes=1, process_index=0)
        loader = skip_first_batches(loader, skipped) if skipped else loader
        # As Trainer does it
        (loader.batch_sampler.batch_sampler if skipped else loader).set_epoch(2)
        return [batch.tolist() for batch in loader]

    assert epoch(0) != [batch for batch in ordered(50, 4, 2, 2)[0]]
    assert epoch(3) == epoch(0)[3:]
