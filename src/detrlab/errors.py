"""User errors, reported in one message, and the closest match to a mistyped word."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

LONGEST = 2000
"""Characters of a message; both ends of a longer one are kept."""
_NO_MEMORY = (
    "can't allocate memory", "Cannot allocate memory", "bad_alloc", "can't start new thread",
)  # fmt: skip


class UserError(ValueError):
    """An error the user can correct: the message holds the offending value and the fix.

    The command line prints the message and exits with code 2, without a traceback. Messages quote
    files and libraries: whatever these hold, it becomes one line that is safe to print.
    """

    def __init__(self, message: str) -> None:
        lines = filter(None, map(str.strip, message.splitlines()))
        super().__init__(shortened(printable(" ".join(lines)), LONGEST))


class InUseError(UserError):
    """Another process is writing to the same folder."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` or, without a close match, the list of known words."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f", did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}"


def shortened(text: str, length: int = 300) -> str:
    """Both ends of a text that is too long to print."""
    return text if len(text) <= length else f"{text[: length - 60]} ... {text[-50:]}"


def excerpt(value: Any, length: int = 40) -> str:
    """The start of any value's repr; the time and memory it takes do not depend on the value."""
    bounded = reprlib.Repr()
    bounded.maxlevel, bounded.maxstring = 3, length
    text = bounded.repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def lacks_memory(error: BaseException) -> bool:
    """Whether an allocation has failed, here or in an error that led to this one.

    PyTorch (on a CPU), the system and threads have no class for that.
    """
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, MemoryError) or type(each).__name__ == "OutOfMemoryError":
            return True
        if any(words in str(each) for words in _NO_MEMORY):
            return True
        each = each.__cause__ or each.__context__
    return False


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever a library raises as a user's error; a lack of memory stays what it is."""
    try:
        yield
    except Exception as error:  # some have dozens of kinds
        if lacks_memory(error):
            raise
        raise UserError(f"{what}: {' '.join(str(error).split())[:300]}") from None


def printable(text: str) -> str:
    """Text from files, safe to print: control characters, so terminal escapes too, are escaped.

    Letters of every script stay as they are.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
