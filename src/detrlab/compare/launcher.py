"""Starts a process for each run of a comparison, and says how it ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from detrlab.compare.results import RunResult
from detrlab.compare.runs import Run, Say
from detrlab.errors import UserError
from detrlab.training.folder import InUseError, RunFolder, locked

LOG_FILE = "log.txt"
ERROR_PREFIX = "error: "
USER_ERROR, STOPPED, IN_USE = 2, 130, 75
"""Exit codes of the process that trains one run; 75 is EX_TEMPFAIL ("try again later")."""


def launch(run: Run, report: Say, device: str | None = None, processes: int = 1) -> RunResult:
    """Train a run in a process of its own, so that a crash or a kill affects no other run.

    Its memory is its own too, which makes its peak measurable. It reads the data again.

    Args:
        run: its settings are in its folder already.
        report: takes the process's lines.
        device: where to compute; None takes a GPU if there is one.
        processes: how many train it together, started by ``torchrun``.

    Raises:
        InUseError: another process is training it.
        UserError: the training cannot go on; the message says why.
        KeyboardInterrupt: it was asked to stop; what was trained is saved.
    """
    with locked(run.folder):  # or the log of the process that is training would be overwritten
        pass
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [
        sys.executable,
        *(torchrun if processes > 1 else []),
        *("-m", "detrlab.compare.worker", str(run.folder)),
        *(["--device", device] if device else []),
        *(["--resume"] if RunFolder(run.folder).is_run else []),
    ]
    said: list[str] = []
    log = run.folder / LOG_FILE
    with (
        log.open("w", encoding="utf-8") as errors,
        # The worker exits when this pipe closes: it must not outlive its comparison.
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line.rstrip("\n"))
                report(said[-1])
        except KeyboardInterrupt:
            # The worker got the same Ctrl-C: it saves and exits. A second Ctrl-C ends both.
            process.wait()
            raise
        except BaseException:
            process.kill()
            raise
        code = process.wait()
    result = run.result()
    if result is not None:  # whatever happened after that
        return result
    raise _reason(code, said, log)


def _reason(code: int, said: list[str], log: Path) -> BaseException:
    """What the exit code and the last lines of a worker mean."""
    if code == IN_USE:
        return InUseError(said[-1] if said else "in use by another process")
    if code in (STOPPED, -2):
        return KeyboardInterrupt()
    messages = [line for line in said if line.startswith(ERROR_PREFIX)]
    if messages:  # whatever the exit code: torchrun has its own
        return UserError(messages[-1].removeprefix(ERROR_PREFIX))
    if code < 0:
        cause = ", most often because there is too little memory" if code == -9 else ""
        return UserError(f"its process was killed by signal {-code}{cause} (log: {log})")
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return UserError(f"{lines[-1] if lines else f'exit code {code}'} (log: {log})")
