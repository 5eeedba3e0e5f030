"""What goes over the wire: requests, checked by pydantic, and answers. OpenAPI is made of them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..recommend import Explanation, Recommendation

_HISTORY = Field(description="The user's items from old to new, by id or exact title.")


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RecommendRequest(_Request):
    """A user to recommend to."""

    history: list[str] = _HISTORY
    k: int | None = Field(None, ge=1, description="Number of items. Default: 10, or the most that is allowed if less.")
    exclude: list[str] = Field([], description="Further items that must not be recommended.")


class RankRequest(_Request):
    """Candidates to put in order for a user."""

    history: list[str] = _HISTORY
    candidates: list[str] = Field(min_length=1, description="Items, by id or exact title.")


class ExplainRequest(_Request):
    """An item, and the history that it is explained by."""

    history: list[str] = Field(min_length=1, description=_HISTORY.description)
    item: str = Field(description="The item, by id or exact title.")


class Item(BaseModel):
    """An item with its place."""

    rank: int = Field(description="From 1.")
    item: str
    title: str
    score: float = Field(description="The higher the better; log-prob of the title in nats, or its mean per token.")


class RecommendAnswer(BaseModel):
    """Items from best to worst."""

    score: Literal["sum", "mean"] = Field(description="Whether scores are sums over a title's tokens or means.")
    recommendations: list[Item]

    @classmethod
    def of(cls, found: list[Recommendation], score: Literal["sum", "mean"]) -> "RecommendAnswer":
        """Return the answer that lists what was found.

        Args:
            found: From best to worst.
            score: The recommender's kind of score.
        """
        items = [
            Item(rank=rank, item=one.item, title=one.title, score=one.score) for rank, one in enumerate(found, start=1)
        ]
        return cls(score=score, recommendations=items)


class Effect(BaseModel):
    """What an item of the history adds to the score of the recommendation."""

    item: str
    title: str
    effect: float = Field(description="In nats. Positive: it speaks for the recommendation.")


class ExplainAnswer(BaseModel):
    """The score of an item, and what each item of the history adds to it."""

    item: str
    title: str
    score: float
    kind: Literal["sum", "mean"] = Field(description="Whether scores are sums over a title's tokens or means.")
    effects: list[Effect] = Field(description="From the oldest item of the history to the newest.")

    @classmethod
    def of(cls, found: Explanation) -> "ExplainAnswer":
        """Return the answer that holds an explanation.

        Args:
            found: The explanation.
        """
        entries = zip(found.history, found.titles, found.effects.tolist(), strict=True)
        effects = [Effect(item=item, title=title, effect=effect) for item, title, effect in entries]
        return cls(item=found.item, title=found.title, score=found.score, kind=found.kind, effects=effects)


class Health(BaseModel):
    """That the service answers, and what it serves."""

    status: Literal["ok"] = "ok"
    version: str = Field(description="Of dmpo-trl.")
    titles: int = Field(description="Number of items in the catalogue.")
    waiting: int = Field(description="Requests that wait for the model.")


class Problem(BaseModel):
    """What is wrong, in one sentence."""

    detail: str
