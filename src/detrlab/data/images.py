"""Decoding image files, and the places that images come from.

Image files are untrusted. All limits are here: raster formats only (EPS would start an
interpreter), a limit on bytes and pixels that is checked before anything is decoded, and one
clear message for everything that goes wrong.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from detrlab.errors import UserError

if TYPE_CHECKING:
    from PIL import Image
    from PIL.Image import Transpose

ENDINGS_OF: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pnm"),
    "MPO": (".jpg", ".jpeg", ".jpe"),
}
"""File extensions of each format."""

FORMATS = tuple(ENDINGS_OF)[:-1]
"""Pillow decoders that may see a file; its JPEG decoder reads MPO files too."""

ENDINGS = tuple(ending for format_ in FORMATS for ending in ENDINGS_OF[format_])
"""File extensions that count as images in a folder."""

MAX_PIXELS = 178_956_970
"""Larger images are refused before decoding: the bound above which Pillow suspects a bomb."""

MAX_BYTES = 1 << 30
"""Larger image files are refused before reading."""

_ORIENTATION = 0x0112
_TURNED = {5, 6, 7, 8}
"""EXIF orientations that swap width and height."""

_ANIMATED = ("GIF", "WEBP", "TIFF", "PNG")
_CUT_SHORT = re.compile(r"truncated|unexpected end|premature|broken data stream", re.I)


class Pictures(Protocol):
    """The images of a table, by position."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """Name of image i, for messages and records."""

    def read(self, i: int, declared: tuple[int, int]) -> torch.Tensor:
        """(3, H, W) uint8, RGB; ``declared`` is the (height, width) the annotations assume."""

    def select(self, images: np.ndarray) -> Pictures:
        """Some of them, in the order given."""


class Header(NamedTuple):
    """What an image file says about itself before its pixels are decoded.

    Attributes:
        format: Pillow's name of the format, such as ``JPEG``.
        mode: Pillow's name of the pixel mode, such as ``RGB`` or ``CMYK``.
        size: (height, width) as stored.
        orientation: the EXIF orientation, 1 when there is none.
    """

    format: str
    mode: str
    size: tuple[int, int]
    orientation: int

    def upright(self) -> tuple[int, int]:
        """(height, width) after the EXIF orientation is applied."""
        height, width = self.size
        return (width, height) if self.orientation in _TURNED else (height, width)

    def applies_exif(self, declared: tuple[int, int] | None) -> bool:
        """Whether the annotations were drawn on the upright image.

        Not if the declared size fits the stored image but not the upright one. Otherwise the
        upright image counts, as in every viewer.
        """
        if self.orientation == 1:
            return False
        return not (declared == self.size and declared != self.upright())

    def shown(self, declared: tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) of the image that ``decode`` gives."""
        return self.upright() if self.applies_exif(declared) else self.size


_OF_DATA = "replace the file, or let detrlab check --fix leave it out"


@functools.cache
def _without_warnings() -> None:
    """Pillow's warnings: of odd EXIF, and of large but allowed images.

    For good, since ``catch_warnings`` is not safe where several threads decode.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def _opened(stream: IO[bytes], name: str, advice: str = _OF_DATA) -> Iterator[Image.Image]:
    """A checked Pillow image; whatever Pillow raises becomes one message."""
    from PIL import Image

    limit = f"more than the {MAX_PIXELS:,} pixels allowed"
    too_large = f"{name} has {limit}: cut it into tiles or scale it down"
    try:
        if stream.seek(0, io.SEEK_END) > MAX_BYTES:
            raise UserError(f"{name} has more than {MAX_BYTES:,} bytes: {advice}")
        stream.seek(0)
        _without_warnings()
        with Image.open(stream, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(too_large)
            yield image
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise UserError(f"{name} is not an image of a known format ({formats}): {advice}") from None
    except Image.DecompressionBombError:
        raise UserError(too_large) from None
    except MemoryError:
        raise UserError(f"{name} does not fit into memory: scale it down") from None
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name} cannot be read as an image ({reason}): {advice}") from None


def read_header(stream: IO[bytes], name: str) -> Header:
    """Format, mode, size and orientation, without decoding pixels.

    Raises:
        UserError: the stream holds no readable image; the message says ``name``.
    """
    with _opened(stream, name) as image:
        return _header(image)


def _header(image: Image.Image) -> Header:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF counts as none: only the pixels matter
        value = 1
    orientation = value if isinstance(value, int) and 1 <= value <= 8 else 1
    return Header(image.format or "", image.mode, (image.height, image.width), orientation)


class Inspection(NamedTuple):
    """The result of decoding a whole image file.

    Attributes:
        header: None where the file cannot be read at all.
        problem: why it cannot be decoded; empty if it can.
        cut_short: whether the problem is that the file ends too early.
        animated: whether it holds more than one image.
        digest: of the file's bytes.
        thumb: (side, side) uint8, grey; None where it cannot be decoded.
    """

    header: Header | None
    problem: str
    cut_short: bool
    animated: bool
    digest: bytes
    thumb: np.ndarray | None


def inspect(data: bytes, name: str, side: int) -> Inspection:
    """Decode a whole file at low cost, and keep a thumbnail."""
    from PIL import Image

    digest = hashlib.blake2b(data, digest_size=16).digest()
    header = None
    try:
        header = read_header(io.BytesIO(data), name)
        with _opened(io.BytesIO(data), name) as image:
            animated = header.format in _ANIMATED and getattr(image, "n_frames", 1) > 1
            # A JPEG is decoded at a fraction of its size, but every byte is still read.
            image.draft("L", (4 * side, 4 * side))
            grey = _to_rgb(image).convert("L")
            thumb = grey.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
            pixels = np.array(thumb)
    except UserError as error:
        text = str(error)
        cut_short = header is not None and _CUT_SHORT.search(text) is not None
        return Inspection(header, text, cut_short, False, digest, None)
    return Inspection(header, "", False, animated, digest, pixels)


def decode(stream: IO[bytes], name: str, declared: tuple[int, int] | None = None) -> torch.Tensor:
    """The image as (3, H, W) uint8 RGB, rotated upright where the annotations assume it.

    Grey, palette, CMYK and transparent images become RGB as in the original projects
    (transparency is dropped); 16-bit images keep their upper 8 bits.

    Raises:
        UserError: the stream holds no readable image; the message says ``name``.
    """
    return decode_interleaved(stream, name, declared).contiguous()


def decode_interleaved(
    stream: IO[bytes], name: str, declared: tuple[int, int] | None = None
) -> torch.Tensor:
    """As ``decode``, but the colours of a pixel stay side by side in memory.

    Resizing wants them so, and they need not be sorted by colour before it.
    """
    with _opened(stream, name, "replace the file" if declared is None else _OF_DATA) as image:
        header = _header(image)
        rgb = _to_rgb(image)
        if header.applies_exif(declared):
            rgb = rgb.transpose(_transpose_of(header.orientation))
        pixels = np.array(rgb)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _transpose_of(orientation: int) -> Transpose:
    from PIL.Image import Transpose

    return (
        Transpose.FLIP_LEFT_RIGHT,
        Transpose.ROTATE_180,
        Transpose.FLIP_TOP_BOTTOM,
        Transpose.TRANSPOSE,
        Transpose.ROTATE_270,
        Transpose.TRANSVERSE,
        Transpose.ROTATE_90,
    )[orientation - 2]


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image as Pillow

    if image.mode.startswith(("I", "F")):
        # Pillow's own conversion clips at 255, which turns 16-bit images white.
        values = np.asarray(image)
        if image.mode.startswith("I"):
            grey = np.clip(values.astype(np.int64) >> 8, 0, 255)
        else:
            grey = np.clip(np.nan_to_num(values), 0, 255)
        return Pillow.fromarray(grey.astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


class Names:
    """A list of strings in two numpy arrays.

    Forked workers share their memory; reading a list of strings would copy its pages, because
    each access changes reference counts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        lengths = np.fromiter((len(text) for text in encoded), np.int64, len(encoded))
        self.ends = np.cumsum(lengths)
        self.letters = np.frombuffer(b"".join(encoded), np.uint8)

    @classmethod
    def of(cls, ends: np.ndarray, letters: np.ndarray) -> Names:
        """From the two arrays of others."""
        names = cls(())
        names.ends, names.letters = ends, letters
        return names

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        letters = self.letters[int(self.ends[i - 1]) if i else 0 : int(self.ends[i])]
        return letters.tobytes().decode("utf-8", "surrogateescape")

    def select(self, positions: np.ndarray) -> Names:
        """Some of them, in the order given."""
        return Names([self[int(i)] for i in positions])


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

    def read(self, i: int, declared: tuple[int, int]) -> torch.Tensor:
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
            return decode_interleaved(stream, str(path), declared)

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

    def read(self, i: int, declared: tuple[int, int]) -> torch.Tensor:
        """Extract and decode the file."""
        name = f"{self.archive}: {self.names[i]}"
        # Opened each time: forked processes that share an open file share its position.
        try:
            with Path(self.archive).open("rb") as file:
                data = extract(file, self.where[i].tolist(), name)
        except OSError as error:
            raise UserError(f"{self.archive} cannot be opened: {error.strerror}") from None
        return decode_interleaved(io.BytesIO(data), name, declared)

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

    def read(self, i: int, declared: tuple[int, int]) -> torch.Tensor:
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
        return decode_interleaved(io.BytesIO(data), f"{self.root}: {self.names[i]}", declared)

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

    def read(self, i: int, declared: tuple[int, int]) -> torch.Tensor:  # noqa: ARG002
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
