"""Atomic file writes, and checksums.

A crash, a kill or a full disk during a write leaves the previous file unchanged.
"""

from __future__ import annotations

import errno
import hashlib
import json
import lzma
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from detrlab.errors import UserError

_TEMPORARY = ".tmp"
_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EACCES: "permission denied: make the folder writable or choose another",
    errno.EPERM: "not permitted: make the folder writable or choose another",
    errno.EROFS: "the file system is read-only: choose another folder",
}


def explain(error: OSError, path: str | Path) -> UserError:
    """One message for a failed write, with the remedy; the previous file is unchanged."""
    remedy = _REMEDIES.get(error.errno or 0, str(error))
    return UserError(f"{path} could not be written: {remedy}")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, which replaces ``path`` when the block succeeds.

    The contents are synced to disk before the rename, and the rename before this returns. When
    the block fails, the temporary file is removed and ``path`` is unchanged.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    unique = f"{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f".{path.name}.{unique}{_TEMPORARY}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise explain(error, path) from error


def read_bytes(path: str | Path) -> bytes:
    """The contents of a file, or, where it is absent, of the compressed ``path.xz``."""
    path = Path(path)
    compressed = path.with_name(f"{path.name}.xz")
    if path.is_file() or not compressed.is_file():
        return path.read_bytes()
    try:
        return lzma.decompress(compressed.read_bytes())
    except lzma.LZMAError as error:
        raise UserError(f"{compressed} is damaged: {error}") from None


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, values: Any) -> None:
    """Write ``values`` as indented JSON, whole or not at all.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
        ValueError: a number is NaN or infinite, which JSON does not know.
    """
    write_text(path, json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's contents, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(data: bytes) -> str:
    """The SHA-256 of ``data``, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def remove_leftovers(folder: str | Path) -> int:
    """Delete temporary files that a killed process left in ``folder``; returns how many.

    Only for a folder that nobody else is writing to.
    """
    leftovers = [path for path in Path(folder).glob(f".*{_TEMPORARY}") if path.is_file()]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; systems that cannot open a folder (Windows) need no such thing."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
