"""Which examples share a batch: every row once, the same order again, groups together, budgets kept."""

import json
from collections import Counter
from itertools import chain

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from support import make_model, make_tokenizer, ragged_examples
from torch.utils.data import BatchSampler, DataLoader

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl._common_prefix import common_prefix_length
from dmpo_trl.batching.collator import DataCollatorForMultiPreference
from dmpo_trl.batching.sampler import (
    Batches,
    PromptGroupSampler,
    ShuffledOrder,
    check_sampling,
    group_by_prompt,
)

PROMPTS = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=20)
GROUPS = st.lists(st.integers(1, 7), min_size=1, max_size=12)  # sizes


def numbered_groups(sizes):
    numbers = iter(range(sum(sizes)))
    return [[next(numbers) for _ in range(size)] for size in sizes]


def group_batches(sizes, batch_size, seed=0, epoch=0):
    sampler = PromptGroupSampler(numbered_groups(sizes), batch_size, seed, lambda: epoch)
    assert len(sampler) == sum(sizes)
    return list(BatchSampler(sampler, batch_size, drop_last=False))


# Groups


def test_groups_are_the_histories_of_the_rows():
    instruction, histories = [9, 9, 9, 9], [[1, 2, 3, 4, 5], [1, 2, 6, 7, 8], [5, 5, 5, 5, 5]]
    prompts = [instruction + history + [question] for question in (0, 7, 3) for history in histories]
    groups = group_by_prompt(prompts)
    assert sorted(map(sorted, groups)) == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


@given(PROMPTS, st.floats(0, 1))
def test_groups_hold_every_example_once_and_what_their_neighbours_share(prompts, min_shared):
    groups = group_by_prompt(prompts, min_shared)
    assert sorted(chain.from_iterable(groups)) == list(range(len(prompts)))
    common = min((common_prefix_length(prompts[0], prompt) for prompt in prompts), default=0)
    for group in groups:
        for a in group:
            # Nobody is alone with what it shares: another of its group shares that much of the longer prompt
            near = [
                common_prefix_length(prompts[a], prompts[b]) - common
                >= min_shared * (max(len(prompts[a]), len(prompts[b])) - common)
                for b in group
                if b != a
            ]
            assert not near or any(near)


def test_equal_prompts_are_one_group_even_if_there_are_no_others():
    assert [sorted(group) for group in group_by_prompt([[1, 2], [1, 2], [1, 2]], 1.0)] == [[0, 1, 2]]
    assert group_by_prompt([]) == []


# Order by groups


@given(GROUPS, st.integers(1, 8), st.integers(0, 3))
def test_an_epoch_has_every_row_once_in_full_batches(sizes, batch_size, epoch):
    batches = group_batches(sizes, batch_size, epoch=epoch)
    assert sorted(chain.from_iterable(batches)) == list(range(sum(sizes)))
    assert all(len(batch) == batch_size for batch in batches[:-1])


@given(GROUPS, st.integers(1, 8))
def test_a_group_is_in_no_more_batches_than_one_cut_costs(sizes, batch_size):
    batches = group_batches(sizes, batch_size)
    for group in numbered_groups(sizes):
        touched = sum(not set(group).isdisjoint(batch) for batch in batches)
        assert touched <= -(-len(group) // batch_size) + 1


def test_groups_that_fill_batches_are_never_cut():
    groups = list(map(set, numbered_groups([5] * 20)))
    assert all(set(batch) in groups for batch in group_batches([5] * 20, 5))
    for batch in group_batches([5] * 20, 10):
        assert sum(group <= set(batch) for group in groups) == 2


@given(st.integers(0, 100))
def test_odd_groups_do_not_shift_the_others_over_the_ends_of_batches(seed):
    sizes = [5] * 39 + [4, 1]
    batches = group_batches(sizes, 10, seed)
    cut = [group for group in numbered_groups(sizes) if sum(not set(group).isdisjoint(batch) for batch in batches) > 1]
    assert len(cut) <= 2  # one after the other would cut most of those after the group of four


@given(st.lists(st.integers(1, 40), min_size=4, max_size=12), st.integers(4, 16), st.integers(1, 4), st.integers(0, 9))
def test_a_batch_has_room_for_several_groups(sizes, batch_size, min_groups, seed):
    groups = numbered_groups(sizes)
    sampler = PromptGroupSampler(groups, batch_size, seed, lambda: 0, min_groups)
    batches = list(BatchSampler(sampler, batch_size, drop_last=False))
    assert sorted(chain.from_iterable(batches)) == list(range(sum(sizes)))
    room = max(batch_size // min_groups, 2)
    # Where groups are alike, none has more of a batch than its room
    if len(set(sizes)) == 1 and sizes[0] % room == 0 and batch_size % room == 0:
        full = [batch for batch in batches if len(batch) == batch_size]
        crowded = [batch for batch in full if any(len(set(batch) & set(group)) > room for group in groups)]
        assert len(crowded) <= min_groups  # those that were joined at the end


@given(st.integers(0, 50))
def test_long_histories_share_every_batch(seed):
    groups = numbered_groups([20] * 16)
    batches = list(BatchSampler(PromptGroupSampler(groups, 16, seed, lambda: 0, 4), 16, drop_last=False))
    counts = [len({example // 20 for example in batch}) for batch in batches]
    assert sum(count >= 4 for count in counts) >= len(counts) - 3  # the last ones take what is left
    alone = list(BatchSampler(PromptGroupSampler(groups, 16, seed, lambda: 0), 16, drop_last=False))
    assert any(len({example // 20 for example in batch}) == 1 for batch in alone)


def test_the_order_is_the_seeds_and_the_epochs():
    orders = {(seed, epoch): group_batches([5] * 20, 10, seed, epoch) for seed in (0, 7) for epoch in (0, 1)}
    assert orders[0, 1] == group_batches([5] * 20, 10, 0, 1)
    assert len({str(order) for order in orders.values()}) == 4
    # Other epochs bring other groups together, not the same batches in another order
    made_up = [{frozenset(batch) for batch in orders[0, epoch]} for epoch in (0, 1)]
    assert made_up[0] != made_up[1]


# Token budget


@given(st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_processes_share_the_batches_out(count, num_processes, drop_last):
    """By accelerate, as it shares out examples."""
    groups = numbered_groups([1 + i % 3 for i in range(count)])
    examples = Dataset.from_dict({"number": list(range(sum(map(len, groups))))})
    batches = Batches(examples, groups)
    seen = []
    for rank in range(num_processes):
        order = BatchSampler(ShuffledOrder(count, 0, lambda: 3), batch_size=1, drop_last=drop_last)
        share = BatchSamplerShard(order, num_processes, rank, even_batches=not drop_last)
        loader = DataLoader(batches, batch_sampler=share, collate_fn=lambda rows: [row["number"] for row in rows])
        seen.append(list(loader))
    times = Counter(map(tuple, chain.from_iterable(seen)))
    assert set(times) <= set(map(tuple, groups))
    if drop_last:
        assert set(times.values()) <= {1}
    else:
        assert len({len(own) for own in seen}) == 1
        assert set(times) == set(map(tuple, groups))
        assert sum(times.values()) - count < num_processes  # no more repeats than one round has gaps


def test_batches_come_in_another_order_each_epoch():
    orders = [list(ShuffledOrder(15, 0, lambda epoch=epoch: epoch)) for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(15))
    assert list(ShuffledOrder(15, 0, lambda: 1, shuffle=False)) == list(range(15))


# In the trainer


@pytest.fixture(scope="module")
def rows():
    # Four rows of each of four histories, each prompt with another end
    examples = ragged_examples(0, [1, 3, 2, 1], shared_history=False)
    for example in examples:
        example["prompt_ids"] = example["prompt_ids"] + example["prompt_ids"][5:]  # a history longer than its end
    return [example | {"prompt_ids": example["prompt_ids"] + [20 + i]} for i in range(4) for example in examples]


def make_trainer(folder, rows, **options):
    seen = []

    class Recorder(DataCollatorForMultiPreference):
        def __call__(self, features, *args, **kwargs):
            seen.append([row["prompt_ids"] for row in features])
            return super().__call__(features, *args, **kwargs)

    options = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "save_strategy": "no"} | options
    args = DMPOConfig(
        str(folder),
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        max_length=None,
        learning_rate=1e-3,
        logging_steps=1,
        **options,
    )
    trainer = DMPOTrainer(
        make_model(),
        make_model(),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(),
    )
    inner = trainer.data_collator
    trainer.data_collator = Recorder(**{name: getattr(inner, name) for name in inner.__dataclass_fields__})
    return trainer, seen


def test_the_trainer_groups_rows_of_a_history(tmp_path, rows):
    trainer, seen = make_trainer(tmp_path, rows, train_sampling_strategy="group_by_prompt", min_groups_per_step=1)
    trainer.train()
    assert len(seen) == 8
    for batch in seen:
        assert len({tuple(prompt[:-1]) for prompt in batch}) == 1
    for epoch in (seen[:4], seen[4:]):
        assert sorted(chain.from_iterable(epoch)) == sorted(row["prompt_ids"] for row in rows)
    assert seen[:4] != seen[4:]


@pytest.mark.parametrize(
    ("options", "middle"),
    [({"train_sampling_strategy": "group_by_prompt"}, 5), ({"max_tokens_per_batch": 120}, 11)],
    ids=["group_by_prompt", "max_tokens_per_batch"],
)
def test_a_resumed_run_takes_the_batches_of_an_uninterrupted_one(tmp_path, rows, options, middle):
    options = options | {"save_strategy": "steps", "save_steps": middle}
    trainer, whole = make_trainer(tmp_path, rows, **options)
    trainer.train()
    total = trainer.state.global_step
    assert total // 2 < middle < total  # in the second epoch
    whole = list(whole)
    if "max_tokens_per_batch" in options:
        whole = whole[-total:]  # before them batches were tried out for their size
    resumed, seen = make_trainer(tmp_path, rows, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{middle}"))
    assert seen[-(total - middle) :] == whole[middle:]
    expected, actual = trainer.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_prompt"])
def test_the_trainer_keeps_the_budget_and_knows_the_number_of_steps(tmp_path, rows, strategy):
    budget = 120
    trainer, seen = make_trainer(
        tmp_path,
        rows,
        max_tokens_per_batch=budget,
        train_sampling_strategy=strategy,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=3,
    )
    sizes = []
    step = trainer.training_step
    trainer.training_step = lambda model, inputs, *args: (
        sizes.append((len(inputs["num_rejected"]), inputs["input_ids"].numel())) or step(model, inputs, *args)
    )
    trainer.train()
    trained = list(seen)
    loader = trainer.get_train_dataloader()
    batches = len(loader)
    assert trainer.num_examples(loader) == len(rows)
    assert len(sizes) == 2 * batches
    assert trainer.state.global_step == trainer.state.max_steps == 2 * -(-batches // 2)
    assert all(tokens <= budget or examples == 1 for examples, tokens in sizes)
    assert max(examples for examples, _ in sizes) <= 3
    assert sum(examples for examples, _ in sizes) == 2 * len(rows)
    first, second = trained[-2 * batches : -batches], trained[-batches:]
    assert (first == second) == (strategy == "sequential")


def test_rows_over_the_budget_are_reported(tmp_path, rows, caplog):
    trainer, _ = make_trainer(tmp_path, rows, max_tokens_per_batch=5)
    with caplog.at_level("WARNING", logger="dmpo_trl"):
        assert len(trainer.get_train_dataloader()) == len(rows)
    assert "16 of the 16 training examples alone have more than max_tokens_per_batch=5 tokens" in caplog.text


# What is refused


@pytest.mark.parametrize("option", [{"train_sampling_strategy": "group_by_prompt"}, {"max_tokens_per_batch": 100}])
def test_streams_and_untokenised_data_are_refused(tmp_path, option):
    args = DMPOConfig(str(tmp_path), bf16=False, **option)
    data = Dataset.from_list([{"prompt": "a", "images": [], "chosen": "b", "rejected": ["c"]}])
    with pytest.raises(ValueError, match="without streaming, or leave the option out"):
        check_sampling(args, data.to_iterable_dataset())
    with pytest.raises(ValueError, match="tokenised batch by batch"):
        check_sampling(args, data)


def test_a_stream_is_refused_before_training(tmp_path, rows):
    args = DMPOConfig(str(tmp_path), bf16=False, max_steps=2, train_sampling_strategy="group_by_prompt")
    stream = Dataset.from_list(rows).to_iterable_dataset()
    with pytest.raises(ValueError, match="a stream has no whole"):
        DMPOTrainer(make_model(), make_model(), args, train_dataset=stream, processing_class=make_tokenizer())


def test_two_ways_to_form_batches_are_refused(tmp_path):
    with pytest.raises(ValueError, match="both decide which examples make a batch"):
        DMPOConfig(str(tmp_path), bf16=False, max_tokens_per_batch=10, train_sampling_strategy="group_by_length")
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        DMPOConfig(str(tmp_path), bf16=False, max_tokens_per_batch=0)
    args = DMPOConfig(
        str(tmp_path), bf16=False, max_tokens_per_batch=10, accelerator_config=json.dumps({"split_batches": True})
    )
    with pytest.raises(ValueError, match="leave one of them out"):
        check_sampling(args, Dataset.from_list([{"prompt_ids": [1]}]))
