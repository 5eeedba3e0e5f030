"""DMPO's splits (arXiv 2405.16127): the few-shot files of https://github.com/BZX667/DMPO."""

from __future__ import annotations

import logging
import re
from hashlib import blake2b
from pathlib import Path

import polars as pl

from .._sources import open_source
from ._splits import PublishedSplits, assemble, frame_of, items_by_title, read_json

logger = logging.getLogger(__name__)

# The titles run on greedily to the words around them, so that they may hold ">" and " and " themselves
_INSTRUCTION = (
    r"(?s):  <Title:(?<history>.*)> \. Rank the likelihood of .*?"
    r"  <Title:(?<first>.*)>  and  <Title:(?<second>.*)> \.$"
)


def read_dmpo(path: str | Path, dataset: str) -> PublishedSplits:
    """Read `rec_{dataset}_{sft,dpo,eval}_ranking*.json`, rows of `{instruction, input, output}`.

    A row asks to rank two titles. Rows of one history and one positive become one example with k negatives: that is
    what the files `dpo_ranking_2` to `_5` hold, two to five rows per history. The identifier of an item is its title,
    just as it stands in the file: HTML entities stay, and so do the trailing spaces of the ML-1M training titles,
    which are cut at the first comma or bracket ("Gigi "), where the eval titles are whole ("Gigi (1958)").

    The rows name no user. Who has the same history is the same user, named by the history's hash, so that a history
    has one name in all files: 15 of the 1,000 eval rows of Amazon_Game repeat a training history, its positive and its
    negative.

    Args:
        path: Folder or archive with the files.
        dataset: `"Amazon_Game"`, `"Amazon_Movie"` or `"data_ml_1m"`.

    Returns:
        Parts by the files' names, such as `sft`, `dpo_1`, `dpo_5`, `dpo_1_old` and `eval`, as far as they exist.
        Columns `user`, `history`, `target`, `negatives`, and `target_first` (List[Boolean]: whether the instruction
        names the target before this negative). `rec_data_ml_1m_eval_ranking_old.json` is not JSON; such a file is left
        out, logged, and counted in `dropped`.

    Raises:
        FileNotFoundError: Where there is no such file.
        ValueError: Where a row is not in the format.

    Example:
        >>> import json
        >>> from tempfile import TemporaryDirectory
        >>> row = {
        ...     "instruction": ":  <Title:A>  <Title:B> . Rank the likelihood of two:  <Title:C>  and  <Title:D> .",
        ...     "input": "",
        ...     "output": [" <Title:D> ,  <Title:C> "],
        ... }
        >>> folder = TemporaryDirectory()
        >>> _ = Path(folder.name, "rec_Amazon_Game_dpo_ranking_1.json").write_text(json.dumps([row]))
        >>> read_dmpo(folder.name, "Amazon_Game").examples["dpo_1"].select("history", "target", "negatives").rows()
        [(['A', 'B'], 'D', ['C'])]
        >>> folder.cleanup()
    """
    pattern = re.compile(rf"rec_{re.escape(dataset)}_(sft|dpo|eval)_ranking(_\w+)?\.json")
    examples: dict[str, pl.DataFrame] = {}
    dropped: dict[str, int] = {}
    with open_source(path) as files:
        matches = sorted({match.string: match for match in map(pattern.fullmatch, files.names) if match}.items())
        for name, match in matches:
            file = files.need(name)
            try:
                rows = frame_of(read_json(file), file)
            except ValueError as error:
                logger.warning("%s is left out: %s", name, error)
                dropped["files that are not JSON"] = dropped.get("files that are not JSON", 0) + 1
                continue
            try:
                pairs = dmpo_pairs(rows)
            except ValueError as error:
                raise ValueError(f"{name}, {error}") from error
            examples[match[1] + (match[2] or "")] = _fold(pairs)
        if not examples:
            if matches:
                raise ValueError(
                    f"{path}: none of {', '.join(name for name, _ in matches)} holds a JSON list of rows."
                )
            files.need(f"rec_{dataset}_dpo_ranking_1.json")
        used = files.used
    users = pl.concat(frame.select("user", "history") for frame in examples.values()).unique("user")
    repeats = users.select((pl.col("history").list.len() - pl.col("history").list.n_unique()).sum()).item()
    if repeats:
        dropped["titles repeated within a history"] = repeats
    return assemble(examples, items_by_title(examples.values()), files=used, dropped=dropped)


def dmpo_pairs(rows: pl.DataFrame) -> pl.DataFrame:
    """Return `user`, `history`, `target`, `negatives` and `target_first` of each row `{instruction, input, output}`.

    Raises:
        ValueError: For a row whose instruction or output is not in the format.
    """
    if missing := {"instruction", "output"} - set(rows.columns):
        raise ValueError(f"rows must have instruction, input and output; {sorted(missing)} are missing.")
    kinds = rows.schema["instruction"], rows.schema["output"]
    if kinds[0] != pl.String or kinds[1] not in (pl.String, pl.List(pl.String)):
        raise ValueError(f"instruction must be text, output text or a list of texts; they are {kinds[0]}, {kinds[1]}.")
    output = pl.col("output")
    titles = rows.select(
        pl.int_range(pl.len()).alias("row"),
        pl.col("instruction").str.extract_groups(_INSTRUCTION),
        # The preferred order stands first; files for SFT hold nothing else
        output=output if rows.schema["output"] == pl.String else output.list.first(),
    ).unnest("instruction")
    answer = " <Title:{}> ,  <Title:{}> "
    frame = titles.with_columns(
        first_wins=pl.col("output") == pl.format(answer, "first", "second"),
        second_wins=pl.col("output") == pl.format(answer, "second", "first"),
    )
    wrong = frame.filter((pl.col("first_wins") | pl.col("second_wins")).fill_null(False).not_())
    if not wrong.is_empty():
        number = wrong["row"][0]
        raise ValueError(
            f"row {number}: the instruction must end in `:  <Title:..>  <Title:..> . Rank the likelihood of ... "
            " <Title:..>  and  <Title:..> .` and the output must rank them; it is "
            f"{str(rows.row(number, named=True))[:1000]}."
        )
    first_wins = pl.col("first_wins")
    return frame.select(
        user=pl.col("history").map_elements(
            lambda text: blake2b(text.encode(), digest_size=6).hexdigest(), return_dtype=pl.String
        ),
        history=pl.col("history").str.split(">  <Title:"),
        target=pl.when(first_wins).then("first").otherwise("second"),
        negatives=pl.concat_list(pl.when(first_wins).then("second").otherwise("first")),
        target_first=pl.concat_list(first_wins),
    )


def _fold(pairs: pl.DataFrame) -> pl.DataFrame:
    return (
        pairs.group_by("user", "target", maintain_order=True)
        .agg(pl.col("history").first(), pl.col("negatives").explode(), pl.col("target_first").explode())
        .select("user", "history", "target", "negatives", "target_first")
    )
