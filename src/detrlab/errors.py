"""Errors that a user can fix, and the closest match to a mistyped word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An error that a user can fix: the message names the offending value and the fix.

    The command line prints the message without a traceback and exits with code 2.
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
