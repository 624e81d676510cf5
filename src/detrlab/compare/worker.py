"""The process that trains one run of a comparison: ``python -m detrlab.compare.worker FOLDER``.

Its lines go to standard output, where the comparison reads them. A traceback goes to standard
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

from detrlab.compare.launcher import ERROR_PREFIX, IN_USE, STOPPED, USER_ERROR
from detrlab.compare.runner import train_run
from detrlab.compare.runs import Run
from detrlab.errors import UserError
from detrlab.training.folder import InUseError


def main(arguments: list[str]) -> int:
    """Train the run whose settings are in the folder; returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args(arguments)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        from detrlab.data import open_data

        run = Run.read(options.folder)
        if run is None:
            raise UserError(f"{options.folder} holds no settings of a run")
        train_run(run, open_data(run.data.data), _say, options.device, options.resume)
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
    # The comparison may be gone already. What was trained must still be saved.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(" ".join(line.splitlines()) + "\n")
        sys.stdout.flush()


def _exit_with_parent() -> None:
    """Save and exit when the comparison that started this process has ended, in whatever way."""
    # Not through sys.stdin: a thread must not hold its lock when the interpreter exits.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
