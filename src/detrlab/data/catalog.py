"""Data sets that are fetched by name: a download that resumes, is checked and cannot escape."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from detrlab.data.store import within
from detrlab.errors import UserError
from detrlab.files import sha256

_CHUNK = 1 << 20
_TIMEOUT = 30.0


@dataclass(frozen=True)
class Entry:
    """A published archive.

    Attributes:
        name: what it is asked for by.
        urls: where it lies; the next is tried when one fails.
        size: bytes of the archive.
        sha256: its checksum.
        unpacked: bound of the bytes it unpacks to.
        terms: what is known about its licence.
    """

    name: str
    urls: tuple[str, ...]
    size: int
    sha256: str
    unpacked: int
    terms: str


CPPE5 = Entry(
    name="cppe5",
    urls=(
        "https://github.com/Rishit-dagli/CPPE-Dataset/releases/download/v0.1.0/dataset.tar.gz",
        "https://storage.googleapis.com/cppe-5/dataset.tar.gz",
    ),
    size=238_482_705,
    sha256="1151086e59fcb87825ecf4d362847a3f023ba69e7ace0f513d5aadc0e3dd3094",
    unpacked=1 << 31,
    terms="the licence of the images is unknown: do not redistribute them",
)

MAX_MEMBERS = 100_000


def cache_folder() -> Path:
    """Where downloads are kept: ``DETRLAB_CACHE``, or the user's cache folder."""
    if chosen := os.environ.get("DETRLAB_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "detrlab"


def fetch(
    entry: Entry,
    *,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The folder of an unpacked data set, downloaded first if need be.

    An interrupted download goes on where it stopped. What is in the cache was checked against
    the checksum and unpacked completely, or is not there.

    Args:
        entry: what to fetch.
        cache: where to keep it; None takes ``cache_folder()``.
        progress: told the bytes that have arrived, of how many.

    Raises:
        UserError: it cannot be downloaded, is not what was published, or cannot be unpacked.
    """
    home = (cache or cache_folder()) / entry.name
    folder = home / "data"
    if folder.is_dir():
        return folder
    try:
        home.mkdir(parents=True, exist_ok=True)
        archive = home / Path(entry.urls[0]).name
        if not _is_whole(archive, entry):
            _download(entry, archive, progress)
        with tempfile.TemporaryDirectory(dir=home, prefix="unpacking-") as temporary:
            _unpack(archive, Path(temporary) / "data", entry)
            (Path(temporary) / "data").rename(folder)
        archive.unlink()
    except OSError as error:
        raise UserError(
            f"{home} cannot be written ({error.strerror or error}): free some space or point "
            "DETRLAB_CACHE to another folder"
        ) from None
    return folder


def _is_whole(archive: Path, entry: Entry) -> bool:
    """Whether the archive is there, perhaps put there by hand, and is the published one."""
    if not archive.is_file() or archive.stat().st_size != entry.size:
        return False
    return sha256(archive) == entry.sha256


def _download(entry: Entry, archive: Path, progress: Callable[[int, int], None] | None) -> None:
    part = archive.with_name(archive.name + ".part")
    reasons = []
    for url in entry.urls:
        try:
            _get(url, part, entry, progress)
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            reasons.append(f"{url}: {reason}")
            continue
        if _is_whole(part, entry):
            part.rename(archive)
            return
        received = part.stat().st_size
        if received >= entry.size:  # whatever this is, going on with it is of no use
            part.unlink()
        reasons.append(
            f"{url}: received {received:,} bytes that are not the published {entry.size:,}"
        )
    raise UserError(
        f"{entry.name} cannot be downloaded ({'; '.join(reasons)}). Try again to go on where it "
        f"stopped, or put the file there by hand: {archive} (sha256 {entry.sha256})"
    )


def _get(url: str, part: Path, entry: Entry, progress: Callable[[int, int], None] | None) -> None:
    """Append what is missing of a file; start over where the server cannot go on."""
    have = part.stat().st_size if part.exists() else 0
    if have >= entry.size:
        part.unlink()
        have = 0
    request = urllib.request.Request(url, headers={"User-Agent": "detrlab"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        if response.status != 206:
            have = 0
        with part.open("ab" if have else "wb") as file:
            while chunk := response.read(_CHUNK):
                have += len(chunk)
                if have > entry.size:
                    break  # not what was published; the checksum will say so
                file.write(chunk)
                if progress is not None:
                    progress(have, entry.size)


def _unpack(archive: Path, folder: Path, entry: Entry) -> None:
    """Regular files only, only below the folder, only so many bytes.

    Raises:
        UserError: the archive is broken or tries anything else.
    """
    folder.mkdir()
    left = entry.unpacked
    try:
        with tarfile.open(archive, "r:*") as tar:
            for count, member in enumerate(tar):
                name = within("", member.name)
                if name is None or not (member.isreg() or member.isdir()):
                    raise UserError(
                        f"{archive} holds {member.name!r}, which is a link, a device or leads "
                        "outside of its folder: it was not unpacked"
                    )
                left -= member.size
                if left < 0 or count >= MAX_MEMBERS:
                    raise UserError(
                        f"{archive} unpacks to more than {entry.unpacked:,} bytes or "
                        f"{MAX_MEMBERS:,} files: it was not unpacked"
                    )
                target = folder / name
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                with source, target.open("xb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
    except UserError:
        raise
    except (tarfile.TarError, EOFError, ValueError) as error:
        with suppress(OSError):
            archive.unlink()
        raise UserError(f"{archive} cannot be unpacked ({error}): download it again") from None
