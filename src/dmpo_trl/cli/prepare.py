"""`dmpo-trl prepare`: raw files to a folder of datasets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .options import Parser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..data import PrepareConfig


@dataclass
class PrepareArguments:
    """What the command does beside [`prepare`], which knows no model."""

    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Folder or hub id of the model that will be trained: titles that are the same tokens for it, so "
            "that it cannot tell them apart, are named."
        },
    )


def make_parser() -> Parser:
    """Return the command's parser."""
    from ..data import PrepareConfig

    example = (
        "dmpo-trl prepare --dataset movielens --version 1m --download --min_rating 4 --output_dir data\n"
        "dmpo-trl prepare --dataset table --path views.csv --items products.csv --template products --output_dir data"
    )
    return Parser("prepare", PrepareConfig, PrepareArguments, example=example)


def run(arguments: list[str]) -> None:
    """Prepare as the arguments say, and print how many rows each dataset has, and why."""
    from ..data import prepare
    from ..data.preparation.summary import examples_in_words

    config, options = make_parser().parse(arguments)
    tokenizer = _load_tokenizer(options.tokenizer, config) if options.tokenizer is not None else None
    prepared = prepare(config)
    for dataset, splits in prepared.manifest["rows"].items():
        print(f"{dataset:<12}" + ", ".join(f"{rows:,} {split}" for split, rows in splits.items()))
    print(examples_in_words(prepared.manifest))
    print(f"Written to {prepared.folder}, with a README of what was read, dropped and drawn.")
    if tokenizer is not None:
        from ..recommend.catalogue import PromptTries

        # The titles become tokens after a prompt, as in training, and those that are the same ones are named
        titles = prepared.items["title"].unique(maintain_order=True).to_list()
        PromptTries(tokenizer, titles, config.prompt_template())(prepared.ranking["test"][0]["prompt"])


def _load_tokenizer(path: str, config: PrepareConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer, and check before the work that it can render the prompts."""
    from ..modeling.loading import load_tokenizer

    try:
        tokenizer = load_tokenizer(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--tokenizer {path} is neither a folder with a tokenizer nor a hub id of one: {error}"
        ) from error
    if config.conversational and tokenizer.chat_template is None:
        raise ValueError(
            f"--tokenizer {path} has no chat template, and the prompts are messages. Use --conversational false, or "
            "the tokenizer of a chat model."
        )
    return tokenizer
