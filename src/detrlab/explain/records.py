"""An explanation as plain values: for ``explanation.json`` and for the page to explore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from detrlab.explain.missed import Candidate, Verdict, sentence
from detrlab.explain.sampling import Samples

if TYPE_CHECKING:
    from detrlab.explain.explanation import Explanation, Found, Look


def as_dict(
    explanation: Explanation, *, top: int = 20, threshold: float = 0.3, digits: int = 4
) -> dict[str, Any]:
    """What the detector did with the image, as numbers, lists and texts.

    Boxes are cxcywh and points x, y, both as fractions of the image; layers, queries, levels
    and objects are counted from 0.

    Args:
        explanation: of one image.
        top: so many detections are followed through the layers, the best.
        threshold: score from which a detection counts, for the verdicts on annotated objects.
        digits: decimals that are kept.

    Returns:
        ``model``, ``classes``, ``size``, ``layers``, ``detections`` (each with its ``path`` and
        its ``look``: ``points`` or a ``map``), ``proposals`` and ``objects`` where there are any.
    """
    found = explanation.detections()[:top]
    looks = {query: explanation.look(query) for query in {each.query for each in found}}
    return {
        "model": explanation.name,
        "classes": list(explanation.classes),
        "size": list(explanation.size),
        "layers": len(explanation.recording.output.layers),
        "threshold": threshold,
        "detections": [
            {
                "query": each.query,
                "label": each.label,
                "score": round(each.score, digits),
                "box": _rounded(each.box, digits),
                "path": _path(explanation, each, digits),
                "look": look_as_dict(looks[each.query], digits),
            }
            for each in found
        ],
        "proposals": _proposals(explanation, [each.query for each in found], digits),
        "objects": _objects(explanation, threshold, digits),
    }


def look_as_dict(look: Look, digits: int = 4) -> dict[str, Any]:
    """Where one query looks.

    Returns:
        ``points``: x, y, weight (a share of the query's whole attention), level and head of
        each, the weightiest first; or ``map``: the mean of the heads over (height, width) cells,
        one row after the other.
    """
    if isinstance(look, Samples):
        heads, levels, points = look.weights.shape[1:]
        weights = (look.weights[0] / heads).flatten()
        order = weights.argsort(descending=True)
        xy = look.locations[0].flatten(0, 2)[order].tolist()
        rows = zip(xy, weights[order].tolist(), order.tolist(), strict=True)
        return {
            "points": [
                [
                    round(x, digits),
                    round(y, digits),
                    round(weight, digits + 1),
                    place // points % levels,
                    place // (points * levels),
                ]
                for (x, y), weight, place in rows
            ]
        }
    (mean,) = (each.mean(0) for each in look.maps)
    return {
        "map": {"shape": list(mean.shape), "weights": _rounded(mean.flatten().tolist(), digits + 1)}
    }


def _path(explanation: Explanation, found: Found, digits: int) -> list[dict[str, Any]]:
    """One entry a decoder layer: where it looked from, its box, its score for the class."""
    path = explanation.paths
    steps = []
    for layer, references in enumerate(path.references):
        step: dict[str, Any] = {
            "box": _numbers(path.boxes[layer, found.query], digits),
            "score": round(float(path.scores[layer, found.query, found.label]), digits),
        }
        if references is not None:
            parts = [part[found.query] for part in references if part is not None]
            step["reference"] = [number for part in parts for number in _numbers(part, digits)]
        steps.append(step)
    return steps


def _proposals(explanation: Explanation, queries: list[int], digits: int) -> list[Any] | None:
    """Where the followed queries come from; None without a first stage."""
    seen = explanation.proposals
    if seen is None:
        return None
    return [
        {
            "query": query,
            "level": int(seen.levels[query]),
            # JSON knows no NaN: a cell that may not propose has no anchor.
            "anchor": None
            if seen.anchors[query].isnan().any()
            else _numbers(seen.anchors[query], digits),
            "box": _numbers(seen.boxes[query], digits),
            "objectness": round(float(seen.objectness[query]), digits),
        }
        for query in dict.fromkeys(queries)
    ]


def _objects(explanation: Explanation, threshold: float, digits: int) -> list[Any] | None:
    """What became of the annotated objects; None without annotations."""
    if explanation.target is None:
        return None
    return [
        _verdict(verdict, explanation, threshold, digits)
        for verdict in explanation.verdicts(threshold)
    ]


def _verdict(
    verdict: Verdict, explanation: Explanation, threshold: float, digits: int
) -> dict[str, Any]:
    return {
        "label": verdict.label,
        "box": _rounded(verdict.box, digits),
        "reason": verdict.reason,
        "sentence": sentence(verdict, explanation.classes, threshold),
        "rival_object": verdict.rival_object,
        "rival_class": verdict.rival_class,
        "lost_at": verdict.lost_at,
        "box_lost_at": verdict.box_lost_at,
        "layers": [
            {
                "found": view.found,
                "best": _candidate(view.best, digits),
                "matched": None if view.matched is None else _candidate(view.matched, digits),
                "closest": _candidate(view.closest, digits),
            }
            for view in verdict.layers
        ],
    }


def _candidate(candidate: Candidate, digits: int) -> dict[str, Any]:
    values = {
        name: round(value, digits) if isinstance(value, float) else value
        for name, value in candidate._asdict().items()
    }
    return {**values, "cost": round(candidate.cost, digits)}


def _numbers(values: Tensor, digits: int) -> list[float]:
    return _rounded(values.tolist(), digits)


def _rounded(values: list[float] | tuple[float, ...], digits: int) -> list[float]:
    return [round(value, digits) for value in values]
