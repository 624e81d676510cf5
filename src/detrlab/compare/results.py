"""What a comparison found, as records that go to JSON and come back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from detrlab import files
from detrlab.errors import UserError

METRICS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
"""The 12 COCO numbers, under the names that every json and csv uses."""

RESULT_FILE = "result.json"


@dataclass(frozen=True)
class Epoch:
    """Where a training stood after one epoch.

    Attributes:
        epoch: counted from 1.
        minutes: of training so far, evaluation left out.
        losses: mean over the epoch, ``loss`` being the weighted total.
        metrics: on the validation split; empty where it was not evaluated.
    """

    epoch: int
    minutes: float
    losses: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What a detector costs; None where it was not measured.

    Attributes:
        parameters: numbers in the network that training could change or has frozen.
        trainable: those that training changes.
        gflops: thousand million multiply-adds for one image of ``input_size``.
        input_size: (height, width) in pixels that ``gflops`` and ``latency`` are for.
        minutes: of training, evaluation left out.
        peak_memory: of the training process, in GiB.
        latency: milliseconds for one image, by percentile (``p50``, ``p90``).
        machine: what it was measured on.
    """

    parameters: int | None = None
    trainable: int | None = None
    gflops: float | None = None
    input_size: tuple[int, int] | None = None
    minutes: float | None = None
    peak_memory: float | None = None
    latency: dict[str, float] = field(default_factory=dict)
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
    metrics: dict[str, Any]
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
        """Read back; None where the run has not finished.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / RESULT_FILE
        if not path.is_file():
            return None
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path} is damaged ({error}): delete it, and the run will be evaluated again"
            ) from None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunResult:
        """From plain values, as ``save`` wrote them."""
        cost = dict(values["cost"])
        if cost.get("input_size") is not None:
            cost["input_size"] = tuple(cost["input_size"])
        return cls(
            **{
                **values,
                "epochs": tuple(Epoch(**epoch) for epoch in values["epochs"]),
                "cost": Cost(**cost),
            }
        )


@dataclass(frozen=True)
class Failure:
    """A run that did not finish.

    Attributes:
        entrant: its name in the comparison.
        seed: of the run.
        reason: one line for people; the whole traceback lies in the run's folder.
        running: True when another process is training it right now.
    """

    entrant: str
    seed: int
    reason: str
    running: bool = False


@dataclass(frozen=True)
class Row:
    """One entrant's line of the table: the mean over its seeds.

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
        """The runs on the first one's machine: minutes of two machines have no mean."""
        return _on_one_machine(self.runs)


def rows(results: Sequence[RunResult], order: Sequence[str]) -> tuple[Row, ...]:
    """Results grouped by entrant, in the order of the comparison."""
    grouped = {name: [run for run in results if run.entrant == name] for name in order}
    return tuple(_row(name, tuple(runs)) for name, runs in grouped.items() if runs)


def _row(name: str, runs: tuple[RunResult, ...]) -> Row:
    classes = list(runs[0].metrics.get("per_class", {}))
    times = [run.cost.minutes for run in _on_one_machine(runs)]
    cost = Cost(**{**vars(runs[0].cost), "minutes": _mean(times)})
    return Row(
        name=name,
        runs=runs,
        metrics={key: _mean([run.metrics.get(key) for run in runs]) for key in METRICS},
        per_class={
            label: _mean([run.metrics["per_class"].get(label) for run in runs]) for label in classes
        },
        cost=cost,
    )


def _on_one_machine(runs: tuple[RunResult, ...]) -> tuple[RunResult, ...]:
    return tuple(run for run in runs if run.cost.machine == runs[0].cost.machine)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
