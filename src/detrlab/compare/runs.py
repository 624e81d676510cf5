"""The trainings of a comparison: each in its own process, one after the other, or collected."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from detrlab import files
from detrlab.compare.definition import Run
from detrlab.compare.results import Failure, RunResult
from detrlab.errors import InUseError, UserError
from detrlab.training.folder import locked

LOG_FILE = "log.txt"
TRUTH_FILE = "ground_truth.json"
ERROR_PREFIX = "error: "
USER_ERROR, STOPPED, IN_USE = 2, 130, 75
"""Exit codes of the process that trains one run; 75 is EX_TEMPFAIL ("try again later")."""
PATIENCE = 20.0
"""Seconds to wait for another process that may be about to exit, as after a kill."""


class KilledError(UserError):
    """The process of a run was killed."""


Say = Callable[[str], None]
Trainer = Callable[[Run, Say], RunResult]
"""Trains one run to its end, or resumes it; raises an exception if it fails."""


def execute(runs: Sequence[Run], trainer: Trainer, report: Say) -> tuple[Failure, ...]:
    """Train what has not finished, one run after the other; returns what has no result.

    A run that fails does not stop the others; Ctrl-C stops them all. A run that another process
    is training is left to that process.
    """
    titles = [f"[{i}/{len(runs)}] {run.entrant}, seed {run.seed}" for i, run in enumerate(runs, 1)]
    reasons = [_attempt(*each, trainer, report) for each in zip(runs, titles, strict=True)]
    for i, failure in enumerate(reasons):
        if failure is not None and failure.running:
            reasons[i] = _attempt(runs[i], titles[i], trainer, report, patience=PATIENCE)
    return tuple(failure for failure in reasons if failure is not None)


def _attempt(
    run: Run, title: str, trainer: Trainer, report: Say, patience: float = 0.0
) -> Failure | None:
    """Train a run unless it has finished; returns the reason if it has no result then."""
    try:
        if patience:
            _wait_until_free(run, patience)
        if run.result() is not None:
            report(f"{title}: finished before, reused")
            return None
        report(f"{title}: training in {run.folder}")
        run.folder.mkdir(parents=True, exist_ok=True)
        run.write()
        trainer(run, report)
        assert run.result() is not None, "a trainer leaves its result in the run's folder"
        return None
    except InUseError as error:
        report(f"{title}: {error}")
        return Failure(run.entrant, run.seed, str(error), running=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        if not isinstance(error, UserError):
            reason = f"{type(error).__name__}: {reason}"
        report(f"{title} failed: {reason}")
        return Failure(run.entrant, run.seed, reason)


def _wait_until_free(run: Run, patience: float) -> None:
    end = time.monotonic() + patience
    while True:
        try:
            with locked(run.folder):
                return
        except InUseError:
            if time.monotonic() >= end:
                raise
        time.sleep(1.0)


def launch(run: Run, report: Say, device: str | None = None) -> RunResult:
    """Train a run in a process of its own, so that a crash or a kill affects no other run.

    Its memory is its own too, which makes its peak measurable. It reads the data again.

    Raises:
        InUseError: another process is training it.
        KilledError: its process was killed.
        UserError: the training cannot go on; the message says why.
        KeyboardInterrupt: it was asked to stop; what was trained is saved.
    """
    with locked(run.folder):  # or the log of the process that is training would be overwritten
        pass
    command = [sys.executable, "-m", "detrlab.compare.runner", str(run.folder)]
    if device:
        command += ["--device", device]
    said: list[str] = []
    log = run.folder / LOG_FILE
    with (
        log.open("w", encoding="utf-8") as errors,
        # The process exits when this pipe closes: it must not outlive its comparison.
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
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
            # The process got the same Ctrl-C: it saves and exits. A second Ctrl-C ends both.
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
    """What the exit code and the last lines of a run's process mean."""
    if code == IN_USE:
        return InUseError(said[-1] if said else "in use by another process")
    if code in (STOPPED, -signal.SIGINT, -signal.SIGTERM):
        return KeyboardInterrupt()
    if code == USER_ERROR and said:
        return UserError(said[-1].removeprefix(ERROR_PREFIX))
    if code < 0:
        cause = ", most often because there is too little memory" if code == -9 else ""
        return KilledError(f"its process was killed by signal {-code}{cause} (log: {log})")
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return UserError(f"{lines[-1] if lines else f'exit code {code}'} (log: {log})")


def refuse_links(folder: Path) -> None:
    """Whoever made a folder must not choose which other files of this machine are copied."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise UserError(
                f"{path} is a symbolic link, and links are not followed: collect a folder that "
                "holds the files themselves (cp -rL copies them)"
            )


def gather(source: Path, folder: Path, report: Say) -> None:
    """Copy what is missing from another comparison's folder: annotations, predictions, runs."""
    runs = [run for run in sorted((source / "runs").glob("[!.]*")) if RunResult.load(run)]
    for path in (*source.glob(f"{TRUTH_FILE}*"), *source.glob("predictions/*.json*"), *runs):
        target = folder / path.relative_to(source)
        if RunResult.load(target) if path in runs else target.exists():
            continue
        report(f"collecting {path.name} from {source}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if path in runs:
                _copy(path, target)
            else:
                files.write_bytes(target, path.read_bytes())
        except OSError as error:
            raise UserError(f"{path} cannot be copied to {target}: {error}") from None


def _copy(run: Path, target: Path) -> None:
    """Copy a finished run over one that has not finished and that nobody is training."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.tmp", "*.lock")
    shutil.copytree(run, partial, symlinks=True, ignore=ignored)
    if target.exists():
        with locked(target):
            shutil.rmtree(target)
    partial.rename(target)
