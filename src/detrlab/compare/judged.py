"""Trained detectors of any kind, judged as they are beside those that a comparison trains."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import TypeAdapter

from detrlab import files
from detrlab.benchmark import cost
from detrlab.benchmark.timing import in_turn
from detrlab.compare.definition import slug
from detrlab.compare.results import Cost, RunResult
from detrlab.compare.runs import Say
from detrlab.errors import UserError

if TYPE_CHECKING:
    from detrlab.api import Detector
    from detrlab.data import Table
    from detrlab.evaluation.records import GroundTruth
    from detrlab.export import OtherDetector

ROUNDS = 10
"""Timed inferences."""


class Trained(NamedTuple):
    """A trained detector that takes part: its name, what it was loaded from, and itself."""

    name: str
    source: str
    detector: Detector | OtherDetector


def predictions_of(name: str) -> str:
    """Where the predictions of an entrant without a run are, below the comparison's folder."""
    plain = slug(name)
    mark = "" if plain == name else f"-{files.digest(name.encode())[:8]}"
    return f"predictions/{plain}{mark}.json"


def judge_trained(trained: Trained, table: Table, folder: Path, report: Say) -> None:
    """Write the predictions of a detector into the comparison's folder, and what it costs.

    Raises:
        UserError: it cannot be run, or knows none of the data's classes.
    """
    from detrlab.evaluation.predictor import judge

    detector = trained.detector
    report(f"{trained.name}: judging {trained.source} on {len(table)} images")
    evaluator, notes = judge(detector, table, getattr(detector, "rename", {}))
    told = [*getattr(detector, "notes", ()), *notes]
    for note in told:
        report(f"{trained.name}: {note}")
    evaluator.save_predictions(folder / predictions_of(trained.name))
    values = {
        "cost": asdict(_cost(detector, table)),
        "environment": {"read as": getattr(detector, "description", repr(detector)), "notes": told},
    }
    files.write_json(_facts_file(folder, trained.name), values)


def foreign_result(name: str, truth: GroundTruth, folder: Path, report: Say) -> RunResult:
    """The result of another tool's predictions, or of a judged detector's."""
    from detrlab.evaluation.coco import accumulate
    from detrlab.evaluation.foreign import load_predictions

    path = folder / predictions_of(name)
    loaded = load_predictions(path, truth)
    for note in loaded.notes:
        report(f"{name}: {note}")
    known, place = Cost(), _facts_file(folder, name)
    environment: dict[str, Any] = {}
    if place.is_file():
        try:
            values = json.loads(files.read_bytes(place))
            known = TypeAdapter(Cost).validate_python(values["cost"])
            environment = dict(values["environment"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{place} is damaged ({error})") from None
    return RunResult(
        entrant=name,
        seed=None,
        key=files.digest(files.read_bytes(path)),
        metrics=accumulate(truth, loaded.detected).metrics(truth.classes).to_dict(),
        predictions=predictions_of(name),
        cost=known,
        environment=environment,
    )


def _facts_file(folder: Path, name: str) -> Path:
    return (folder / predictions_of(name)).with_suffix(".facts.json")


def _cost(detector: Detector | OtherDetector, table: Table) -> Cost:
    """Parameters, and milliseconds for the picture of median size."""
    from detrlab.api import Detector

    areas = table.sizes.prod(1)
    picture = table.picture(int(areas.argsort()[len(areas) // 2]))
    if isinstance(detector, Detector):
        size = cost.typical_size(table, detector.preprocessing)
        return Cost(
            *cost.count_parameters(detector.network),
            gflops=cost.gflops(detector.network, size),
            input_size=size,
            latency=cost.latency(detector.network, size, ROUNDS),
            machine=cost.machine(),
        )
    times = in_turn({"": detector.inference(picture)}, ROUNDS)[""]
    return Cost(
        parameters=detector.parameters,
        latency={f"p{percent}": 1e3 * times.percentile(percent) for percent in (50, 90)},
        machine=cost.machine(),
    )
