"""S-DPO's and DynamicPO's splits (arXiv 2406.09215, arXiv 2605.00327): JSON with lists of candidates."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import polars as pl

from .._sources import SourceFiles, open_source
from ._splits import PublishedSplits, assemble, frame_of, items_by_title, number_users, read_json

logger = logging.getLogger(__name__)

_PARTS = {"train": "train", "val": "validation", "test": "test"}
_FILE = re.compile(r"(?:.*[-_.])?(train|val|test)\b.*\.json(?:\.xz)?")


def read_sdpo(*paths: str | Path) -> PublishedSplits:
    """Read the JSON of S-DPO (arXiv 2406.09215) and DynamicPO (arXiv 2605.00327).

    Rows are `{historyList, itemList, trueSelection}`. The published lists of LastFM were drawn with the target as the
    seed and give it away: see [`leak_report`].

    Args:
        *paths: Files, or folders or archives that hold them, `.json` or `.json.xz`; `train`, `val` or `test` in the
            name says the part, as in `lastfm-val.json`.

    Returns:
        Parts `train`, `validation` and `test`, as far as they exist, with the columns `negatives` and `candidates`
        (target and negatives in their published order). The identifier of an item is its title. Users are found and
        named as in [`read_llara`].

    Raises:
        FileNotFoundError: Where there is no such file.
        ValueError: Where two files are the same part, or a row is not in the format.

    Example:
        >>> import json
        >>> from tempfile import TemporaryDirectory
        >>> folder = TemporaryDirectory()
        >>> row = {"historyList": "Moby::Air", "itemList": ["Enigma", "Björk"], "trueSelection": "Björk"}
        >>> _ = Path(folder.name, "lastfm-test.json").write_text(f"[{json.dumps(row)}]")
        >>> read_sdpo(folder.name).examples["test"].select("history", "target", "negatives").rows()
        [(['Moby', 'Air'], 'Björk', ['Enigma'])]
        >>> folder.cleanup()
    """
    raw: dict[str, pl.DataFrame] = {}
    used: list[str] = []
    for path in paths:
        with open_source(path) as files:
            for name, match in _names(files):
                part = _PARTS[match[1]]
                if part in raw:
                    raise ValueError(f"{name} is a second file of {part!r}; give the files of one data set by name.")
                raw[part] = checked_rows(frame_of(read_json(files.need(name)), name), name)
            used += files.used
    if not raw:
        looked_in = ", ".join(map(str, paths)) or "no path"
        raise FileNotFoundError(
            f"{looked_in}: there is no file like lastfm-train.json, lastfm-val.json or -test.json."
        )
    titles = pl.concat(rows["itemList"].explode() for rows in raw.values()).unique()
    examples = {part: number_users(sdpo_examples(raw[part], titles), part) for part in _PARTS.values() if part in raw}
    return assemble(examples, items_by_title(examples.values()), files=used)


def checked_rows(rows: pl.DataFrame, where: str) -> pl.DataFrame:
    """Return the rows themselves, if each is `{historyList, itemList, trueSelection}` as S-DPO publishes them.

    Raises:
        ValueError: Naming `where`, for a column of another type, and the first row whose selection is not in its list
            or that lists an item twice.
    """
    if missing := {"historyList", "itemList", "trueSelection"} - set(rows.columns):
        raise ValueError(
            f"{where}: rows must have historyList, itemList and trueSelection; {sorted(missing)} are missing."
        )
    text = [rows.schema[name] == pl.String for name in ("historyList", "trueSelection")]
    if not all(text) or rows.schema["itemList"] != pl.List(pl.String):
        raise ValueError(
            f"{where}: historyList and trueSelection must be text and itemList a list of texts; they are "
            f"{rows.schema['historyList']}, {rows.schema['trueSelection']} and {rows.schema['itemList']}."
        )
    listed = pl.col("itemList")
    wrong = rows.with_row_index("row").filter(
        pl.any_horizontal(pl.col("historyList", "itemList", "trueSelection").is_null())
        | ~listed.list.contains(pl.col("trueSelection"))
        | (listed.list.n_unique() < listed.list.len())
    )
    if not wrong.is_empty():
        first = wrong.row(0, named=True)
        raise ValueError(
            f"{where}, row {first['row']}: trueSelection {str(first['trueSelection'])[:80]!r} must be in itemList, "
            f"and no item twice; itemList is {str(first['itemList'])[:1000]}."
        )
    return rows


def sdpo_examples(rows: pl.DataFrame, titles: pl.Series) -> pl.DataFrame:
    """Return checked rows as `history`, `target`, `negatives` and `candidates`.

    `::` stands between two titles of a history, so that one which itself begins or ends with a colon (`:wumpscut:`)
    can be told from its neighbour only where it is one of `titles`, the titles in the lists of candidates.
    """
    colons = "^:|:$|::"
    awkward = titles.filter(titles.str.contains(colons)).sort().alias("title")
    # One private character stands for each awkward title while the history is split
    marks = pl.Series("mark", [chr(0xE000 + number) for number in range(len(awkward))], dtype=pl.String)
    framed = pl.format("::{}::", "historyList")
    named, marked = ("::" + awkward + "::").implode(), ("::" + marks + "::").implode()
    found = framed.str.replace_many(named, marked, leftmost=True)
    found = found.str.replace_many(named, marked, leftmost=True)  # of two neighbours the first took the `::` between
    split = found.str.strip_prefix("::").str.strip_suffix("::").str.split("::")
    numbered = rows.with_row_index("row")
    others = numbered.explode("itemList").filter(pl.col("itemList") != pl.col("trueSelection"))
    negatives = others.group_by("row").agg(negatives="itemList")  # set_difference would not keep the order
    examples = numbered.join(negatives, on="row", how="left", maintain_order="left").select(
        history=split.list.eval(pl.element().replace(marks, awkward)),
        target="trueSelection",
        negatives=pl.col("negatives").fill_null([]),
        candidates="itemList",
    )
    seen = examples.select(pl.col("history").explode().unique()).to_series()
    unknown = seen.filter(seen.str.contains(colons) & ~seen.is_in(awkward.to_list())).to_list()
    if unknown:
        logger.warning("Histories may be split at the wrong colon: no list of candidates names %s", unknown)
    return examples


def _names(files: SourceFiles) -> list[tuple[str, re.Match[str]]]:
    names = [files.given.name] if files.given else files.names
    return [(name, match) for name in names if (match := _FILE.fullmatch(name))]
