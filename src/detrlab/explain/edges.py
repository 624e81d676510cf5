"""How a query's box edges are distributed, layer by layer (D-FINE and its successors)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrlab.boxes import split_edges
from detrlab.explain.canvas import set_title
from detrlab.figures import new_figure, shades, styled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from detrlab.explain.explanation import Explanation

SIDES = ("left", "top", "right", "bottom")


@styled
def draw_edges(explanation: Explanation, queries: Sequence[int]) -> Figure:
    """The distribution over each edge's movement in every layer, a row for each query.

    A distribution has 33 steps around the first box's edge, outwards to the right. They grow
    with their number (``boxes.edge_steps``): the outermost move the edge by half of the
    box's width or height and by a whole one.
    """
    layers = explanation.recording.layers
    count = len(layers)
    figure, axes = new_figure(9.6, 1.9 * len(queries) + 0.7, len(SIDES), len(queries))
    colours = shades(count)
    for row, query in enumerate(queries):
        for column, side in enumerate(SIDES):
            panel = axes[row * len(SIDES) + column]
            for colour, layer in zip(colours, layers, strict=True):
                weights = split_edges(layer.details["corners"][0, query]).softmax(-1)[column].cpu()
                middle = len(weights) // 2
                panel.plot(range(-middle, middle + 1), weights, color=colour, linewidth=1.4)
            panel.set_title(f"{side} edge" if row == 0 else "", fontsize=8)
            panel.tick_params(labelsize=7)
        axes[row * len(SIDES)].set_ylabel(f"query {query}", fontsize=8)
    text = "probability of each edge's movement, from the first layer (dark) to the last (bright)"
    set_title(figure, text, explanation)
    return figure
