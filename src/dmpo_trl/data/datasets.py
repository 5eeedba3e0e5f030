"""Datasets of text from examples of items, in the formats of the trainers.

The text is made by polars, many rows at a time, and is the same as [`PromptTemplate.prompt`] and
[`PromptTemplate.completion`] make row by row.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
import pyarrow as pa
from datasets import Dataset

from ._random import uniform
from .examples import seen_before
from .interactions import Interactions
from .prompts import PromptTemplate

ROWS = 20_000  # in one step: enough for speed, and the text of so many fits in memory many times over


def preference_dataset(
    examples: pl.DataFrame, data: Interactions, template: PromptTemplate, *, seed: int = 0
) -> Dataset:
    """Make the training data of `DMPOTrainer`: one row per example.

    Args:
        examples: Columns `history`, `target` and `negatives`, as [`leave_one_out`] and [`sample_negatives`] make them;
            also `user` where the template lists the candidates (target and negatives) in the prompt. Where it lists
            none, `target` may hold lists of items, and `chosen_levels` lists of numbers for them (docs/losses.md).
        data: The interactions; they give the titles.
        template: Makes prompts and completions.
        seed: Of the order of candidates in the prompt, which is drawn from `seed`, the user and the place of the
            example among the user's, never from the target.

    Returns:
        Columns `prompt`, `chosen` (the target, or a list of them) and `rejected` (a list, the negatives), and `user`,
        which trainers leave alone, and `chosen_levels` where `examples` has them.

    Raises:
        ValueError: For a missing column, or an item that `data` has no title of. So do the other functions here.

    Example:
        >>> films = ["alien", "babe", "fargo"]
        >>> interactions = pl.DataFrame({"user": ["ann", "ann"], "item": ["alien", "babe"], "timestamp": [1, 2]})
        >>> data = Interactions(interactions, pl.DataFrame({"item": films, "title": ["Alien", "Babe", "Fargo"]}))
        >>> examples = pl.DataFrame(
        ...     {"user": ["ann"], "history": [["alien"]], "target": ["babe"], "negatives": [["fargo"]]}
        ... )
        >>> template = PromptTemplate("Liked:", "Next:", conversational=False)
        >>> preference_dataset(examples, data, template)[0]
        {'prompt': 'Liked:\\nAlien\\nNext:\\n', 'chosen': 'Babe', 'rejected': ['Fargo'], 'user': 'ann'}

        Several targets after no history, the second one better:

        >>> examples = pl.DataFrame(
        ...     {"history": [[]], "target": [["babe", "fargo"]], "chosen_levels": [[1, 2]], "negatives": [["alien"]]}
        ... )
        >>> preference_dataset(examples, data, template)[0]
        {'prompt': 'Liked:\\n\\nNext:\\n', 'chosen': ['Babe', 'Fargo'], 'rejected': ['Alien'], 'chosen_levels': [1, 2]}
    """
    return _dataset("preference", examples, data, template, seed)


def pair_dataset(examples: pl.DataFrame, data: Interactions, template: PromptTemplate, *, seed: int = 0) -> Dataset:
    """Make the same preferences as pairs, the format of TRL's `DPOTrainer`: one row per negative.

    Args:
        examples: As in [`preference_dataset`].
        data: The interactions; they give the titles.
        template: Makes prompts and completions.
        seed: As in [`preference_dataset`].

    Returns:
        Columns `prompt`, `chosen` (the target) and `rejected` (one negative).

    Example:
        >>> films = ["alien", "babe", "fargo"]
        >>> interactions = pl.DataFrame({"user": ["ann", "ann"], "item": ["alien", "babe"], "timestamp": [1, 2]})
        >>> data = Interactions(interactions, pl.DataFrame({"item": films, "title": ["Alien", "Babe", "Fargo"]}))
        >>> examples = pl.DataFrame(
        ...     {"user": ["ann"], "history": [["alien"]], "target": ["babe"], "negatives": [["fargo"]]}
        ... )
        >>> template = PromptTemplate("Liked:", "Next:", conversational=False)
        >>> pair_dataset(examples, data, template)[0]
        {'prompt': 'Liked:\\nAlien\\nNext:\\n', 'chosen': 'Babe', 'rejected': 'Fargo'}
    """
    return _dataset("pairs", examples, data, template, seed)


def sft_dataset(examples: pl.DataFrame, data: Interactions, template: PromptTemplate, *, seed: int = 0) -> Dataset:
    """Make the training data of TRL's `SFTTrainer`: one row per example.

    Args:
        examples: As in [`preference_dataset`]; `negatives` are needed only where the prompt lists candidates.
        data: The interactions; they give the titles.
        template: Makes prompts and completions.
        seed: As in [`preference_dataset`].

    Returns:
        Columns `prompt` and `completion` (the target).

    Example:
        >>> films = ["alien", "babe", "fargo"]
        >>> interactions = pl.DataFrame({"user": ["ann", "ann"], "item": ["alien", "babe"], "timestamp": [1, 2]})
        >>> data = Interactions(interactions, pl.DataFrame({"item": films, "title": ["Alien", "Babe", "Fargo"]}))
        >>> examples = pl.DataFrame(
        ...     {"user": ["ann"], "history": [["alien"]], "target": ["babe"], "negatives": [["fargo"]]}
        ... )
        >>> template = PromptTemplate("Liked:", "Next:", conversational=False)
        >>> sft_dataset(examples, data, template)[0]
        {'prompt': 'Liked:\\nAlien\\nNext:\\n', 'completion': 'Babe'}
    """
    return _dataset("sft", examples, data, template, seed)


def ranking_dataset(examples: pl.DataFrame, data: Interactions, template: PromptTemplate, *, seed: int) -> Dataset:
    """Make the questions of a candidate ranking: the target among the negatives, one row per example.

    Args:
        examples: Columns `user`, `history`, `target` and `negatives`.
        data: The interactions; they give the titles.
        template: Makes prompts and completions.
        seed: Of the order of the candidates, which is drawn from `seed`, the user and the place of the example among
            the user's, never from the target. Where the prompt lists the candidates, it lists them in this order.

    Returns:
        Columns `user`, `history` and `items` (item identifiers of the history and of the candidates), `positive`
        (index of the target among the candidates), `prompt`, `candidates` (a list of completions), and `seen` (all
        that the user had before the target, liked or not).

    Example:
        >>> films = ["alien", "babe", "fargo"]
        >>> interactions = pl.DataFrame({"user": ["ann", "ann"], "item": ["alien", "babe"], "timestamp": [1, 2]})
        >>> data = Interactions(interactions, pl.DataFrame({"item": films, "title": ["Alien", "Babe", "Fargo"]}))
        >>> examples = pl.DataFrame(
        ...     {"user": ["ann"], "history": [["alien"]], "target": ["babe"], "negatives": [["fargo"]]}
        ... )
        >>> template = PromptTemplate("Liked:", "Next:", conversational=False)
        >>> row = ranking_dataset(examples, data, template, seed=0)[0]
        >>> row["candidates"], row["positive"], row["seen"]
        (['Babe', 'Fargo'], 0, ['alien'])
    """
    return _dataset("ranking", examples, data, template, seed)


def text_tables(
    kind: str, examples: pl.DataFrame, data: Interactions, template: PromptTemplate, *, seed: int
) -> Iterator[pa.Table]:
    """Make the rows of one of the datasets above, some at a time, for writing more of them than memory holds.

    Args:
        kind: `"preference"`, `"pairs"`, `"sft"` or `"ranking"`.
        examples: As in the dataset's function.
        data: The interactions; they give the titles.
        template: Makes prompts and completions.
        seed: As in the dataset's function.
    """
    ordered = kind == "ranking" or template.candidates is not None
    needed = ["history", "target"]
    needed += ["negatives"] if ordered or kind in ("preference", "pairs") else []
    needed += ["user"] if ordered or (kind == "preference" and "user" in examples.columns) else []
    if missing := [name for name in needed if name not in examples.columns]:
        raise ValueError(
            f"examples: the columns {missing} are missing for a {kind} dataset; it has {examples.columns}."
        )
    if kind == "preference" and "chosen_levels" in examples.columns:
        needed.append("chosen_levels")
    examples = examples.select(needed)
    if isinstance(examples.schema["target"], pl.List) and (ordered or kind != "preference"):
        why = "whose template lists the candidates" if kind == "preference" else "which has one target a row"
        raise ValueError(
            f'examples: target holds lists, and this is a {kind} dataset, {why}: give `examples.explode("target")`.'
        )
    if ordered:
        examples = examples.with_columns(_first=_first_draw(examples))
    for part in examples.iter_slices(ROWS):
        text = _text(_in_order(part, seed) if ordered else part, data, template)
        if kind == "ranking":
            text = text.with_columns(seen_before(part, data))
        yield _arrow(_columns(kind, text))


def _dataset(kind: str, examples: pl.DataFrame, data: Interactions, template: PromptTemplate, seed: int) -> Dataset:
    if examples.is_empty():
        raise ValueError(f"There are no examples to make a {kind} dataset of.")
    return Dataset(pa.concat_tables(text_tables(kind, examples, data, template, seed=seed)))


def _columns(kind: str, text: pl.DataFrame) -> pl.DataFrame:
    """Select the columns of a dataset from those that [`_text`] makes."""
    if kind == "sft":
        return text.select("prompt", completion="chosen")
    if kind == "ranking":
        return text.select("user", "history", "items", "positive", "prompt", "candidates", "seen")
    if kind == "pairs":
        return text.select("prompt", "chosen", "rejected").explode("rejected", empty_as_null=False)
    further = [name for name in ("user", "chosen_levels") if name in text.columns]
    return text.select("prompt", "chosen", "rejected", *further)


def _first_draw(examples: pl.DataFrame) -> pl.Series:
    """Return where the draws of each example start: after those of the user's examples before it."""
    draws = pl.col("negatives").list.len().cast(pl.Int64) + 1
    return examples.select((draws.cum_sum() - draws).over("user")).to_series()


def _in_order(examples: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Add `items`, target and negatives in an order that is drawn, and `positive`, the target's place in it."""
    slots = (
        examples.select("user", "_first", item=pl.concat_list("target", "negatives"))
        .with_row_index("row")
        .with_columns(slot=pl.int_ranges(pl.col("item").list.len()))
        .explode("item", "slot")
    )
    draw = uniform(seed, slots["user"], (slots["_first"] + slots["slot"]).to_numpy(), stream="order")
    ordered = (
        slots.with_columns(draw=draw)
        .sort("row", "draw", "slot")
        .group_by("row", maintain_order=True)
        .agg(items="item", positive=pl.col("slot").arg_min().cast(pl.Int64))
    )
    return examples.with_columns(ordered["items"], ordered["positive"])


def _text(examples: pl.DataFrame, data: Interactions, template: PromptTemplate) -> pl.DataFrame:
    """Add `prompt`, `chosen`, and, where their items are there, `rejected` and `candidates`."""
    columns = ("history", "target", "negatives", "items")
    titles = pl.DataFrame([_titles(examples[name], data) for name in columns if name in examples.columns])
    before, *between, after = template.around()
    parts = [pl.lit(before), pl.col("history").list.join(template.separator)]
    if between:
        parts += [pl.lit(between[0]), pl.col("items").list.join(template.separator)]
    prompt = pl.concat_str(*parts, pl.lit(after))
    if template.conversational:
        system = [_message("system", pl.lit(template.system))] if template.system is not None else []
        prompt = pl.concat_list(*system, _message("user", prompt))

    def completion(title: pl.Expr) -> pl.Expr:
        return pl.concat_list(_message("assistant", title)) if template.conversational else title

    def listed(items: str) -> pl.Expr:
        return pl.col(items).list.eval(completion(pl.element()))

    several = isinstance(titles.schema["target"], pl.List)
    completions = {"rejected": "negatives", "candidates": "items"}
    text = titles.select(
        prompt=prompt,
        chosen=listed("target") if several else completion(pl.col("target")),
        **{name: listed(items) for name, items in completions.items() if items in titles.columns},
    )
    return examples.with_columns(text)


def _titles(items: pl.Series, data: Interactions) -> pl.Series:
    """Return the titles of items, or of lists of items."""
    listed = isinstance(items.dtype, pl.List)
    items = items.cast(pl.List(pl.String) if listed else pl.String)
    item = pl.element() if listed else pl.col(items.name)
    title = item.replace_strict(data.items["item"], data.items["title"], default=None, return_dtype=pl.String)
    titles = items.to_frame().select(pl.col(items.name).list.eval(title) if listed else title).to_series()
    flat_items, flat = (one.explode(empty_as_null=False) if listed else one for one in (items, titles))
    if flat.null_count():
        unknown = flat_items.filter(flat.is_null())[0]
        raise ValueError(f"examples: {items.name} has the item {unknown!r}, but data.items has no title of it.")
    return titles


def _message(role: str, text: pl.Expr) -> pl.Expr:
    return pl.struct(role=pl.lit(role), content=text)


def _arrow(rows: pl.DataFrame) -> pa.Table:
    """Make an Arrow table of the types that `datasets` uses, without polars' 64-bit offsets."""
    table = rows.to_arrow()
    return table.cast(pa.schema([(field.name, _narrow(field.type)) for field in table.schema]))


def _narrow(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_list(kind):
        return pa.list_(_narrow(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _narrow(field.type)) for field in kind])
    return pa.string() if pa.types.is_large_string(kind) else kind
