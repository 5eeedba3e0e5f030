"""Prompt templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

Text = str | list[dict[str, str]]
"""Plain text, or a list of messages with `role` and `content`."""


@dataclass(frozen=True)
class PromptTemplate:
    """Turns a history into a prompt and a title into a completion.

    What is the same for all users stands first: prefix sharing then computes it once per batch, not once per user.

    Args:
        instruction: The text before the history.
        question: The text that ends the prompt. Where it is empty the history ends it, and the instruction asks: then
            histories that grow by an item have nothing to compute again but the markers of a chat template.
        system: The system message. The conversational style sends it as a message (`None` sends none, and some chat
            templates then add one of their own); the plain style puts it before the instruction.
        separator: Between two titles.
        conversational: Messages for chat models, or plain text for base models.
        candidates: The text before a list of the candidates, which then stands between history and question. `None`
            leaves the list out.

    Example:
        >>> template = PromptTemplate("A viewer liked:", "Next:", conversational=False)
        >>> print(template.prompt(["Alien", "Aliens"]), end="")
        A viewer liked:
        Alien
        Aliens
        Next:
        >>> template.completion("Babe")
        'Babe'
    """

    instruction: str
    question: str
    system: str | None = None
    separator: str = "\n"
    conversational: bool = True
    candidates: str | None = None

    def prompt(self, history: Sequence[str], candidates: Sequence[str] | None = None) -> Text:
        """Return the prompt for a history of titles.

        Args:
            history: Titles, from old to new.
            candidates: Titles in the order shown; needed where the template lists candidates, and only there.

        Raises:
            ValueError: Where the template lists candidates and none are given, or the other way round.
        """
        if (candidates is None) != (self.candidates is None):
            lists = "lists no candidates" if self.candidates is None else "lists candidates"
            raise ValueError(
                f"The template {lists}, but prompt(history, candidates) was given candidates={candidates}."
            )
        before, *between, after = self.around()
        titles = self.separator.join(history)
        if candidates is not None:
            titles += between[0] + self.separator.join(candidates)
        return self.messages(before + titles + after)

    def around(self) -> list[str]:
        """Return the texts before the history, between it and the candidates (if listed), and at the end."""
        before, after = f"{self.instruction}\n", f"\n{self.question}" if self.question else ""
        if not self.conversational:
            before, after = f"{self.system}\n{before}" if self.system else before, f"{after}\n"
        return [before, *([f"\n{self.candidates}\n"] if self.candidates is not None else []), after]

    def messages(self, text: str) -> Text:
        """Return the text as it is sent: the user's message after the system's, or as it is in the plain style."""
        if not self.conversational:
            return text
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*system, {"role": "user", "content": text}]

    def completion(self, title: str) -> Text:
        """Return the completion that recommends a title."""
        return [{"role": "assistant", "content": title}] if self.conversational else title

    def plain(self) -> PromptTemplate:
        """Return the template with the same words as plain text."""
        return replace(self, conversational=False)

    def with_candidates(self, text: str = "One of these comes next:") -> PromptTemplate:
        """Return the template with the same words and a list of the candidates, introduced by `text`."""
        return replace(self, candidates=text)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dictionary, for JSON and YAML."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PromptTemplate:
        """Make the template whose fields are `values`; those left out have their defaults.

        Raises:
            ValueError: For a field that is unknown, missing or of another type.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"A prompt template has no {unknown}; its fields are {sorted(known)}.")
        if missing := sorted({"instruction", "question"} - set(values)):
            raise ValueError(f"The prompt template lacks {missing}.")
        for name, value in values.items():
            optional = name in ("system", "candidates") and value is None
            kind = bool if name == "conversational" else str
            if not optional and not isinstance(value, kind):
                raise ValueError(f"{name} of a prompt template must be {kind.__name__}, it is {value!r}.")
        return cls(**values)


# The question stands before the history: of histories that grow by an item only the chat markers are computed again
MOVIES = PromptTemplate(
    system="You recommend films.", instruction="Which film will a viewer like next, after these?", question=""
)
"""For MovieLens."""

GAMES = PromptTemplate(
    system="You recommend games.", instruction="Which game will a player like next, after these?", question=""
)
"""For Amazon's video games."""

PRODUCTS = PromptTemplate(
    system="You recommend products.",
    instruction="Which product will a customer buy next, after these?",
    question="",
)
"""For Amazon's other categories."""

MUSIC = PromptTemplate(
    system="You recommend music.",
    # No word about an order: the artists of Last.fm HetRec come without times
    instruction="Which other artist will a listener of these like?",
    question="",
)
"""For Last.fm."""

GENERAL = PromptTemplate(
    system="You recommend items.", instruction="Which item will a user choose next, after these?", question=""
)
"""For whatever else a table may hold."""

TEMPLATES = {"movies": MOVIES, "games": GAMES, "products": PRODUCTS, "music": MUSIC, "general": GENERAL}
"""The templates by name."""
