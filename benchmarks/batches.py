"""Token counts of an epoch for different ways to form batches; nothing is trained.

    python benchmarks/batches.py --files FOLDER/rec_*_dpo_ranking_5.json

The script takes JSON files of the DMPO authors' pairs. It counts the tokens that are computed, padding included, for
N+1 copies and for the trie, with random batches and with `train_sampling_strategy="group_by_prompt"` (means over
seeds), and with `max_tokens_per_batch` in addition.
"""

import random
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from cases import read_authors_pairs
from models import default_model
from torch.utils.data import BatchSampler
from transformers import AutoConfig, AutoTokenizer, HfArgumentParser

from dmpo_trl import DataCollatorForMultiPreference
from dmpo_trl.batching.budget import batches_within_budget
from dmpo_trl.batching.sampler import PromptGroupSampler, group_by_prompt
from dmpo_trl.preprocessing.tokenize import tokenize_row
from dmpo_trl.training.cost import BatchSize


@dataclass
class Settings:
    files: list[Path] = field(metadata={"help": "JSON files of pairs."})
    model: str | None = field(default=None, metadata={"help": "Folder. Default: the quickstart's SmolLM2-135M."})
    batch_sizes: list[int] = field(default_factory=lambda: [5, 10, 32])
    budgets: list[int] = field(default_factory=lambda: [2048, 4096])
    seeds: int = field(default=5)


def epoch(batches: Iterable[list[int]], examples: list[dict[str, Any]], collate: Any) -> list[BatchSize]:
    return [BatchSize.measured(collate([examples[i] for i in batch])) for batch in batches]


def tokens(epochs: list[list[BatchSize]]) -> str:
    """Return the number of computed tokens, with the percentage of padding."""
    padded = statistics.mean(sum(layout.padded_tokens for layout in layouts) for layouts in epochs)
    own = statistics.mean(sum(layout.tokens for layout in layouts) for layouts in epochs)
    return f"{padded:,.0f} ({1 - own / padded:.0%})"


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    if settings.model is None:
        settings.model = default_model()
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    hidden_size = AutoConfig.from_pretrained(settings.model).hidden_size
    trie = DataCollatorForMultiPreference(0, prefix_sharing=True, attention_balance=6.0 * hidden_size)
    copies = DataCollatorForMultiPreference(0)
    print("| file | batch | copies | random | grouped | batches |\n|---|---|---|---|---|---|")
    for file in settings.files:
        examples = [
            tokenize_row(
                row,
                number,
                dataset_name=file.name,
                processing_class=tokenizer,
                max_length=None,
                truncation_mode="keep_start",
            )
            for number, row in enumerate(read_authors_pairs(file))
        ]
        groups = group_by_prompt([example["prompt_ids"] for example in examples])
        for size in settings.batch_sizes:
            sides: dict[str, list[list[BatchSize]]] = {"copies": [], "random": [], "grouped": []}
            for seed in range(settings.seeds):
                order = random.Random(seed).sample(range(len(examples)), len(examples))
                mixed = list(BatchSampler(order, size, drop_last=False))
                grouped = BatchSampler(PromptGroupSampler(groups, size, seed, lambda: 0), size, drop_last=False)
                sides["copies"].append(epoch(mixed, examples, copies))
                sides["random"].append(epoch(mixed, examples, trie))
                sides["grouped"].append(epoch(grouped, examples, trie))
            counts = " | ".join(map(tokens, sides.values()))
            print(f"| {file.name} | {size} rows | {counts} | {len(mixed)} |", flush=True)
        for budget in settings.budgets:
            order = list(chain.from_iterable(random.Random(0).sample(groups, len(groups))))

            def count(indices: Any, examples: list[dict[str, Any]] = examples) -> int:
                return trie([examples[i] for i in indices])["input_ids"].numel()

            layouts = epoch(batches_within_budget(order, count, budget, len(order)), examples, trie)
            print(f"| {file.name} | {budget} tokens | | | {tokens([layouts])} | {len(layouts)} |", flush=True)


if __name__ == "__main__":
    main()
