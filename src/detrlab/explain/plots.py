"""Figures of an explanation.

They show what was computed: attention maps show the cells without smoothing, and sampling
points are drawn where the attention sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detrlab.boxes import cxcywh_to_xyxy
from detrlab.drawing import draw_boxes
from detrlab.explain.canvas import PANEL, Box, Panel, grid, set_title
from detrlab.explain.denoising import draw_denoising
from detrlab.explain.edges import draw_edges
from detrlab.explain.looks import Look, Samples, as_maps
from detrlab.explain.missed import Verdict, headline
from detrlab.explain.quality import draw_quality
from detrlab.explain.query_use import QueryUse, explained_share
from detrlab.explain.stations import draw_stations
from detrlab.figures import colour_key, new_figure, shades, styled
from detrlab.palette import COST_TERMS, FAINT, SEQUENTIAL, SIZES, VERDICTS, colour_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from detrlab.explain.explanation import Explanation

LEVEL_SIZES = (8, 18, 40, 84, 150, 230)
"""Of a sampling point, by level: area in points²."""
BOX_COLOUR = VERDICTS["found"]
SMALL_AREA = 0.02
"""Share of the image below which a box is drawn as small."""
SHARP = 1000
"""Least long side, in pixels, of a picture that detections are drawn on."""


def draw_all(
    explanation: Explanation,
    *,
    queries: Sequence[int] | None = None,
    points: Sequence[tuple[float, float]] | None = None,
    layer: int = -1,
    threshold: float = 0.3,
) -> dict[str, Figure]:
    """Every figure of one image, by name; arguments as in ``Explanation.save``."""
    best = {each.query: each.box for each in explanation.detections(limit=30)}
    queries = list(best)[:3] if queries is None else queries
    if points is None:
        # A box may reach over the edge of the image, and its center too.
        points = [(min(max(x, 0), 1), min(max(y, 0), 1)) for x, y, *_ in list(best.values())[:3]]
    figures = {
        "detections": draw_detections(explanation, threshold),
        "decoder": draw_decoder(explanation, queries),
        "paths": draw_paths(explanation, queries),
    }
    if explanation.recording.encoder:
        figures["encoder"] = draw_encoder(explanation, points, layer)
    for query in queries:
        figures[f"query-{query}"] = draw_heads(explanation, query, layer)
    if "corners" in explanation.recording.layers[-1].details:
        figures["edges"] = draw_edges(explanation, queries)
    if explanation.recording.stations:
        figures["encoder-paths"] = draw_stations(explanation)
    if explanation.proposals is not None:
        figures["proposals"] = draw_proposals(explanation)
    if explanation.target is not None and len(explanation.target.labels):
        figures["objects"] = draw_objects(explanation, threshold)
        figures["queries-iou"] = draw_quality(explanation)
    if explanation.restored is not None:
        figures["denoising"] = draw_denoising(explanation)
    return figures


@styled
def draw_detections(explanation: Explanation, threshold: float = 0.3) -> Figure:
    """The detections above the threshold with their queries, and the annotations in white."""
    from PIL import Image

    height, width = explanation.size
    scale = max(1.0, SHARP / max(height, width))
    size = round(scale * width), round(scale * height)
    picture = explanation.picture or Image.new("RGB", size, FAINT)
    shown = [each for each in explanation.detections() if each.score >= threshold]
    objects = [] if explanation.target is None else explanation.target.boxes.tolist()
    boxes = torch.tensor([*(each.box for each in shown), *objects]).view(-1, 4)
    captions = [f"{explanation.classes[d.label]} {d.score:.2f} q{d.query}" for d in shown]
    drawn = draw_boxes(
        picture.resize(size),
        (cxcywh_to_xyxy(boxes) * boxes.new_tensor([*size, *size])).tolist(),
        [*captions, *[""] * len(objects)],
        [*(colour_of(each.label) for each in shown), *[(255, 255, 255)] * len(objects)],
    )
    side = 2.2 * PANEL
    figure, (axes,) = new_figure(side + 0.2, side * height / width + 0.4)
    Panel(axes, explanation, drawn)
    text = f"{len(shown)} detections of at least {threshold:.3g}"
    set_title(figure, text + (", annotations white" if objects else ""), explanation)
    return figure


# --- where it looks ------------------------------------------------------------------------


@styled
def draw_encoder(
    explanation: Explanation, points: Sequence[tuple[float, float]], layer: int = -1
) -> Figure:
    """Where the memory's cell at each point looks.

    Dense attention: one map for each point, the mean of the heads (DETR paper, figure 3).
    Deformable attention: the sampling points, from the cell of each level at that point.
    """
    explanation.look_from(points[0], layer)  # refuses a layer that does not exist
    count = len(explanation.recording.encoder)
    shapes = explanation.recording.encoder[layer].memory.level_shapes
    figure, panels = grid(explanation, len(points), len(shapes))
    for panel, (level, point) in zip(panels, product(range(len(shapes)), points), strict=True):
        look = explanation.look_from(point, layer, level)
        drawn = _draw_look(panel, look)
        rows, columns = shapes[level]
        column, row = min(int(point[0] * columns), columns - 1), min(int(point[1] * rows), rows - 1)
        center = (column + 0.5) / columns, (row + 0.5) / rows
        panel.box([*center, 1 / columns, 1 / rows], "white", width=1)
        panel.cross(center)
        if panel in panels[:: len(points)]:
            panel.side(f"from level {level}\n{columns}×{rows} cells")
    _legend(figure, drawn, explanation)
    text = f"where the encoder looks from the cell with the cross (layer {layer % count + 1}"
    set_title(figure, f"{text} of {count})", explanation)
    return figure


@styled
def draw_decoder(explanation: Explanation, queries: Sequence[int]) -> Figure:
    """Where each query (a row) looks in every decoder layer, and the box it then predicts."""
    layers = len(explanation.recording.decoder)
    wanted = list(product(queries, range(layers), [None]))
    figure, panels = _draw_looks(explanation, wanted, layers)
    for panel, (query, layer, _) in zip(panels, wanted, strict=True):
        scores = explanation.paths.scores[:, query]
        label = int(scores[-1].argmax())
        panel.caption(f"{explanation.classes[label]} {float(scores[layer, label]):.2f}")
        if layer == 0:
            panel.side(f"query {query}")
        if query == queries[0]:
            panel.title(f"decoder layer {layer + 1}")
    start = " from the white reference" if explanation.deformable else ""
    set_title(figure, f"where queries look{start}, and the green box they predict", explanation)
    return figure


@styled
def draw_heads(explanation: Explanation, query: int, layer: int = -1) -> Figure:
    """Where one query looks with each head in one decoder layer."""
    heads = range(len(explanation.look(query, layer).weights))
    figure, panels = _draw_looks(
        explanation, [(query, layer, h) for h in heads], min(4, len(heads))
    )
    for head, panel in zip(heads, panels, strict=False):
        panel.title(f"head {head}")
    scores, count = explanation.paths.scores[-1, query], len(explanation.recording.decoder)
    says = f"{explanation.classes[int(scores.argmax())]} {float(scores.max()):.2f}"
    where = f"decoder layer {layer % count + 1} of {count}, head by head"
    set_title(figure, f"query {query} ({says}), {where}", explanation)
    return figure


def _draw_looks(
    explanation: Explanation, wanted: Sequence[tuple[int, int, int | None]], columns: int
) -> tuple[Figure, list[Panel]]:
    """Look, reference and box of each (query, layer, head); all heads where it is None."""
    rows = -(-len(wanted) // columns)
    figure, panels = grid(explanation, columns, rows, panel=0.75 * PANEL)
    points = None
    for panel, (query, layer, head) in zip(panels, wanted, strict=False):
        points = _draw_look(panel, explanation.look(query, layer), head)
        start = _reference(panel, explanation, query, layer)
        box = explanation.paths.boxes[layer, query].tolist()
        panel.box(box, BOX_COLOUR)
        if points is not None:  # samples around a point do not scale with the box
            around_point = any(width == 0 for *_, width, _ in start)
            panel.zoom([box, *start], least=0.6 if around_point else 0.2, margin=1.5)
    for panel in panels[len(wanted) :]:
        panel.axes.remove()
    _legend(figure, points, explanation)
    return figure, panels


def _draw_look(panel: Panel, look: Look, head: int | None = None) -> Any:
    """A row of dense attention as a map, or sampling points; one head or all of them."""
    chosen = slice(None) if head is None else slice(head, head + 1)
    if not isinstance(look, Samples):
        panel.heat(look.maps[0][chosen].mean(0).cpu().numpy())
        return None
    from matplotlib.colors import PowerNorm

    weights = look.weights[chosen].cpu()
    levels = torch.arange(weights.shape[1])[:, None].expand_as(weights)
    order = (weights - 2.0 * levels).flatten().argsort()  # coarse levels below fine ones
    x, y = look.locations[chosen].cpu().flatten(0, 2)[order].T.numpy()
    return panel.axes.scatter(
        x * panel.width,
        y * panel.height,
        s=np.array(LEVEL_SIZES)[levels.flatten()[order].numpy()],
        c=weights.flatten()[order].numpy(),
        cmap=SEQUENTIAL,
        # Few weights are high and many low; the square root keeps the low ones apart.
        norm=PowerNorm(0.5, vmin=0, vmax=1),
        linewidths=0.3,
        edgecolors="black",
        alpha=0.9,
    )


def _legend(figure: Figure, points: Any, explanation: Explanation) -> None:
    """The meaning of colour and size of sampling points; nothing for dense attention."""
    if points is None:
        return
    bar = figure.colorbar(points, ax=figure.axes, shrink=0.7, pad=0.01, aspect=25)
    bar.set_label("attention weight (of its head)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    shapes = explanation.recording.memory.level_shapes
    handles = [
        figure.axes[0].scatter([], [], s=size, c=FAINT, label=f"level {level}: {w}×{h}")
        for level, ((h, w), size) in enumerate(zip(shapes, LEVEL_SIZES, strict=False))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8)


def _reference(panel: Panel, explanation: Explanation, query: int, layer: int) -> list[Box]:
    """Draw where the layer looked from: a white cross, or a white dashed box. Returns it."""
    reference = explanation.steps(query, 0)[layer].reference
    if reference is None:
        return []
    panel.cross(reference)
    if len(reference) == 4:
        panel.box(reference, "white", dashed=True, width=1)
    return [[*reference, 0, 0][:4]]


# --- how boxes move ------------------------------------------------------------------------


@styled
def draw_paths(explanation: Explanation, queries: Sequence[int]) -> Figure:
    """The boxes of each query from the first layer (dark) to the last (bright)."""
    figure, panels = grid(explanation, len(queries))
    colours = shades(len(explanation.recording.decoder))
    for panel, query in zip(panels, queries, strict=True):
        start = _reference(panel, explanation, query, 0)
        boxes = explanation.paths.boxes[:, query].tolist()
        for colour, box in zip(colours, boxes, strict=True):
            panel.box(box, colour, width=2.0 if colour is colours[-1] else 1.2)
        panel.zoom([*boxes, *start], least=0.125, margin=1.25)
        scores = explanation.paths.scores[:, query]
        label = int(scores[-1].argmax())
        values = " ".join(f"{value:.2f}" for value in scores[:, label].tolist())
        panel.caption(f"{explanation.classes[label]} {values}")
        panel.title(f"query {query}")
    set_title(figure, "boxes and scores from the first layer to the last", explanation)
    return figure


@styled
def draw_proposals(explanation: Explanation, count: int = 30) -> Figure:
    """The first stage: where cells say "object", and its best boxes before and after."""
    seen = explanation.proposals
    assert seen is not None
    figure, panels = grid(explanation, 4, panel=0.85 * PANEL)
    if seen.of_all_cells is not None:
        objectness = _finest(as_maps(seen.of_all_cells.cpu(), explanation.recording.memory))
        panels[0].heat(objectness)
        panels[0].title(f"objectness (largest: {objectness.max():.2f})")
    else:
        panels[0].title(f"best class of the chosen cells: {seen.objectness.max():.2f}")
    colours = shades(int(seen.levels.max()) + 1)
    last = explanation.paths.boxes[-1]
    count = min(count, len(last))
    for panel, boxes, title in (
        (panels[1], seen.anchors, "anchors (a colour for each level)"),
        (panels[2], seen.boxes, "after the first stage"),
        (panels[3], last, "after the decoder"),
    ):
        for query in reversed(range(count)):
            if not boxes[query].isnan().any():
                panel.box(boxes[query].tolist(), colours[int(seen.levels[query])], width=1)
        panel.title(title)
    set_title(figure, f"the {count} best proposals, stage by stage", explanation)
    return figure


def _finest(maps: Sequence[torch.Tensor]) -> np.ndarray:
    """The largest value over the levels, at the cells of the finest level."""
    size = tuple(maps[0].shape)
    grown = [torch.nn.functional.interpolate(each[None, None], size)[0, 0] for each in maps]
    return torch.stack(grown).amax(0).numpy()


# --- why an object was missed --------------------------------------------------------------


@styled
def draw_objects(explanation: Explanation, threshold: float = 0.3, most: int = 12) -> Figure:
    """Every annotated object by what became of it; costs of ``most`` missed ones in their terms."""
    verdicts = explanation.verdicts(threshold)
    missed = [each for each in verdicts if each.reason != "found"]
    told = sorted(missed, key=lambda each: each.best.cost)[:most]
    side = 5.0
    height = max(side * explanation.size[0] / explanation.size[1], 0.5 * len(told))
    figure, (axes, bars) = new_figure(2 * side + 0.8, height + 1.2, columns=2)
    panel = Panel(axes, explanation)
    for each in verdicts:
        colour = VERDICTS[each.reason]
        panel.box(each.box, colour, width=1.4)
        if each.reason != "found":
            panel.label(each.box, str(each.index), colour)
            closest = explanation.paths.boxes[-1, each.closest.query].tolist()
            panel.box(closest, colour, dashed=True, width=0.8)
    below: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, -0.01)}
    axes.legend(**colour_key({each.reason: VERDICTS[each.reason] for each in verdicts}, **below))
    _cost_bars(bars, told, explanation, threshold)
    found = f"{len(verdicts) - len(missed)} of {len(verdicts)} objects found above {threshold:.3g}"
    set_title(figure, f"{found}; dashed: the closest box of each missed object", explanation)
    return figure


def _cost_bars(
    axes: Axes, missed: Sequence[Verdict], explanation: Explanation, threshold: float
) -> None:
    """The matching cost of each missed object's best query, split into its three terms."""
    if not missed:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nothing was missed", ha="center", transform=axes.transAxes)
        return
    for row, verdict in enumerate(missed):
        best = verdict.best
        terms = best[-3:]
        # Negative terms (a high score, a good overlap) go to the left, costs to the right.
        ends = [0.0, 0.0]
        for value, colour in zip(terms, COST_TERMS.values(), strict=True):
            axes.barh(row + 0.25, value, left=ends[value >= 0], color=colour, height=0.3)
            ends[value >= 0] += value
        text = headline(verdict, explanation.classes, threshold).removeprefix("object ")
        text += f" · best query {best.query}, IoU {best.iou:.2f}, {best.score:.2f}"
        place: dict[str, Any] = {"va": "bottom", "transform": axes.get_yaxis_transform()}
        axes.text(0, row - 0.05, text, fontsize=7.5, **place)
    axes.set_ylim(max(len(missed), 4) - 0.3, -0.6)  # the first on top; bars of one height
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.set_xlabel("matching cost of the best query", fontsize=8, loc="left")
    axes.tick_params(labelsize=7)
    axes.legend(**colour_key(COST_TERMS, loc="upper right", bbox_to_anchor=(1, -0.04)))


# --- over a data set -----------------------------------------------------------------------


@styled
def draw_query_use(use: QueryUse, queries: Sequence[int] | None = None) -> Figure:
    """Every box that a query predicted over a data set, one panel a query (DETR, figure 7).

    A point is the center of a box, in fractions of its image; its colour tells small boxes,
    wide ones and tall ones apart. By default the 20 queries with the highest mean scores.
    """
    if queries is None:
        queries = use.scores.mean(0).argsort(descending=True)[:20].tolist()
    columns = min(5, len(queries))
    rows = -(-len(queries) // columns)
    figure, panels = new_figure(1.7 * columns, 1.75 * rows + 0.9, columns, rows)
    small, wide, tall = SIZES.values()
    for axes, query in zip(panels, queries, strict=False):
        x, y, w, h = use.boxes[:, query].T.numpy()
        shades = np.where(w * h < SMALL_AREA, small, np.where(w > h, wide, tall))
        axes.scatter(x, y, s=5, c=list(shades), alpha=0.6, linewidths=0)
        axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
        axes.set_title(f"query {query}", fontsize=7, pad=2)
    for axes in panels[len(queries) :]:
        axes.remove()
    colours = {"small": small, "large, wide": wide, "large, tall": tall}
    figure.legend(**colour_key(colours, loc="outside lower center"))
    share = 100 * explained_share(use)
    set_title(
        figure,
        f"Where queries put their boxes over {len(use.boxes)} images "
        f"({share:.0f} % of the place is known from the query alone)",
    )
    return figure
