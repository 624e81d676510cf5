"""Trains the runs of a comparison in submitted jobs, and follows them.

The truth is in the runs' folders (result, epochs so far, mark of a job) and with whoever runs the
jobs. A command that is started again, or in another terminal, finds the same jobs by the record
in the comparison's folder.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from detrlab import files
from detrlab.compare.definition import Run
from detrlab.compare.job import MARK_FILE, RETRIES, Mark
from detrlab.compare.results import RESULT_FILE, Failure
from detrlab.compare.runs import PATIENCE, Say
from detrlab.compare.schedulers import Live, Local, Slurm, Submitted, end, fate, live
from detrlab.errors import UserError
from detrlab.training.folder import InUseError, RunConfig, RunFolder, locked
from detrlab.training.signals import stop_requests

JOBS = "jobs"
"""Folder of the jobs' files, in the comparison's folder."""
_RECORD = TypeAdapter(tuple[Submitted, ...])


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        epoch: epochs that are trained.
        epochs: of the whole run; None while that is not known.
        ap: of the last epoch, 0..1.
        minutes: of training so far, without evaluation.
        left: minutes of training that remain.
        why: it failed, or what it waits for.
        in_use: whether it failed because another process is training it.
    """

    run: Run
    kind: Literal["queued", "running", "done", "failed"]
    epoch: int = 0
    epochs: int | None = None
    ap: float | None = None
    minutes: float | None = None
    left: float | None = None
    why: str = ""
    in_use: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens to the run."""
        return self.kind in ("done", "failed")

    @property
    def time_left(self) -> str:
        """Minutes that remain, in words; empty where that is not known."""
        if self.left is None:
            return ""
        return f"~{self.left:.0f}" if self.left >= 1 else "<1"

    def line(self) -> str:
        """One line of text."""
        parts = [f"{self.run.entrant}, seed {self.run.seed}: {self.kind}"]
        if self.epoch:
            parts.append(f"epoch {self.epoch}/{self.epochs or '?'}")
        if self.ap is not None:
            parts.append(f"AP {100 * self.ap:.1f}")
        if self.kind == "done" and self.minutes is not None:
            parts.append(f"{self.minutes:.1f} min")
        if self.left is not None:
            parts.append(f"{self.time_left} min left")
        why = f": {self.why}" if self.kind == "failed" else f" ({self.why})"
        return ", ".join(parts) + (why if self.why else "")


Show = Callable[[Sequence[State]], None]


class Jobs:
    """Trains the runs of a comparison in jobs, and waits for them.

    Args:
        scheduler: where the jobs run.
        show: receives the states of all runs, again and again; None reports changes as lines.
    """

    def __init__(self, scheduler: Local | Slurm, show: Show | None = None) -> None:
        self.scheduler = scheduler
        self.show = show

    def __call__(self, folder: Path, runs: Sequence[Run], report: Say) -> tuple[Failure, ...]:
        """Train what has not finished; returns what has no result in the end.

        Ctrl-C ends the waiting and leaves the jobs as they are.

        Raises:
            UserError: the jobs cannot be submitted.
        """
        show = self.show or _Changes(report)
        watch = _Watch(folder, runs, self.scheduler, report)
        while True:
            states = watch.look()
            show(states)
            if all(state.is_over for state in states):
                return tuple(
                    Failure(state.run.entrant, state.run.seed, state.why, state.in_use)
                    for state in states
                    if state.kind == "failed"
                )
            time.sleep(self.scheduler.pause)


class _Changes:
    """Reports a run's state as a line when it changes."""

    def __init__(self, report: Say) -> None:
        self._report = report
        self._known: dict[Path, tuple[object, ...]] = {}

    def __call__(self, states: Sequence[State]) -> None:
        for state in states:
            now = (state.kind, state.epoch, state.why)
            if self._known.get(state.run.folder) != now:
                self._known[state.run.folder] = now
                self._report(state.line())


class _Watch:
    """The runs of a comparison and their jobs, as one command sees them."""

    def __init__(
        self, folder: Path, runs: Sequence[Run], scheduler: Local | Slurm, report: Say
    ) -> None:
        self._folder = folder / JOBS
        self._runs = runs
        self._scheduler = scheduler
        self._report = report
        self._first = True
        self._jobs: tuple[Submitted, ...] = ()
        self._live: dict[str, Live] = {}
        self._over: dict[Path, State] = {}
        self._progress: dict[Path, tuple[int, State]] = {}
        self._seen: dict[tuple[str, str], float] = {}  # when a job of a run was seen to have ended
        self._counted: set[tuple[str, str]] = set()
        self._losses: Counter[str] = Counter()

    def look(self) -> list[State]:
        """The state of every run, after submitting what needs a job."""
        if self._unfinished() and self._found_jobs() and (self._first or self._needed()):
            # Several commands may watch the same runs: one at a time decides.
            with suppress(InUseError), locked(self._folder):
                if self._found_jobs():
                    self._submit()
        return [self._state(run) for run in self._runs]

    def _found_jobs(self) -> bool:
        """Look which jobs live; returns False where SLURM, busy at times, does not answer."""
        jobs = read_record(self._folder)
        try:
            self._live = live(jobs)
        except UserError:
            if self._first:
                raise
            return False
        self._jobs = jobs
        return True

    # --- submitting -------------------------------------------------------------------

    def _unfinished(self) -> list[Run]:
        """Runs to be trained; at first also those that failed before."""
        return [
            run
            for run in self._runs
            if not (run.folder / RESULT_FILE).is_file()
            and (self._first or not _reason(Mark.read(run.folder)))
        ]

    def _needed(self) -> list[tuple[Run, str]]:
        """Runs that need a job, and the key of the job that they had, or nothing."""
        found = []
        for run in self._unfinished():
            name, mark = run.folder.name, Mark.read(run.folder)
            jobs = [job.key for job in self._jobs if name in job.runs]
            had = mark.job if mark is not None else ""
            if any(key in self._live for key in jobs):
                if not had or had in self._live or (name, had) in self._counted:
                    continue
            elif jobs:
                had = jobs[-1]
            seen = self._seen.setdefault((name, had), time.monotonic())
            if self._first or not had or time.monotonic() - seen >= self._scheduler.grace:
                found.append((run, had))
        return found

    def _submit(self) -> None:
        """Submit jobs for the runs that need one."""
        needed = [run for run, had in self._needed() if self._may_start(run, had)]
        if self._first:
            for run in self._runs:
                if _reason(Mark.read(run.folder)):
                    (run.folder / MARK_FILE).unlink()
        if needed:
            for run in needed:
                run.folder.mkdir(parents=True, exist_ok=True)
                run.write()
            with stop_requests() as request:  # never between a submission and its record
                self._submit_and_record(needed)
            if request:
                raise KeyboardInterrupt
        self._first = False

    def _submit_and_record(self, needed: Sequence[Run]) -> None:
        others = [job for job in self._jobs if job.key in self._live]
        kept = [job for job in self._jobs if job.key in self._live or job.is_elsewhere]
        try:
            new = self._scheduler.submit(self._folder, needed, self._unfinished(), others)
        except UserError as error:
            if self._first:
                raise
            self._report(f"{error}: tried again soon")
            return
        if not new:
            return
        self._jobs = (*kept, *new)
        self._live |= {job.key: Live(queued=True) for job in new}
        write_record(self._folder, self._jobs)

    def _may_start(self, run: Run, had: str) -> bool:
        """Count a job that ended without a result; too many of them, and the run has failed."""
        name = run.folder.name
        if not self._first and had and (name, had) not in self._counted:
            self._losses[name] += 1
            why = fate(had)
            log = self._folder / f"{had.partition(':')[2]}_0_log.err"
            if "CANCELLED" in why:  # whoever did that does not want it back
                Mark(had, "its job was cancelled").write(run.folder)
                return False
            if self._losses[name] > RETRIES:
                times = f"{1 + RETRIES} times without a result{why}"
                Mark(had, f"its jobs ended {times} (log: {log})").write(run.folder)
                return False
            self._report(
                f"{run.entrant}, seed {run.seed}: its job ended without a result{why}: submitted "
                f"again ({self._losses[name]} of {RETRIES} times)"
            )
        self._counted.add((name, had))
        return True

    # --- the state of a run -------------------------------------------------------------

    def _state(self, run: Run) -> State:
        if run.folder in self._over:
            return self._over[run.folder]
        result = run.result()
        if result is not None:
            epochs, minutes = len(result.epochs), result.cost.minutes
            state = State(run, "done", epochs, epochs, result.metrics["ap"], minutes)
            self._over[run.folder] = state
            return state
        mark, so_far, name = Mark.read(run.folder), self._so_far(run), run.folder.name
        if mark is not None and mark.reason:
            return replace(so_far, kind="failed", why=mark.reason, left=None, in_use=mark.running)
        own = [job for job in self._jobs if name in job.runs and job.key in self._live]
        if mark is not None and mark.job in self._live:
            job, has_started = self._live[mark.job], True
        elif own:  # a job of several runs may start another one first
            job, has_started = self._live[own[0].key], own[0].runs == (name,)
        else:
            return replace(so_far, left=None)
        if has_started and not job.queued:
            return replace(so_far, kind="running")
        return replace(so_far, why=job.why, left=None)

    def _so_far(self, run: Run) -> State:
        """What the files of an unfinished run say."""
        folder = RunFolder(run.folder)
        try:
            changed = folder.metrics.stat()
        except OSError:
            return State(run, "queued")
        if self._progress.get(run.folder, (0, None))[0] != changed.st_mtime_ns:
            try:
                row = (folder.read_metrics() or {})["epochs"][-1]
                epoch, minutes = int(row["epoch"]), float(row["seconds"]) / 60
                epochs = RunConfig.load(folder.config).train.epochs
                left = minutes / epoch * (epochs - epoch)
                ap = None if row["ap"] is None else float(row["ap"])
                state = State(run, "queued", epoch, epochs, ap, minutes, left)
            except (ValueError, LookupError, TypeError, ZeroDivisionError):
                state = State(run, "queued")
            self._progress[run.folder] = (changed.st_mtime_ns, state)
        state = self._progress[run.folder][1]
        if state.left is None:
            return state
        since = max(0.0, time.time() - changed.st_mtime) / 60
        return replace(state, left=max(0.0, state.left - since))


def _reason(mark: Mark | None) -> str:
    return mark.reason if mark is not None else ""


def read_record(folder: Path) -> tuple[Submitted, ...]:
    """The jobs recorded in a folder of jobs.

    Raises:
        UserError: the record is damaged.
    """
    path = folder / "jobs.json"
    try:
        return _RECORD.validate_json(path.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it when no job is left") from None


def write_record(folder: Path, jobs: Sequence[Submitted]) -> None:
    """Record the jobs that have not ended."""
    files.write_json(folder / "jobs.json", [asdict(job) for job in jobs])


def are_live(folder: Path) -> bool:
    """Whether jobs of a comparison have not ended; True also where SLURM does not answer."""
    jobs = read_record(folder / JOBS)
    try:
        return bool(live(jobs))
    except UserError:
        return True


def cancel(folder: Path, report: Say) -> None:
    """End the jobs of a comparison; what their runs have learnt is saved.

    Args:
        folder: of the comparison.
        report: takes a line for each job.

    Raises:
        UserError: SLURM does not answer, or another command is submitting jobs.
    """
    nothing = f"no job of {folder} is queued or running"
    if not read_record(folder / JOBS):
        report(nothing)
        return
    with ExitStack() as stack:
        patience = time.monotonic() + PATIENCE
        while True:
            try:
                stack.enter_context(locked(folder / JOBS))
                break
            except InUseError:
                if time.monotonic() > patience:
                    raise
                time.sleep(0.2)
        jobs = read_record(folder / JOBS)
        alive = live(jobs)
        for job in jobs:
            if job.is_elsewhere:
                report(f"job {job.id} is a process on {job.host}: run this there to end it")
            elif job.key in alive:
                runs = [name for name in job.runs if _is_of(folder / "runs" / name, job)]
                end(job)
                where = "of SLURM" if job.where == "slurm" else "on this machine"
                report(f"ended job {job.id} {where} ({', '.join(runs) or 'it trained nothing'})")
        if not alive:
            report(nothing)
        for job in jobs:
            for run in (folder / "runs" / name for name in job.runs if job.key in alive):
                if not (run / RESULT_FILE).is_file() and not _reason(Mark.read(run)):
                    # So that a command that waits for the run does not submit it again.
                    Mark(job.key, "ended by --cancel").write(run)
        write_record(folder / JOBS, [job for job in jobs if job.is_elsewhere])


def _is_of(run: Path, job: Submitted) -> bool:
    """Whether a job trains the run in a folder, or is the one that will."""
    mark = Mark.read(run)
    is_its = mark.job == job.key if mark is not None else job.where == "slurm"
    return is_its and not (run / RESULT_FILE).is_file()
