"""Why was this object missed? The matching cost of every object, taken apart, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from REMOVED import Weights, match  # TODO
from torch import Tensor

from detrlab.boxes import box_iou, cxcywh_to_xyxy, generalized_box_iou
from detrlab.scoring import Scoring
from detrlab.structures import ModelOutput, Predictions, Target

OVERLAP = 0.5
"""IoU from which a detection finds an object, as in AP50."""
NEARBY = 0.1
"""IoU from which a query looks at an object at all."""

Reason = Literal[
    "found", "shared", "taken", "another class", "unsure", "left out", "badly placed", "unseen"
]


class Costs(NamedTuple):
    """The matching cost in its three weighted terms; each (Q, N), or three numbers of one pair."""

    classes: Tensor
    boxes: Tensor
    giou: Tensor

    @property
    def total(self) -> Tensor:
        """What the matcher minimises."""
        return self.classes + self.boxes + self.giou


class Candidate(NamedTuple):
    """A query as one object sees it.

    Attributes:
        query: index of the query.
        iou: of its box and the object's.
        score: for the object's class.
        says: class it is surest of.
        says_score: for that class.
        cost_classes: class term of the matching cost, weighted.
        cost_boxes: L1 term, weighted.
        cost_giou: GIoU term, weighted.
    """

    query: int
    iou: float
    score: float
    says: int
    says_score: float
    cost_classes: float
    cost_boxes: float
    cost_giou: float

    @property
    def cost(self) -> float:
        """The matching cost."""
        return self.cost_classes + self.cost_boxes + self.cost_giou


class LayerView(NamedTuple):
    """One object in one decoder layer.

    Attributes:
        best: the query that costs it least.
        matched: the query that the matching gives it; None with more objects than queries.
        closest: the query whose box overlaps it most.
        found: a detection of its class, above the threshold, overlaps it enough and is its own.
    """

    best: Candidate
    matched: Candidate | None
    closest: Candidate
    found: bool


@dataclass(frozen=True)
class Verdict:
    """What became of one annotated object.

    Attributes:
        index: of the object in the target.
        label: its class.
        box: cxcywh fractions of the unpadded image.
        reason: ``found``; or why it was missed:
            ``shared``: the detection that overlaps it finds another object;
            ``taken``: the query with its box is the matching's choice for another object;
            ``another class``: the box is right and another class is claimed;
            ``unsure``: box and class are right, the score is below the threshold;
            ``left out``: everything is right, but others fill the list of detections;
            ``badly placed``: a query is nearby, none overlaps enough;
            ``unseen``: no query is even nearby.
        layers: the object in each decoder layer; the last is the detector's answer.
        rival_object: the object that has the query or detection (``shared``, ``taken``).
        rival_class: the class that is claimed instead (``another class``).
        lost_at: index of the first layer that lost what the one before had found; None if the
            object was found at the end, or never.
        box_lost_at: likewise for any box that overlaps it enough, whatever its class and score.
    """

    index: int
    label: int
    box: tuple[float, float, float, float]
    reason: Reason
    layers: tuple[LayerView, ...]
    rival_object: int | None
    rival_class: int | None
    lost_at: int | None
    box_lost_at: int | None

    @property
    def final(self) -> LayerView:
        """The object in the last layer."""
        return self.layers[-1]


@torch.no_grad()
def matching_costs(
    predictions: Predictions, target: Target, scoring: Scoring, weights: Weights
) -> Costs:
    """The three terms that ``training.matcher`` adds up: (Q, N) each, of one image.

    Args:
        predictions: (1, Q, K') logits and (1, Q, 4) boxes.
        target: N objects.
        scoring: how the logits are read.
        weights: of the terms.
    """
    boxes, wanted = predictions.boxes[0], target.boxes.to(predictions.boxes.dtype)
    overlap = generalized_box_iou(cxcywh_to_xyxy(boxes)[:, None], cxcywh_to_xyxy(wanted)[None])
    classes = scoring.matching_cost(predictions.logits, target.labels[None])[0]
    return Costs(
        classes=weights.classes * classes,
        boxes=weights.boxes * torch.cdist(boxes, wanted, p=1),
        giou=-weights.giou * overlap,
    )


@torch.no_grad()
def explain_objects(
    output: ModelOutput,
    image: int,
    target: Target,
    scoring: Scoring,
    weights: Weights | None = None,
    threshold: float = 0.3,
    limit: int = 100,
) -> list[Verdict]:
    """What became of every annotated object of one image.

    Args:
        output: of the detector, for a batch.
        image: index in the batch.
        target: its objects, on the device of the output.
        scoring: how the logits are read.
        weights: of the matching cost; the originals' if not given.
        threshold: score from which a detection counts.
        limit: at most so many detections count, the best.
    """
    if len(target.labels) == 0:
        return []
    weights = weights or Weights(classes=scoring.class_weight)
    seen = [
        _Layer(
            Predictions(layer.logits[image, None].float(), layer.boxes[image, None].float()),
            target,
            scoring,
            weights,
            threshold,
            limit,
        )
        for layer in output.layers
    ]
    return [_judge(index, target, seen, threshold) for index in range(len(target.labels))]


class _Layer:
    """One decoder layer's answer for one image beside its objects."""

    def __init__(
        self,
        predictions: Predictions,
        target: Target,
        scoring: Scoring,
        weights: Weights,
        threshold: float,
        limit: int,
    ) -> None:
        self.labels = target.labels
        self.scores = scoring.probabilities(predictions.logits)[0]  # (Q, K)
        wanted = cxcywh_to_xyxy(target.boxes.float())
        self.iou = box_iou(cxcywh_to_xyxy(predictions.boxes[0])[:, None], wanted[None])  # (Q, N)
        self.costs = matching_costs(predictions, target, scoring, weights)
        pairs = match(predictions, [target], scoring, weights)[0]
        self.matched = dict(zip(pairs.objects.tolist(), pairs.queries.tolist(), strict=True))
        scores, labels, queries = (part[0] for part in scoring.decode(predictions.logits, limit))
        sure = scores >= threshold
        self.detected = list(zip(queries[sure].tolist(), labels[sure].tolist(), strict=True))
        self.finders = find_objects(
            self.iou[queries[sure]], labels[sure].tolist(), target.labels.tolist()
        )

    def candidate(self, query: int, index: int) -> Candidate:
        says = int(self.scores[query].argmax())
        return Candidate(
            query=query,
            iou=float(self.iou[query, index]),
            score=float(self.scores[query, self.labels[index]]),
            says=says,
            says_score=float(self.scores[query, says]),
            cost_classes=float(self.costs.classes[query, index]),
            cost_boxes=float(self.costs.boxes[query, index]),
            cost_giou=float(self.costs.giou[query, index]),
        )

    def view(self, index: int) -> LayerView:
        matched = self.matched.get(index)
        return LayerView(
            best=self.candidate(int(self.costs.total[:, index].argmin()), index),
            matched=None if matched is None else self.candidate(matched, index),
            closest=self.candidate(int(self.iou[:, index].argmax()), index),
            found=index in self.finders,
        )


def find_objects(iou: Tensor, labels: Sequence[int], wanted: Sequence[int]) -> dict[int, int]:
    """Which detection finds which object: the surest first, each object once.

    Args:
        iou: (k, N), detections from the surest to the least sure.
        labels: class of each detection.
        wanted: class of each object.

    Returns:
        Object -> detection. As in the COCO protocol at one IoU threshold (``OVERLAP``).
    """
    finders: dict[int, int] = {}
    for detection, (row, label) in enumerate(zip(iou.tolist(), labels, strict=True)):
        free = [
            (overlap, index)
            for index, overlap in enumerate(row)
            if index not in finders and wanted[index] == label and overlap >= OVERLAP
        ]
        if free:
            finders[max(free, key=lambda pair: (pair[0], -pair[1]))[1]] = detection
    return finders


def _judge(index: int, target: Target, layers: Sequence[_Layer], threshold: float) -> Verdict:
    views = tuple(layer.view(index) for layer in layers)
    reason, rival_object, rival_class = _reason(index, layers[-1], threshold)
    return Verdict(
        index=index,
        label=int(target.labels[index]),
        box=tuple(target.boxes[index].tolist()),
        reason=reason,
        layers=views,
        rival_object=rival_object,
        rival_class=rival_class,
        lost_at=_lost([view.found for view in views]),
        box_lost_at=_lost([view.closest.iou >= OVERLAP for view in views]),
    )


def _lost(had: Sequence[bool]) -> int | None:
    """The first layer after the last that had it; None if the last has it, or none had."""
    if had[-1] or not any(had):
        return None
    return len(had) - list(reversed(had)).index(True)


def _reason(index: int, layer: _Layer, threshold: float) -> tuple[Reason, int | None, int | None]:
    """Why the object was found or missed, the rival object, the rival class."""
    if index in layer.finders:
        return "found", None, None
    label = int(layer.labels[index])
    overlap = layer.iou[:, index]
    owners = {layer.detected[detection][0]: other for other, detection in layer.finders.items()}
    for query, said in layer.detected:
        if said == label and overlap[query] >= OVERLAP and query in owners:
            return "shared", owners[query], None
    placed = torch.nonzero(overlap >= OVERLAP)[:, 0].tolist()
    if not placed:
        return ("badly placed" if overlap.max() >= NEARBY else "unseen"), None, None
    for query, said in layer.detected:  # the surest first
        if said != label and query in placed:
            return "another class", owners.get(query), said
    surest = max(placed, key=lambda query: float(layer.scores[query, label]))
    if layer.scores[surest, label] >= threshold:
        return "left out", None, None
    rivals = {query: other for other, query in layer.matched.items() if other != index}
    if surest in rivals:
        return "taken", rivals[surest], None
    return "unsure", None, None


def sentence(verdict: Verdict, classes: Sequence[str], threshold: float) -> str:
    """The verdict in words, for a person."""
    name = classes[verdict.label]
    best, closest = verdict.final.best, verdict.final.closest
    head = f"object {verdict.index} ({name})"
    told = {
        "found": "found",
        "shared": f"missed: the detection on it finds object {verdict.rival_object}",
        "taken": f"missed: the query with its box belongs to object {verdict.rival_object}",
        "another class": "missed: its box is there, but called "
        + (classes[verdict.rival_class] if verdict.rival_class is not None else "another class"),
        "unsure": f"missed: its box is there, but scores below {threshold:.2f}",
        "left out": "missed: surer detections fill the list",
        "badly placed": f"missed: no box overlaps it enough (best IoU {_short(closest.iou)})",
        "unseen": f"missed: no query looks there (best IoU {closest.iou:.2f})",
    }[verdict.reason]
    cost = (
        f"best query {best.query}: IoU {best.iou:.2f}, {name} {best.score:.2f}; cost "
        f"{best.cost:.2f} = class {best.cost_classes:.2f} + L1 {best.cost_boxes:.2f} "
        f"+ GIoU {best.cost_giou:.2f}"
    )
    return f"{head} {told}; {cost}.{_loss(verdict)}"


def _short(iou: float) -> str:
    """Two decimals, or three where two would look as if it were enough."""
    return f"{iou:.3f}" if round(iou, 2) >= OVERLAP > iou else f"{iou:.2f}"


def _loss(verdict: Verdict) -> str:
    """At which decoder layer the object, or at least its box, was lost; counted from 1."""
    if verdict.lost_at is not None:
        return f" It was lost at decoder layer {verdict.lost_at + 1}."
    if verdict.box_lost_at is not None:
        return f" Its box was lost at decoder layer {verdict.box_lost_at + 1}."
    return ""
