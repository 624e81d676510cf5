"""Uses of a file that do what none may, to see that the fuzzer notices: a kind for each."""

import ctypes
import os
from pathlib import Path

from fuzz_kinds import Kind

from detrlab.errors import UserError


def hidden_from_python(folder):
    """A library in C that opens a file: no audit event."""
    descriptor = ctypes.CDLL(None).open(os.fsencode(folder.parent / "outside" / "secret.png"), 0)
    assert descriptor > 0


def refused(message):
    raise UserError(message)


def stopped(_):
    raise ZeroDivisionError


MISUSES = {
    "reads /etc/hostname": lambda _: Path("/etc/hostname").read_bytes(),
    "writes": lambda folder: (folder / "new").write_text("x"),
    "os.remove": lambda folder: (folder / "a.txt").unlink(),
    "os.system": lambda _: os.system("true"),
    "opened a file outside": hidden_from_python,
    "takes more than 2 GB": lambda _: bytes(3 << 30),
    "names no file": lambda _: refused("something is wrong"),
    "ended the process": lambda _: os._exit(3),
    "ZeroDivisionError at misuses.py": stopped,
}


def kind(misuse):
    """Only a changed file is misused: the valid one is tried first."""

    def use(folder, file, _out):
        if file.read_text() != "valid":
            misuse(folder)
        return []

    return Kind(lambda folder: (folder / "a.txt").write_text("valid"), {"a.txt": "bytes"}, use)


KINDS = {f"misuse {number}": kind(misuse) for number, misuse in enumerate(MISUSES.values())}
