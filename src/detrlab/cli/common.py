"""What several verbs do around their work: devices and output folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from detrlab.errors import UserError

if TYPE_CHECKING:
    import torch


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
