"""Natural titles: the article that a catalogue moved to the end is put back to the front."""

from __future__ import annotations

import re

# Articles that MovieLens moves behind the title: English, French, Italian, Spanish, Portuguese, German, Dutch,
# Scandinavian.
_ARTICLES = (
    "The|A|An|Da|Le|La|Les|L'|Un|Une|Il|Lo|I|Gli|Una|Uno|El|Los|Las|O|Os|As|Um|Uma|Der|Die|Das|Ein|Eine|De|Het|Een|"
    "Den|Det|En|Et"
)
_FILED = re.compile(rf"(?P<also>a\.k\.a\. |aka )?(?P<rest>[^()]+?), (?P<article>{_ARTICLES})(?= +\(|\)|$)")


def natural_title(title: str) -> str:
    """Put an article that a catalogue moved to the end back to the front, also within parentheses.

    Example:
        >>> natural_title("Bug's Life, A")
        "A Bug's Life"
        >>> natural_title("Postman, The (Postino, Il)")
        'The Postman (Il Postino)'
    """

    def front(match: re.Match[str]) -> str:
        article, rest = match["article"], match["rest"]
        return (match["also"] or "") + article + ("" if article.endswith("'") else " ") + rest

    return _FILED.sub(front, title)
