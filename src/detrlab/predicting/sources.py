"""What the arguments of ``predict`` name: image files, folders, patterns, addresses, videos."""

from __future__ import annotations

import glob
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from detrlab.data.images import ENDINGS
from detrlab.download import fetch
from detrlab.errors import UserError, did_you_mean, printable
from detrlab.predicting.video import CAMERA, VIDEO_ENDINGS

MAX_DOWNLOAD = 256 << 20
"""Bytes of the largest file that is downloaded."""
MAX_SECONDS = 120.0
"""Seconds that a download may take."""


class Source(NamedTuple):
    """One image, video or camera.

    Attributes:
        name: as the user knows it: a path, an address, or ``camera:0``.
        kind: ``image``, ``video`` or ``camera``.
    """

    name: str
    kind: str

    @property
    def is_url(self) -> bool:
        """Whether it must be downloaded first."""
        return self.name.startswith(("http://", "https://"))

    @property
    def stem(self) -> str:
        """The last part of the name without its extension, for files."""
        last = urlsplit(self.name).path if self.is_url else self.name.replace(CAMERA, "camera-")
        stem = PurePosixPath(unquote(last).replace("\\", "/")).stem
        return "".join(c if c.isalnum() or c in "-_. " else "_" for c in stem)[:100] or "image"


def find_sources(arguments: Sequence[str]) -> list[Source]:
    """The images, videos and cameras that arguments name; folders with all their subfolders.

    Raises:
        UserError: something does not exist, or a folder holds no image.
    """
    if not arguments:
        raise UserError("name at least one image: detrlab predict photo.jpg --model CHECKPOINT")
    return [source for argument in arguments for source in _named(argument)]


def _named(argument: str) -> list[Source]:
    if argument.startswith(CAMERA):
        if argument == CAMERA:
            raise UserError(f"{argument} names no camera: write {CAMERA}0 for the first one")
        return [Source(argument, "camera")]
    scheme, colon, _ = argument.partition("://")
    if colon and scheme.isalnum():
        if scheme not in ("http", "https"):
            raise UserError(f"{argument}: only http and https addresses can be read")
        return [Source(argument, _kind(urlsplit(argument).path))]
    path = Path(argument)
    if path.is_dir():
        inside = sorted(
            each
            for each in path.rglob("*")
            if each.suffix.lower() in (*ENDINGS, *VIDEO_ENDINGS)
            and not any(part.startswith(".") for part in each.relative_to(path).parts)
        )
        if not inside:
            raise UserError(f"no image in the folder {path} ({', '.join(ENDINGS)}), and no video")
        return [Source(str(each), _kind(each.name)) for each in inside]
    if path.exists():
        return [Source(str(path), _kind(path.name))]
    if glob.has_magic(argument):
        matches = [Path(each) for each in sorted(glob.glob(argument, recursive=True))]
        files = [Source(str(each), _kind(each.name)) for each in matches if each.is_file()]
        if not files:
            raise UserError(f"no file matches {argument}")
        return files
    here = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, here)
    raise UserError(f"{path} does not exist" + hint * hint.endswith("?"))


def _kind(name: str) -> str:
    return "video" if name.lower().endswith(VIDEO_ENDINGS) else "image"


def local(source: Source, folder: Path) -> Path:
    """The file of an image or a video; one with an address is downloaded into ``folder``.

    Raises:
        UserError: it cannot be downloaded, or is too large or too slow.
    """
    if not source.is_url:
        return Path(source.name)
    end = time.monotonic() + MAX_SECONDS

    def check(done: int, total: int) -> None:
        if max(done, total) > MAX_DOWNLOAD:
            size = f"{max(done, total) / 1e6:,.0f} MB"
            raise UserError(f"{source.name} is too large ({size}): download it yourself")
        if time.monotonic() > end:
            raise UserError(f"{source.name} took more than {MAX_SECONDS:.0f} s: download it")

    # Not its own name: a mirror is asked for the target's, and has other files.
    digest = hashlib.sha256(source.name.encode()).hexdigest()[:32]
    target = folder / f"{digest}{PurePosixPath(urlsplit(source.name).path).suffix[:10]}"
    try:
        return fetch([source.name], target, progress=check)
    except UserError as error:
        raise UserError(printable(str(error))) from None
