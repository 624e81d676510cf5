"""The two paths of the real-time encoders: how strong features are on each level, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from detrlab.explain.canvas import PANEL, grid, set_title
from detrlab.figures import styled
from detrlab.models.encoders.hybrid import HybridEncoder
from detrlab.models.encoders.lite import LiteEncoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from detrlab.explain.explanation import Explanation

STRONG = 0.98
"""Share of the cells that are weaker than the brightest ones."""
START, ATTENTION, MEAN = "from the backbone", "attention within", "with the image's mean"
DOWN, BACK = "from coarse to fine", "and back"


class Place(NamedTuple):
    """A part of an encoder that gives a map."""

    stage: str
    level: int
    """0 is the finest."""
    module: nn.Module


class Station(NamedTuple):
    """What a place gave: (h, w) values.

    They are the root mean square over the channels. Of attention within a level, whose result is
    normalised in every cell, they are how far it turned the feature: 1 - cosine.
    """

    stage: str
    level: int
    values: Tensor


def places(encoder: nn.Module) -> list[Place]:
    """The parts of a hybrid or a lite encoder in the order of its forward pass; none in others."""
    if isinstance(encoder, LiteEncoder):
        return [
            Place(START, 0, encoder.projection),
            Place(START, 1, encoder.down1),
            Place(MEAN, 1, encoder.mix),
            Place(DOWN, 0, encoder.top_down),
            Place(BACK, 1, encoder.bottom_up),
        ]
    if not isinstance(encoder, HybridEncoder):
        return []
    last = len(encoder.projections) - 1
    attention = zip(encoder.attended, encoder.within, strict=True)
    return [
        *(Place(START, level, each) for level, each in enumerate(encoder.projections)),
        *(Place(ATTENTION, level, each) for level, each in attention),
        *(Place(DOWN, last, each) for each in encoder.laterals[:1]),
        *(Place(DOWN, last - step, each) for step, each in enumerate(encoder.top_down, start=1)),
        *(Place(BACK, level, each) for level, each in enumerate(encoder.bottom_up, start=1)),
    ]


def station(place: Place, given: Tensor, result: Tensor) -> Station:
    """What is kept of one call of a place; both (B, D, H, W)."""
    if place.stage == ATTENTION:
        values = 1 - torch.cosine_similarity(given[0].float(), result[0].float(), dim=0)
    else:
        values = result[0].float().square().mean(0).sqrt()
    return Station(place.stage, place.level, values)


@styled
def draw_stations(explanation: Explanation) -> Figure:
    """A row for each level, the finest first; a column for each step of the encoder."""
    found = {(each.stage, each.level): each.values for each in explanation.recording.stations}
    stages = list(dict.fromkeys(stage for stage, _ in found))
    levels = sorted({level for _, level in found})
    figure, panels = grid(explanation, len(stages), len(levels), panel=0.8 * PANEL)
    for index, panel in enumerate(panels):
        level, stage = levels[index // len(stages)], stages[index % len(stages)]
        if level == 0:
            panel.title(stage)
        values = found.get((stage, level))
        if values is None:
            panel.axes.set_axis_off()
            panel.axes.images[0].remove()
            continue
        # A few cells, often at the border, are far stronger than all others.
        low, high = values.min().item(), values.quantile(STRONG).item()
        panel.heat(((values - low) / max(high - low, 1e-9)).clamp(max=1).cpu().numpy())
        panel.caption(f"{low:.2g} to {high:.2g}")
        if stage == stages[0]:
            rows, columns = values.shape
            panel.side(f"level {level}\n{columns}×{rows} cells")
    text = "strength of the features on the encoder's two paths, bright: a panel's strongest 2 %"
    if ATTENTION in stages:
        text += "; of attention: how far it turns them (1 - cosine)"
    set_title(figure, text, explanation)
    return figure
