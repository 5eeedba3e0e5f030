"""Interactions written as rows."""

import polars as pl

from dmpo_trl.data.interactions import Interactions


def interactions(rows: list[tuple]) -> Interactions:
    """Return interactions of (user, item, timestamp, rating); the titles are the items in capitals."""
    frame = pl.DataFrame(rows, schema=["user", "item", "timestamp", "rating"], orient="row")
    items = frame.select("item").unique().with_columns(title=pl.col("item").str.to_uppercase())
    return Interactions(frame, items)
