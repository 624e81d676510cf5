"""Why an object was missed: what overlaps it, and the matching cost of its best query."""

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

Reason = Literal["found", "taken", "another class", "unsure", "badly placed", "unseen"]


class Candidate(NamedTuple):
    """A query compared with one object; its matching cost is the sum of three weighted terms."""

    query: int
    iou: float
    score: float
    cost_classes: float
    cost_boxes: float
    cost_giou: float

    @property
    def cost(self) -> float:
        """The matching cost."""
        return self.cost_classes + self.cost_boxes + self.cost_giou


@dataclass(frozen=True)
class Verdict:
    """What became of one annotated object.

    Attributes:
        index: of the object in the target.
        label: its class.
        box: cxcywh fractions of the unpadded image.
        reason: ``found``; or why it was missed:
            ``taken``: the query with its box finds, or is matched to, another object;
            ``another class``: the box is right, the class is another;
            ``unsure``: box and class are right, the score is below the threshold;
            ``badly placed``: a box is near, none overlaps enough;
            ``unseen``: no box is even near.
        rival: the other object (``taken``) or the other class (``another class``).
        best: the query with the lowest matching cost for it.
        closest: the query whose box overlaps it most.
        lost_at: index of the first layer that no longer finds it; None if the last layer finds
            it, or no layer does.
    """

    index: int
    label: int
    box: tuple[float, ...]
    reason: Reason
    rival: int | None
    best: Candidate
    closest: Candidate
    lost_at: int | None


@torch.no_grad()
def explain_objects(
    layers: Sequence[Predictions],
    target: Target,
    scoring: Scoring,
    matcher: HungarianMatcher,
    threshold: float = 0.3,
) -> list[Verdict]:
    """What became of every annotated object of one image, with its predictions by layer.

    The target is on the device of the predictions; detections count from ``threshold``.
    """
    if len(target.labels) == 0:
        return []
    seen = [_Layer(layer, target, scoring, threshold) for layer in layers]
    last, final = seen[-1], layers[-1]
    costs = matching_costs(final, target, matcher)
    pairs = matcher([Predictions(final.logits.float(), final.boxes.float())], [target]).sets[0][0]
    matched = dict(zip(pairs.queries.tolist(), pairs.objects.tolist(), strict=True))

    def candidate(query: Tensor, index: int) -> Candidate:
        score = last.scores[query, target.labels[index]]
        terms = costs[query, index].tolist()
        return Candidate(int(query), float(last.iou[query, index]), float(score), *terms)

    verdicts = []
    for index, box in enumerate(target.boxes.tolist()):
        reason, rival = _reason(index, last, matched)
        found = [index in layer.finders for layer in seen]
        lost = any(found) and not found[-1]
        verdicts.append(
            Verdict(
                index=index,
                label=int(target.labels[index]),
                box=tuple(box),
                reason=reason,
                rival=rival,
                best=candidate(costs[:, index].sum(-1).argmin(), index),
                closest=candidate(last.iou[:, index].argmax(), index),
                lost_at=len(found) - found[::-1].index(True) if lost else None,
            )
        )
    return verdicts


def matching_costs(predictions: Predictions, target: Target, matcher: HungarianMatcher) -> Tensor:
    """The terms whose sum the matching minimises: (Q, N, 3) for classes, L1, GIoU, weighted."""
    logits, boxes = predictions.logits.float(), predictions.boxes.float()
    labels, wanted = target.labels[None], target.boxes[None].float()
    terms = {
        each.name: each.weight * each.function(logits, boxes, labels, wanted)[0]
        for each in matcher.costs
    }
    return torch.stack([terms[name] for name in ("class", "box", "giou")], dim=-1)


class _Layer:
    """One decoder layer's detections, and the objects that they find."""

    def __init__(
        self, predictions: Predictions, target: Target, scoring: Scoring, threshold: float
    ) -> None:
        logits = predictions.logits.float()
        self.labels = target.labels.tolist()
        self.scores = scoring.probabilities(logits)[0]  # (Q, K)
        wanted = cxcywh_to_xyxy(target.boxes.float())
        corners = cxcywh_to_xyxy(predictions.boxes[0].float())
        self.iou = box_iou(corners[:, None], wanted[None])  # (Q, N)
        scores, labels, queries = (part[0] for part in scoring.decode(logits, logits.numel()))
        sure = scores >= threshold
        self.detected = list(zip(queries[sure].tolist(), labels[sure].tolist(), strict=True))
        self.finders = find_objects(self.iou[queries[sure]], labels[sure].tolist(), self.labels)


def find_objects(iou: Tensor, labels: Sequence[int], wanted: Sequence[int]) -> dict[int, int]:
    """Object -> detection that finds it, as in the COCO protocol at IoU ``OVERLAP``.

    Detections (rows of ``iou``, with ``labels``) come by falling score, and find at most one
    object each (columns, with classes ``wanted``).
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


def _reason(index: int, layer: _Layer, matched: dict[int, int]) -> tuple[Reason, int | None]:
    """Why the object was found or missed, and its rival."""
    if index in layer.finders:
        return "found", None
    label, overlap = layer.labels[index], layer.iou[:, index]
    owners = {layer.detected[detection][0]: other for other, detection in layer.finders.items()}
    placed = torch.nonzero(overlap >= OVERLAP)[:, 0].tolist()
    if not placed:
        return ("badly placed" if overlap.max() >= NEARBY else "unseen"), None
    detected = [(query, said) for query, said in layer.detected if query in placed]
    for query, said in detected:  # by falling score
        if said == label and query in owners:
            return "taken", owners[query]
    for _, said in detected:
        if said != label:
            return "another class", said
    surest = max(placed, key=lambda query: float(layer.scores[query, label]))
    other = matched.get(surest, index)
    return ("unsure", None) if other == index else ("taken", other)


def headline(verdict: Verdict, classes: Sequence[str], threshold: float) -> str:
    """The object and what became of it, in a few words."""
    iou = verdict.closest.iou
    # Three digits where two would look as if the overlap were enough.
    best_iou = f"{iou:.3f}" if round(iou, 2) >= OVERLAP > iou else f"{iou:.2f}"
    rival = verdict.rival
    called = classes[rival] if verdict.reason == "another class" and rival is not None else ""
    result = {
        "found": "found",
        "taken": f"missed: the query with its box belongs to object {rival}",
        "another class": f"missed: its box is there, but called {called}",
        "unsure": f"missed: its box is there, but scores below {threshold:.2f}",
        "badly placed": f"missed: no box overlaps it enough (best IoU {best_iou})",
        "unseen": f"missed: no box is near it (best IoU {best_iou})",
    }[verdict.reason]
    return f"object {verdict.index} ({classes[verdict.label]}) {result}"


def sentence(verdict: Verdict, classes: Sequence[str], threshold: float) -> str:
    """The verdict in words, with the cost of the best query and where the object was lost."""
    best = verdict.best
    lost = verdict.lost_at
    text = (
        f"{headline(verdict, classes, threshold)}; best query {best.query}: IoU {best.iou:.2f}, "
        f"{classes[verdict.label]} {best.score:.2f}; cost {best.cost:.2f} = "
        f"class {best.cost_classes:.2f} + L1 {best.cost_boxes:.2f} + GIoU {best.cost_giou:.2f}."
    )
    return text if lost is None else f"{text} It was lost at decoder layer {lost + 1}."
