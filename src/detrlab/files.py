"""Atomic file writes, and checksums.

A crash, a kill or a full disk during a write leaves the previous file unchanged.
"""

from __future__ import annotations

import errno
import hashlib
import json
import lzma
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from detrlab.errors import UserError, shortened

MAX_BYTES = 1 << 30
"""Of a file of values that is read whole."""
MAX_YAML = 1 << 20
"""Bytes of a YAML file: they are written by hand."""
_BOMB_BYTES, _BOMB_RATIO = 16 << 20, 200
"""What a compressed file may unpack to: so many bytes, or so many times its own."""

UNFINISHED = ".export-"
"""What the name of a folder starts with in which an export is made."""
_TEMPORARY = ".tmp"
REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EACCES: "permission denied: make the folder writable or choose another",
    errno.EPERM: "not permitted: make the folder writable or choose another",
    errno.EFBIG: "the file is larger than is allowed here: raise the limit (ulimit -f)",
    errno.EROFS: "the file system is read-only: choose another folder",
}
"""What to do about a failed write, by the system's number of the error."""


def explain(error: OSError, path: str | Path) -> UserError:
    """One message for a failed write, with the remedy; the previous file is unchanged."""
    remedy = REMEDIES.get(error.errno or 0, str(error))
    return UserError(f"{path} could not be written: {remedy}")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, which replaces ``path`` when the block succeeds.

    The contents are synced to disk before the rename, and the rename before this returns. When
    the block fails, the temporary file is removed and ``path`` is unchanged.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    unique = f"{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f".{path.name}.{unique}{_TEMPORARY}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise explain(error, path) from error


def read_bytes(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """The contents of a file, or, where it is absent, of the compressed ``path.xz``.

    Raises:
        OSError: it cannot be read.
        UserError: it holds, or would unpack to, more than ``limit`` bytes, or is damaged.
    """
    path = Path(path)
    compressed = path.with_name(f"{path.name}.xz")
    if path.is_file() or not compressed.is_file():
        if (size := path.stat().st_size) > limit:
            raise UserError(f"{path} holds {size:,} bytes, more than the {limit:,} allowed")
        return path.read_bytes()
    packed = read_bytes(compressed, limit)
    limit = min(limit, max(_BOMB_BYTES, _BOMB_RATIO * len(packed)))
    try:
        unpacker = lzma.LZMADecompressor(memlimit=256 << 20)
        data = unpacker.decompress(packed, limit)
    except lzma.LZMAError as error:
        raise UserError(f"{compressed} is damaged ({error}): get it again") from None
    if unpacker.eof:
        return data
    many = len(data) == limit
    reason = f"would grow beyond {limit:,} bytes: it looks like a bomb" if many else "is cut short"
    raise UserError(f"{compressed} {reason}: get it again")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds ``name: value`` lines; see ``parse_yaml``.

    Raises:
        UserError: it cannot be read, or holds anything else.
    """
    try:
        values = parse_yaml(read_bytes(path, MAX_YAML), str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(f"{path} should hold 'name: value' lines")
    return values


def parse_yaml(data: bytes, where: str, *, as_text: bool = False) -> Any:
    """A YAML document of lists, mappings and plain values.

    Aliases are refused: a few lines of them stand for gigabytes. So are Python's own tags.

    Args:
        data: the document.
        where: names it in the error.
        as_text: every value stays as it is written, also ``no`` and ``1.10``.

    Raises:
        UserError: it is not valid.
    """
    import yaml

    class Loader(yaml.BaseLoader if as_text else yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent):
                raise yaml.YAMLError(f"aliases such as *{event.anchor} are not supported")
            if "python" in (getattr(event, "tag", None) or ""):
                raise yaml.YAMLError("Python tags are not supported")
            return super().compose_node(parent, index)

    try:
        return yaml.load(data.decode("utf-8-sig"), Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = shortened(" ".join(str(error).split()) or type(error).__name__, 200)
        raise UserError(f"{where} is not valid YAML ({reason}): correct it") from None


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, values: Any) -> None:
    """Write ``values`` as indented JSON, whole or not at all.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
        ValueError: a number is NaN or infinite, which JSON does not know.
    """
    write_text(path, json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's contents, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(data: bytes) -> str:
    """The SHA-256 of ``data``, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def move_into(folder: str | Path, finished: Iterable[Path]) -> None:
    """Give finished files their place in another folder of the same disk, in this order.

    Raises:
        UserError: the folder cannot be written.
    """
    for path in finished:
        try:
            _sync(path)
            os.replace(path, Path(folder) / path.name)
        except OSError as error:
            raise explain(error, Path(folder) / path.name) from error
    _sync_folder(Path(folder))


def remove_leftovers(folder: str | Path) -> int:
    """Delete temporary files that a killed process left in ``folder``; returns how many.

    Only for a folder that nobody else is writing to.
    """
    leftovers = [path for path in Path(folder).glob(f".*{_TEMPORARY}") if path.is_file()]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; systems that cannot open a folder (Windows) need no such thing."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
