"""The results of a comparison, as records that are written to JSON and read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, FiniteFloat, TypeAdapter, ValidationError

from detrlab import files
from detrlab.config import first_mistake
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
    if missing := [name for name in (*METRICS, "per_class") if name not in values]:
        raise ValueError(f"metrics without {', '.join(missing)}")
    TypeAdapter(dict[str, _Number]).validate_python(values["per_class"])
    plain = {name: value for name, value in values.items() if name != "per_class"}
    TypeAdapter(dict[str, _Number]).validate_python(plain)
    return values


@dataclass(frozen=True)
class Epoch:
    """The state of a training after one epoch: ``minutes`` so far, mean losses, validation."""

    epoch: int
    minutes: FiniteFloat
    losses: dict[str, FiniteFloat] = field(default_factory=dict)
    metrics: dict[str, _Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What a detector costs; None where it was not measured.

    ``gflops`` (thousand million multiply-adds) and ``latency`` (milliseconds by percentile,
    ``p50`` and ``p90``) are for one image of ``input_size``, (height, width) in pixels;
    ``minutes`` are of training without evaluation, ``peak_memory`` is in GiB.
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
    """One detector, trained once; or another tool's predictions, which have no seed.

    ``metrics`` are those of the last epoch's weights. Paths are relative to the comparison's
    folder.
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
        """
        path = folder / RESULT_FILE
        if not path.is_file():
            return None
        try:
            found = TypeAdapter(cls).validate_json(files.read_bytes(path))
        except (OSError, ValueError) as error:
            reason = first_mistake(error) if isinstance(error, ValidationError) else error
            raise UserError(
                f"{path} is damaged ({reason}): delete it, and the run will be evaluated again"
            ) from None
        place = f"runs/{folder.name}"
        return replace(found, folder=place, predictions=f"{place}/predictions.json")


@dataclass(frozen=True)
class Failure:
    """A run that did not finish; ``running`` where another process is training it right now."""

    entrant: str
    seed: int
    reason: str
    running: bool = False


@dataclass(frozen=True)
class Row:
    """One entrant's row of the table: the mean over its seeds, None where one has no value.

    ``cost`` is that of the first run: times of different machines have no mean.
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


def rows(results: Sequence[RunResult], order: Sequence[str]) -> tuple[Row, ...]:
    """Results grouped by entrant, in the order of the comparison."""
    grouped = {name: tuple(run for run in results if run.entrant == name) for name in order}
    return tuple(_row(name, runs) for name, runs in grouped.items() if runs)


def _row(name: str, runs: tuple[RunResult, ...]) -> Row:
    each = [run.metrics["per_class"] for run in runs]
    return Row(
        name=name,
        runs=runs,
        metrics={key: _mean([run.metrics.get(key) for run in runs]) for key in METRICS},
        per_class={label: _mean([own.get(label) for own in each]) for label in each[0]},
        cost=runs[0].cost,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
