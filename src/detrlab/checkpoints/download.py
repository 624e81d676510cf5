"""Downloads that survive interruptions: resumed, checked, and never left half done.

The part that has arrived lies beside the target under the name ``.part`` until it is whole and
its checksum agrees; the next attempt goes on where it ends. Proxies are taken from the usual
environment variables by Python itself.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import urlsplit

from detrlab import files
from detrlab.errors import UserError

Progress = Callable[[int, int | None], None]
"""Called with the bytes that have arrived and their total, None while it is not known."""

_CHUNK = 1 << 18
_TIMEOUT = 30  # seconds without a byte
_ATTEMPTS = 5


class UnreachableError(UserError):
    """Nothing can be had from this place now; another place may have it."""


class _InterruptionError(Exception):
    """The connection broke; what has arrived is kept."""


class _Answer(NamedTuple):
    """What the server sends: from which byte on, and how many there are in all."""

    start: int
    total: int | None
    tag: str


def nothing(_done: int, _total: int | None) -> None:
    """Progress that nobody watches."""


def in_lines(say: Callable[[str], None], what: str, every: float = 10.0) -> Progress:
    """Progress as lines of text, at most one in ``every`` seconds.

    Args:
        say: prints a line.
        what: names the download.
        every: seconds between lines; a download that is faster says nothing.
    """
    last = time.monotonic()

    def progress(done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            of_all = f" of {total / 1e6:.0f}" if total else ""
            say(f"downloading {what}: {done / 1e6:.0f}{of_all} MB")

    return progress


def fetch(
    url: str,
    target: str | Path,
    *,
    sha256: str = "",
    progress: Progress = nothing,
    wait: float = 1.0,
) -> Path:
    """Download ``url`` to ``target``, unless it is there already.

    Args:
        url: http or https.
        target: the file to write; it appears only when it is whole.
        sha256: what the checksum must begin with, in hexadecimal; empty if none is known.
        progress: told how far it is.
        wait: seconds before the second attempt; doubled for each further one.

    Returns:
        ``target``.

    Raises:
        UnreachableError: the server cannot be reached, does not have the file, or the connection
            broke too often. What has arrived is kept.
        UserError: the checksum is wrong, or the file cannot be written.
    """
    target = Path(target)
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url!r} is no http or https address")
    with _alone(target):
        if target.is_file():
            return target
        part = target.with_name(f"{target.name}.part")
        _persist(url, part, sha256, progress, wait)
        check(part, sha256, url)
        try:
            part.replace(target)
            _tag_file(part).unlink(missing_ok=True)
        except OSError as error:
            raise files.explain(error, target) from error
    return target


def _persist(url: str, part: Path, sha256: str, progress: Progress, wait: float) -> None:
    """Transfer until it is whole; gives up after attempts that brought nothing new."""
    failures, farthest = 0, _size(part)
    while True:
        try:
            with _translated(url):
                return _transfer(url, part, sha256, progress)
        except _InterruptionError as error:
            failures = 1 if _size(part) > farthest else failures + 1
            farthest = max(farthest, _size(part))
            if failures == _ATTEMPTS:
                raise UnreachableError(
                    f"{url}: the connection broke again and again ({error}). "
                    f"{_size(part) / 1e6:.1f} MB are kept: run the same command again to go on"
                ) from None
        time.sleep(wait * 2 ** (failures - 1))


def check(path: Path, sha256: str, url: str) -> None:
    """Compare a file's checksum; a wrong file is deleted, so that the next attempt starts anew.

    Raises:
        UserError: it is another file than was published.
    """
    if not sha256:
        return
    found = files.sha256(path)
    if not found.startswith(sha256):
        path.unlink(missing_ok=True)
        _tag_file(path).unlink(missing_ok=True)
        raise UserError(
            f"{url} is not the published file: its sha256 begins {found[: len(sha256)]}, not "
            f"{sha256}. It was deleted; a proxy or a mirror may have changed it"
        )


def _transfer(url: str, part: Path, sha256: str, progress: Progress) -> None:
    """Get what is missing of ``part``."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "detrlab"})
    tag = _read_tag(part)
    if have and (tag or sha256):
        request.add_header("Range", f"bytes={have}-")
        if tag:  # another version of the file must not be appended to this one
            request.add_header("If-Range", tag)
    try:
        opened = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # More has arrived than there is: another file, or one that was never renamed.
        part.unlink(missing_ok=True)
        raise _InterruptionError("what had arrived is of another file") from None
    with opened as response:
        answer = _read_answer(url, response)
        if answer.start > have:
            raise UnreachableError(f"{url} sent another part of the file than was asked for")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            _tag_file(part).write_text(answer.tag, encoding="ascii")
            with part.open("ab" if answer.start else "wb") as file:
                file.truncate(answer.start)
                done = _copy(response, file, answer, progress)
        except OSError as error:
            if isinstance(error, (TimeoutError, ConnectionError)):
                raise _InterruptionError(str(error) or type(error).__name__) from None
            raise files.explain(error, part) from error
    if answer.total is not None and done < answer.total:
        raise _InterruptionError(f"after {done:,} of {answer.total:,} bytes")


def _copy(response: HTTPResponse, file: IO[bytes], answer: _Answer, progress: Progress) -> int:
    done = answer.start
    progress(done, answer.total)
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (HTTPException, TimeoutError, ConnectionError) as error:
            raise _InterruptionError(str(error) or type(error).__name__) from None
        if not chunk:
            return done
        file.write(chunk)
        done += len(chunk)
        progress(done, answer.total)


def _read_answer(url: str, response: HTTPResponse) -> _Answer:
    if response.headers.get_content_type() == "text/html":
        raise UnreachableError(
            f"{url} answered with a web page instead of the file: the place asks something, or "
            "has reached its quota; open it in a browser"
        )
    length = response.headers.get("Content-Length")
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    if tag.startswith("W/"):  # a weak tag does not promise equal bytes
        tag = ""
    if response.status != 206:
        return _Answer(0, int(length) if length and length.isdigit() else None, tag)
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    start = span.partition("-")[0]
    if not start.isdigit():
        raise UnreachableError(f"{url} sent a part of the file without saying which")
    return _Answer(int(start), int(total) if total.isdigit() else None, tag)


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Network errors: those that pass are interruptions, the others say what is wrong."""
    try:
        yield
    except urllib.error.HTTPError as error:
        if error.code in (408, 429) or error.code >= 500:
            raise _InterruptionError(f"the server answered {error.code}") from None
        raise UnreachableError(f"{url} cannot be had: the server answered {error.code}") from None
    except urllib.error.URLError as error:
        raise UnreachableError(f"{url} cannot be reached ({error.reason})") from None
    except (HTTPException, TimeoutError, ConnectionError) as error:
        raise _InterruptionError(str(error) or type(error).__name__) from None


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process at a time downloads a file; the others wait and find it."""
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The lock stays: whoever deleted it could delete it under somebody who waits.
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
