"""The process that trains one run of a comparison: ``python -m detrlab.compare.worker FOLDER``.

Its lines go to standard output, where the comparison reads them; a traceback goes to standard
error, which is the run's log.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

from detrlab.compare.runs import InUseError, Run
from detrlab.compare.trainers import ERROR_PREFIX, IN_USE, STOPPED, USER_ERROR, train_here
from detrlab.errors import UserError


def main(arguments: list[str]) -> int:
    """Train the run whose settings lie in the folder; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m detrlab.compare.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args(arguments)
    _leave_with_parent()
    try:
        from detrlab.data import open_data

        run = Run.load(options.folder)
        if run is None:
            raise UserError(f"{options.folder} holds no settings of a run")
        train_here(run, open_data(run.data.data), _say, options.device, options.resume)
    except InUseError as error:
        _say(str(error))
        return IN_USE
    except UserError as error:
        _say(f"{ERROR_PREFIX}{error}")
        return USER_ERROR
    except KeyboardInterrupt:
        return STOPPED
    return 0


def _say(line: str) -> None:
    # Nobody may be listening any more; saving what was trained comes first.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(" ".join(line.splitlines()) + "\n")
        sys.stdout.flush()


def _leave_with_parent() -> None:
    """Save and leave when the comparison that started this process is gone, however it went."""

    def wait() -> None:
        # Not through sys.stdin, whose lock a thread must not hold when the interpreter ends.
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
