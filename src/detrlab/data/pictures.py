"""Where pixels come from, and the one place that decodes image files.

Files of strangers are decoded here, so this is where the limits stand: only raster formats
(no EPS, which would start an interpreter), a bound on the number of pixels looked at before
anything is decoded, and one clear message for everything that goes wrong.
"""

from __future__ import annotations

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

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Pillow decoders that are allowed to see a file."""

ENDINGS: tuple[str, ...] = (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif")
ENDINGS += (".tiff", ".ppm", ".pgm", ".pnm")
"""File endings that count as images in a folder."""

ENDINGS_OF: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe"),
    "MPO": (".jpg", ".jpeg", ".jpe"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pnm"),
}
"""Endings that go with a format."""

MAX_PIXELS = 178_956_970
"""Larger images are refused before decoding: the bound above which Pillow suspects a bomb."""

_ORIENTATION = 0x0112
_TURNED = {5, 6, 7, 8}
"""EXIF orientations that swap width and height."""


_ANIMATED = ("GIF", "WEBP", "TIFF", "PNG")
_CUT_SHORT = re.compile(r"truncated|unexpected end|premature|broken data stream", re.I)


class Pictures(Protocol):
    """The pixels of a table, by position."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """Name of image i for messages and records."""

    def read(self, i: int, declared: tuple[int, int]) -> torch.Tensor:
        """(3, H, W) uint8, RGB; ``declared`` is the (height, width) the annotations assume."""

    def select(self, images: np.ndarray) -> Pictures:
        """Some of them, in the order given."""


class Header(NamedTuple):
    """What the first bytes of an image file say, without decoding its pixels.

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
        """Whether the annotations were drawn on the upright picture.

        The declared size tells: if it fits the stored picture and not the upright one, the
        boxes belong to the stored one. In any other case the upright picture counts, as in
        every viewer.
        """
        if self.orientation == 1:
            return False
        return not (declared == self.size and declared != self.upright())

    def shown(self, declared: tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) of the picture that ``decode`` gives."""
        return self.upright() if self.applies_exif(declared) else self.size


@contextmanager
def _opened(stream: IO[bytes], name: str) -> Iterator[Image.Image]:
    """A checked Pillow image, with everything Pillow may raise turned into one message."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's: odd EXIF, large but allowed images
            with Image.open(stream, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UserError(
                        f"{name} is {image.width} x {image.height} pixels, more than the "
                        f"{MAX_PIXELS:,} that are read: cut it into tiles or scale it down"
                    )
                yield image
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError(
            f"{name} is not an image of a known format ({', '.join(FORMATS)}): replace it, or "
            "let detrlab check --fix leave it out"
        ) from None
    except Image.DecompressionBombError:
        raise UserError(
            f"{name} declares more than the {MAX_PIXELS:,} pixels that are read: cut it into "
            "tiles or scale it down"
        ) from None
    except MemoryError:
        raise UserError(f"{name} does not fit into memory: scale it down") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError) as error:
        raise UserError(_unreadable(name, error)) from None
    except (TypeError, AttributeError, struct.error, zlib.error, OverflowError) as error:
        raise UserError(_unreadable(name, error)) from None
    except (RuntimeError, NotImplementedError, ZeroDivisionError, AssertionError) as error:
        raise UserError(_unreadable(name, error)) from None


def _unreadable(name: str, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"{name} cannot be read as an image ({reason}): replace the file, or let "
        "detrlab check --fix leave it out"
    )


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF is as good as none: the pixels are what counts
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def read_header(stream: IO[bytes], name: str) -> Header:
    """Format, mode, size and orientation, without decoding pixels.

    Raises:
        UserError: the stream holds no readable image; the message says ``name``.
    """
    with _opened(stream, name) as image:
        size = (image.height, image.width)
        return Header(image.format or "", image.mode, size, _orientation(image))


class Inspection(NamedTuple):
    """What a look at a whole image file tells.

    Attributes:
        header: None where the file cannot be read at all.
        problem: why it cannot be decoded; empty when it can.
        cut_short: whether the problem is that the file ends too early.
        animated: whether it holds more than one picture.
        digest: of the file's bytes.
        thumb: (17, 17) uint8, grey; None where it cannot be decoded.
    """

    header: Header | None
    problem: str
    cut_short: bool
    animated: bool
    digest: bytes
    thumb: np.ndarray | None


def inspect(data: bytes, name: str, side: int) -> Inspection:
    """Decode a file to the end, as cheaply as that can be done, and keep a thumbnail."""
    from PIL import Image

    digest = hashlib.blake2b(data, digest_size=16).digest()
    header = None
    try:
        header = read_header(io.BytesIO(data), name)
        with _opened(io.BytesIO(data), name) as image:
            animated = header.format in _ANIMATED and getattr(image, "n_frames", 1) > 1
            # JPEG decodes at a fraction of its size, and still reads every byte.
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
    """The picture as (3, H, W) uint8 RGB, turned upright where the annotations assume it.

    Grey, palette, CMYK and images with transparency become RGB as in the original projects
    (transparency is dropped); 16-bit images keep their upper 8 bits.

    Raises:
        UserError: the stream holds no readable image; the message says ``name``.
    """
    with _opened(stream, name) as image:
        size = (image.height, image.width)
        header = Header(image.format or "", image.mode, size, _orientation(image))
        rgb = _to_rgb(image)
        if header.applies_exif(declared):
            rgb = _turned(rgb, header.orientation)
        pixels = np.array(rgb)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    from PIL.Image import Transpose

    method = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }[orientation]
    return image.transpose(method)


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
    """A list of texts in two numpy arrays, so that processes share it without copies."""

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        lengths = np.fromiter((len(text) for text in encoded), np.int64, len(encoded))
        self._ends = np.cumsum(lengths)
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        start = int(self._ends[i - 1]) if i else 0
        return self._bytes[start : int(self._ends[i])].tobytes().decode("utf-8", "surrogateescape")

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

    def path(self, i: int) -> Path:
        """Where the file lies."""
        return Path(self.root) / self.names[i]

    def read(self, i: int, declared: tuple[int, int]) -> torch.Tensor:
        """Decode the file."""
        path = self.path(i)
        try:
            stream = path.open("rb")
        except OSError as error:
            raise UserError(
                f"{path} cannot be opened ({error.strerror}): put the file back, or let "
                "detrlab check --fix leave it out"
            ) from None
        with stream:
            return decode(stream, str(path), declared)

    def select(self, images: np.ndarray) -> FilePictures:
        """Some of them, in the order given."""
        return FilePictures(self.root, self.names.select(images))


@dataclass(frozen=True, eq=False)
class ZipPictures:
    """Image files inside a zip file, unpacked in memory one by one."""

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
        """Unpack and decode the file."""
        name = f"{self.archive}: {self.names[i]}"
        # Opened anew each time: processes that share an open file share its position.
        try:
            with Path(self.archive).open("rb") as file:
                data = extract(file, self.where[i].tolist(), name)
        except OSError as error:
            raise UserError(f"{self.archive} cannot be opened: {error.strerror}") from None
        return decode(io.BytesIO(data), name, declared)

    def select(self, images: np.ndarray) -> ZipPictures:
        """Some of them, in the order given."""
        return ZipPictures(self.archive, self.names.select(images), self.where[images])


def extract(file: IO[bytes], where: Sequence[int], name: str) -> bytes:
    """One file out of an open zip; never more bytes than the archive's list declares.

    Args:
        file: the zip.
        where: offset of the local header, packed size, size, whether deflated, CRC-32.
        name: for messages.

    Raises:
        UserError: the archive is damaged there.
    """
    offset, packed, size, deflated, crc = where
    damaged = f"{name} is damaged in its archive: copy or download the archive again"
    # The list of an archive may claim anything: nothing beyond its end is sought or read.
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
            # One byte more than declared tells that there is more.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except zlib.error:
            data = b""
    if len(data) != size or zlib.crc32(data) != crc:
        raise UserError(damaged)
    return data


@dataclass(frozen=True, eq=False)
class ArrayPictures:
    """Pictures held in memory as one flat array."""

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
        """A made-up file name."""
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
