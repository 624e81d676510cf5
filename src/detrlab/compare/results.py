"""The results of a comparison, as records that are written to JSON and read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, FiniteFloat, TypeAdapter

from detrlab import files
from detrlab.errors import UserError

METRICS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
"""The 12 COCO numbers, under the names that every JSON and CSV file uses."""

RESULT_FILE = "result.json"

_Number = FiniteFloat | None


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """The 12 numbers and ``per_class``, checked: the file may come from somebody else."""
    TypeAdapter(dict[str, _Number | dict[str, _Number]]).validate_python(values)
    if missing := [name for name in (*METRICS, "per_class") if name not in values]:
        raise ValueError(f"metrics without {', '.join(missing)}")
    return values


@dataclass(frozen=True)
class Epoch:
    """The state of a training after one epoch.

    Attributes:
        epoch: counted from 1.
        minutes: of training so far, without evaluation.
        losses: mean over the epoch, ``loss`` being the weighted total.
        metrics: on the validation split; empty where it was not evaluated.
    """

    epoch: int
    minutes: FiniteFloat
    losses: dict[str, FiniteFloat] = field(default_factory=dict)
    metrics: dict[str, _Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What a detector costs; None where it was not measured.

    Attributes:
        parameters: of the network, trained and frozen ones.
        trainable: the trained ones.
        gflops: thousand million multiply-adds for one image of ``input_size``.
        input_size: (height, width) in pixels that ``gflops`` and ``latency`` are for.
        minutes: of training, without evaluation.
        peak_memory: of the training process, in GiB.
        latency: milliseconds for one image, by percentile (``p50``, ``p90``).
        machine: the machine it was measured on.
    """

    parameters: int | None = None
    trainable: int | None = None
    gflops: _Number = None
    input_size: tuple[int, int] | None = None
    minutes: _Number = None
    peak_memory: _Number = None
    latency: dict[str, FiniteFloat] = field(default_factory=dict)
    machine: str = ""


@dataclass(frozen=True)
class RunResult:
    """One detector, trained once; or another tool's predictions.

    Attributes:
        entrant: its name in the comparison.
        seed: None for another tool's predictions.
        key: fingerprint of everything that decides the result: settings and data.
        metrics: the 12 COCO numbers and ``per_class``, of the last epoch's weights.
        predictions: file of COCO result records, relative to the comparison's folder.
        folder: of the run, relative to the comparison's folder.
        epochs: the curves.
        cost: what it took.
        environment: versions and machine.
    """

    entrant: str
    seed: int | None
    key: str
    metrics: Annotated[dict[str, Any], AfterValidator(_numbers)]
    predictions: str
    folder: str = ""
    epochs: tuple[Epoch, ...] = ()
    cost: Cost = Cost()
    environment: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write to ``folder/result.json``: from now on the run counts as finished."""
        files.write_json(folder / RESULT_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> RunResult | None:
        """Read from ``runs/NAME``; None where the run has not finished.

        Where the files lie follows from ``folder``. What the file itself says about that is
        ignored, because it may come from somebody else and name any file of this machine.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / RESULT_FILE
        if not path.is_file():
            return None
        try:
            found = TypeAdapter(cls).validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is damaged ({error}): delete it, and the run will be evaluated again"
            ) from None
        place = f"runs/{folder.name}"
        return replace(found, folder=place, predictions=f"{place}/predictions.json")


@dataclass(frozen=True)
class Failure:
    """A run that did not finish.

    Attributes:
        entrant: its name in the comparison.
        seed: of the run.
        reason: one line; the traceback is in the run's ``log.txt``.
        running: True when another process is training it right now.
    """

    entrant: str
    seed: int
    reason: str
    running: bool = False


@dataclass(frozen=True)
class Row:
    """One entrant's row of the table: the mean over its seeds.

    Attributes:
        name: the entrant's.
        runs: its results, by seed.
        metrics: mean of each of the 12 numbers; None where a run has nothing to judge.
        per_class: mean AP of each class.
        cost: of the first run, with the mean training time of ``timed``.
    """

    name: str
    runs: tuple[RunResult, ...]
    metrics: dict[str, float | None]
    per_class: dict[str, float | None]
    cost: Cost

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that finished; empty for another tool's predictions."""
        return tuple(run.seed for run in self.runs if run.seed is not None)

    @property
    def timed(self) -> tuple[RunResult, ...]:
        """The runs on the first one's machine: times of different machines have no mean."""
        return _on_one_machine(self.runs)


def rows(results: Sequence[RunResult], order: Sequence[str]) -> tuple[Row, ...]:
    """Results grouped by entrant, in the order of the comparison."""
    grouped = {name: tuple(run for run in results if run.entrant == name) for name in order}
    return tuple(_row(name, runs) for name, runs in grouped.items() if runs)


def _row(name: str, runs: tuple[RunResult, ...]) -> Row:
    each = [run.metrics["per_class"] for run in runs]
    minutes = _mean([run.cost.minutes for run in _on_one_machine(runs)])
    return Row(
        name=name,
        runs=runs,
        metrics={key: _mean([run.metrics.get(key) for run in runs]) for key in METRICS},
        per_class={label: _mean([own.get(label) for own in each]) for label in each[0]},
        cost=replace(runs[0].cost, minutes=minutes),
    )


def _on_one_machine(runs: tuple[RunResult, ...]) -> tuple[RunResult, ...]:
    return tuple(run for run in runs if run.cost.machine == runs[0].cost.machine)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
