"""Folders and zip files as sets of names, so that no reader ever touches a path of its own.

A reader looks names up among the files that were found; a name that leads elsewhere (``../``,
an absolute path, a link that leaves the folder) is simply not among them. That is the whole
defence: there is no other way from an annotation to a file.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import numpy as np

from detrlab.data.pictures import FilePictures, Names, Pictures, ZipPictures, extract
from detrlab.errors import UserError

MAX_FILES = 5_000_000
MAX_DEPTH = 16
MAX_TEXT = 4 << 30
"""Bytes of the largest annotation file that is read."""
MAX_MEMBER = 1 << 30
"""Bytes of the largest image file that is taken out of an archive."""
_BOMB_BYTES = 16 << 20
_BOMB_RATIO = 200
"""A packed file that grows past both is refused: text packs 30-fold, a bomb 1000-fold."""

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


@dataclass(frozen=True)
class Archive:
    """The files in a zip, read where they lie: nothing is ever unpacked to a disk."""

    root: Path
    names: frozenset[str]
    members: dict[str, zipfile.ZipInfo]
    refused: tuple[str, ...] = ()

    @staticmethod
    def scan(path: Path) -> Archive:
        """List a zip file.

        Raises:
            UserError: it is not a zip file, or holds more than a data set would.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
            raise UserError(
                f"{path} is not a readable zip file ({error}): copy or download it again"
            ) from None
        if len(entries) > MAX_FILES:
            raise UserError(f"{path} holds more than {MAX_FILES:,} files: it is no data set")
        members: dict[str, zipfile.ZipInfo] = {}
        refused: list[str] = []
        for entry in entries:
            if entry.is_dir():
                continue
            name = within("", entry.filename)
            if name is None or stat.S_ISLNK(entry.external_attr >> 16):
                refused.append(entry.filename)
            elif not any(part.startswith(".") or part in _SKIPPED for part in name.split("/")):
                members[name] = entry
        return Archive(path, frozenset(members), members, tuple(sorted(refused)))

    def read(self, name: str, limit: int = MAX_TEXT) -> bytes:
        """The bytes of a file of at most ``limit`` bytes."""
        entry = self._checked(name)
        if entry.file_size > limit:
            raise UserError(
                f"{self.root}: {name} holds {entry.file_size:,} bytes, more than {limit:,}"
            )
        with self.root.open("rb") as file:
            return extract(file, _Where.of(entry), f"{self.root}: {name}")

    def open(self, name: str) -> IO[bytes]:
        """A seekable stream of a file's bytes."""
        return io.BytesIO(self.read(name, MAX_MEMBER))

    def pictures(self, names: list[str]) -> Pictures:
        """Image files as the pixels of a table."""
        columns = [_Where.of(self._checked(name)) for name in names]
        return ZipPictures(
            str(self.root), Names(names), np.array(columns, dtype=np.int64).reshape(-1, 5)
        )

    def _checked(self, name: str) -> zipfile.ZipInfo:
        """A member that does not blow up.

        Raises:
            UserError: it is encrypted, packed in an unusual way, or a bomb.
        """
        entry = self.members[name]
        where = f"{self.root}: {name}"
        if entry.flag_bits & 1:
            raise UserError(f"{where} is encrypted: pack the data without a password")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{where} is packed in an unusual way: pack the data as plain zip")
        ratio = entry.file_size / max(entry.compress_size, 1)
        if entry.file_size > MAX_TEXT or (entry.file_size > _BOMB_BYTES and ratio > _BOMB_RATIO):
            raise UserError(
                f"{where} would grow from {entry.compress_size:,} to {entry.file_size:,} bytes: "
                "this looks like an archive bomb and is not unpacked"
            )
        return entry


class _Where(NamedTuple):
    """Where a packed file lies, as five numbers for the columns of ``ZipPictures``."""

    offset: int
    packed: int
    size: int
    deflated: int
    crc: int

    @staticmethod
    def of(entry: zipfile.ZipInfo) -> _Where:
        deflated = int(entry.compress_type == zipfile.ZIP_DEFLATED)
        return _Where(
            entry.header_offset, entry.compress_size, entry.file_size, deflated, entry.CRC
        )
