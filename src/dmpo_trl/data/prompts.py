"""The words around the titles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

Text = str | list[dict[str, str]]
"""Plain text, or a list of messages with `role` and `content`."""


@dataclass(frozen=True)
class PromptTemplate:
    """Turns a history into a prompt and a title into a completion.

    What is the same for all users stands first: prefix sharing then computes it once a batch, not once a user.

    Args:
        instruction: the text before the history.
        question: the text after it.
        system: the system message. The conversational style sends it as a message (`None` sends none, and some chat
            templates then add one of their own); the plain style puts it before the instruction.
        separator: between two titles.
        conversational: messages for chat models, or plain text for base models.
    """

    instruction: str
    question: str
    system: str | None = None
    separator: str = "\n"
    conversational: bool = True

    def prompt(self, history: Sequence[str]) -> Text:
        """The prompt for a history of titles, from old to new."""
        body = f"{self.instruction}\n{self.separator.join(history)}\n{self.question}"
        if self.conversational:
            system = [{"role": "system", "content": self.system}] if self.system is not None else []
            return [*system, {"role": "user", "content": body}]
        return f"{self.system}\n{body}\n" if self.system else f"{body}\n"

    def completion(self, title: str) -> Text:
        """The completion that recommends a title."""
        return [{"role": "assistant", "content": title}] if self.conversational else title

    def plain(self) -> PromptTemplate:
        """The same words as plain text."""
        return replace(self, conversational=False)


MOVIES = PromptTemplate(
    system="You recommend films.",
    instruction="A viewer liked these films, oldest first:",
    question="Which film will the viewer like next?",
)
"""For MovieLens."""
