"""Experiment trackers: TensorBoard, Weights & Biases, MLflow, trackio and others, if installed.

They receive the same numbers as the run's own ``metrics.csv``, which is always written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrlab.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker


def open_tracker(name: str, run: str, folder: Path, settings: Mapping[str, Any]) -> GeneralTracker:
    """Open a tracker and record the settings.

    Args:
        name: ``tensorboard``, ``wandb``, ``mlflow``, ``trackio`` or another that accelerate knows.
        run: the name of the run in the tracker.
        folder: for trackers that write files.
        settings: nested plain values.

    Raises:
        UserError: unknown name, or its package is not installed.
    """
    # Only accelerate's trackers are used, not its training loop.
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    if name not in list(LOGGER_TYPE_TO_CLASS):
        known = [str(each) for each in LOGGER_TYPE_TO_CLASS]
        raise UserError(f"unknown tracker {name!r}{did_you_mean(name, known)}")
    try:
        kind = LOGGER_TYPE_TO_CLASS[name]
        place = {"logging_dir": folder} if kind.requires_logging_directory else {}
        tracker = kind(run, **place)
        if hasattr(tracker, "start"):
            tracker.start()
    except ImportError as error:
        raise UserError(
            f"tracker {name!r} needs a package that is not installed ({error}): pip install {name}"
        ) from None
    tracker.store_init_configuration(flat(settings))
    return tracker


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"train": {"clip": 0.1}}`` -> ``{"train.clip": 0.1}``; other values become text."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{key}.")
        else:
            found[key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return found


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of an epoch's row, the AP of each class included."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{key}": each for key, each in numbers(value).items()}
        elif isinstance(value, (int, float)) and math.isfinite(value):
            found[name] = float(value)
    return found
