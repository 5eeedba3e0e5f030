"""Which examples share a batch: rows of one history side by side, and batches of a bounded number of tokens."""

import logging
import random
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

from datasets import Dataset
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import BatchRebalanceSampler
from trl import DPOConfig

from .._prefix import common_prefix_length

logger = logging.getLogger(__name__)

Epoch = Callable[[], int]


def group_by_prompt(prompts: Sequence[Any], min_shared: float = 0.5) -> list[list[int]]:
    """Groups of examples whose prompts begin alike.

    In lexicographic order a prompt shares its longest prefix with a neighbour. Neighbours are in one group where what
    they share is at least `min_shared` of the longer one; what all prompts share (an instruction that stands before
    every history) counts on neither side.

    Args:
        prompts: Token ids of each example's prompt, as lists or, in an eighth of the memory, arrays.
        min_shared: Least share of the longer prompt, 0 to 1.

    Returns:
        The indices of the examples of each group.
    """
    if not prompts:
        return []
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    common = common_prefix_length(prompts[order[0]], prompts[order[-1]])
    groups = [order[:1]]
    for previous, example in pairwise(order):
        shared = common_prefix_length(prompts[previous], prompts[example]) - common
        longer = max(len(prompts[previous]), len(prompts[example])) - common
        if shared >= min_shared * longer:
            groups[-1].append(example)
        else:
            groups.append([example])
    return groups


class PromptGroupSampler(Sampler[int]):
    """Random order in which the examples of a group fall into the same batch, as far as a batch holds them.

    Each epoch groups, and the examples of each, are shuffled. A group larger than a batch fills batches of its own.
    What is left of it, and smaller groups, go where they fill a batch up best; batches that remain incomplete are
    joined, and only there may the end of a batch cut a group in two. Then batches are shuffled, an incomplete one
    comes last. The usual `BatchSampler` cuts them from the order, and accelerate shares them out between processes.

    Args:
        groups: Indices of the examples of each group.
        batch_size: Examples a batch, in one process.
        seed: With the epoch it decides the order, the same in every process.
        epoch: Number of the current epoch; asked when iteration begins.
    """

    def __init__(self, groups: Sequence[Sequence[int]], batch_size: int, seed: int, epoch: Epoch) -> None:
        self.groups, self.batch_size, self.seed, self.epoch = groups, batch_size, seed, epoch

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(self.seed + self.epoch())
        chunks = [
            chunk for group in self.groups for chunk in _chunks(generator.sample(group, len(group)), self.batch_size)
        ]
        generator.shuffle(chunks)
        with_room: list[list[list[int]]] = [[] for _ in range(self.batch_size + 1)]  # batches by their free places
        for chunk in chunks:  # best-fit bin packing
            room = next((room for room in range(len(chunk), self.batch_size) if with_room[room]), None)
            batch = [] if room is None else with_room[room].pop()
            with_room[self.batch_size - len(batch) - len(chunk)].append(batch + chunk)
        batches, *incomplete = with_room
        batches += _chunks(list(chain.from_iterable(chain.from_iterable(incomplete))), self.batch_size)
        last = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        generator.shuffle(batches)
        return chain.from_iterable(batches + last)


def _chunks(values: list[int], size: int) -> list[list[int]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def batches_within_budget(
    order: Sequence[int], count_tokens: Callable[[Sequence[int]], int], max_tokens: int, max_examples: int
) -> list[list[int]]:
    """Cut an order of examples into batches of at most `max_tokens` tokens and `max_examples` examples.

    An example that alone has more tokens becomes a batch of its own.

    Args:
        order: Indices of the examples.
        count_tokens: Number of tokens of a batch, given its indices.
        max_tokens: The budget.
        max_examples: Most examples a batch.
    """
    batches = []
    start = 0
    while start < len(order):
        sizes = range(2, min(max_examples, len(order) - start) + 1)
        fitting = bisect_left(sizes, True, key=lambda n: count_tokens(order[start : start + n]) > max_tokens)
        batches.append(list(order[start : start + fitting + 1]))
        start += fitting + 1
    return batches


class TokenBudgetBatchSampler(BatchRebalanceSampler):
    """Fixed batches of unequal size, in another order each epoch.

    The batches stay the same from epoch to epoch, so that their number, which schedulers must know, does too.
    `Trainer` takes a sampler of the parent's type as a batch sampler that shares batches out between the processes by
    itself; nothing else is the parent's. Where the batches do not divide evenly, the first ones of the epoch are
    repeated, as with accelerate's own sharing, or with `drop_last` the last ones left out.

    Args:
        batches: Indices of the examples of each batch.
        seed: With the epoch it decides the order, the same in every process.
        epoch: Number of the current epoch; asked when iteration begins.
        shuffle: Whether to shuffle the batches.
        num_processes: Number of processes that share the batches.
        rank: Which of them this one is.
        drop_last: Leave out what does not divide evenly.
    """

    def __init__(
        self,
        batches: Sequence[list[int]],
        seed: int,
        epoch: Epoch,
        *,
        shuffle: bool = True,
        num_processes: int = 1,
        rank: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.batches, self.seed, self.current_epoch, self.shuffle = batches, seed, epoch, shuffle
        self.num_processes, self.rank, self.drop_last = num_processes, rank, drop_last

    def __len__(self) -> int:
        rounds, left = divmod(len(self.batches), self.num_processes)
        return rounds + (left > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        batches = list(self.batches)
        if self.shuffle:
            random.Random(self.seed + self.current_epoch()).shuffle(batches)
        needed = len(self) * self.num_processes
        while len(batches) < needed:
            batches += batches[: needed - len(batches)]
        return iter(batches[self.rank : needed : self.num_processes])


# The trainer's side


def _asks_for_ours(args: DPOConfig) -> bool:
    return args.train_sampling_strategy == "group_by_prompt" or getattr(args, "max_tokens_per_batch", None) is not None


def check_sampling(args: DPOConfig, dataset: Any) -> None:
    """Refuse what `make_train_sampler` cannot do.

    Raises:
        ValueError: The dataset is a stream or holds images, or each batch is shared out between processes.
    """
    if not _asks_for_ours(args) or dataset is None:
        return
    option = "train_sampling_strategy='group_by_prompt'"
    if getattr(args, "max_tokens_per_batch", None) is not None:
        option = "max_tokens_per_batch"
        accelerator_config: Any = args.accelerator_config
        if accelerator_config.split_batches or args.parallelism_config is not None:
            raise ValueError(
                "`max_tokens_per_batch` gives every process batches of its own, and `split_batches` or "
                "`parallelism_config` let several processes work on one: leave one of them out."
            )
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"`{option}` looks at the whole training dataset before the first step, and a stream has no whole: load "
            "it without streaming, or leave the option out."
        )
    if {"image", "images"} & set(dataset.column_names):
        raise ValueError(
            f"`{option}` goes by the tokens of the prompts, and rows with images are tokenised batch by batch: leave "
            "the option out."
        )


def make_train_sampler(
    args: DPOConfig, dataset: Any, batch_size: int, collate: Callable[[list[dict[str, Any]]], Any], epoch: Epoch
) -> Sampler | None:
    """The sampler that `train_sampling_strategy` and `max_tokens_per_batch` ask for; None where TRL's is meant.

    Args:
        args: The training arguments.
        dataset: Tokenised examples.
        batch_size: Examples a batch in one process (with a token budget: at most).
        collate: The collator, whose padded `input_ids` are the tokens of a batch.
        epoch: Number of the current epoch.
    """
    if not _asks_for_ours(args):
        return None
    seed = args.seed if args.data_seed is None else args.data_seed
    grouped = args.train_sampling_strategy == "group_by_prompt"
    if grouped:
        rows = dataset.select_columns("prompt_ids").iter(batch_size=1000)
        groups = group_by_prompt([array("i", ids) for batch in rows for ids in batch["prompt_ids"]])
        logger.info("The %d training examples are in %d groups by their prompts", len(dataset), len(groups))
    max_tokens = getattr(args, "max_tokens_per_batch", None)
    if max_tokens is None:
        return PromptGroupSampler(groups, batch_size, seed, epoch)

    order = list(range(len(dataset)))
    if grouped:
        random.Random(seed).shuffle(groups)
        order = list(chain.from_iterable(groups))
    elif args.train_sampling_strategy == "random":
        random.Random(seed).shuffle(order)

    def count_tokens(indices: Sequence[int]) -> int:
        columns = dataset[list(indices)]
        examples = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return int(collate(examples)["input_ids"].numel())

    batches = batches_within_budget(order, count_tokens, max_tokens, batch_size)
    over = [tokens for batch in batches if len(batch) == 1 and (tokens := count_tokens(batch)) > max_tokens]
    if over:
        logger.warning(
            "%d of the %d training examples alone have more than max_tokens_per_batch=%d tokens (up to %d); each is a "
            "batch of its own.",
            len(over),
            len(dataset),
            max_tokens,
            max(over),
        )
    logger.info(
        "The %d training examples form %d batches of at most %d tokens", len(dataset), len(batches), max_tokens
    )
    return TokenBudgetBatchSampler(
        batches,
        seed,
        epoch,
        shuffle=args.train_sampling_strategy != "sequential",
        num_processes=args.world_size,
        rank=args.process_index,
        drop_last=args.dataloader_drop_last,
    )
