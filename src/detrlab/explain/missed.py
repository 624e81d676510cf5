"""Why an object was missed: the matching cost of every object in its terms, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from detrlab.boxes import box_iou, cxcywh_to_xyxy
from detrlab.losses.matching import HungarianMatcher
from detrlab.scoring import Scoring
from detrlab.structures import Predictions, Target

OVERLAP = 0.5
"""IoU from which a detection finds an object, as in AP50."""
NEARBY = 0.1
"""IoU from which a box counts as near an object."""

Reason = Literal[
    "found", "shared", "taken", "another class", "unsure", "left out", "badly placed", "unseen"
]


class Candidate(NamedTuple):
    """A query compared with one object.

    Attributes:
        query: index of the query.
        iou: of its box and the object's.
        score: for the object's class.
        cost: the matching cost, the sum of its three terms.
        cost_classes: class term of the matching cost, weighted.
        cost_boxes: L1 term, weighted.
        cost_giou: GIoU term, weighted.
    """

    query: int
    iou: float
    score: float
    cost: float
    cost_classes: float
    cost_boxes: float
    cost_giou: float


class LayerView(NamedTuple):
    """One object in one decoder layer.

    Attributes:
        best: the query with the lowest cost for it.
        matched: the query that it is matched to; None if there are more objects than queries.
        closest: the query whose box overlaps it most.
        found: a detection of its class, above the threshold, overlaps it enough and finds no
            other object.
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
            ``taken``: the query with its box is matched to another object;
            ``another class``: the box is right, the class is another;
            ``unsure``: box and class are right, the score is below the threshold;
            ``left out``: all is right, but other detections fill the list;
            ``badly placed``: a box is near, none overlaps enough;
            ``unseen``: no box is even near.
        layers: the object in each decoder layer; the last is the detector's answer.
        rival_object: the object that has the query or detection (``shared``, ``taken``).
        rival_class: the class that is predicted instead (``another class``).
        lost_at: index of the first layer that no longer finds it; None if the last layer finds
            it, or no layer does.
        box_lost_at: likewise for any box that overlaps it enough, whatever its class and score.
    """

    index: int
    label: int
    box: tuple[float, ...]
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
def explain_objects(
    layers: Sequence[Predictions],
    target: Target,
    scoring: Scoring,
    matcher: HungarianMatcher,
    threshold: float = 0.3,
    limit: int = 100,
) -> list[Verdict]:
    """What became of every annotated object of one image.

    Args:
        layers: predictions of each decoder layer, for a batch of one image.
        target: its objects, on the same device.
        scoring: how the logits are read.
        matcher: of the training.
        threshold: score from which a detection counts.
        limit: at most so many detections count, the best.
    """
    if len(target.labels) == 0:
        return []
    seen = [_Layer(layer, target, scoring, matcher, threshold, limit) for layer in layers]
    verdicts = []
    for index, box in enumerate(target.boxes.tolist()):
        views = tuple(layer.view(index) for layer in seen)
        reason, rival_object, rival_class = _reason(index, seen[-1], threshold)
        verdicts.append(
            Verdict(
                index=index,
                label=int(target.labels[index]),
                box=tuple(box),
                reason=reason,
                layers=views,
                rival_object=rival_object,
                rival_class=rival_class,
                lost_at=_lost([view.found for view in views]),
                box_lost_at=_lost([view.closest.iou >= OVERLAP for view in views]),
            )
        )
    return verdicts


def matching_costs(predictions: Predictions, target: Target, matcher: HungarianMatcher) -> Tensor:
    """The terms whose sum the matching minimises: (Q, N, 3) for classes, L1, GIoU, weighted.

    Args:
        predictions: (1, Q, K') logits and (1, Q, 4) boxes.
        target: N objects.
        matcher: of the training, with costs named class, box and giou.
    """
    labels, wanted = target.labels[None], target.boxes[None].to(predictions.boxes.dtype)
    terms = {
        name: weight * function(predictions.logits, predictions.boxes, labels, wanted)[0]
        for name, weight, function in matcher.costs
    }
    return torch.stack([terms[name] for name in ("class", "box", "giou")], dim=-1)


class _Layer:
    """One decoder layer's predictions compared with all objects."""

    def __init__(
        self,
        predictions: Predictions,
        target: Target,
        scoring: Scoring,
        matcher: HungarianMatcher,
        threshold: float,
        limit: int,
    ) -> None:
        predictions = Predictions(predictions.logits.float(), predictions.boxes.float())
        self.labels = target.labels.tolist()
        self.scores = scoring.probabilities(predictions.logits)[0]  # (Q, K)
        wanted = cxcywh_to_xyxy(target.boxes.float())
        self.iou = box_iou(cxcywh_to_xyxy(predictions.boxes[0])[:, None], wanted[None])  # (Q, N)
        self.costs = matching_costs(predictions, target, matcher)
        pairs = matcher([predictions], [target]).sets[0][0]
        self.matched = dict(zip(pairs.objects.tolist(), pairs.queries.tolist(), strict=True))
        scores, labels, queries = (part[0] for part in scoring.decode(predictions.logits, limit))
        sure = scores >= threshold
        self.detected = list(zip(queries[sure].tolist(), labels[sure].tolist(), strict=True))
        self.finders = find_objects(self.iou[queries[sure]], labels[sure].tolist(), self.labels)

    def candidate(self, query: int, index: int) -> Candidate:
        return Candidate(
            query,
            float(self.iou[query, index]),
            float(self.scores[query, self.labels[index]]),
            float(self.costs[query, index].sum()),
            *self.costs[query, index].tolist(),
        )

    def view(self, index: int) -> LayerView:
        matched = self.matched.get(index)
        return LayerView(
            best=self.candidate(int(self.costs[:, index].sum(-1).argmin()), index),
            matched=None if matched is None else self.candidate(matched, index),
            closest=self.candidate(int(self.iou[:, index].argmax()), index),
            found=index in self.finders,
        )


def find_objects(iou: Tensor, labels: Sequence[int], wanted: Sequence[int]) -> dict[int, int]:
    """Which detection finds which object, as in the COCO protocol at IoU ``OVERLAP``.

    Args:
        iou: (k, N), detections by falling score.
        labels: class of each detection.
        wanted: class of each object.

    Returns:
        Object -> detection; each detection finds at most one object.
    """
    finders: dict[int, int] = {}
    for detection, (row, label) in enumerate(zip(iou.tolist(), labels, strict=True)):
        free = [
            (overlap, -index)
            for index, overlap in enumerate(row)
            if index not in finders and wanted[index] == label and overlap >= OVERLAP
        ]
        if free:
            finders[-max(free)[1]] = detection
    return finders


def _lost(had: Sequence[bool]) -> int | None:
    if had[-1] or not any(had):
        return None
    return len(had) - list(reversed(had)).index(True)


def _reason(index: int, layer: _Layer, threshold: float) -> tuple[Reason, int | None, int | None]:
    """Why the object was found or missed, the rival object, the rival class."""
    if index in layer.finders:
        return "found", None, None
    label = layer.labels[index]
    overlap = layer.iou[:, index]
    owners = {layer.detected[detection][0]: other for other, detection in layer.finders.items()}
    for query, said in layer.detected:
        if said == label and overlap[query] >= OVERLAP and query in owners:
            return "shared", owners[query], None
    placed = torch.nonzero(overlap >= OVERLAP)[:, 0].tolist()
    if not placed:
        return ("badly placed" if overlap.max() >= NEARBY else "unseen"), None, None
    for query, said in layer.detected:  # by falling score
        if said != label and query in placed:
            return "another class", owners.get(query), said
    surest = max(placed, key=lambda query: float(layer.scores[query, label]))
    if layer.scores[surest, label] >= threshold:
        return "left out", None, None
    rivals = {query: other for other, query in layer.matched.items() if other != index}
    if surest in rivals:
        return "taken", rivals[surest], None
    return "unsure", None, None


def headline(verdict: Verdict, classes: Sequence[str], threshold: float) -> str:
    """The object and what became of it, in a few words."""
    iou = verdict.final.closest.iou
    # Three digits where two would look as if the overlap were enough.
    best_iou = f"{iou:.3f}" if round(iou, 2) >= OVERLAP > iou else f"{iou:.2f}"
    rival = "" if verdict.rival_class is None else classes[verdict.rival_class]
    result = {
        "found": "found",
        "shared": f"missed: the detection on it finds object {verdict.rival_object}",
        "taken": f"missed: the query with its box belongs to object {verdict.rival_object}",
        "another class": f"missed: its box is there, but called {rival}",
        "unsure": f"missed: its box is there, but scores below {threshold:.2f}",
        "left out": "missed: detections with higher scores fill the list",
        "badly placed": f"missed: no box overlaps it enough (best IoU {best_iou})",
        "unseen": f"missed: no box is near it (best IoU {best_iou})",
    }[verdict.reason]
    return f"object {verdict.index} ({classes[verdict.label]}) {result}"


def sentence(verdict: Verdict, classes: Sequence[str], threshold: float) -> str:
    """The verdict in words, with the cost of the best query and where the object was lost."""
    best = verdict.final.best
    text = (
        f"{headline(verdict, classes, threshold)}; best query {best.query}: IoU {best.iou:.2f}, "
        f"{classes[verdict.label]} {best.score:.2f}; cost {best.cost:.2f} = "
        f"class {best.cost_classes:.2f} + L1 {best.cost_boxes:.2f} + GIoU {best.cost_giou:.2f}."
    )
    if verdict.lost_at is not None:
        return f"{text} It was lost at decoder layer {verdict.lost_at + 1}."
    if verdict.box_lost_at is not None:
        return f"{text} Its box was lost at decoder layer {verdict.box_lost_at + 1}."
    return text
