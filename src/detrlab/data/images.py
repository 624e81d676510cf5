"""Decoding image files.

Image files are untrusted. All limits are here: raster formats only (EPS would start an
interpreter), a limit on bytes and pixels that is checked before anything is decoded, and one
clear message for everything that goes wrong.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, NamedTuple

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
    stream: IO[bytes], name: str, declared: tuple[int, int] | None = None, least: int = 0
) -> torch.Tensor:
    """As ``decode``, but the colours of a pixel stay side by side in memory.

    Resizing wants them so, and they need not be sorted by colour before it. With ``least``, a JPEG
    file is decoded at a half, a quarter or an eighth of its size, if no side is shorter then.
    """
    with _opened(stream, name, "replace the file" if declared is None else _OF_DATA) as image:
        header = _header(image)
        if least:
            image.draft(None, (least, least))
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
