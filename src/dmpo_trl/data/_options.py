"""Option errors: messages that name options, each spelled as the caller can set it."""

from __future__ import annotations

from collections.abc import Callable


class OptionError(ValueError):
    """A ValueError whose message names options.

    A reader knows its own arguments, a preparation calls them by other names, and the command line by flags: each
    spells the names in its own way, and the text is written once.

    Args:
        text: The message, with the names of the options in backticks.
        *options: The names.

    Example:
        >>> print(OptionError("There is no column 'user'. Name it with `user`.", "user").spelled("`{}_column`".format))
        There is no column 'user'. Name it with `user_column`.
    """

    def __init__(self, text: str, *options: str) -> None:
        super().__init__(text)
        self.text, self.options = text, options

    def spelled(self, spell: Callable[[str], str]) -> OptionError:
        """Return the error with other names: `spell` makes the new text of each name, backticks included."""
        text = self.text
        for option in self.options:
            text = text.replace(f"`{option}`", spell(option))
        return OptionError(text, *(spell(option).strip("`") for option in self.options))
