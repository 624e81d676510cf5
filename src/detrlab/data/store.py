"""Folders, zip and tar files as sets of names: readers never open a path of their own.

A reader looks names up among the files that were found. A name that leads elsewhere (``../``,
an absolute path, a link that leaves the folder) is not among them, so annotations cannot reach
any other file.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from detrlab.data.images import MAX_BYTES, Names
from detrlab.data.pictures import FilePictures, TarPictures, ZipPictures, extract
from detrlab.errors import UserError

MAX_FILES = 5_000_000
MAX_DEPTH = 16
MAX_TEXT = 4 << 30
"""Bytes of the largest annotation file that is read."""
MAX_MEMBER = MAX_BYTES
"""Bytes of the largest image file that is read."""
_BOMB_BYTES = 16 << 20
_BOMB_RATIO = 200
"""A compressed file beyond both is refused: text compresses 30-fold, a bomb 1000-fold."""

_SKIPPED = {"__MACOSX", "__pycache__", "node_modules"}


@dataclass(frozen=True)
class Folder:
    """The files below a folder.

    Attributes:
        root: the folder.
        names: the files that may be read, relative to the root, with forward slashes.
        refused: names that exist and may not be read, such as links that leave the folder.
    """

    root: Path
    names: frozenset[str]
    refused: tuple[str, ...] = ()

    @staticmethod
    def scan(root: Path, *, follow_links: bool = False) -> Folder:
        """List a folder.

        Args:
            root: the folder.
            follow_links: also follow links that leave the folder.

        Raises:
            UserError: it cannot be listed, or holds too many files.
        """
        found: set[str] = set()
        refused: list[str] = []
        home = os.path.realpath(root)
        # Folders still to list: (real path, prefix of its names, depth).
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
                    f"{root} holds more than {MAX_FILES:,} files: give the data set's folder"
                )
        return Folder(root, frozenset(found), tuple(sorted(refused)))

    def read(self, name: str, limit: int = MAX_TEXT) -> bytes:
        """The bytes of a file of at most ``limit`` bytes."""
        with self.open(name, limit) as stream:
            try:
                # Of the size that it has: reading up to a limit takes memory for the limit first.
                return stream.read(os.fstat(stream.fileno()).st_size)
            except OSError as error:
                raise UserError(f"{self.root / name} cannot be read: {error.strerror}") from None

    def open(self, name: str, limit: int = MAX_MEMBER) -> IO[bytes]:
        """A seekable stream of a file of at most ``limit`` bytes."""
        assert name in self.names, name
        path = self.root / name
        try:
            stream = path.open("rb")
        except OSError as error:
            raise UserError(f"{path} cannot be opened: {error.strerror}") from None
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            stream.close()
            raise UserError(f"{path} holds {size:,} bytes, more than {limit:,}")
        return stream

    def pictures(self, names: list[str]) -> FilePictures:
        """Image files as the images of a table."""
        assert self.names.issuperset(names)
        return FilePictures(str(self.root), Names(names))


def _entries(folder: str, prefix: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as listing:
            return list(listing)
    except OSError as error:
        if prefix:  # one unreadable subfolder does not hide the rest
            return []
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from None


def within(folder: str, name: str) -> str | None:
    """``name``, relative to ``folder``, as a store's name; None if it would leave the store."""
    name = name.replace("\\", "/")
    if name.startswith("/") or (len(name) > 1 and name[1] == ":") or "\0" in name:
        return None
    joined = posixpath.normpath(posixpath.join(folder, name))
    return None if joined == ".." or joined.startswith("../") else joined


@dataclass(frozen=True)
class Archive:
    """The files in a zip file, read in memory: nothing is extracted to disk.

    Attributes:
        root: the zip file.
        names: the files that may be read.
        members: their entries in the zip's directory.
        refused: names that exist and may not be read.
    """

    root: Path
    names: frozenset[str]
    members: dict[str, zipfile.ZipInfo]
    refused: tuple[str, ...] = ()

    @staticmethod
    def scan(path: Path) -> Archive:
        """List a zip file.

        Raises:
            UserError: it is not a zip file, or holds too many files.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
            raise UserError(
                f"{path} is not a readable zip file ({error}): copy or download it again"
            ) from None
        if len(entries) > MAX_FILES:
            raise UserError(f"{path} holds more than {MAX_FILES:,} files")
        members: dict[str, zipfile.ZipInfo] = {}
        refused: list[str] = []
        for entry in entries:
            if not entry.filename or entry.is_dir():
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

    def open(self, name: str, limit: int = MAX_MEMBER) -> IO[bytes]:
        """A seekable stream of a file of at most ``limit`` bytes."""
        return io.BytesIO(self.read(name, limit))

    def pictures(self, names: list[str]) -> ZipPictures:
        """Image files as the images of a table."""
        columns = [_Where.of(self._checked(name)) for name in names]
        return ZipPictures(
            str(self.root), Names(names), np.array(columns, dtype=np.int64).reshape(-1, 5)
        )

    def _checked(self, name: str) -> zipfile.ZipInfo:
        """A member that is safe to extract.

        Raises:
            UserError: it is encrypted, compressed by another method, or a bomb.
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
                "it looks like an archive bomb and is not extracted"
            )
        return entry


class _Where(NamedTuple):
    """Where a member lies in the zip file: the columns of ``ZipPictures.where``."""

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


@dataclass(frozen=True)
class Shards:
    """The files in the tar files of a folder, read where they lie: nothing is extracted.

    Attributes:
        root: the folder.
        tars: the tar files, relative to the root.
        names: the files that may be read: the tar file's name, a slash, and the member's.
        members: number of the tar file, offset and size of each.
        refused: names that exist and may not be read.
    """

    root: Path
    tars: tuple[str, ...]
    names: frozenset[str]
    members: dict[str, tuple[int, int, int]]
    refused: tuple[str, ...] = ()

    @staticmethod
    def scan(folder: Folder) -> Shards:
        """List all tar files of a folder.

        Raises:
            UserError: one is damaged, or they hold too many files.
        """
        tars = tuple(sorted(name for name in folder.names if name.lower().endswith(".tar")))
        members: dict[str, tuple[int, int, int]] = {}
        refused: list[str] = []
        for number, tar in enumerate(tars):
            path = folder.root / tar
            try:
                end = path.stat().st_size
                with tarfile.open(path, "r:") as archive:
                    for entry in archive:
                        archive.members = []  # type: ignore[attr-defined]  # or it keeps them all
                        name = within("", entry.name)
                        if entry.isdir():
                            continue
                        if entry.offset_data + entry.size > end:
                            raise tarfile.ReadError("it ends too early")
                        if name is None or not entry.isreg() or entry.issparse():
                            refused.append(f"{tar}/{entry.name}")
                        else:
                            members[f"{tar}/{name}"] = number, entry.offset_data, entry.size
                    last = archive.offset
                with path.open("rb") as file:
                    file.seek(last)
                    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                        raise tarfile.ReadError("its end is missing or damaged")
            except (tarfile.TarError, OSError, ValueError, EOFError) as error:
                raise UserError(
                    f"{path} is not a readable tar file ({error}): copy or download it again"
                ) from None
            if len(members) > MAX_FILES:
                raise UserError(f"{folder.root} holds more than {MAX_FILES:,} files in tar files")
        return Shards(folder.root, tars, frozenset(members), members, tuple(sorted(refused)))

    def read(self, name: str, limit: int = MAX_TEXT) -> bytes:
        """The bytes of a file of at most ``limit`` bytes."""
        number, offset, size = self.members[name]
        if size > limit:
            raise UserError(f"{self.root / name} holds {size:,} bytes, more than {limit:,}")
        with (self.root / self.tars[number]).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def open(self, name: str, limit: int = MAX_MEMBER) -> IO[bytes]:
        """A seekable stream of a file of at most ``limit`` bytes."""
        return io.BytesIO(self.read(name, limit))

    def pictures(self, names: list[str]) -> TarPictures:
        """Image files as the images of a table."""
        where = np.array([self.members[name] for name in names], dtype=np.int64).reshape(-1, 3)
        return TarPictures(str(self.root), Names(self.tars), Names(names), where)


Store = Folder | Archive | Shards
"""Files below one root, by their names relative to it."""
