"""Titles as people write them, from titles as catalogues file them."""

from __future__ import annotations

import re

# Articles that MovieLens moves behind the title: English, French, Italian, Spanish, Portuguese, German, Danish.
_ARTICLES = "The|A|An|Le|La|Les|L'|Un|Une|Il|Lo|El|Los|Las|O|Os|Der|Die|Das|Det|Den"
_FILED = re.compile(rf"(?P<rest>[^()]+?), (?P<article>{_ARTICLES})(?= \(|\)|$)")


def natural_title(title: str) -> str:
    """Puts an article that a catalogue moved to the end back to the front, also within parentheses.

    Example:

    ```python
    >>> natural_title("Bug's Life, A")
    "A Bug's Life"
    >>> natural_title("Postman, The (Postino, Il)")
    'The Postman (Il Postino)'
    ```
    """

    def front(match: re.Match[str]) -> str:
        article, rest = match["article"], match["rest"]
        return article + ("" if article.endswith("'") else " ") + rest

    return _FILED.sub(front, title)
