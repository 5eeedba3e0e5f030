"""Sampling: rows of one history side by side, and batches of a bounded number of tokens."""

import logging
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler
from trl import DPOConfig

from .._common_prefix import common_prefix_length
from ..config import option
from .budget import form_batches

logger = logging.getLogger(__name__)

Epoch = Callable[[], int]


def group_by_prompt(prompts: Sequence[Any], min_shared: float = 0.5) -> list[list[int]]:
    """Group examples whose prompts begin alike.

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

    Each epoch groups, and the examples of each, are shuffled. A group is cut into chunks that leave room for
    `min_groups` groups in a batch, and chunks go where they fill a batch up best, those of one group into different
    batches. Batches that remain incomplete are joined, and only there may the end of a batch cut a chunk in two. Then
    batches are shuffled, an incomplete one comes last. The usual `BatchSampler` cuts them from the order, and
    accelerate shares them out between processes.

    Args:
        groups: Indices of the examples of each group.
        batch_size: Number of examples per batch, in one process.
        seed: With the epoch it decides the order, the same in every process.
        epoch: Number of the current epoch; asked when iteration begins.
        min_groups: How many groups a batch has room for. The gradients of one group's examples point the same way.
    """

    def __init__(
        self, groups: Sequence[Sequence[int]], batch_size: int, seed: int, epoch: Epoch, min_groups: int = 1
    ) -> None:
        self.groups, self.batch_size, self.seed, self.epoch = groups, batch_size, seed, epoch
        self.chunk_size = max(batch_size // min_groups, min(batch_size, 2))  # alone, an example shares nothing

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(self.seed + self.epoch())
        chunks = [
            (number, chunk)
            for number, group in enumerate(self.groups)
            for chunk in _chunks(generator.sample(group, len(group)), self.chunk_size)
        ]
        generator.shuffle(chunks)
        # Batches by their free places, each with the groups that it has
        with_room: list[list[tuple[list[int], set[int]]]] = [[] for _ in range(self.batch_size + 1)]
        for number, chunk in chunks:  # best-fit bin packing
            batch, numbers = _take(with_room[len(chunk) : self.batch_size], number) or ([], set())
            with_room[self.batch_size - len(batch) - len(chunk)].append((batch + chunk, numbers | {number}))
        full, *incomplete = ([batch for batch, _ in batches] for batches in with_room)
        batches = full + _chunks(list(chain.from_iterable(chain.from_iterable(incomplete))), self.batch_size)
        last = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        generator.shuffle(batches)
        return chain.from_iterable(batches + last)


def _take(with_room: list[list[tuple[list[int], set[int]]]], number: int) -> tuple[list[int], set[int]] | None:
    """Take out the fullest batch that has nothing of group `number` yet; the lists come from full to empty."""
    for batches in with_room:
        for place in reversed(range(len(batches))):
            if number not in batches[place][1]:
                return batches.pop(place)
    return None


def _chunks(values: list[int], size: int) -> list[list[int]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


class Batches(TorchDataset[list[dict[str, Any]]]):
    """A dataset whose items are batches of unequal size: item i of a data loader is the rows of batch i.

    A data loader over it has a batch size of 1, and the usual samplers, whether of one process or of several, share
    the batches out. Its length is the number of examples, which is what `Trainer` reports; samplers go by `batches`.

    Args:
        dataset: The examples.
        batches: Indices of the examples of each batch.

    Example:
        >>> dataset = Dataset.from_dict({"title": ["Alien", "Babe", "Heidi"]})
        >>> Batches(dataset, [[0, 2], [1]]).__getitems__([0])
        [{'title': 'Alien'}, {'title': 'Heidi'}]
    """

    def __init__(self, dataset: Dataset, batches: Sequence[list[int]]) -> None:
        self.dataset, self.batches = dataset, batches

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return self.dataset.__getitems__([row for index in indices for row in self.batches[index]])


class ShuffledOrder(Sampler[int]):
    """The numbers from 0 to `size`, in another order each epoch.

    Args:
        size: How many.
        seed: With the epoch it decides the order, the same in every process.
        epoch: Number of the current epoch; asked when iteration begins.
        shuffle: Whether to shuffle; else the order is ascending.
    """

    def __init__(self, size: int, seed: int, epoch: Epoch, *, shuffle: bool = True) -> None:
        self.size, self.seed, self.epoch, self.shuffle = size, seed, epoch, shuffle

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.size))
        if self.shuffle:
            random.Random(self.seed + self.epoch()).shuffle(order)
        return iter(order)


# The trainer's side

_BY_LENGTH = ("group_by_length", "batch_rebalance")  # transformers' own


def _asks_for_ours(args: DPOConfig) -> bool:
    return args.train_sampling_strategy == "group_by_prompt" or option(args, "max_tokens_per_batch") is not None


def check_sampling(args: DPOConfig, dataset: Any) -> None:
    """Refuse what `make_train_sampler` and `make_batches` cannot do.

    Raises:
        ValueError: There is no such strategy, or it wants lengths that the dataset does not have; the dataset is a
            stream or holds images, or each batch is shared out between processes.
    """
    strategy = args.train_sampling_strategy
    if strategy not in ("random", "sequential", "group_by_prompt", *_BY_LENGTH):
        raise ValueError(
            "`train_sampling_strategy` must be 'random', 'sequential', 'group_by_prompt', 'group_by_length' or "
            f"'batch_rebalance', got {strategy!r}."
        )
    if strategy in _BY_LENGTH and isinstance(dataset, Dataset) and args.length_column_name not in dataset.column_names:
        raise ValueError(
            f"`train_sampling_strategy={strategy!r}` goes by the numbers in the column `{args.length_column_name}`, "
            "which the training dataset does not have: add it (`length_column_name` gives its name), or choose "
            "'group_by_prompt' or `max_tokens_per_batch`, which count tokens themselves."
        )
    if not _asks_for_ours(args) or dataset is None:
        return
    asked = "train_sampling_strategy='group_by_prompt'"
    if option(args, "max_tokens_per_batch") is not None:
        asked = "max_tokens_per_batch"
        accelerator_config: Any = args.accelerator_config
        if accelerator_config.split_batches or args.parallelism_config is not None:
            raise ValueError(
                "`max_tokens_per_batch` gives every process batches of its own, and `split_batches` or "
                "`parallelism_config` let several processes work on one: leave one of them out."
            )
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"`{asked}` looks at the whole training dataset before the first step, and a stream has no whole: load "
            "it without streaming, or leave the option out."
        )
    if {"image", "images"} & set(dataset.column_names):
        raise ValueError(
            f"`{asked}` goes by the tokens of the prompts, and rows with images are tokenised batch by batch: leave "
            "the option out."
        )


def make_train_sampler(args: DPOConfig, dataset: Any, batch_size: int, epoch: Epoch) -> Sampler[int] | None:
    """Make the sampler that `train_sampling_strategy` and `max_tokens_per_batch` ask for; None where TRL's is meant.

    Args:
        args: The training arguments.
        dataset: Tokenised examples, or `Batches` of them.
        batch_size: Number of examples per batch in one process.
        epoch: Number of the current epoch; asked when iteration begins.
    """
    if isinstance(dataset, Batches):
        return ShuffledOrder(
            len(dataset.batches), _seed(args), epoch, shuffle=args.train_sampling_strategy != "sequential"
        )
    if not _asks_for_ours(args):
        return None
    batches_per_step = args.gradient_accumulation_steps * args.world_size
    min_groups = -(-option(args, "min_groups_per_step") // batches_per_step)
    return PromptGroupSampler(_prompt_groups(dataset), batch_size, _seed(args), epoch, min_groups)


def make_batches(
    args: DPOConfig, dataset: Dataset, batch_size: int, collate: Callable[[list[dict[str, Any]]], Any]
) -> Batches | None:
    """Form the batches that `max_tokens_per_batch` asks for; None where it is not set.

    Args:
        args: The training arguments.
        dataset: Tokenised examples.
        batch_size: Most examples per batch.
        collate: The collator, whose padded `input_ids` are the tokens of a batch.
    """
    max_tokens = option(args, "max_tokens_per_batch")
    if max_tokens is None:
        return None
    order = list(range(len(dataset)))
    if args.train_sampling_strategy == "group_by_prompt":
        groups = _prompt_groups(dataset)
        random.Random(_seed(args)).shuffle(groups)
        order = list(chain.from_iterable(groups))
    elif args.train_sampling_strategy == "random":
        random.Random(_seed(args)).shuffle(order)

    batches, over = form_batches(dataset, order, collate, max_tokens, batch_size, num_proc=args.dataset_num_proc)
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
    return Batches(dataset, batches)


def _seed(args: DPOConfig) -> int:
    return args.seed if args.data_seed is None else args.data_seed


def _prompt_groups(dataset: Dataset) -> list[list[int]]:
    rows = dataset.select_columns("prompt_ids").iter(batch_size=1000)
    groups = group_by_prompt([array("i", ids) for batch in rows for ids in batch["prompt_ids"]])
    logger.info("The %d training examples are in %d groups by their prompts", len(dataset), len(groups))
    return groups
