"""What the cells of a config cost: tokens trained and ranked, counted on the data, and the FLOPs that these are.

Counted are a prompt once and each completion after it, without what users or titles share: an upper bound. The FLOPs
are those of `dmpo_trl.training.cost`: LoRA's forward and backward pass, in a preference stage also the reference's
forward pass; to rank is a forward pass. Hours are FLOPs by a rate that is given, not measured.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer

from dmpo_trl.preprocessing.tokenize import tokenize_completions
from dmpo_trl.training.cost import BatchSize, ModelSize, TrainingOptions, step_cost

from .cells import Places, check, users_of
from .explaining import ORDERS, STEPS
from .methods import COUNTS, SFT, STAGES, TRADITIONAL, ZERO_SHOT
from .ranking import CHOOSING
from .settings import Cell, Settings
from .training import lora

_SAMPLE = 8  # users of each protocol whose tokens are counted


@dataclass(frozen=True)
class Budget:
    """Tokens of a cell: of SFT, of a stage after it, and to rank."""

    sft: float = 0
    stage: float = 0
    ranked: float = 0

    def __add__(self, other: "Budget") -> "Budget":
        return Budget(self.sft + other.sft, self.stage + other.stage, self.ranked + other.ranked)


def budget(cells: Iterable[Cell], places: Places, tflops: float) -> list[dict[str, str]]:
    """Return one row for each data set and number of users, and one for all.

    Args:
        cells: Of the config.
        places: Folders of the model, whose config and tokenizer are read, and of raw files.
        tflops: Rate for the hours, in 10^12 FLOPs per second.
    """
    if not (cells := [cell for cell in cells if cell.method not in (COUNTS, *TRADITIONAL)]):
        raise SystemExit("The config has no cell of a language model: there is nothing to estimate.")
    check(cells)
    of_group: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in cells:
        of_group.setdefault((cell.dataset, cell.trained_on, cell.users), []).append(cell)
    per_token = _flops_per_token(cells[0], places)
    rows, total = [], Budget()
    for (dataset, trained_on, users), group in of_group.items():
        own = Budget()
        for cell in group:
            own += _tokens(cell, places)
        across = "" if dataset == trained_on else f" from {trained_on}"
        rows.append(_row(f"{dataset}{across}, {users} users", len(group), own, per_token, tflops))
        total += own
    return [*rows, _row("all", len(cells), total, per_token, tflops)]


def _row(name: str, cells: int, own: Budget, per_token: Budget, tflops: float) -> dict[str, str]:
    flops = own.sft * per_token.sft + own.stage * per_token.stage + own.ranked * per_token.ranked
    return {
        "cells": name,
        "number": str(cells),
        "tokens of SFT": f"{own.sft:,.0f}",
        "of stages": f"{own.stage:,.0f}",
        "to rank": f"{own.ranked:,.0f}",
        "PFLOPs": f"{flops / 1e15:,.1f}",
        f"hours at {tflops:g} TFLOPs a second": f"{flops / tflops / 1e12 / 3600:.1f}",
    }


def _tokens(cell: Cell, places: Places) -> Budget:
    own, here = cell.settings, cell.dataset == cell.trained_on
    # Of all seeds the test users are the same and the training users as many
    of_sft, ranked = _of_users(replace(cell, seed=0, method=SFT), places.model, tuple(places.data.items()))
    of_sft = own.sft_tokens or of_sft * own.sft_epochs
    if cell.method == ZERO_SHOT or not here:  # an adapter from another data set is that of another cell
        return Budget(ranked=ranked)
    stage = STAGES.get(cell.method)
    if stage is None:
        return Budget(sft=of_sft if cell.method == SFT else own.tokens, ranked=ranked)
    return Budget(stage=own.tokens + (of_sft if stage.start == "base" else 0), ranked=ranked)


@cache
def _of_users(cell: Cell, model: str, data: tuple[tuple[str, Path], ...]) -> tuple[float, float]:
    """Return the tokens of an epoch of SFT, and those to rank."""
    few = replace(cell, settings=replace(cell.settings, catalogue_users=min(cell.settings.catalogue_users, 1)))
    places, tokenizer = Places(model, dict(data), Path(), Path()), AutoTokenizer.from_pretrained(model)

    def count(row: dict[str, Any], completions: list[Any]) -> int:
        prompt, others = tokenize_completions(tokenizer, row["prompt"], completions)
        return len(prompt) + sum(map(len, others))

    sft = users_of(few, cell.trained_on, places).sft()
    asked = users_of(few, cell.dataset, places).questions()
    return sum(count(row, [row["completion"]]) for row in sft), _to_rank(asked, cell.settings, count)


def _to_rank(asked: Mapping[str, Dataset], own: Settings, count: Callable[[dict[str, Any], list[Any]], int]) -> float:
    tokens = 0.0
    for name, rows in asked.items():
        some = rows.select(range(min(_SAMPLE, len(rows))))
        users = own.catalogue_users if name == "catalogue" else len(rows)
        if name == "test":
            users += min(CHOOSING, own.validation_users)
            variants = [1 + len(row["history"]) + STEPS * len(ORDERS) for row in some]
            scored = [count(row, row["candidates"][:1]) * times for row, times in zip(some, variants, strict=True)]
            tokens += own.explained_users * sum(scored) / len(some)
        tokens += users * sum(count(row, row["candidates"]) for row in some) / len(some)
    return tokens


def _flops_per_token(cell: Cell, places: Places) -> Budget:
    """Return the FLOPs of a token, of a batch of prompts of 250 tokens and four completions of 10."""
    size = ModelSize.from_config(AutoConfig.from_pretrained(places.model), lora(cell.settings))
    layout = BatchSize.trie([(250, [10] * 4)])
    stage = step_cost(size, layout, TrainingOptions())
    alone = step_cost(size, replace(layout, scored=layout.tokens), TrainingOptions())  # SFT scores every token
    return Budget(
        sft=(alone.forward + alone.backward) / layout.tokens,
        stage=stage.flops / layout.tokens,
        ranked=stage.forward / layout.tokens,
    )
