"""Settings written by detrlab 0.1: what became of them.

There a model's settings were one flat record for all detectors, and the parts were settings
(``attention``, ``queries``, ...). Now the parts follow from the preset.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from detrlab.errors import UserError

_DENSE = {
    "neck": "projection",
    "levels": 1,
    "position_offset": 0.0,
    "attention": "dense",
    "points": None,
    "queries": "positions",
    "decoder_norm": True,
    "refine": False,
}
_DEFORMABLE = {
    "neck": "pyramid",
    "position_offset": -0.5,
    "attention": "deformable",
    "decoder_norm": False,
    "scoring": "sigmoid",
}
REMOVED: dict[str, dict[str, Any]] = {
    "detr": {**_DENSE, "scoring": "softmax"},
    "detr-sigmoid": {**_DENSE, "scoring": "sigmoid"},
    "deformable-detr": {**_DEFORMABLE, "queries": "points", "refine": False},
    "deformable-detr-refine": {**_DEFORMABLE, "queries": "points", "refine": True},
    "deformable-detr-two-stage": {**_DEFORMABLE, "queries": "proposals", "refine": True},
}
"""Settings that are no longer there and the value each preset implies (None: any)."""


def to_current(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Saved settings without those that the preset implies.

    Raises:
        UserError: they describe a combination of parts that no preset has.
    """
    if "attention" not in values:
        return dict(values)
    for name, implied in REMOVED.items():
        if all(value in (None, values.get(key)) for key, value in implied.items()):
            kept = {key: value for key, value in values.items() if key not in implied}
            return {**kept, "preset": _variant(name, values)}
    raise UserError(
        f"{where}: no preset has attention {values['attention']!r} with queries "
        f"{values.get('queries')!r}, refine {values.get('refine')!r} and scoring "
        f"{values.get('scoring')!r}"
    )


def _variant(name: str, values: Mapping[str, Any]) -> str:
    """The preset among those with the same parts: single-scale, dilated (DC5)."""
    single = "-single-scale" if name == "deformable-detr" and values.get("levels") == 1 else ""
    dilated = values.get("dilation") and (single or name == "detr")
    return f"{name}{single}{'-dc5' if dilated else ''}"


def refuse_removed(changes: Iterable[str], known: Container[str], where: str) -> None:
    """Say what replaced a setting that is no longer there.

    Raises:
        UserError: one of ``changes`` is such a setting.
    """
    for key in changes:
        if key not in known and any(key in row for row in REMOVED.values()):
            raise UserError(
                f"{where}: {key!r} is no longer a setting: the preset decides it; choose one of "
                f"{', '.join(REMOVED)}"
            )
