"""The COCO metrics. This is the only file that calls hotcoco.

hotcoco rejects string ids and a text in ``info.year``, and accepts boxes that are not finite.
So it only gets columns that ``GroundTruth`` and ``Evaluator`` have validated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detrlab.errors import UserError
from detrlab.evaluation.postprocess import decode
from detrlab.evaluation.records import (
    Compact,
    Detected,
    Floats,
    GroundTruth,
    ImageId,
    protocol_rows,
    to_xywh,
)
from detrlab.files import replacing
from detrlab.structures import ImageBatch

if TYPE_CHECKING:
    from detrlab.data.batching import Batch
    from detrlab.data.table import Table
    from detrlab.scoring import Scoring
    from detrlab.structures import ModelOutput, Predictions

AT_A_TIME = 2_000_000
"""Detections that are matched at a time, unless a single class has more."""

TIDE_KINDS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FP", "FN")
"""Six kinds of error, all false positives and all false negatives."""


@dataclass(frozen=True)
class Metrics:
    """The 12 COCO metrics in [0, 1]; None without objects of that kind.

    AP is the mean over IoU .50:.05:.95 and over the classes that have objects. AR is recall with
    at most 1, 10 or 100 detections of a class in an image. Small objects have up to 32 x 32
    pixels, large ones at least 96 x 96. ``per_class`` is AP by name.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_class: dict[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the names that every json and csv uses."""
        return asdict(self)


class Tide(NamedTuple):
    """TIDE: ``cost`` is how much AP50 would rise if each kind of error were fixed.

    The kinds are ``Cls`` (wrong class), ``Loc`` (right class, IoU .1 to .5), ``Both``, ``Dupe``
    (duplicate), ``Bkg`` (background), ``Miss`` (missed), and for the cost all false positives
    ``FP`` and false negatives ``FN``.

    Source: arXiv 2008.08115.
    """

    ap50: float
    cost: dict[str, float]
    counts: dict[str, int]


class Accumulated(NamedTuple):
    """The arrays that the COCO metrics average; -1 where there are no objects.

    Precision and scores are (T, R, K, A, 3) over IoU thresholds, recalls, classes, areas and at
    most 1, 10, 100 detections; the highest recall is (T, K, A, 3).
    """

    precision: Floats
    recall: Floats
    scores: Floats

    def metrics(self, classes: Sequence[str]) -> Metrics:
        """The 12 metrics, and AP by class."""
        precision, recall = self.precision[..., 2], self.recall
        parts = {
            "ap": precision[..., 0], "ap50": precision[0, ..., 0], "ap75": precision[5, ..., 0],
            "ap_small": precision[..., 1], "ap_medium": precision[..., 2],
            "ap_large": precision[..., 3],
            "ar1": recall[..., 0, 0], "ar10": recall[..., 0, 1], "ar100": recall[..., 0, 2],
            "ar_small": recall[..., 1, 2], "ar_medium": recall[..., 2, 2],
            "ar_large": recall[..., 3, 2],
        }  # fmt: skip
        per_class = {name: mean_judged(precision[:, :, k, 0]) for k, name in enumerate(classes)}
        means = {name: mean_judged(values) for name, values in parts.items()}
        return Metrics(**means, per_class=per_class)


class Evaluator:
    """Collects the detections of one detector, image by image, and computes the metrics.

    At most 100 detections of each class are kept per image: the metrics use no more.

    Raises:
        UserError: the ground truth is not usable; the message names the annotation.
    """

    def __init__(self, ground_truth: dict[str, Any] | Table | GroundTruth) -> None:
        self.truth = as_ground_truth(ground_truth)
        self._parts: dict[int, Compact] = {}

    def add(
        self,
        image_id: ImageId,
        boxes: Tensor | Floats,
        scores: Tensor | Floats,
        labels: Tensor | Any,
    ) -> None:
        """Add the detections of one image.

        Args:
            image_id: the data set's own id.
            boxes: (N, 4), xyxy in pixels of the original image.
            scores: (N,).
            labels: (N,) class indices.

        Raises:
            UserError: the image is unknown or was added before; a box or score is not finite.
        """
        if image_id not in self.truth.image_index:
            raise UserError(f"image {image_id!r} is not in the ground truth")
        corners = _array(boxes).reshape(-1, 4)
        score = _array(scores).astype(np.float64)
        label = _array(labels).astype(np.int64)
        assert len(corners) == len(score) == len(label), "one score and label for each box"
        assert not len(label) or 0 <= label.min() <= label.max() < self.truth.num_classes
        broken = ~(np.isfinite(corners).all(1) & np.isfinite(score))
        if broken.any():
            raise UserError(
                f"image {image_id!r}: {broken.sum()} of {len(broken)} detections are not finite: "
                "the network has diverged (lower the learning rate, or train in float32)"
            )
        if corners.dtype != np.float32:
            corners = to_xywh(corners.astype(np.float64))
        self._add(self.truth.image_index[image_id], Compact.of(label, corners, score))

    def extend(self, detected: Detected) -> None:
        """Add the detections of many images, such as those of ``load_predictions``."""
        images, starts = np.unique(detected.image, return_index=True)
        for index, start, stop in zip(
            images.tolist(), starts, [*starts[1:], len(detected)], strict=False
        ):
            mine = detected.select(slice(start, stop))
            self._add(index, Compact.of(mine.label, mine.boxes, mine.score))

    def _add(self, index: int, found: Compact) -> None:
        if index in self._parts:
            image_id = self.truth.image_ids[index]
            raise UserError(f"image {image_id!r} was evaluated twice: add every image once")
        alone = found.detected(np.full(len(found.score), index))
        rows = np.sort(protocol_rows(alone))
        self._parts[index] = Compact(*(column[rows] for column in found))

    @property
    def num_images(self) -> int:
        """Number of images added so far."""
        return len(self._parts)

    @property
    def num_detections(self) -> int:
        """Number of detections that are kept of them."""
        return sum(len(part.score) for part in self._parts.values())

    def detected(self) -> Detected:
        """All detections added so far."""
        image, found = self._joined()
        return found.detected(image)

    def _joined(self) -> tuple[NDArray[np.int32], Compact]:
        """(D,) index of the image, and all detections; the images' parts are views of them."""
        order = sorted(self._parts)
        parts = [self._parts[index] for index in order]
        if len({part.boxes.dtype for part in parts}) > 1:
            parts = [part._replace(boxes=part.xywh()) for part in parts]
        none = Compact(np.zeros(0, np.int32), np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
        joined = Compact(*map(np.concatenate, zip(*(parts or [none]), strict=True)))
        ends = np.cumsum([len(part.score) for part in parts], dtype=np.int64)
        for index, start, end in zip(order, [0, *ends], ends, strict=False):
            self._parts[index] = Compact(*(column[start:end] for column in joined))
        return np.repeat(np.array(order, np.int32), np.diff(ends, prepend=0)), joined

    def metrics(self) -> Metrics:
        """The 12 COCO metrics and AP per class; images never added have no detections."""
        image, found = self._joined()

        def of_classes(first: int, last: int) -> Detected:
            rows = np.flatnonzero((found.label >= first) & (found.label < last))
            return found.detected(image, rows)

        return _accumulate(self.truth, found.label, of_classes).metrics(self.truth.classes)

    def save_predictions(self, path: str | Path) -> None:
        """Write COCO result records atomically, one record per line.

        ``load_predictions`` reads them back exactly.
        """
        truth = self.truth
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write("[")
            separator = "\n"
            for index in sorted(self._parts):
                image_id = json.dumps(truth.image_ids[index])
                found = self._parts[index].detected(np.full(len(self._parts[index].score), index))
                columns = found.label.tolist(), found.boxes.tolist(), found.score.tolist()
                for label, box, score in zip(*columns, strict=True):
                    # As json.dumps of a dict writes it, in a third of the time.
                    file.write(
                        f'{separator}{{"image_id": {image_id}, "category_id": '
                        f'{truth.category_ids[label]}, "bbox": {box}, "score": {score}}}'
                    )
                    separator = ",\n"
            file.write("\n]\n")


def as_ground_truth(source: dict[str, Any] | Table | GroundTruth) -> GroundTruth:
    """The columns of a COCO dict or a ``Table``."""
    if isinstance(source, GroundTruth):
        return source
    if isinstance(source, dict):
        return GroundTruth.from_coco(source)
    return GroundTruth.from_table(source)


def accumulate(truth: GroundTruth, detected: Detected) -> Accumulated:
    """Run the COCO protocol: match, then accumulate precision and recall."""

    def of_classes(first: int, last: int) -> Detected:
        return detected.select((detected.label >= first) & (detected.label < last))

    return _accumulate(truth, detected.label, of_classes)


def _accumulate(
    truth: GroundTruth, labels: NDArray[Any], of_classes: Callable[[int, int], Detected]
) -> Accumulated:
    """By groups of classes, which the protocol never compares with each other.

    hotcoco needs 400 bytes for each detection that it has at a time.
    """
    counts = np.bincount(labels, minlength=truth.num_classes)
    parts: list[tuple[Floats, Floats, Floats]] = []
    first = 0
    for last in range(1, truth.num_classes + 1):
        if last < truth.num_classes and counts[first : last + 1].sum() <= AT_A_TIME:
            continue
        detected = of_classes(first, last)
        shifted = replace(detected, label=detected.label - first)
        evaluation = _hotcoco_evaluation(truth.of_classes(first, last), shifted)
        evaluation.accumulate()
        result = evaluation.eval
        parts.append((result["precision"], result["recall"], result["scores"]))
        first = last
    precision, recall, scores = zip(*parts, strict=True)
    return Accumulated(
        np.concatenate(precision, axis=2),
        np.concatenate(recall, axis=1),
        np.concatenate(scores, axis=2),
    )


def tide_errors(truth: GroundTruth, detected: Detected) -> Tide:
    """What each kind of error costs, and how many there are."""
    found = _hotcoco_evaluation(truth, detected).tide_errors(pos_thr=0.5, bg_thr=0.1)
    cost = {kind: float(found["delta_ap"][kind]) for kind in TIDE_KINDS}
    counts = {kind: int(found["counts"][kind]) for kind in TIDE_KINDS[:6]}
    return Tide(float(found["ap_base"]), cost, counts)


def calibration_errors(truth: GroundTruth, detected: Detected, bins: int = 10) -> dict[str, Any]:
    """Confidence and accuracy by score at IoU .50: ``bins``, ``ece`` and ``per_category`` (ECE)."""
    clipped = replace(detected, score=np.clip(detected.score, 0.0, 1.0))
    found: dict[str, Any] = _hotcoco_evaluation(truth, clipped).calibration(n_bins=bins)
    return found


def _hotcoco_evaluation(truth: GroundTruth, detected: Detected) -> Any:
    """Match with hotcoco; all ids in it are indices into ``truth``."""
    import hotcoco

    images = [
        {"id": index, "height": int(height), "width": int(width)}
        for index, (height, width) in enumerate(truth.sizes)
    ]
    categories = [{"id": index, "name": name} for index, name in enumerate(truth.classes)]
    ground_truth = hotcoco.COCO.from_arrays(
        images,
        categories,
        truth.image,
        truth.label,
        truth.boxes,
        ids=np.arange(1, len(truth.label) + 1),
        area=truth.area,
        iscrowd=truth.crowd,
    )
    rows = np.column_stack([detected.image, detected.boxes, detected.score, detected.label])
    evaluation = hotcoco.COCOeval(ground_truth, ground_truth.load_res(rows), "bbox")
    evaluation.evaluate()
    return evaluation


@torch.no_grad()
def evaluate(
    network: torch.nn.Module,
    scoring: Scoring,
    batches: Iterable[Batch],
    evaluator: Evaluator,
    on_batch: Callable[[Batch, ModelOutput], None] | None = None,
) -> None:
    """Run a network over batches and hand its detections to ``evaluator``.

    The network is left in the mode it was in. The caller opens an autocast context if needed.

    Args:
        network: gives a ``ModelOutput`` for an ``ImageBatch``.
        scoring: how its logits are read.
        batches: with ``images``, ``image_ids`` and ``original_sizes``.
        evaluator: takes the detections of the last decoder layer.
        on_batch: takes each batch with the network's output.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        for batch in batches:
            output = network(
                ImageBatch(*(part.to(device, non_blocking=True) for part in batch.images))
            )
            if on_batch is not None:
                on_batch(batch, output)
            _add(evaluator, batch, output.final, scoring)
    finally:
        network.train(was_training)


def evaluate_layers(
    network: torch.nn.Module,
    scoring: Scoring,
    batches: Iterable[Batch],
    ground_truth: dict[str, Any] | Table | GroundTruth,
) -> list[Evaluator]:
    """Evaluate every decoder layer, with the arguments of ``evaluate``: one evaluator for each."""
    truth = as_ground_truth(ground_truth)
    evaluators: list[Evaluator] = []

    def add(batch: Batch, output: ModelOutput) -> None:
        evaluators.extend(Evaluator(truth) for _ in output.layers[len(evaluators) :])
        for evaluator, predictions in zip(evaluators, output.layers, strict=True):
            _add(evaluator, batch, predictions, scoring)

    evaluate(network, scoring, batches, Evaluator(truth), add)
    return evaluators


def _add(evaluator: Evaluator, batch: Batch, predictions: Predictions, scoring: Scoring) -> None:
    decoded = decode(predictions, scoring, batch.original_sizes)
    parts = zip(decoded.boxes.cpu(), decoded.scores.cpu(), decoded.labels.cpu(), strict=True)
    for image_id, (boxes, scores, labels) in zip(batch.image_ids, parts, strict=True):
        evaluator.add(image_id, boxes, scores, labels)


def gather(evaluator: Evaluator) -> None:
    """Collect the detections of all distributed processes in every process.

    Every image must have been evaluated by one process only. Does nothing in a single process.
    """
    import torch.distributed as distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return
    shares: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(shares, evaluator._parts)
    for rank, share in enumerate(shares):
        if rank != distributed.get_rank():
            for index, found in share.items():
                evaluator._add(index, found)


def mean_judged(values: Floats) -> float | None:
    """The mean without the entries of -1; None if there are no others."""
    judged = values[values > -1]
    return float(np.mean(judged)) if len(judged) else None


def _array(values: Tensor | Any) -> Any:
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    # numpy has no bfloat16.
    return np.asarray(values.float() if values.dtype == torch.bfloat16 else values)
