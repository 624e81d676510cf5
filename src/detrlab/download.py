"""Downloads that resume, are verified, and appear only when they are complete.

Environment variables: ``DETRLAB_CACHE`` (where files are kept), ``DETRLAB_MIRROR`` (a server
that is asked first), ``DETRLAB_OFFLINE`` and ``HF_HUB_OFFLINE`` (no network), and the usual ones
for proxies.
"""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

from detrlab import files
from detrlab.errors import UserError

Progress = Callable[[int, int], None]
"""Called with the bytes received and their total, 0 if it is not known."""

_CHUNK = 1 << 18
_TIMEOUT = 30  # seconds without a byte
_ATTEMPTS = 5


class UnreachableError(UserError):
    """The file cannot be downloaded now; what has been received is kept."""


class _InterruptionError(Exception):
    """The connection broke; another attempt may succeed."""


def cache_folder() -> Path:
    """Where downloads are kept.

    ``DETRLAB_CACHE`` if it is set, otherwise ``detrlab`` in ``XDG_CACHE_HOME`` or ``~/.cache``.
    """
    if chosen := os.environ.get("DETRLAB_CACHE"):
        return Path(chosen).expanduser()
    return user_cache() / "detrlab"


def user_cache() -> Path:
    """The user's cache folder, for all programs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def is_offline() -> bool:
    """Whether the environment forbids the network."""
    values = (os.environ.get(name, "") for name in ("DETRLAB_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.lower() not in ("", "0", "no", "off", "false") for value in values)


def no_progress(_done: int, _total: int) -> None:
    """Report nothing."""


def in_lines(say: Callable[[str], None], what: str, every: float = 10.0) -> Progress:
    """Progress as lines of text.

    Args:
        say: prints a line.
        what: names the download.
        every: seconds between lines; a faster download prints nothing.
    """
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            of_all = f" of {total / 1e6:.0f}" if total else ""
            say(f"downloading {what}: {done / 1e6:.0f}{of_all} MB")

    return progress


def fetch(
    urls: Sequence[str],
    target: str | Path,
    *,
    sha256: str = "",
    size: int | None = None,
    progress: Progress = no_progress,
    wait: float = 1.0,
) -> Path:
    """Download a file, unless it is there already.

    Args:
        urls: http or https; the next one is tried if one fails. The mirror is asked first, for
            a file with the name of ``target``.
        target: the file to write; it appears only when it is complete.
        sha256: what the checksum must begin with, in hexadecimal; empty if none is known.
        size: bytes of the file, if known; no more are received.
        progress: reports how far it is.
        wait: seconds before the second attempt; doubled for each further one.

    Returns:
        ``target``.

    Raises:
        UnreachableError: none of the servers has the file or can be reached, the connection
            broke too often, or the environment forbids the network.
        UserError: the file is not the published one, or cannot be written.
    """
    target = Path(target)
    if mirror := os.environ.get("DETRLAB_MIRROR", "").rstrip("/"):
        urls = [f"{mirror}/{target.name}", *urls]
    with _lock(target):
        if target.is_file():
            verify(target, sha256, str(target))
            return target
        if is_offline():
            raise UnreachableError("the environment says to stay offline")
        part = target.with_name(f"{target.name}.part")
        failures = []
        for url in urls:
            if urlsplit(url).scheme not in ("http", "https"):
                raise UserError(f"{url!r} is not an http or https address")
            try:
                _download(url, part, sha256, size, progress, wait)
                verify(part, sha256, url)
            except UnreachableError as error:
                failures.append(str(error))
                continue
            part.replace(target)
            _tag_file(part).unlink(missing_ok=True)
            return target
    raise UnreachableError("; ".join(failures))


def verify(path: Path, sha256: str, url: str) -> None:
    """Compare a file's checksum; a wrong file is deleted, so that the next attempt starts anew.

    Raises:
        UserError: the file is not the published one.
    """
    found = files.sha256(path)
    if not found.startswith(sha256):
        path.unlink(missing_ok=True)
        _tag_file(path).unlink(missing_ok=True)
        raise UserError(
            f"{url} is not the published file: its sha256 begins {found[: len(sha256)]}, not "
            f"{sha256}. It was deleted; a proxy or a mirror may have changed it"
        )


def _download(
    url: str, part: Path, sha256: str, size: int | None, progress: Progress, wait: float
) -> None:
    """Receive until the file is complete; give up after several attempts without progress."""
    failures, farthest = 0, _size(part)
    while True:
        try:
            return _receive(url, part, sha256, size, progress)
        except _InterruptionError as error:
            failures = 1 if _size(part) > farthest else failures + 1
            farthest = max(farthest, _size(part))
            if failures == _ATTEMPTS:
                raise UnreachableError(
                    f"{url}: the connection broke {failures} times ({error}). "
                    f"{_size(part) / 1e6:.1f} MB are kept: run the same command again to continue"
                ) from None
        time.sleep(wait * 2 ** (failures - 1))


def _receive(url: str, part: Path, sha256: str, size: int | None, progress: Progress) -> None:
    """Receive what is missing of ``part``."""
    have, tag = _size(part), _read_tag(part)
    request = urllib.request.Request(url, headers={"User-Agent": "detrlab"})
    if have and (tag or sha256):
        request.add_header("Range", f"bytes={have}-")
        if tag:  # nothing of another version of the file may be appended
            request.add_header("If-Range", tag)
    with (
        _translated(url, part),
        urllib.request.urlopen(request, timeout=_TIMEOUT) as response,
        part.open("ab") as file,
    ):
        if response.headers.get_content_type() == "text/html":
            raise UnreachableError(
                f"{url} answered with a web page instead of the file: it may ask for "
                "confirmation, or its quota is used up; open it in a browser"
            )
        done, total = _extent(response)
        if done > have:
            raise UnreachableError(f"{url} sent another part of the file than was requested")
        file.truncate(done)
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        # A weak tag does not promise equal bytes.
        _tag_file(part).write_text("" if tag.startswith("W/") else tag, encoding="ascii")
        progress(done, total)
        while chunk := response.read1(_CHUNK):  # what has come: a slow server is noticed
            done += len(chunk)
            if size is not None and done > size:
                part.unlink()
                raise UnreachableError(f"{url} has more than the published {size:,} bytes")
            file.write(chunk)
            progress(done, total)
    if done < total:
        raise _InterruptionError(f"after {done:,} of {total:,} bytes")


def _extent(response: HTTPResponse) -> tuple[int, int]:
    """The first byte that the server sends, and the file's bytes, 0 if it does not say."""
    length = response.headers.get("Content-Length", "")
    if response.status != 206:
        return 0, int(length) if length.isdigit() else 0
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    start = span.partition("-")[0]
    if not start.isdigit():
        raise UnreachableError(f"{response.url} sent a part of the file without saying which")
    return int(start), int(total) if total.isdigit() else 0


@contextmanager
def _translated(url: str, part: Path) -> Iterator[None]:
    """Errors that may pass become interruptions; the others say what is wrong."""
    try:
        yield
    except urllib.error.HTTPError as error:
        if error.code == 416:  # more was received than there is
            part.unlink()
            raise _InterruptionError("what was received belongs to another file") from None
        if error.code in (408, 429) or error.code >= 500:
            raise _InterruptionError(f"the server answered {error.code}") from None
        raise UnreachableError(f"{url} cannot be had: the server answered {error.code}") from None
    except urllib.error.URLError as error:
        raise UnreachableError(f"{url} cannot be reached ({error.reason})") from None
    except (HTTPException, TimeoutError, ConnectionError) as error:
        raise _InterruptionError(str(error) or type(error).__name__) from None
    except OSError as error:
        raise files.explain(error, part) from error


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """One process at a time downloads a file; the others wait, and find it."""
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The lock file stays: deleting it could delete it for a process that waits.
        with FileLock(str(target.with_name(f".{target.name}.lock"))):
            yield
    except OSError as error:
        raise files.explain(error, target) from error


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _read_tag(part: Path) -> str:
    try:
        return _tag_file(part).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
