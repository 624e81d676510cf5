"""Columns of tens of millions of rows: worked on in blocks, and kept in files that processes share.

A memory-mapped file takes no memory that is not used at the moment, and all processes that map it
share what is in memory.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
import zlib
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from detrlab import files
from detrlab.download import cache_folder

LARGE_COLUMN = 64 << 20
"""Bytes from which a new column is put into a file instead of memory."""

_ROWS = 1 << 18
_ALIGNED = 64
_MAGIC = b"detrlab columns 1\n"


class Mapped(np.memmap):
    """A column of a file; pickled as its place in the file, so that other processes share it."""

    def __reduce__(self) -> Any:
        if isinstance(self.base, mmap.mmap):
            return _map, (str(self.filename), self.dtype.str, self.offset, self.shape)
        return np.array(self).__reduce__()  # a part of a column


def _map(path: str, dtype: str, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    if not np.prod(shape):  # nothing cannot be mapped
        return np.zeros(shape, dtype)
    return Mapped(path, dtype, "r", offset, shape)


def in_blocks(function: Callable[..., Any], *columns: np.ndarray) -> Any:
    """A function of rows, on some of them at a time: what it needs on its way stays small.

    The function gives an array with a row for each, or a dictionary of such arrays. A large array
    is mapped from a temporary file of the cache folder. The file has no name, so nothing is left
    behind. Without room for it, the array is in memory.
    """
    starts = range(0, max(len(columns[0]), 1), _ROWS)
    parts = (function(*(column[i : i + _ROWS] for column in columns)) for i in starts)
    first = next(parts)
    if isinstance(first, dict):
        rest = list(parts)
        return {key: np.concatenate([part[key] for part in (first, *rest)]) for key in first}
    if first.nbytes * len(starts) < LARGE_COLUMN:
        return np.concatenate([first, *parts])
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_folder()) as file:
            rows = 0
            for part in chain([first], parts):
                file.write(part.tobytes())
                rows += len(part)
            file.flush()
            return np.memmap(file, first.dtype, "r", shape=(rows, *first.shape[1:]))
    except OSError:
        return np.concatenate(
            [function(*(column[i : i + _ROWS] for column in columns)) for i in starts]
        )


def gather(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """``column[rows]``, as ``in_blocks`` gives it."""
    return in_blocks(lambda some: column[some], rows)


def save_columns(path: Path, values: Any, columns: dict[str, np.ndarray]) -> None:
    """Write columns, and values of JSON, to one file, whole or not at all.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    places, offset = {}, 0
    for name, column in columns.items():
        places[name] = column.dtype.str, list(column.shape), offset
        offset += -(-column.nbytes // _ALIGNED) * _ALIGNED
    header = json.dumps([values, places]).encode()
    header += b" " * (-(len(_MAGIC) + 8 + len(header)) % _ALIGNED)
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        checksum = 0

        def write(data: bytes) -> None:
            nonlocal checksum
            checksum = zlib.crc32(data, checksum)
            file.write(data)

        write(_MAGIC + len(header).to_bytes(8, "little") + header)
        for column in columns.values():
            for i in range(0, len(column), _ROWS):
                write(column[i : i + _ROWS].tobytes())
            write(b"\0" * (-column.nbytes % _ALIGNED))
        file.write(checksum.to_bytes(4, "little"))


def load_columns(path: Path) -> tuple[Any, dict[str, np.ndarray]] | None:
    """The values and columns of a file, mapped; None if it is absent or damaged."""
    try:
        with path.open("rb") as file:
            left, checksum = os.fstat(file.fileno()).st_size - 4, 0
            while left > 0:
                data = file.read(min(left, 16 << 20))
                left, checksum = left - len(data), zlib.crc32(data, checksum)
            if file.read() != checksum.to_bytes(4, "little"):
                return None
            file.seek(0)
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
            length = int.from_bytes(file.read(8), "little")
            values, places = json.loads(file.read(length))
            start = file.tell()
    except (OSError, ValueError):
        return None
    columns = {
        name: _map(str(path), dtype, start + offset, tuple(shape))
        for name, (dtype, shape, offset) in places.items()
    }
    return values, columns
