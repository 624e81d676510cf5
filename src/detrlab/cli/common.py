"""What several verbs do around their work: devices and output folders."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrlab.errors import UserError, printable

if TYPE_CHECKING:
    import torch

    from detrlab.api import Detector


def say(text: str) -> None:
    """Print a message on standard error; standard output is for results."""
    print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)


def device_name(name: str) -> str | None:
    """The device a flag names, checked; None lets the training choose."""
    return None if name == "auto" else str(pick_device(name))


def print_metrics(metrics: Mapping[str, Any], title: str) -> None:
    """The COCO numbers and those of each class, as a table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in _HEADLINES:
        table.add_column(name, justify="right")
    table.add_row("all", *(_number(metrics.get(name)) for name in _HEADLINES))
    for name, value in metrics["per_class"].items():
        table.add_row(escape_markup(name), _number(value))
    Console().print(table)


_HEADLINES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def escape_markup(text: str) -> str:
    """Text from files for rich, which would read ``[red]`` as a colour."""
    from rich.markup import escape

    return escape(printable(text))


def pick_device(name: str) -> torch.device:
    """``auto`` takes a GPU if there is one.

    Raises:
        UserError: no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--device {name} cannot be used here ({reason}): try --device cpu"
        ) from None
    return device


def open_detector(source: str, device: str, image_size: int | None) -> Detector:
    """The detector that flags name, on its device, at the image size asked for.

    Raises:
        UserError: no such detector or device, or an impossible size.
    """
    from detrlab.api import load

    detector = load(source).to(pick_device(device))
    return detector if image_size is None else detector.at_size(image_size)


def fresh_folder(path: str | Path) -> Path:
    """The folder itself if it is new or empty, otherwise the first free ``path-2``, ``path-3``...

    Raises:
        UserError: the folder cannot be made.
    """
    base = Path(path)
    number = 1
    while True:
        candidate = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            candidate.mkdir(parents=True, exist_ok=True)
            if not any(candidate.iterdir()):
                return candidate
        except OSError as error:
            raise UserError(f"the folder {candidate} cannot be made: {error.strerror}") from None
        number += 1
