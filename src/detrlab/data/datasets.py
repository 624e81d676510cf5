"""Data sets that are downloaded by name."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from detrlab import files
from detrlab.data.store import within
from detrlab.download import Progress, UnreachableError, cache_folder, fetch, no_progress
from detrlab.errors import UserError

MAX_MEMBERS = 100_000


@dataclass(frozen=True)
class Published:
    """A published archive.

    Attributes:
        name: the name it is asked for by.
        urls: where it is; the next one is tried if one fails.
        size: bytes of the archive.
        sha256: its checksum.
        unpacked: most bytes that its files may have together.
        terms: what is known about its licence.
    """

    name: str
    urls: tuple[str, ...]
    size: int
    sha256: str
    unpacked: int
    terms: str


CPPE5 = Published(
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


def downloaded(entry: Published, *, progress: Progress | None = None, wait: float = 1.0) -> Path:
    """The folder of an unpacked data set, downloaded first if it is not there.

    Args:
        entry: what to download.
        progress: reports the bytes received and their total.
        wait: seconds before the second attempt.

    Raises:
        UserError: it cannot be downloaded, is not what was published, or cannot be unpacked.
    """
    home = cache_folder() / entry.name
    folder = home / "data"
    if folder.is_dir():
        return folder
    archive = home / Path(entry.urls[0]).name
    try:
        fetch(
            entry.urls,
            archive,
            sha256=entry.sha256,
            size=entry.size,
            progress=progress or no_progress,
            wait=wait,
        )
    except UnreachableError as error:
        raise UserError(
            f"{entry.name} cannot be downloaded ({error}). Try again to continue, or put the file "
            f"at {archive} (sha256 {entry.sha256})"
        ) from None
    try:
        with tempfile.TemporaryDirectory(dir=home, prefix="unpacking-") as temporary:
            _unpack(archive, Path(temporary) / "data", entry.unpacked)
            (Path(temporary) / "data").rename(folder)
        archive.unlink()
    except OSError as error:
        raise files.explain(error, folder) from error
    return folder


def _unpack(archive: Path, folder: Path, limit: int) -> None:
    """Unpack regular files, inside the folder only, at most ``limit`` bytes.

    Raises:
        UserError: the archive is damaged, or holds anything else.
    """
    folder.mkdir()
    try:
        with tarfile.open(archive, "r:*") as tar:
            for count, member in enumerate(tar):
                name = within("", member.name)
                if name is None or not (member.isreg() or member.isdir()):
                    raise UserError(
                        f"{archive} holds {member.name!r}, which is a link or a device or leads "
                        "outside of the folder: it was not unpacked"
                    )
                limit -= member.size
                if limit < 0 or count >= MAX_MEMBERS:
                    raise UserError(
                        f"{archive} holds more bytes or files than were published: "
                        "it was not unpacked"
                    )
                target = folder / name
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                with source, target.open("xb") as file:
                    shutil.copyfileobj(source, file)
    except UserError:
        raise
    except (tarfile.TarError, EOFError, ValueError) as error:
        archive.unlink()
        raise UserError(f"{archive} cannot be unpacked ({error}): download it again") from None
