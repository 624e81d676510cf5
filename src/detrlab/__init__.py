"""The DETR family, exact and comparable.

``import detrlab`` is fast: torch is loaded when a detector is built or loaded.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detrlab.api import Detector, build, load
    from detrlab.detections import Detections
    from detrlab.errors import UserError

# Before torch loads its OpenMP runtime. Threads that wait actively take the cores from other
# programs and from each other: beside another program, a prediction took 17 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = version("detrlab")

_HOMES = {
    "Detector": "detrlab.api",
    "build": "detrlab.api",
    "load": "detrlab.api",
    "Detections": "detrlab.detections",
    "UserError": "detrlab.errors",
}
__all__ = ["Detections", "Detector", "UserError", "__version__", "build", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'detrlab' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
