"""Curves in other tools: TensorBoard, Weights & Biases, MLflow, trackio... where installed.

The run's own CSV is always written; these are beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from detrlab.errors import UserError, did_you_mean

NEEDS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
    "comet_ml": "comet_ml",
    "aim": "aim",
    "clearml": "clearml",
    "dvclive": "dvclive",
    "swanlab": "swanlab",
}
"""Names that ``open_trackers`` knows, and the package each needs."""


class Tracker(Protocol):
    """What is asked of a tracker; accelerate's have it."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Take the settings of the run."""

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Take numbers, by name."""

    def finish(self) -> None:
        """Send what is left."""


def open_trackers(
    names: Sequence[str], run: str, folder: Path, settings: Mapping[str, Any]
) -> list[Tracker]:
    """Open trackers by name and tell them the settings.

    Args:
        names: of ``NEEDS``.
        run: what the run is called there.
        folder: for those that write files.
        settings: nested plain values.

    Raises:
        UserError: unknown name, or a package that is not installed.
    """
    return [_open(name, run, folder, settings) for name in names]


def _open(name: str, run: str, folder: Path, settings: Mapping[str, Any]) -> Tracker:
    if name not in NEEDS:
        raise UserError(f"unknown tracker {name!r}{did_you_mean(name, NEEDS)}")
    # accelerate knows each tool's own way; its other parts are not used here.
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    try:
        kind = LOGGER_TYPE_TO_CLASS[name]
        place = {"logging_dir": folder} if kind.requires_logging_directory else {}
        tracker = kind(run, **place)
        if hasattr(tracker, "start"):
            tracker.start()
    except ImportError as error:
        raise UserError(
            f"tracker {name!r} needs a package that is not installed ({error}): "
            f"pip install {NEEDS[name]}"
        ) from None
    tracker.store_init_configuration(flat(settings))
    return tracker


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"train": {"clip": 0.1}}`` -> ``{"train.clip": 0.1}``; what is no number becomes text."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{key}.")
        else:
            found[key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return found


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of an epoch's row, AP of each class included."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{key}": each for key, each in numbers(value).items()}
        elif isinstance(value, (int, float)) and math.isfinite(value):
            found[name] = float(value)
    return found
