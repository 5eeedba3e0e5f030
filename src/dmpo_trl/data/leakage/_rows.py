"""Rows of any recommendation data set in one form, as the leak report needs it."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from datasets import Dataset

from ...preprocessing.format import numbered_columns
from .._files import POLARS_ERRORS, open_binary, require_file
from ..published._splits import frame_of, number_users, read_json
from ..published.dmpo import dmpo_pairs
from ..published.sdpo import checked_rows, sdpo_examples

_FORMS = """known are
  examples:   history, target, and negatives or candidates (lists of items)
  preference: prompt, chosen, rejected (text or messages; rejected also as a list, or as rejected1, rejected2, ...)
  SFT:        prompt, completion
  ranking:    prompt, candidates, positive
  S-DPO:      historyList, itemList, trueSelection
  DMPO:       instruction, input, output"""

_PROMPTS_SEARCHED = 20_000
"""Prompts are searched for their candidates one by one; so many are enough for any test."""


def comparable(data: pl.DataFrame | Dataset) -> pl.DataFrame:
    """Bring examples and datasets, ours and others', into one form.

    Args:
        data: One of the forms that the error message lists, told by its columns.

    Returns:
        One row per row of `data`, in its order:

        - `row` (its number) and `user` (String, null where unknown),
        - `context` (String: the history, or the prompt), `target` (String) and `negatives` (List[String]),
        - `places` (List[Int64]: where the target stands among the options shown with it; empty where the order is
          unknown, several where the row shows the target several times, as DMPO's do) and `options` (their number),
        - `seen` (negatives that are in the row's own history; null where the history is not a list of items).

    Raises:
        ValueError: For other columns, several chosen completions in a row, or a row whose candidates lack the target.
    """
    frame = data if isinstance(data, pl.DataFrame) else data.to_polars()
    if {"historyList", "itemList", "trueSelection"} <= set(frame.columns):
        titles = frame["itemList"].explode().unique()
        frame = number_users(sdpo_examples(checked_rows(frame, "The leak report"), titles), "user")
    elif {"instruction", "output"} <= set(frame.columns):
        frame = dmpo_pairs(frame)
    columns = set(frame.columns)
    frame = frame.with_columns(
        pl.int_range(pl.len()).alias("row"),
        user=pl.col("user").cast(pl.String) if "user" in columns else pl.lit(None, pl.String),
    )
    for column in columns & {"target", "chosen", "completion"}:
        if _holds_lists(frame, column):
            raise ValueError(
                f"The leak report asks where the one target of a row stands, and `{column}` holds lists: give each "
                f'target a row of its own, with `explode("{column}")` of polars.'
            )
    if {"history", "target"} <= columns:
        return _from_items(frame)
    if "prompt" in columns and columns & {"chosen", "completion", "candidates"}:
        return _from_text(frame)
    raise ValueError(f"The leak report does not know rows with the columns {sorted(columns)}; {_FORMS}")


def read_rows(path: str | Path) -> pl.DataFrame:
    """Read the rows of a Parquet file, JSON lines (`.jsonl`) or a JSON list, JSON also compressed (`.xz`, `.gz`).

    Raises:
        FileNotFoundError: Where there is no such file.
        ValueError: Where it holds something else.
    """
    path = require_file(Path(path))
    try:
        if path.suffix.lower() == ".parquet":
            return pl.read_parquet(path, glob=False)
        if ".jsonl" in path.suffixes:
            with open_binary(path) as file:
                return pl.read_ndjson(file, infer_schema_length=None)
        return frame_of(read_json(path), path)
    except POLARS_ERRORS as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def _from_items(frame: pl.DataFrame) -> pl.DataFrame:
    """Bring examples, whose items are in lists, into the form."""
    lists = [name for name in ("history", "negatives", "candidates") if name in frame.columns]
    frame = frame.with_columns(
        *(pl.col(name).cast(pl.List(pl.String)) for name in lists), pl.col("target").cast(pl.String)
    )
    places, options = pl.lit([], pl.List(pl.Int64)), pl.lit(0)
    if "candidates" in frame.columns:
        here = _exploded(frame.select("row", "target", "candidates")).filter(pl.col("item") == pl.col("target"))
        frame = frame.join(
            here.group_by("row").agg(pl.col("place").first()), on="row", how="left", maintain_order="left"
        )
        if frame["place"].null_count():
            first = frame.filter(pl.col("place").is_null()).row(0, named=True)
            raise ValueError(f"Row {first['row']}: its candidates lack its target {first['target']!r}.")
        if "negatives" not in frame.columns:
            frame = _with_negatives(frame)
        places, options = pl.concat_list("place"), pl.col("candidates").list.len()
    elif "target_first" in frame.columns:
        places = pl.col("target_first").list.eval(1 - pl.element().cast(pl.Int64))
        options = pl.lit(2)
    elif "negatives" not in frame.columns:
        frame = frame.with_columns(negatives=pl.lit([], pl.List(pl.String)))
    return frame.select(
        "row",
        "user",
        # The unit separator stands in no title
        pl.col("history").list.join("\x1f").alias("context"),
        "target",
        "negatives",
        places.alias("places"),
        options.cast(pl.Int64).alias("options"),
        pl.col("negatives").list.set_intersection("history").list.len().cast(pl.Int64).alias("seen"),
    )


def _from_text(frame: pl.DataFrame) -> pl.DataFrame:
    """Bring datasets for training and ranking, text or messages, into the form."""
    seen = pl.lit(None, pl.Int64)
    frame = frame.with_columns(_text(frame, "prompt").alias("context"))
    if "candidates" in frame.columns:
        frame = _with_negatives(frame.with_columns(_texts(frame, "candidates"), place=pl.col("positive")))
        if {"history", "items"} <= set(frame.columns):
            ids = _with_negatives(frame.select("row", "history", "place", candidates="items"))
            frame = frame.with_columns(
                ids.select(seen=pl.col("negatives").list.set_intersection("history").list.len().cast(pl.Int64))
            )
            seen = pl.col("seen")
        places, options = pl.concat_list("place"), pl.col("candidates").list.len()
    else:
        answer = "chosen" if "chosen" in frame.columns else "completion"
        frame = frame.with_columns(_text(frame, answer).alias("target"), _rejected(frame).alias("negatives"))
        frame = frame.join(_places_in_prompts(frame), on="row", how="left", maintain_order="left")
        places, options = pl.col("places").fill_null([]), pl.col("negatives").list.len() + 1
    return frame.select(
        "row",
        "user",
        "context",
        "target",
        "negatives",
        places.cast(pl.List(pl.Int64)).alias("places"),
        options.cast(pl.Int64).alias("options"),
        seen.alias("seen"),
    )


def _exploded(frame: pl.DataFrame) -> pl.DataFrame:
    """Make one row per candidate, `item`, and its `place` among them."""
    places = pl.int_ranges(0, pl.col("candidates").list.len())
    return frame.with_columns(item="candidates", place=places).drop("candidates").explode("item", "place")


def _with_negatives(frame: pl.DataFrame) -> pl.DataFrame:
    """Add `target`, the candidate at `place`, and `negatives`, the others."""
    exploded = _exploded(frame.select("row", "candidates", at="place"))
    others = exploded.filter(pl.col("place") != pl.col("at"))
    negatives = others.group_by("row", maintain_order=True).agg(negatives="item")
    return frame.join(negatives, on="row", how="left", maintain_order="left").with_columns(
        pl.col("negatives").fill_null([]), target=pl.col("candidates").list.get(pl.col("place"))
    )


def _text(frame: pl.DataFrame, column: str) -> pl.Expr:
    """Return a column of texts, or of lists of messages, as text."""
    return pl.col(column) if frame.schema[column] == pl.String else _joined(pl.col(column))


def _texts(frame: pl.DataFrame, column: str) -> pl.Expr:
    """Return a column of lists of texts, or of lists of lists of messages, as lists of text."""
    kind = frame.schema[column]
    return pl.col(column) if kind == pl.List(pl.String) else pl.col(column).list.eval(_joined(pl.element()))


def _joined(messages: pl.Expr) -> pl.Expr:
    return messages.list.eval(pl.element().struct.field("content")).list.join("\n")


def _rejected(frame: pl.DataFrame) -> pl.Expr:
    """Return the rejected completions of each row, of `rejected` and of the numbered columns, as lists of text."""
    named = [*({"rejected"} & set(frame.columns)), *numbered_columns(frame.columns)]
    columns = [column for column in named if frame.schema[column] != pl.Null]
    if not columns:
        return pl.lit([], pl.List(pl.String))
    lists = [
        _texts(frame, column).fill_null([]) if _holds_lists(frame, column) else pl.concat_list(_text(frame, column))
        for column in columns
    ]
    return pl.concat_list(lists).list.drop_nulls()


def _holds_lists(frame: pl.DataFrame, column: str) -> bool:
    """Return whether a column holds lists of completions, not completions."""
    kind = frame.schema[column]
    return isinstance(kind, pl.List) and not isinstance(kind.inner, pl.Struct)


def _places_in_prompts(frame: pl.DataFrame) -> pl.DataFrame:
    """Count, where a prompt names all the candidates, how many negatives stand before the target."""
    shown = frame.filter(
        pl.col("context").str.contains(pl.col("target"), literal=True) & (pl.col("negatives").list.len() > 0)
    )
    rows, places = [], []
    for row, prompt, target, negatives in (
        shown.gather_every(-(-shown.height // _PROMPTS_SEARCHED) or 1)
        .select("row", "context", "target", "negatives")
        .iter_rows()
    ):
        # The last mention: the history stands before the question
        at, others = prompt.rfind(target), [prompt.rfind(negative) for negative in negatives]
        if min(others) >= 0 and at not in others:
            rows.append(row)
            places.append([sum(other < at for other in others)])
    return pl.DataFrame({"row": rows, "places": places}, schema={"row": pl.Int64, "places": pl.List(pl.Int64)})
