"""AP of each decoder layer and the stability of the matching, after every epoch of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from detrlab import files
from detrlab.errors import UserError
from detrlab.losses.criterion import Criterion
from detrlab.structures import ModelOutput, Predictions, Target

if TYPE_CHECKING:
    from detrlab.data import Batch, Table

CURVES_FILE = "curves.json"

Matchings = dict[str, list[list[int]]]
"""By image id: the query of each object, layer by layer, -1 without one."""


@dataclass(frozen=True)
class EpochCurves:
    """What was recorded after one epoch, counted from 1, for each decoder layer.

    ``layer_ap`` is None where nothing can be judged. ``unstable`` is the share of objects whose
    query is not the one of the epoch before; empty after the first epoch.
    """

    epoch: int
    layer_ap: tuple[float | None, ...]
    unstable: tuple[float, ...] = ()


@dataclass(frozen=True)
class Curves:
    """What was recorded of one run; the matchings are those of the last epoch."""

    epochs: tuple[EpochCurves, ...] = ()
    matchings: Matchings = field(default_factory=dict, repr=False)

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        files.write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Curves:
        """Read what ``save`` wrote; empty if there is no file.

        Raises:
            UserError: the file is damaged.
        """
        try:
            return TypeAdapter(cls).validate_json(files.read_bytes(path))
        except FileNotFoundError:
            return cls()
        except (OSError, ValidationError) as error:
            reason = str(error) if isinstance(error, OSError) else error.errors()[0]["msg"]
            raise UserError(f"{path} cannot be read: {reason}; delete it to start again") from None


class CurveRecorder:
    """Records a run's curves from the evaluation that the run makes after each epoch anyway.

    In distributed training it judges the images of its own process.

    Args:
        folder: of the run; the curves are kept there as ``curves.json``, also over a resume.
        table: the validation images.
        criterion: of the run: how logits are read, how queries are matched.
        images: at most so many images are judged, evenly spread.
    """

    def __init__(
        self, folder: str | Path, table: Table, criterion: Criterion, images: int = 100
    ) -> None:
        self.path = Path(folder) / CURVES_FILE
        self.table = table
        self.criterion = criterion
        step = max(1, math.ceil(len(table) / images))
        self._positions = {table.image_id(i): i for i in range(0, len(table), step)}
        # By image id, for each layer: detections (boxes, scores, labels) and matched queries.
        self._detections: dict[int | str, list[tuple[Tensor, ...]]] = {}
        self._queries: Matchings = {}

    def on_batch(self, batch: Batch, output: ModelOutput) -> None:
        """Take one evaluated batch."""
        from detrlab.evaluation.postprocess import decode

        chosen = [i for i, image_id in enumerate(batch.image_ids) if image_id in self._positions]
        if not chosen:
            return
        layers = [Predictions(each.logits[chosen], each.boxes[chosen]) for each in output.layers]
        sizes = [batch.original_sizes[i] for i in chosen]
        decoded = [decode(each, self.criterion.scoring, sizes) for each in layers]
        device = layers[0].boxes.device
        targets = [Target(*(part.to(device) for part in batch.targets[i])) for i in chosen]
        matched = self.criterion.matcher(layers, targets).sets
        names = query_names(output)[chosen]
        for place, i in enumerate(chosen):
            rows = []
            for images in matched:
                row = torch.full((len(targets[place].labels),), -1)
                row[images[place].objects.cpu()] = names[place][images[place].queries.cpu()]
                rows.append(row.tolist())
            self._queries[str(batch.image_ids[i])] = rows
            self._detections[batch.image_ids[i]] = [
                tuple(part[place].cpu() for part in each[:3]) for each in decoded
            ]

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Write the curves of the epoch that ``row`` is about."""
        if not self._queries:
            return
        try:
            known = Curves.load(self.path)
        except UserError:
            known = Curves()  # a damaged record must not stop a training
        # A resumed run may repeat an epoch.
        earlier = tuple(each for each in known.epochs if each.epoch < row["epoch"])
        unstable = instability(known.matchings, self._queries) if earlier else ()
        epoch = EpochCurves(row["epoch"], self._layer_ap(), unstable)
        Curves((*earlier, epoch), self._queries).save(self.path)
        self._queries, self._detections = {}, {}

    def _layer_ap(self) -> tuple[float | None, ...]:
        from detrlab.evaluation.coco import Evaluator, as_ground_truth

        table = self.table.select([self._positions[each] for each in self._detections])
        truth = as_ground_truth(table)
        layers = []
        for rows in zip(*self._detections.values(), strict=True):
            evaluator = Evaluator(truth)
            for image_id, detections in zip(self._detections, rows, strict=True):
                evaluator.add(image_id, *detections)
            layers.append(evaluator.metrics().ap)
        return tuple(layers)


def query_names(output: ModelOutput) -> Tensor:
    """What identifies a query from one epoch to the next, (B, Q).

    A learned query is its index. The index of a two-stage query is only a rank, so the memory's
    cell that it comes from identifies it.
    """
    batch, count = output.final.boxes.shape[:2]
    return torch.arange(count).expand(batch, -1) if output.cells is None else output.cells.cpu()


def instability(before: Matchings, after: Matchings) -> tuple[float, ...]:
    """For each layer the share of objects whose query has changed, over the images in both.

    Source: arXiv 2203.01305 (DN-DETR), section 3.1, which sums over the objects of the split.
    """
    pairs = [
        (before[image], layers)
        for image, layers in after.items()
        if image in before and len(before[image]) == len(layers)
    ]
    objects = sum(len(layers[0]) for _, layers in pairs)
    if not objects:
        return ()
    return tuple(
        sum(a != b for old, new in pairs for a, b in zip(old[layer], new[layer], strict=True))
        / objects
        for layer in range(len(pairs[0][1]))
    )
