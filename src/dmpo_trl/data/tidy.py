"""Tidy titles: one line, no character that cannot be seen, one Unicode form."""

from __future__ import annotations

import re
import unicodedata

import polars as pl

# Control characters, but for those that are white space, and format characters that turn the direction of text, hide
# in it or carry text that nobody sees (tags). Joiners stay: they are part of words and of emoji
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


def tidy_title(title: str) -> str:
    """Return a title as every reader returns it: what would break a prompt's layout, or hides in it, is gone.

    - White space of any kind, line breaks too, is one blank between two words and nothing at the ends: a template puts
      each title on a line of its own, and a line break in a title would make two of it.
    - Control characters, marks of the direction of text and other invisible characters are left out. The joiners of
      Persian, of Indian scripts and of emoji stay.
    - Letters with accents are one character where Unicode has one (NFC), so that titles which look equal are equal.

    Example:
        >>> tidy_title("Alien\\nWhich film next?  Always Heidi ")
        'Alien Which film next? Always Heidi'
        >>> tidy_title("Ame\\u0301lie\\u202e")
        'Amélie'
    """
    if title.isascii() and title.isprintable() and "  " not in title and title == title.strip():
        return title
    tidy = unicodedata.normalize("NFC", " ".join(_INVISIBLE.sub("", title).split()))
    return tidy if tidy.strip(" \u200c\u200d") else ""  # joiners alone join nothing


def tidy_titles(titles: pl.Series) -> tuple[pl.Series, dict[str, int]]:
    """Return titles as `tidy_title` makes them, and how many were changed for each reason.

    Args:
        titles: (I,), text or null.

    Example:
        >>> tidy, changed = tidy_titles(pl.Series(["Alien", "Star  Wars", None]))
        >>> tidy.to_list(), changed
        (['Alien', 'Star Wars', None], {'white space': 1})
    """
    found = titles.cast(pl.String).to_list()
    tidy = [title if title is None else tidy_title(title) for title in found]
    changed: dict[str, int] = {}
    for before, after in zip(found, tidy, strict=True):
        if before != after:
            for reason in _reasons(before):
                changed[reason] = changed.get(reason, 0) + 1
    return pl.Series(titles.name, tidy, pl.String), changed


def _reasons(title: str) -> list[str]:
    visible = _INVISIBLE.sub("", title)
    line = " ".join(visible.split())
    reasons = {
        "invisible characters": visible != title,
        "white space": line != visible,
        "Unicode form": not unicodedata.is_normalized("NFC", line),
    }
    return [reason for reason, holds in reasons.items() if holds]
