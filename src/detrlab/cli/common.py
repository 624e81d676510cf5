"""Helpers that several commands share."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrlab.errors import UserError, printable
from detrlab.files import UNFINISHED

if TYPE_CHECKING:
    from detrlab.api import Detector
    from detrlab.export import OtherDetector


def say(text: str) -> None:
    """Print a message on standard error; standard output is for results."""
    print(printable_lines(text), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print a result on standard output."""
    print(printable_lines(text), flush=True)


def printable_lines(text: str) -> str:
    """Text that keeps its line breaks, and nothing else that moves a cursor."""
    return "\n".join(map(printable, text.split("\n")))


def device_name(name: str) -> str | None:
    """The name of a flag's device, checked; None for ``auto``.

    Raises:
        UserError: no such device.
    """
    from detrlab.training.distributed import pick_device

    return None if name == "auto" else str(pick_device(name))


def print_metrics(metrics: Mapping[str, Any], title: str) -> None:
    """Print the COCO metrics and the AP of each class as a table."""
    from rich.console import Console

    from detrlab.compare.tables import Grid

    console = Console()
    of_all = ("all", *(_number(metrics.get(name)) for name in _HEADLINES))
    console.print(Grid(title, ("classes", *_HEADLINES), (of_all,)).terminal(console.width))
    classes = tuple((name, _number(value)) for name, value in metrics["per_class"].items())
    console.print(Grid("", ("class", "ap"), classes).terminal(console.width))


_HEADLINES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def open_detector(source: str, device: str, image_size: int | None) -> Detector:
    """Load a detector, on a device and with an image size.

    Raises:
        UserError: no such detector or device, or an invalid size.
    """
    from detrlab.api import load
    from detrlab.training.distributed import pick_device

    detector = load(source).to(pick_device(device))
    return detector if image_size is None else detector.at_size(image_size)


def open_predictor(source: str, device: str, image_size: int | None) -> Detector | OtherDetector:
    """As ``open_detector``, and also exported files and transformers' other detectors.

    Raises:
        UserError: no such detector or device, or an invalid size.
    """
    from detrlab.export import SUFFIXES, load, transformers_detector

    if source.lower().endswith(SUFFIXES):
        other: OtherDetector | None = load(source)
    else:
        try:
            return open_detector(source, device, image_size)
        except UserError as ours:
            other = transformers_detector(source)
            if other is None:
                raise ours from None
    assert other is not None
    if image_size is not None:
        raise UserError(f"--imgsz {image_size}: {source} brings an image size of its own")
    for note in other.notes:
        say(f"note: {note}")
    say(f"{source}: {other.description}")
    return other


@contextmanager
def fresh_folder(path: str | Path) -> Iterator[Path]:
    """The folder ``path``, or the first of ``path-2``, ``path-3``... that is new or empty.

    While the block runs, no other command takes it. What a killed export has left is removed.

    Raises:
        UserError: the folder cannot be created.
    """
    from detrlab.training.folder import held

    base = Path(path)
    for number in count(1):
        candidate = base if number == 1 else base.with_name(f"{base.name}-{number}")
        with ExitStack() as stack:
            try:
                candidate.mkdir(parents=True, exist_ok=True)
                if not stack.enter_context(held(candidate)):
                    continue
                for each in candidate.glob(f"{UNFINISHED}????????"):
                    shutil.rmtree(each, ignore_errors=True)
                if any(candidate.iterdir()):
                    continue
            except OSError as error:
                raise UserError(
                    f"the folder {candidate} cannot be created: {error.strerror}"
                ) from None
            yield candidate
            return
