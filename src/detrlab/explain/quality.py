"""Whether a query's score says how good its box is: score against IoU, query by query."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detrlab.boxes import box_iou, cxcywh_to_xyxy
from detrlab.explain.canvas import set_title
from detrlab.explain.missed import NEARBY
from detrlab.figures import new_figure, styled
from detrlab.losses.quality import MatchabilityAware, Varifocal
from detrlab.palette import FAINT, INK, VERDICTS
from detrlab.structures import Predictions, Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from detrlab.explain.explanation import Explanation

CHOSEN, FINAL = "when chosen", "after the decoder"


class Quality(NamedTuple):
    """Of every query and the object that its box overlaps most.

    Attributes:
        scores: (Q,) for the class of that object.
        ious: (Q,) of its box with that object.
        matched: (Q,) bool, whether training would match it to an object.
    """

    scores: Tensor
    ious: Tensor
    matched: Tensor

    @property
    def near(self) -> Tensor:
        """(Q,) bool, the queries that overlap an object."""
        return self.ious >= NEARBY

    @property
    def correlation(self) -> float | None:
        """Spearman's, of score and IoU of the queries near an object; None where undefined."""
        from scipy.stats import spearmanr

        scores, ious = (each[self.near].cpu() for each in self[:2])
        if min(len(scores.unique()), len(ious.unique())) < 2:
            return None
        return float(spearmanr(scores, ious).statistic)


@torch.no_grad()
def qualities(explanation: Explanation) -> dict[str, Quality]:
    """Of the queries as they were chosen, if they are, and of the detector's answer."""
    target, recording = explanation.target, explanation.recording
    if target is None or not len(target.labels):
        return {}
    found = {FINAL: recording.layers[-1]}
    chosen, stage = explanation.proposals, recording.first_stage
    if chosen is not None and chosen.of_all_cells is None and stage is not None:
        found = {CHOSEN: stage, **found}
    return {
        name: _quality(Predictions(each.logits.float(), each.boxes.float()), target, explanation)
        for name, each in found.items()
    }


def _quality(predictions: Predictions, target: Target, explanation: Explanation) -> Quality:
    boxes, objects = cxcywh_to_xyxy(predictions.boxes[0]), cxcywh_to_xyxy(target.boxes)
    ious, nearest = box_iou(boxes[:, None], objects).max(-1)
    scores = explanation.scoring.probabilities(predictions.logits[0])
    matched = torch.zeros_like(ious, dtype=torch.bool)
    pairs = explanation.criterion.matcher([predictions], [target]).sets[0][0]
    matched[pairs.queries.to(matched.device)] = True
    return Quality(scores.gather(1, target.labels[nearest][:, None])[:, 0], ious, matched)


def words(name: str, quality: Quality) -> str:
    """How far scores rank boxes, in a sentence."""
    value, count = quality.correlation, int(quality.near.sum())
    if value is None:
        return f"{name}, too few boxes overlap an object to compare scores"
    strength = next(
        text
        for least, text in (
            (0.7, "scores rank boxes well"),
            (0.4, "scores rank boxes roughly"),
            (0.2, "scores hardly rank boxes"),
            (-math.inf, "scores do not rank boxes"),
        )
        if value >= least
    )
    return f"{name}, {strength} (rank correlation with the IoU {value:.2f}, {count} queries)"


@styled
def draw_quality(explanation: Explanation) -> Figure:
    """Score against IoU for every query, and the score that the class loss asks for."""
    found = qualities(explanation)
    figure, panels = new_figure(4.2 * len(found) + 0.4, 4.6, len(found))
    loss = explanation.criterion.terms[0].function
    for axes, (name, quality) in zip(panels, found.items(), strict=True):
        for label, colour, size, mask in (
            ("other queries: 0 is asked for", FAINT, 14, ~quality.matched),
            ("matched to an object", VERDICTS["found"], 34, quality.matched),
        ):
            x, y = (each[mask].cpu() for each in quality[:2][::-1])
            axes.scatter(x, y, s=size, color=colour, alpha=0.8, linewidths=0, label=label)
        if isinstance(loss, Varifocal | MatchabilityAware):
            power = loss.gamma if isinstance(loss, MatchabilityAware) else 1.0
            iou = np.linspace(0, 1)
            axes.plot(iou, iou**power, "--", color=INK, linewidth=1, label="asked of matched ones")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title=name)
        axes.set_xlabel("IoU with the object that the box overlaps most", fontsize=8)
    panels[0].set_ylabel("score for the class of that object", fontsize=8)
    panels[-1].legend(loc="upper left", fontsize=8)
    sentences = "; ".join(words(name, quality) for name, quality in found.items())
    set_title(figure, sentences, explanation)
    return figure
