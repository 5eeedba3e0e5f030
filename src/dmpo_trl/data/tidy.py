"""Tidy titles: one line, no character that cannot be seen, one Unicode form."""

from __future__ import annotations

import re
import unicodedata

import polars as pl

# Control characters, but for those that are white space, and format characters that turn the direction of text, hide
# in it or carry text that nobody sees (tags). Joiners stay: they are part of words and of emoji
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\u034f]"
    # Hangul fillers, but for those that stand for a missing letter of a syllable
    "|(?<![\u1100-\u115e\u1161-\u11ff])[\u115f\u1160]+(?![\u1100-\u11ff])"
)
# The tags of a flag, as England's: a black flag, the tags, and the one that ends them
_FLAG = re.compile("(?<=\U0001f3f4)[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f")
# Characters that look like a blank, though Unicode does not call them white space
_BLANK = re.compile("[\u3164\uffa0\u2800]")
_SELECTOR = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# Letters that have variants to select
_WITH_VARIANTS = ("CJK", "MYANMAR", "PHAGS-PA", "MANICHAEAN", "INFORMATION SOURCE")


def tidy_title(title: str) -> str:
    """Return a title as every reader returns it: what would break a prompt's layout, or hides in it, is gone.

    - White space of any kind, line breaks too, is one blank between two words and nothing at the ends: a template puts
      each title on a line of its own, and a line break in a title would make two of it.
    - Control characters, marks of the direction of text and other invisible characters are left out. The joiners of
      Persian, of Indian scripts and of emoji stay. Fillers that look like a blank are one, and a variation selector
      stays where it selects something: after a symbol, an ideograph, or in a keycap.
    - Letters with accents are one character where Unicode has one (NFC), so that titles which look equal are equal.

    Example:
        >>> tidy_title("Alien\\nWhich film next?  Always Heidi ")
        'Alien Which film next? Always Heidi'
        >>> tidy_title("Ame\\u0301lie\\u202e")
        'Amélie'
    """
    if title.isascii() and title.isprintable() and "  " not in title and title == title.strip():
        return title
    tidy = unicodedata.normalize("NFC", " ".join(_BLANK.sub(" ", _visible(title)).split()))
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
    visible = _visible(title)
    line = " ".join(_BLANK.sub(" ", visible).split())
    reasons = {
        "invisible characters": visible != title,
        "white space": line != visible,
        "Unicode form": not unicodedata.is_normalized("NFC", line),
    }
    return [reason for reason, holds in reasons.items() if holds]


def _visible(title: str) -> str:
    """Leave out what cannot be seen."""
    shown, start = [], 0
    for flag in _FLAG.finditer(title):
        shown += [_INVISIBLE.sub("", title[start : flag.start()]), flag[0]]
        start = flag.end()
    title = "".join([*shown, _INVISIBLE.sub("", title[start:])])
    if not _SELECTOR.search(title):
        return title
    kept: list[str] = []
    for place, character in enumerate(title):
        if not _SELECTOR.match(character) or _selects("".join(kept[-1:]), title[place + 1 : place + 2]):
            kept.append(character)
    return "".join(kept)


def _selects(before: str, after: str) -> bool:
    """Return whether a variation selector between two characters can change what is seen."""
    if not before or before.isspace() or _BLANK.match(before):
        return False
    if before.isascii():
        return before in "0123456789#*" and after == "\u20e3"  # a keycap
    return unicodedata.category(before)[0] not in "LMC" or unicodedata.name(before, "").startswith(_WITH_VARIANTS)
