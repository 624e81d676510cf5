"""The places that images come from: folders, zip and tar files, memory.

Only names that a store has found are read, and never more bytes than it has seen.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch

from detrlab.data.images import Names, decode_interleaved
from detrlab.errors import UserError


class Pictures(Protocol):
    """The images of a table, by position."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """Name of image i, for messages and records."""

    def read(self, i: int, declared: tuple[int, int], least: int = 0) -> torch.Tensor:
        """(3, H, W) uint8, RGB; ``declared`` is the (height, width) the annotations assume.

        With ``least``, it may be smaller: as of ``decode_interleaved``.
        """

    def select(self, images: np.ndarray) -> Pictures:
        """Some of them, in the order given."""


@dataclass(frozen=True, eq=False)
class FilePictures:
    """Image files below one folder."""

    root: str
    names: Names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        """The file's name relative to the folder."""
        return self.names[i]

    def read(self, i: int, declared: tuple[int, int], least: int = 0) -> torch.Tensor:
        """Decode the file."""
        path = Path(self.root) / self.names[i]
        try:
            stream = path.open("rb")
        except OSError as error:
            raise UserError(
                f"{path} cannot be opened ({error.strerror}): restore the file, or let "
                "detrlab check --fix leave it out"
            ) from None
        with stream:
            return decode_interleaved(stream, str(path), declared, least)

    def select(self, images: np.ndarray) -> FilePictures:
        """Some of them, in the order given."""
        return FilePictures(self.root, self.names.select(images))


@dataclass(frozen=True, eq=False)
class ZipPictures:
    """Image files inside a zip file, extracted in memory one by one."""

    archive: str
    names: Names
    where: np.ndarray
    """(N, 5) int64: offset of the local header, packed size, size, whether deflated, CRC-32."""

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        """The file's name inside the archive."""
        return self.names[i]

    def read(self, i: int, declared: tuple[int, int], least: int = 0) -> torch.Tensor:
        """Extract and decode the file."""
        name = f"{self.archive}: {self.names[i]}"
        # Opened each time: forked processes that share an open file share its position.
        try:
            with Path(self.archive).open("rb") as file:
                data = extract(file, self.where[i].tolist(), name)
        except OSError as error:
            raise UserError(f"{self.archive} cannot be opened: {error.strerror}") from None
        return decode_interleaved(io.BytesIO(data), name, declared, least)

    def select(self, images: np.ndarray) -> ZipPictures:
        """Some of them, in the order given."""
        return ZipPictures(self.archive, self.names.select(images), self.where[images])


@dataclass(frozen=True, eq=False)
class TarPictures:
    """Image files inside the tar files of a folder, read where they lie."""

    root: str
    tars: Names
    names: Names
    where: np.ndarray
    """(N, 3) int64: number of the tar file, offset, size."""

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        """The tar file's name and the member's."""
        return self.names[i]

    def read(self, i: int, declared: tuple[int, int], least: int = 0) -> torch.Tensor:
        """Read and decode the file."""
        number, offset, size = self.where[i].tolist()
        path = Path(self.root) / self.tars[number]
        # Opened each time: forked processes that share an open file share its position.
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise UserError(f"{path} cannot be opened: {error.strerror}") from None
        return decode_interleaved(
            io.BytesIO(data), f"{self.root}: {self.names[i]}", declared, least
        )

    def select(self, images: np.ndarray) -> TarPictures:
        """Some of them, in the order given."""
        return TarPictures(self.root, self.tars, self.names.select(images), self.where[images])


def extract(file: IO[bytes], where: Sequence[int], name: str) -> bytes:
    """Extract one file from an open zip; never more bytes than its directory declares.

    Python's ``zipfile`` would read the whole directory of the archive again in every worker.

    Args:
        file: the zip.
        where: offset of the local header, packed size, size, whether deflated, CRC-32.
        name: for messages.

    Raises:
        UserError: the archive is damaged there.
    """
    offset, packed, size, deflated, crc = where
    damaged = f"{name} is damaged in its archive: copy or download the archive again"
    # The directory may claim anything: nothing beyond the end of the file is read.
    end = file.seek(0, io.SEEK_END)
    if min(offset, packed) < 0 or offset + packed > end:
        raise UserError(damaged)
    file.seek(offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise UserError(damaged)
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    file.seek(name_length + extra_length, io.SEEK_CUR)
    data = file.read(packed)
    if deflated:
        try:
            # Ask for one byte more than declared, to notice if there is more.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except zlib.error:
            data = b""
    if len(data) != size or zlib.crc32(data) != crc:
        raise UserError(damaged)
    return data


@dataclass(frozen=True, eq=False)
class ArrayPictures:
    """Images held in memory as one flat array."""

    flat: np.ndarray
    """uint8, the (height, width, 3) pixels of one image after the other."""
    offsets: np.ndarray
    """(N,) int64, where each image starts."""
    sizes: np.ndarray
    """(N, 2) int32, (height, width)."""
    numbers: np.ndarray
    """(N,) int64, what each image is called."""

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, i: int) -> str:
        """A generated file name."""
        return f"{int(self.numbers[i]):06d}.png"

    def read(self, i: int, declared: tuple[int, int], least: int = 0) -> torch.Tensor:  # noqa: ARG002
        """A copy of the pixels."""
        height, width = self.sizes[i].tolist()
        start = int(self.offsets[i])
        pixels = self.flat[start : start + height * width * 3].reshape(height, width, 3)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def select(self, images: np.ndarray) -> ArrayPictures:
        """Some of them, in the order given."""
        return ArrayPictures(
            self.flat, self.offsets[images], self.sizes[images], self.numbers[images]
        )
