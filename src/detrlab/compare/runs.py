"""The trainings of a comparison: one after the other, resumed, reused, collected."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from detrlab import files
from detrlab.compare.budget import BudgetField
from detrlab.compare.results import Failure, RunResult
from detrlab.config import DataConfig, Record, TrainConfig
from detrlab.errors import InUseError, UserError
from detrlab.presets import AnyPreset
from detrlab.training.folder import locked

Say = Callable[[str], None]
RUN_FILE = "run.json"
OF_THE_MACHINE = frozenset({"data.data", "data.workers"})
"""Settings that change no result: where the data is and how many processes read it. (The size of
micro-batches does change it: it decides the padding, which backbone and neck see.)"""
PATIENCE = 20.0
"""Seconds to wait for another process that may be about to exit, as after a kill."""


class Run(Record):
    """One detector to be trained with one seed."""

    entrant: str
    """Its name in the comparison."""
    seed: int
    """Of initial values, order, augmentation and dropout."""
    model: AnyPreset
    train: TrainConfig
    """How it is trained, before the budget changes the number of epochs."""
    data: DataConfig
    budget: BudgetField | None
    """What it may spend; None means the epochs of ``train``."""
    contents: str
    """Fingerprint of the data."""
    folder: Path = Field(exclude=True)
    """Where its files are."""

    @property
    def key(self) -> str:
        """Fingerprint of everything that decides the result.

        The same run on another machine has the same key. Finished runs are recognised by the key
        of the settings in their folder, computed anew: a setting that a later version of detrlab
        added has its default there, and a changed default gives another key.
        """
        settings = self.to_dict()
        del settings["entrant"], settings["seed"]  # the seed is among those of ``train``
        for name in OF_THE_MACHINE:
            del settings["data"][name.removeprefix("data.")]
        return files.digest(json.dumps(settings, sort_keys=True).encode())

    @property
    def name(self) -> str:
        """The entrant and its seed."""
        return f"{self.entrant}, seed {self.seed}"

    def write(self) -> None:
        """Write the settings into the run's folder, for the process that will train it."""
        files.write_json(self.folder / RUN_FILE, self.to_dict())

    @classmethod
    def read(cls, folder: Path) -> Run | None:
        """Read what ``write`` wrote; None where there is none that this version understands."""
        try:
            values = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
            return cls.parse({**values, "folder": folder})
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def result(self) -> RunResult | None:
        """Its result, if it has finished."""
        found = RunResult.load(self.folder)
        return found and replace(found, entrant=self.entrant, seed=self.seed, key=self.key)

    def placed(self, folder: Path) -> Run:
        """The same in its folder below ``folder``: the one that holds it already, or a new one."""
        known = (run for path in sorted(folder.glob("[!.]*")) if (run := Run.read(path)))
        places = [run.folder for run in known if run.key == self.key]
        new = folder / f"{slug(self.entrant)}-seed{self.seed}-{self.key[:8]}"
        return self.model_copy(update={"folder": places[-1] if places else new})


Trainer = Callable[[Run, Say], RunResult]
"""Trains one run to its end, or resumes it; raises an exception if it fails."""


def execute(runs: Sequence[Run], trainer: Trainer, report: Say) -> tuple[Failure, ...]:
    """Train what has not finished, one run after the other.

    A run that fails does not stop the others; Ctrl-C stops them all. A run that another process
    is training is left to that process.

    Returns:
        the runs that have no result, with the reason.
    """
    failures, in_use = [], []
    for number, run in enumerate(runs, start=1):
        prefix = f"[{number}/{len(runs)}] {run.name}"
        try:
            _complete(run, trainer, report, prefix)
        except InUseError as error:
            report(f"{prefix}: {error}")
            in_use.append((run, prefix))
        except Exception as error:
            failures.append(_failure(run, error, report))
    for run, prefix in in_use:
        try:
            _wait_until_free(run)
            _complete(run, trainer, report, prefix)
        except InUseError as error:
            failures.append(Failure(run.entrant, run.seed, str(error), running=True))
        except Exception as error:
            failures.append(_failure(run, error, report))
    return tuple(failures)


def _complete(run: Run, trainer: Trainer, report: Say, prefix: str) -> None:
    if run.result() is not None:
        report(f"{prefix}: finished before, reused")
        return
    report(f"{prefix}: training in {run.folder}")
    run.folder.mkdir(parents=True, exist_ok=True)
    run.write()
    trainer(run, report)
    assert run.result() is not None, "a trainer leaves its result in the run's folder"


def _wait_until_free(run: Run) -> None:
    """Wait a moment for a process that is about to exit; raises ``InUseError`` if it stays."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with locked(run.folder):
                return
        except InUseError:
            if time.monotonic() >= end:
                raise
        time.sleep(1.0)


def _failure(run: Run, error: Exception, report: Say) -> Failure:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}"
    report(f"{run.name} failed: {reason}")
    return Failure(run.entrant, run.seed, reason)


def slug(name: str) -> str:
    """A folder name from an entrant's: characters that a file system may refuse become dashes."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", name).strip("-.") or "run"


def gather(source: Path, folder: Path, report: Say) -> None:
    """Copy the finished runs of another comparison's folder; runs that are there already stay.

    Raises:
        UserError: links are among them, or another process is training one of them here.
    """
    for run in sorted((source / "runs").glob("[!.]*")):
        target = folder / run.name
        if not (run / "result.json").is_file() or RunResult.load(target) is not None:
            continue
        for path in (source / "runs", run, *run.rglob("*")):
            refuse_link(path)
        if RunResult.load(run) is not None:
            report(f"collecting {run.name} from {source}")
            _copy(run, target)


def refuse_link(path: Path) -> None:
    """Whoever made a folder must not choose which other files of this machine are copied.

    Raises:
        UserError: the path is a symbolic link.
    """
    if path.is_symlink():
        raise UserError(
            f"{path} is a symbolic link, and links are not followed: collect a folder that holds "
            "the files themselves (cp -rL copies them)"
        )


def _copy(run: Path, target: Path) -> None:
    """Copy a finished run over one that has not finished and that nobody is training."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(
            run, partial, symlinks=True, ignore=shutil.ignore_patterns("*.tmp", "*.lock")
        )
        if target.exists():
            with locked(target):
                shutil.rmtree(target)
        partial.rename(target)
    except OSError as error:
        raise UserError(f"{run} cannot be copied to {target}: {error}") from None
