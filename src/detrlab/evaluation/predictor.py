"""Judge whatever finds objects in pictures: a file of any detector, or a library's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from detrlab.errors import UserError
from detrlab.evaluation.coco import Evaluator

if TYPE_CHECKING:
    from detrlab.data.table import Table
    from detrlab.detections import Detections

LIMIT = 100
"""Detections of an image that are judged, as of our own detectors."""
_ASKED = 300
"""Detections that are asked for: those of classes that the data lacks are left out."""


class Predictor(Protocol):
    """Something that finds objects in pictures, such as ``detrlab.Detector``."""

    classes: tuple[str, ...]

    def predict_each(
        self, images: Iterable[Any], *, threshold: None, limit: int, keep_image: bool
    ) -> Iterator[Detections]:
        """As ``Detector.predict_each``."""


def judge(
    predictor: Predictor, table: Table, rename: Mapping[str, str] | None = None
) -> tuple[Evaluator, tuple[str, ...]]:
    """Evaluate a predictor on annotated images, one image after the other.

    Args:
        predictor: whose classes may be more than the data's.
        table: the images.
        rename: the data's name of a class by the predictor's.

    Returns:
        the filled evaluator, and notes on how classes were matched.

    Raises:
        UserError: no class is common to both.
    """
    labels, notes = common_classes(predictor.classes, table.classes, rename or {})
    known = torch.tensor(labels)
    evaluator = Evaluator(table)
    pictures = (table.picture(row) for row in range(len(table)))
    each = predictor.predict_each(pictures, threshold=None, limit=_ASKED, keep_image=False)
    for row, found in enumerate(each):
        mapped = known[found.labels]
        kept = (mapped >= 0).nonzero()[:LIMIT, 0]
        evaluator.add(table.image_id(row), found.boxes[kept], found.scores[kept], mapped[kept])
    return evaluator, notes


def common_classes(
    theirs: Sequence[str], ours: Sequence[str], rename: Mapping[str, str]
) -> tuple[list[int], tuple[str, ...]]:
    """The data's index of each class of a predictor, -1 where the data lacks it; and notes.

    Names are compared without regard to case.

    Raises:
        UserError: no class is common to both, or ``rename`` has a class that is not there.
    """
    for old, new in rename.items():
        for name, known, owner in ((old, theirs, "model"), (new, ours, "data")):
            if name not in known:
                raise UserError(
                    f"rename {old}={new}: the {owner} has no class {name!r}; it has "
                    f"{', '.join(known[:10])}{', ...' if len(known) > 10 else ''}"
                )
    index = {name.casefold(): label for label, name in enumerate(ours)}
    labels = [index.get(rename.get(name, name).casefold(), -1) for name in theirs]
    if max(labels) < 0:
        raise UserError(
            f"the model knows {', '.join(theirs[:10])}{', ...' if len(theirs) > 10 else ''}; the "
            f"data has {', '.join(ours)}: no class is common to both; say which is which, such as "
            f"--rename {theirs[0]}={ours[0]}"
        )
    notes = [f"{name} is judged as {new}" for name, new in rename.items()]
    if missing := [name for label, name in enumerate(ours) if label not in labels]:
        notes.append(f"the model does not know {', '.join(missing)}: their AP is 0")
    if spare := labels.count(-1):
        notes.append(f"{spare} classes of the model are not in the data and are left out")
    return labels, tuple(notes)
