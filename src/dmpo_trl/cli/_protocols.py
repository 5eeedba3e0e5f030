"""Protocols of an evaluation: the whole catalogue, uniform candidates, and those matched in popularity."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from datasets import Dataset

from ..data import Prepared
from ..evaluation import Interval, RankingResult, full_catalogue
from ._splits import choose_split

PROTOCOLS = {
    "catalogue": "all items that a user has not had, the log-prob of every title computed",
    "uniform": "candidates drawn uniformly",
    "popularity": "candidates drawn by popularity",
}
"""What is ranked, in the order in which tables are printed."""


@dataclass(frozen=True)
class ProtocolTable:
    """Metrics of each ranker for one kind of candidates.

    Args:
        about: How many users there are and what is ranked, in words.
        users: How many users there are.
        ranking: Metrics by ranker.

    Example:
        >>> figures = {"model": {"auc": Interval(0.5, 0.4, 0.6)}}
        >>> ProtocolTable("20 test users, candidates drawn uniformly:", 20, figures).users
        20
    """

    about: str
    users: int
    ranking: Mapping[str, Mapping[str, Interval]]

    @classmethod
    def of(
        cls,
        name: str,
        split: str,
        results: Mapping[str, RankingResult],
        metrics: Sequence[str],
    ) -> ProtocolTable:
        """Compute the metrics.

        Args:
            name: Name of the protocol.
            split: Name of the users' split.
            results: Each ranker's results, by the name to show.
            metrics: Names of the metrics.
        """
        users = len(next(iter(results.values())).users)
        about = f"{users} {split} users, {PROTOCOLS[name]}:"
        return cls(about, users, {label: result.intervals(metrics) for label, result in results.items()})


def main_protocol(prepared: Prepared, whole_catalogue: bool) -> str:
    """Return the name of the protocol that everything is reported of.

    Args:
        prepared: The folder.
        whole_catalogue: Whether all items are ranked.

    Example:
        >>> main_protocol(prepared, False)  # doctest: +SKIP
        'uniform'
    """
    return "catalogue" if whole_catalogue else next(iter(prepared.protocols))


def further_protocols(
    prepared: Prepared,
    main: str,
    select: Callable[[Mapping[str, Dataset]], Dataset],
    *,
    split: str,
    titles: Mapping[str, str],
    catalogue_users: int | None,
) -> dict[str, Dataset]:
    """Return the users once more with each other kind of candidates.

    Args:
        prepared: The folder.
        main: The protocol that is left out.
        select: Selects the users of a protocol's splits.
        split: Name of their split.
        titles: Of all items.
        catalogue_users: How many users, the first ones, are ranked among the whole catalogue; None for none.

    Returns:
        The datasets by protocol: those of the folder, and `catalogue` where there are users for it.

    Raises:
        ValueError: As in [`full_catalogue`].

    Example:
        >>> options = {"split": "test", "titles": titles, "catalogue_users": 20}  # doctest: +SKIP
        >>> list(further_protocols(prepared, "uniform", lambda splits: splits["test"], **options))  # doctest: +SKIP
        ['popularity', 'catalogue']
    """
    further = {name: select(splits) for name, splits in prepared.protocols.items() if name != main}
    if catalogue_users is not None:
        users = choose_split(prepared.ranking, split, "--split")
        first = users.select(range(min(catalogue_users, len(users))))
        further["catalogue"] = full_catalogue(first, titles, prepared.template)
    return further


def in_order(names: Sequence[str]) -> list[str]:
    """Return protocols in the order in which tables are printed.

    Args:
        names: Their names.

    Example:
        >>> in_order(["popularity", "catalogue"])
        ['catalogue', 'popularity']
    """
    return sorted(names, key=list(PROTOCOLS).index)


def in_words(main: str, further: Collection[str]) -> str:
    """Return what is ranked, and how to have the whole catalogue ranked where it is not.

    Args:
        main: The protocol of which everything is reported.
        further: Those that have a table only.

    Example:
        >>> in_words("uniform", ["catalogue"])
        'candidates drawn uniformly.'
        >>> print(in_words("uniform", []))
        candidates drawn uniformly.
        Sampled candidates can order rankers otherwise than the whole catalogue: see --catalogue_users.
    """
    if "catalogue" in (main, *further):
        return f"{PROTOCOLS[main]}."
    note = "Sampled candidates can order rankers otherwise than the whole catalogue: see --catalogue_users."
    return f"{PROTOCOLS[main]}.\n{note}"
