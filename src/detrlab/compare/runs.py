"""The trainings of a comparison: planned, run one by one, resumed, reused, gathered."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detrlab import files
from detrlab.compare.budget import Budget
from detrlab.compare.entrants import Entrant
from detrlab.compare.results import Failure, RunResult
from detrlab.config import DataConfig, ModelConfig, Recipe, TrainConfig
from detrlab.data.fingerprint import data_fingerprint
from detrlab.errors import InUseError, UserError

if TYPE_CHECKING:
    from detrlab.data import DataSet

Report = Callable[[str], None]
RUN_FILE = "run.json"
ERROR_FILE = "error.txt"
OF_THE_MACHINE = frozenset({"data.data", "data.workers"})
"""Settings that change no result: where the data lies and how many processes read it. (The size
of micro-batches does change it: pieces are padded less, which backbone and neck see.)"""


@dataclass(frozen=True)
class Run:
    """One detector to be trained with one seed.

    Attributes:
        entrant: its name in the comparison.
        seed: of initial values, order, augmentation and dropout.
        model: the architecture.
        train: how it is trained, before the budget.
        data: which images.
        budget: what it may spend; None means the epochs of ``train``.
        contents: fingerprint of the data.
        folder: where it lives.
    """

    entrant: str
    seed: int
    model: ModelConfig
    train: TrainConfig
    data: DataConfig
    budget: Budget | None
    contents: str
    folder: Path

    @property
    def key(self) -> str:
        """Fingerprint of everything that decides the result."""
        return run_key(self.model, self.train, self.data, self.budget, self.contents)

    @property
    def name(self) -> str:
        """For people: the entrant and its seed."""
        return f"{self.entrant}, seed {self.seed}"

    def save(self) -> None:
        """Write the settings into the run's folder, for the process that will train it."""
        files.write_json(
            self.folder / RUN_FILE,
            {
                "entrant": self.entrant,
                "seed": self.seed,
                "model": self.model.to_dict(),
                "train": self.train.to_dict(),
                "data": self.data.to_dict(),
                "budget": str(self.budget) if self.budget else None,
                "contents": self.contents,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> Run | None:
        """Read what ``save`` wrote; None where there is nothing that can still be understood."""
        try:
            values = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
            return cls(
                entrant=values["entrant"],
                seed=values["seed"],
                model=ModelConfig.parse(values["model"]),
                train=TrainConfig.parse(values["train"]),
                data=DataConfig.parse(values["data"]),
                budget=Budget.parse(values["budget"]) if values["budget"] else None,
                contents=values["contents"],
                folder=folder,
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def result(self) -> RunResult | None:
        """What it found, if it has finished."""
        return RunResult.load(self.folder)

    def paid_train(self, images_per_epoch: int, seconds_per_epoch: float | None) -> TrainConfig:
        """How it is trained with the epochs that its budget pays for."""
        if self.budget is None:
            return self.train
        return self.train.over(self.budget.epochs(images_per_epoch, seconds_per_epoch))


Trainer = Callable[[Run, Report], RunResult]
"""Trains one run to its end, or goes on with it; raises what went wrong."""


def plan(
    entrants: Sequence[Entrant],
    recipe: Recipe,
    data: DataSet,
    seeds: Sequence[int],
    folder: Path,
    budget: Budget | None = None,
) -> tuple[Run, ...]:
    """Every run of a comparison, the first seed of all detectors first.

    All settings are checked here, before anything trains.

    Raises:
        UserError: an entrant's settings are impossible.
    """
    fingerprint = data_fingerprint(data)
    known = {run.key: run.folder for run in saved(folder)}
    runs = []
    for seed in seeds:
        for entrant in entrants:
            model, train, settings = entrant.configs(recipe, len(data.train.classes))
            train = train.change(seed=seed)
            key = run_key(model, train, settings, budget, fingerprint)
            place = known.get(key, folder / f"{slug(entrant.name)}-seed{seed}-{key[:8]}")
            runs.append(Run(entrant.name, seed, model, train, settings, budget, fingerprint, place))
    return tuple(runs)


def execute(runs: Iterable[Run], trainer: Trainer, report: Report) -> tuple[Failure, ...]:
    """Train what has not finished, one run after the other.

    A run that fails does not take the others with it; Ctrl-C stops them all. A run that another
    process is training is left to it.

    Returns:
        the runs that have no result, with the reason.
    """
    failures, waiting = [], []
    for number, run in enumerate(runs := tuple(runs), start=1):
        try:
            _complete(run, trainer, report, f"[{number}/{len(runs)}] ")
        except InUseError as error:
            report(f"[{number}/{len(runs)}] {run.name}: {error}")
            waiting.append(run)
        except Exception as error:
            failures.append(_failure(run, error, report))
    for run in waiting:
        try:
            _complete(run, trainer, report, "", patience=PATIENCE)
        except InUseError as error:
            failures.append(Failure(run.entrant, run.seed, str(error), running=True))
        except Exception as error:
            failures.append(_failure(run, error, report))
    return tuple(failures)


PATIENCE = 20.0
"""Seconds to wait for a process that is just leaving, as after a kill."""


def _complete(
    run: Run, trainer: Trainer, report: Report, prefix: str, patience: float = 0.0
) -> None:
    end = time.monotonic() + patience
    while run.result() is None:
        try:
            report(f"{prefix}{run.name}: training in {run.folder}")
            run.folder.mkdir(parents=True, exist_ok=True)
            run.save()
            trainer(run, report)
        except InUseError:
            if time.monotonic() >= end:
                raise
            time.sleep(1.0)
        else:
            assert run.result() is not None, "a trainer leaves its result in the run's folder"
            return
    report(f"{prefix}{run.name}: finished before, reused")


def _failure(run: Run, error: Exception, report: Report) -> Failure:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}"
    report(f"{run.name} failed: {reason}")
    text = "".join(traceback.format_exception(error))
    files.write_text(run.folder / ERROR_FILE, text)
    return Failure(run.entrant, run.seed, reason)


def run_key(
    model: ModelConfig,
    train: TrainConfig,
    data: DataConfig,
    budget: Budget | None,
    fingerprint: str,
) -> str:
    """Fingerprint of everything that decides a run's result.

    What is ``OF_THE_MACHINE`` does not: the same run on another machine has the same key.
    Finished runs are known by the key of the settings in their folder, worked out anew: a setting
    that detrlab learnt later has its default there, and a default that changed since then tells
    them apart.
    """
    settings = {
        "model": model.to_dict(),
        "train": train.to_dict(),
        "data": {
            name: value
            for name, value in data.to_dict().items()
            if f"data.{name}" not in OF_THE_MACHINE
        },
        "budget": str(budget) if budget else None,
        "contents": fingerprint,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def slug(name: str) -> str:
    """A folder's name from an entrant's: whatever a file system might mind becomes a dash."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", name).strip("-.") or "run"


def saved(folder: Path) -> tuple[Run, ...]:
    """The runs below ``folder`` whose settings can be understood, in the order of their names."""
    found = (Run.load(path) for path in sorted(folder.glob("*")))
    return tuple(run for run in found if run is not None)


def gather(sources: Sequence[Path], folder: Path, report: Report) -> int:
    """Copy finished runs from other comparisons' folders into one; returns how many.

    Runs that are there already are left alone.
    """
    count = 0
    for source in sources:
        if not source.is_dir():
            raise UserError(f"there is no folder {source}")
        runs = source / "runs" if (source / "runs").is_dir() else source
        for run in sorted(runs.iterdir()):
            target = folder / run.name
            if RunResult.load(run) is None or RunResult.load(target) is not None:
                continue
            report(f"collecting {run.name} from {source}")
            _copy(run, target)
            count += 1
    return count


def _copy(run: Path, target: Path) -> None:
    """Copy a finished run; what lies there has not finished, and nobody may be training it.

    Raises:
        UserError: somebody is.
    """
    from detrlab.training.folder import locked

    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(run, partial, ignore=shutil.ignore_patterns("*.tmp", "*.lock"))
    if target.exists():
        with locked(target):
            shutil.rmtree(target)
    partial.rename(target)
