"""Where jobs run: on this machine or by SLURM. Submission and requeueing are submitit's."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from detrlab.compare.definition import Run, slug
from detrlab.compare.job import Job
from detrlab.errors import UserError, did_you_mean
from detrlab.export.packages import needs

FOREVER = 60 * 24 * 365
"""Minutes: submitit ends local jobs after a time, and ours have none."""
TIMEOUTS = 100
"""How often submitit requeues a job that has reached its time limit."""
SAVING = 60.0
"""Seconds that a stopped run may take to save."""


@dataclass(frozen=True)
class Submitted:
    """A submitted job, as it is recorded.

    Attributes:
        where: it runs.
        id: of the process on this machine, or SLURM's.
        runs: names of the runs' folders.
        host: that it was submitted from.
        started: seconds from the machine's start to that of its process, to recognise it: the
            time of day may be set anew. 0 for SLURM.
        slot: which of the places for jobs on this machine it has.
    """

    where: Literal["local", "slurm"]
    id: Annotated[str, Field(pattern=r"^\d+(_\d+)?$")]
    runs: tuple[Annotated[str, Field(pattern=r"^[^./][^/]*$")], ...]
    host: str
    started: float = 0.0
    slot: int = 0

    @property
    def key(self) -> str:
        """Its name in marks."""
        return f"{self.where}:{self.id}"

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is a process of another machine, which cannot be seen from here."""
        return self.where == "local" and self.host != socket.gethostname()


class Live(NamedTuple):
    """A job that has not ended: whether it waits, and what for."""

    queued: bool = False
    why: str = ""


def live(jobs: Sequence[Submitted]) -> dict[str, Live]:
    """Those of the jobs that have not ended, by key.

    Raises:
        UserError: SLURM does not answer.
    """
    found = {job.key: Live() for job in jobs if job.where == "local" and _process(job) is not None}
    if any(job.where == "slurm" for job in jobs):
        found |= _queue()
    return {job.key: found[job.key] for job in jobs if job.key in found}


def end(job: Submitted) -> None:
    """End a job. What its run has learnt is saved.

    Raises:
        UserError: SLURM does not answer.
    """
    if job.where == "slurm":
        _ask("scancel", job.id)
        return
    import psutil

    process = _process(job)
    chain = [] if process is None else [process]
    try:
        # submitit's controller, its job, the run's process. The last one saves and exits when the
        # others end; data loading processes are below it.
        while chain and len(chain) < 3 and (below := chain[-1].children()):
            chain.append(below[0])
        for each in chain[:2]:
            each.kill()
    except psutil.NoSuchProcess:
        pass
    psutil.wait_procs(chain, timeout=SAVING)


def fate(key: str) -> str:
    """How a job of SLURM has ended, such as `` (OUT_OF_MEMORY)``; empty where nobody knows."""
    kind, _, number = key.partition(":")
    try:
        asked = ("--noheader", "--allocations", "--parsable2", "--format", "State", "--jobs")
        state = _ask("sacct", *asked, number).split() if kind == "slurm" else []
    except UserError:  # many clusters keep no accounts
        state = []
    return f" ({state[0]})" if state else ""


def _process(job: Submitted) -> Any:
    """The process of a local job, if it lives: another one may have got its number since."""
    import psutil

    if job.is_elsewhere or not job.id.isdigit():
        return None
    try:
        process = psutil.Process(int(job.id))
        ours = "submitit.local._local" in process.cmdline()
        same = abs(_started(process) - job.started) < 5
        return process if ours and same else None
    except psutil.Error:
        return None


def _started(process: Any) -> float:
    """Seconds from the machine's start to that of a process."""
    import psutil

    return process.create_time() - psutil.boot_time()


def _ask(*command: str) -> str:
    """The output of one of SLURM's commands."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError:
        raise UserError(
            f"{command[0]} is not on this machine: run this where jobs are submitted to SLURM, or "
            "delete jobs/jobs.json of the comparison if none is left"
        ) from None
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise UserError(f"{command[0]} failed: {' '.join(said.split())}") from None
    return done.stdout


def _queue() -> dict[str, Live]:
    """This user's jobs in SLURM that have not ended, by key."""
    user = str(os.getuid())
    lines = _ask("squeue", "--noheader", "--array", "--user", user, "--format", "%i|%T|%r")
    found = {}
    for line in lines.splitlines():
        number, state, why = (*line.strip().split("|"), "", "")[:3]
        queued = state not in ("RUNNING", "COMPLETING")
        found[f"slurm:{number}"] = Live(queued, why if why != "None" else "")
    return found


@contextmanager
def _outliving() -> Iterator[None]:
    """What is started inside outlives this process.

    The terminal's Ctrl-C, Ctrl-Z and hang-up do not reach it, and it keeps no pipe of ours open.
    """
    signals = {signal.SIGINT, signal.SIGTSTP, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # is inherited
    null = os.open(os.devnull, os.O_RDWR)
    kept = [os.dup(number) for number in range(3)]
    try:
        for number in range(3):
            os.dup2(null, number)
        yield
    finally:
        for number, copy in enumerate(kept):
            os.dup2(copy, number)
            os.close(copy)
        os.close(null)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Local:
    """Up to ``count`` jobs at once on this machine; each trains one run after the other."""

    pause = 1.0
    """Seconds between two looks at the state."""
    grace = 0.0
    """Seconds to wait for the files of a job that has ended."""

    def __init__(self, count: int, device: str | None = None) -> None:
        self.count = count
        self.device = device

    def submit(
        self,
        folder: Path,
        needed: Sequence[Run],  # noqa: ARG002
        unfinished: Sequence[Run],
        others: Sequence[Submitted],
    ) -> list[Submitted]:
        """Submit jobs, unless there are enough; each has all unfinished runs.

        Args:
            folder: for submitit's files.
            needed: runs that no job has.
            unfinished: all runs that are to be trained.
            others: jobs that have not ended.
        """
        import psutil
        from submitit import AutoExecutor

        here = {job.slot for job in others if job.where == "local"}
        free = [slot for slot in range(self.count) if slot not in here]
        free = free[: max(0, min(self.count, len(unfinished)) - len(here))]
        executor = AutoExecutor(folder, cluster="local")
        executor.update_parameters(timeout_min=FOREVER)
        folders = [run.folder.absolute() for run in unfinished]
        submitted = []
        for slot in free:
            with _outliving():
                job = executor.submit(Job(folders, self.device, self._environment(slot)))
            try:
                started = _started(psutil.Process(int(job.job_id)))
            except psutil.Error:
                started = 0.0
            names = tuple(run.folder.name for run in unfinished)
            host = socket.gethostname()
            submitted.append(Submitted("local", job.job_id, names, host, started, slot))
        return submitted

    def _environment(self, slot: int) -> dict[str, str | None]:
        """Each job's share of the processor cores, and its GPU."""
        import torch

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        share = str(max(1, (cores or 1) // self.count))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # submitit hides all of them
        if self.device is None:
            count = torch.cuda.device_count()
            devices = visible.split(",") if visible else [str(i) for i in range(count)]
            visible = devices[slot % len(devices)] if devices else visible
        threads = os.environ.get("OMP_NUM_THREADS", share)
        return {"OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": visible}


def _number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _gigabytes(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def _lines(text: str) -> list[str]:
    return [text]


_Setting = tuple[str, Callable[[str], Any], str]
_WORD, _NUMBER = "a word", "a whole number from 1"
SETTINGS: Mapping[str, _Setting] = {
    "partition": ("slurm_partition", str, _WORD),
    "gpus": ("gpus_per_node", _number, _NUMBER),
    "cpus": ("cpus_per_task", _number, _NUMBER),
    "memory": ("mem_gb", _gigabytes, "a number of gigabytes"),
    "minutes": ("timeout_min", _number, _NUMBER),
    "parallel": ("slurm_array_parallelism", _number, _NUMBER),
    **{
        name: (f"slurm_{name}", str, _WORD)
        for name in ("account", "qos", "constraint", "gres", "nodelist", "exclude", "mail_user")
    },
    "mail_type": ("slurm_mail_type", str, _WORD),
    "reservation": ("reservation", str, _WORD),
    "signal_seconds": ("slurm_signal_delay_s", _number, _NUMBER),
    "setup": ("slurm_setup", _lines, "a shell command"),
    "python": ("python", str, "a command"),
}
"""Names of ``--launch-set``: submitit's name, how the value is read, and what it is."""


class Slurm:
    """One job of SLURM for each run.

    Args:
        settings: ``NAME=VALUE``; the names are those of ``SETTINGS``.
        device: to compute on; None takes a GPU if the job has one.

    Raises:
        UserError: unknown names, values that cannot be read.
    """

    pause = 10.0
    grace = 30.0  # a shared disk may show files late

    def __init__(self, settings: Sequence[str] = (), device: str | None = None) -> None:
        self.device = device
        self._parameters: dict[str, Any] = {"timeout_min": 240}
        for text in settings:
            name, equals, value = text.partition("=")
            if name not in SETTINGS:
                valid = ", ".join(SETTINGS)
                hint = did_you_mean(name, SETTINGS).partition("; known")[0]
                raise UserError(f"--launch-set {text}: unknown name{hint}; valid: {valid}")
            parameter, read, what = SETTINGS[name]
            try:
                if not equals or not value:
                    raise ValueError
                self._parameters[parameter] = read(value)
            except ValueError:
                raise UserError(f"--launch-set {text}: write {name}=VALUE with {what}") from None

    def submit(
        self,
        folder: Path,
        needed: Sequence[Run],
        unfinished: Sequence[Run],  # noqa: ARG002
        others: Sequence[Submitted],  # noqa: ARG002
    ) -> list[Submitted]:
        """Submit a job for each run that has none; the arguments are those of ``Local.submit``.

        Raises:
            UserError: SLURM is not here, or refuses the jobs.
        """
        from submitit import AutoExecutor
        from submitit.helpers import clean_env

        parameters = dict(self._parameters)
        python = parameters.pop("python", None)
        more = {"requeue": True}
        if "reservation" in parameters:
            more["reservation"] = parameters.pop("reservation")
        # Within a job, its variables would decide about the new ones.
        inside = clean_env() if "SLURM_JOB_ID" in os.environ else nullcontext()
        try:
            executor = AutoExecutor(
                folder, cluster="slurm", slurm_max_num_timeout=TIMEOUTS, slurm_python=python
            )
            executor.update_parameters(
                name=f"detrlab-{slug(folder.parent.name)}",
                slurm_additional_parameters=more,
                **parameters,
            )
            with inside, executor.batch():
                jobs = [
                    executor.submit(Job([run.folder.absolute()], self.device, {})) for run in needed
                ]
        except (RuntimeError, OSError) as error:
            said = " ".join(str(error).split())
            raise UserError(f"SLURM did not take the jobs: {said}") from None
        finally:
            for path in folder.glob(".submission_file_*"):  # links to files that have a name
                path.unlink()
        host = socket.gethostname()
        return [
            Submitted("slurm", job.job_id, (run.folder.name,), host)
            for job, run in zip(jobs, needed, strict=True)
        ]


def scheduler(text: str, settings: Sequence[str] = (), device: str | None = None) -> Local | Slurm:
    """Read ``local:N`` or ``slurm``, with SLURM's settings.

    Raises:
        UserError: something else, or submitit is not installed.
    """
    kind, _, count = text.partition(":")
    found: Local | Slurm
    if kind == "local" and re.fullmatch("[1-9][0-9]{0,3}", count):
        if settings:
            raise UserError(f"--launch-set {settings[0]}: only --launch slurm has settings")
        found = Local(int(count), device)
    elif text == "slurm":
        found = Slurm(settings, device)
    else:
        raise UserError(f"--launch {text}: write local:N (N runs at once on this machine) or slurm")
    needs("submitit", "cluster")
    if not hasattr(signal, "SIGUSR2"):
        raise UserError(f"--launch {text} needs Linux or macOS")
    return found
