"""Options of a recommendation: what cannot be asked for together is refused before the work."""

from __future__ import annotations

from ..data.prompts import PromptTemplate
from .candidates import Candidates


def check_search(
    template: PromptTemplate, k: int, num_beams: int, *, exact: bool, candidates: Candidates | None
) -> None:
    """Check the options of `Recommender.recommend`.

    Args:
        template: Makes the prompts.
        k, num_beams, exact, candidates: See `Recommender.recommend`.

    Raises:
        ValueError: As there.

    Example:
        >>> from dmpo_trl.data import MOVIES
        >>> check_search(MOVIES, 0, 100, exact=False, candidates=None)
        Traceback (most recent call last):
        ValueError: k and num_beams must be at least 1, they are 0 and 100.
    """
    if k < 1 or num_beams < 1:
        raise ValueError(f"k and num_beams must be at least 1, they are {k} and {num_beams}.")
    if candidates is None and template.candidates is not None:
        raise ValueError(
            "The template lists candidates in the prompt, so it cannot recommend from the whole catalogue: rank "
            "candidates, give `candidates`, or train with a template without them."
        )
    if candidates is not None and exact:
        raise ValueError("`exact` proves what is best of the whole catalogue: leave it out, or the candidates.")
    if candidates is not None and k > candidates.per_user:
        raise ValueError(
            f"k={k}, but a user has at most {candidates.per_user} candidates: raise their number, or ask for fewer "
            "items."
        )
