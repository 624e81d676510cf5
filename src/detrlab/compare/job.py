"""A submitted job: trains those of its runs that are free, one after the other."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from detrlab import files
from detrlab.compare.definition import Run
from detrlab.compare.results import RESULT_FILE, RunResult
from detrlab.compare.runs import KilledError, Say, execute, launch
from detrlab.training.folder import InUseError, locked

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

MARK_FILE = "job.json"
RETRIES = 2
"""How often a run whose process or job was killed is started again."""
NOTICE = 600.0
"""Seconds that a stopped job of SLURM waits to be requeued or ended."""


@dataclass(frozen=True)
class Mark:
    """What is known in a run's folder about its job.

    Attributes:
        job: the job's key.
        reason: why the run failed; empty while it trains.
        running: whether it failed because another process is training it.
    """

    job: str
    reason: str = ""
    running: bool = False

    def write(self, folder: Path) -> None:
        """Write to a run's folder."""
        files.write_json(folder / MARK_FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Mark | None:
        """Read from a run's folder; None where there is none."""
        try:
            return _MARK.validate_json((folder / MARK_FILE).read_bytes())
        except (OSError, ValueError):
            return None


_MARK = TypeAdapter(Mark)


class Job:
    """What submitit calls in the job's process.

    Each run is trained by a process of its own, which saves and exits when this one ends. Several
    jobs may have the same runs.

    Args:
        folders: of the runs.
        device: to compute on; None takes a GPU if there is one.
        environment: variables for the runs' processes; None removes one.
    """

    def __init__(
        self, folders: Sequence[Path], device: str | None, environment: Mapping[str, str | None]
    ) -> None:
        self._arguments = (folders, device, environment)
        self._folders, self._device, self._environment = self._arguments
        self._work: Future[None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_work": None}

    def __call__(self) -> None:
        """Train until there is nothing left to train.

        Raises:
            KeyboardInterrupt: a run was asked to stop; what was trained is saved.
        """
        for name, value in self._environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        # SLURM sends SIGUSR2 to all processes of a job, and only this one handles it: the runs'
        # processes inherit from the thread that starts them that it is blocked.
        block = (signal.SIG_BLOCK, {signal.SIGUSR2})
        with ThreadPoolExecutor(1, initializer=signal.pthread_sigmask, initargs=block) as pool:
            self._work = pool.submit(self._train_all)
            try:
                self._work.result()
            except KeyboardInterrupt:
                if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
                    # A job that ends by itself before SLURM ends it is not requeued.
                    time.sleep(NOTICE)
                raise

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit before a time limit or a preemption: stop, and go on in another job.

        It returns when the run's process has saved and exited.
        """
        import psutil
        from submitit.core.utils import DelayedSubmission

        told: set[int] = set()
        while self._work is not None and not self._work.done():
            for process in psutil.Process().children():
                if process.pid not in told:
                    process.terminate()
                    told.add(process.pid)
            wait([self._work], timeout=0.2)
        return DelayedSubmission(Job(*self._arguments))

    def _train_all(self) -> None:
        from submitit import JobEnvironment

        environment = JobEnvironment()
        key = f"{environment.cluster}:{environment.job_id}"
        # Again until nothing is left: another job may have been killed while training a run.
        while any([self._train(folder, key) for folder in self._folders]):  # noqa: C419 - all
            pass

    def _train(self, folder: Path, key: str) -> bool:
        """Train a run unless it has ended or another job has it; returns whether this one did."""
        try:
            with locked(folder, "job.lock"):
                mark = Mark.read(folder)
                if (folder / RESULT_FILE).is_file() or (mark is not None and mark.reason):
                    return False
                Mark(key).write(folder)
                run = Run.read(folder)
                if run is None:
                    Mark(key, f"{folder} holds no settings that can be read").write(folder)
                    return True
                for failure in execute([run], self._launch, _log):
                    Mark(key, failure.reason, failure.running).write(folder)
                return True
        except InUseError:
            return False

    def _launch(self, run: Run, report: Say) -> RunResult:
        for _ in range(RETRIES):
            try:
                return launch(run, report, self._device)
            except KilledError as error:
                report(f"{error}: started again")
        return launch(run, report, self._device)


def _log(line: str) -> None:
    os.write(1, f"{line}\n".encode(errors="replace"))  # the job's log
