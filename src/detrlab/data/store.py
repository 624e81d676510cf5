"""Folders and zip files as sets of names, so that no reader ever touches a path of its own.

A reader looks names up among the files that were found; a name that leads elsewhere (``../``,
an absolute path, a link that leaves the folder) is simply not among them. That is the whole
defence: there is no other way from an annotation to a file.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from detrlab.data.pictures import FilePictures, Names, Pictures
from detrlab.errors import UserError

MAX_FILES = 5_000_000
MAX_DEPTH = 16
MAX_TEXT = 4 << 30
"""Bytes of the largest annotation file that is read."""
MAX_IMAGE = 1 << 30
"""Bytes of the largest image file that is taken out of an archive."""

_SKIPPED = {"__MACOSX", "__pycache__", "node_modules"}


class Store(Protocol):
    """Files below one root, by their names relative to it, with forward slashes."""

    @property
    def root(self) -> Path:
        """The folder or archive, for messages."""

    @property
    def names(self) -> frozenset[str]:
        """The files that may be read."""

    @property
    def refused(self) -> tuple[str, ...]:
        """Names that exist and may not be read, such as links that leave the folder."""

    def read(self, name: str, limit: int = MAX_TEXT) -> bytes:
        """The bytes of a file of at most ``limit`` bytes."""

    def open(self, name: str) -> IO[bytes]:
        """A seekable stream of a file's bytes."""

    def pictures(self, names: list[str]) -> Pictures:
        """Image files as the pixels of a table."""


@dataclass(frozen=True)
class Folder:
    """The files below a folder."""

    root: Path
    names: frozenset[str]
    refused: tuple[str, ...] = ()

    @staticmethod
    def scan(root: Path, *, follow_links: bool = False) -> Folder:
        """List a folder once.

        Args:
            root: the folder.
            follow_links: also go where links lead outside of the folder.

        Raises:
            UserError: it cannot be listed, or holds more than a data set would.
        """
        found: set[str] = set()
        refused: list[str] = []
        home = os.path.realpath(root)
        # Folders still to list: (real path, name relative to the root, depth).
        waiting = [(home, "", 0)]
        seen = {home}
        while waiting:
            folder, prefix, depth = waiting.pop()
            for entry in _entries(folder, prefix):
                name = prefix + entry.name
                if entry.name.startswith(".") or entry.name in _SKIPPED:
                    continue
                path = entry.path
                if entry.is_symlink():
                    path = os.path.realpath(entry.path)
                    if not (follow_links or path.startswith(home + os.sep)):
                        refused.append(name)
                        continue
                if entry.is_dir():
                    real = os.path.realpath(path)
                    if depth < MAX_DEPTH and real not in seen:
                        seen.add(real)
                        waiting.append((path, name + "/", depth + 1))
                elif entry.is_file():
                    found.add(name)
            if len(found) > MAX_FILES:
                raise UserError(
                    f"{root} holds more than {MAX_FILES:,} files: name the data's own folder"
                )
        return Folder(root, frozenset(found), tuple(sorted(refused)))

    def read(self, name: str, limit: int = MAX_TEXT) -> bytes:
        """The bytes of a file of at most ``limit`` bytes."""
        with self.open(name) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > limit:
                raise UserError(f"{self.root / name} holds {size:,} bytes, more than {limit:,}")
            try:
                return stream.read(limit)
            except OSError as error:
                raise UserError(f"{self.root / name} cannot be read: {error.strerror}") from None

    def open(self, name: str) -> IO[bytes]:
        """A seekable stream of a file's bytes."""
        assert name in self.names, name
        try:
            return (self.root / name).open("rb")
        except OSError as error:
            raise UserError(f"{self.root / name} cannot be opened: {error.strerror}") from None

    def pictures(self, names: list[str]) -> Pictures:
        """Image files as the pixels of a table."""
        assert self.names.issuperset(names)
        return FilePictures(str(self.root), Names(names))


def _entries(folder: str, prefix: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as listing:
            return list(listing)
    except OSError as error:
        if prefix:  # an unreadable corner does not hide the rest
            return []
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from None


def within(folder: str, name: str) -> str | None:
    """``name`` seen from ``folder``, as a store's name; None where it would leave the store."""
    name = name.replace("\\", "/")
    if name.startswith("/") or (len(name) > 1 and name[1] == ":") or "\0" in name:
        return None
    joined = posixpath.normpath(posixpath.join(folder, name))
    return None if joined == ".." or joined.startswith("../") else joined
