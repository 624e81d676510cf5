"""Large JSON documents, of which only a piece is in memory at a time.

A parsed COCO file takes ten times its size. So the long lists of a large file are found first, by
one look at every byte, and then parsed a piece at a time, by the same parser as small files.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import IO, Any

import numpy as np

PIECE = 4 << 20
"""Bytes of a list that are parsed at a time."""

_BLOCK = 16 << 20
_MARKS = 1 << 16

Parse = Callable[[bytes, int], Any]
"""From JSON, and where it begins in its file, to values."""


@dataclass(frozen=True)
class Pieces:
    """A list in a JSON file; iterating parses it, a list of some values after the other."""

    stream: IO[bytes]
    spans: tuple[tuple[int, int], ...]
    count: int
    """How many values there are; 1 for an empty list."""
    parse: Parse

    def __iter__(self) -> Iterator[list[Any]]:
        for start, stop in self.spans:
            values = self.parse(b"[" + _bytes(self.stream, start, stop) + b"]", start)
            if not values and len(self.spans) > 1:
                self.parse(b",", start)  # nothing between two commas is an error
            yield values


def in_pieces(stream: IO[bytes], keys: Sequence[str], parse: Parse) -> Any:
    """The parsed document, in which the lists of some keys are ``Pieces``; None if it is no object.

    Args:
        stream: a seekable file, which stays open as long as the pieces are used.
        keys: of the outermost object.
        parse: what it raises is raised on.

    Raises:
        ValueError: there are more opening than closing brackets, or the reverse.
    """
    if not _bytes(stream, 0, 1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return None
    kinds, places, commas = _scan(stream)
    lists: dict[str, Pieces] = {}
    kept, end = [], 0
    for i in np.flatnonzero(kinds[2:] == ord("[")) + 2:
        # The string before an opening bracket is its key. If not, what is parsed last is no JSON.
        if not (kinds[i - 2 : i] == ord('"')).all():
            continue
        key = parse(_bytes(stream, places[i - 2], places[i - 1] + 1), int(places[i - 2]))
        if key in keys:
            close = i + 1 + int(np.argmax(kinds[i + 1 :] != ord(",")))
            cuts = places[i : close + 1].tolist()
            spans = tuple((one + 1, other) for one, other in pairwise(cuts))
            lists[key] = Pieces(stream, spans, int(commas[close]) + 1, parse)
            kept.append(_bytes(stream, end, cuts[0] + 1))
            end = cuts[-1]
    document = parse(b"".join([*kept, _bytes(stream, end, None)]), 0)
    document.update({key: found for key, found in lists.items() if document.get(key) == []})
    return document


def list_in_pieces(stream: IO[bytes], parse: Parse) -> Pieces:
    """The list that a file holds, as ``in_pieces``.

    Raises:
        ValueError: it holds something else, or brackets do not match.
    """
    kinds, places, commas = _scan(stream, depth=1)
    opening, closing = np.flatnonzero(kinds == ord("[")), np.flatnonzero(kinds == ord("]"))
    if len(opening) != 1 or len(closing) != 1:
        raise ValueError("it is no list")
    around = _bytes(stream, 0, places[opening[0]]) + _bytes(stream, places[closing[0]] + 1, None)
    if around.removeprefix(b"\xef\xbb\xbf").strip():
        raise ValueError("something stands before or behind the list")
    cuts = places.tolist()
    spans = tuple((one + 1, other) for one, other in pairwise(cuts))
    return Pieces(stream, spans, int(commas[-1]) + 1, parse)


def _bytes(stream: IO[bytes], start: int, stop: int | None) -> bytes:
    stream.seek(start)
    return stream.read(-1 if stop is None else stop - start)


def _scan(stream: IO[bytes], depth: int = 0) -> np.ndarray:
    """Kinds and places of quotes and brackets at the outermost level, and of commas for cutting.

    And how many commas the list had so far. From a ``depth`` of 1, a list's own brackets count as
    those in an object.
    """
    found = []
    state = np.array([depth, 0, 0, 0, 0], dtype=np.int64)
    marks = np.empty((3, _MARKS), dtype=np.int64)
    stream.seek(0)
    offset = 0
    while block := stream.read(_BLOCK):
        text = np.frombuffer(block, dtype=np.uint8)
        begin = 0
        while begin < len(text):  # again where the marks are full
            count, begin = _scanner()(text, begin, offset, state, *marks, PIECE)
            found.append(marks[:, :count].copy())
        offset += len(text)
    if state[0] != depth or state[1]:
        early = state[0] > depth or state[1]
        raise ValueError("it ends too early" if early else "a bracket closes nothing")
    return np.concatenate(found, axis=1)


@functools.cache
def _scanner() -> Any:
    import numba

    def scan(
        text: Any,
        begin: int,
        offset: int,
        state: Any,
        kinds: Any,
        places: Any,
        counts: Any,
        piece: int,
    ) -> Any:
        depth, quoted, escaped, cut, commas = state
        count = 0
        i = begin
        while i < len(text) and count < len(kinds):
            byte = text[i]
            mark = False
            if quoted:
                if escaped:
                    escaped = 0
                elif byte == 92:  # backslash
                    escaped = 1
                elif byte == 34:  # "
                    quoted = 0
                    mark = depth == 1
            elif byte == 34:
                quoted = 1
                mark = depth == 1
            elif byte == 91 or byte == 123:  # [ {
                mark = depth == 1
                depth += 1
                if mark:
                    cut, commas = offset + i, 0
            elif byte == 93 or byte == 125:  # ] }
                depth -= 1
                mark = depth == 1
            elif byte == 44 and depth == 2:
                commas += 1
                mark = offset + i - cut >= piece
                if mark:
                    cut = offset + i
            if mark:
                kinds[count] = byte
                places[count] = offset + i
                counts[count] = commas
                count += 1
            i += 1
        state[:] = depth, quoted, escaped, cut, commas
        return count, i

    try:
        return numba.njit(nogil=True, cache=True)(scan)
    except RuntimeError:  # numba found no folder it may write to
        return numba.njit(nogil=True)(scan)
