"""User errors, reported in one message, and the closest match to a mistyped word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An error the user can correct: the message holds the offending value and the fix.

    The command line prints the message and exits with code 2, without a traceback.
    """


class InUseError(UserError):
    """Another process is writing to the same folder."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` or, without a close match, the list of known words."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f", did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}"


def printable(text: str) -> str:
    """Text from files, safe to print: control characters, so terminal escapes too, are escaped.

    Letters of every script stay as they are.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
