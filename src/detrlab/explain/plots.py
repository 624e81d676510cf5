"""Figures of an explanation.

They show what was computed: attention maps show the cells without smoothing, and sampling
points are drawn where the attention sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detrlab.boxes import box_iou, cxcywh_to_xyxy
from detrlab.drawing import draw_boxes
from detrlab.explain.canvas import PANEL, Box, Panel, blank, grid, ramp, set_title
from detrlab.explain.denoising import draw_denoising
from detrlab.explain.inspection import Found, Inspection
from detrlab.explain.looks import Look, Samples, as_maps
from detrlab.explain.missed import Verdict, headline
from detrlab.explain.query_use import QueryUse, explained_share
from detrlab.files import replacing
from detrlab.palette import COST_TERMS, FAINT, SEQUENTIAL, SIZES, VERDICTS, colour_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVEL_SIZES = (8, 18, 40, 84, 150, 230)
"""Of a sampling point, by level: area in points²."""
BOX_COLOUR = VERDICTS["found"]
SMALL_AREA = 0.02
"""Share of the image below which a box is drawn as small."""
SAME_PLACE = 0.3
"""IoU from which two detections count as one place."""
SHARP = 1000
"""Least long side, in pixels, of a picture that detections are drawn on."""


def draw_all(
    inspection: Inspection,
    *,
    queries: Sequence[int] | None = None,
    points: Sequence[tuple[float, float]] | None = None,
    layer: int = -1,
    threshold: float = 0.3,
) -> dict[str, Figure]:
    """Every figure of one image, by name; arguments as in ``Explanation.save``."""
    best = _apart(inspection.detections(), 3)
    queries = [each.query for each in best] if queries is None else queries
    if points is None:
        # A box may reach over the edge of the image, and its center too.
        points = [(min(max(x, 0), 1), min(max(y, 0), 1)) for x, y, *_ in (b.box for b in best)]
    figures = {
        "detections": draw_detections(inspection, threshold),
        "decoder": draw_decoder(inspection, queries),
        "paths": draw_paths(inspection, queries),
    }
    if inspection.recording.encoder:
        figures["encoder"] = draw_encoder(inspection, points, layer)
    for query in queries:
        figures[f"query-{query}"] = draw_heads(inspection, query, layer)
    if inspection.proposals is not None:
        figures["proposals"] = draw_proposals(inspection)
    if inspection.target is not None and len(inspection.target.labels):
        figures["objects"] = draw_objects(inspection, threshold)
    if inspection.restored is not None:
        figures["denoising"] = draw_denoising(inspection)
    return figures


def write(figure: Figure, path: Path, dpi: int = 110) -> Path:
    """Write one figure, whole or not at all; the file name's extension sets the format."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=dpi)
    return path


def _apart(found: Sequence[Found], count: int) -> list[Found]:
    """The best detections that lie apart, one for each place."""
    chosen: list[Found] = []
    for each in found:
        box = cxcywh_to_xyxy(torch.tensor(each.box))
        others = torch.tensor([other.box for other in chosen]).view(-1, 4)
        if not (box_iou(box[None], cxcywh_to_xyxy(others)) > SAME_PLACE).any():
            chosen.append(each)
        if len(chosen) == count:
            break
    return chosen


def draw_detections(inspection: Inspection, threshold: float = 0.3) -> Figure:
    """The detections above the threshold with their queries, and the annotations in white."""
    from PIL import Image

    height, width = inspection.size
    scale = max(1.0, SHARP / max(height, width))
    size = round(scale * width), round(scale * height)
    picture = inspection.picture or Image.new("RGB", (1, 1), "#505050")
    shown = [each for each in inspection.detections() if each.score >= threshold]
    objects = [] if inspection.target is None else inspection.target.boxes.tolist()
    boxes = torch.tensor([*(each.box for each in shown), *objects]).view(-1, 4)
    captions = [f"{inspection.classes[d.label]} {d.score:.2f} q{d.query}" for d in shown]
    drawn = draw_boxes(
        picture.resize(size),
        (cxcywh_to_xyxy(boxes) * boxes.new_tensor([*size, *size])).tolist(),
        [*captions, *[""] * len(objects)],
        [*(colour_of(each.label) for each in shown), *[(255, 255, 255)] * len(objects)],
    )
    side = 2.2 * PANEL
    figure, (axes,) = blank(1, 1, side + 0.2, side * height / width + 0.4)
    Panel(axes, inspection, drawn)
    text = f"{len(shown)} detections of at least {threshold:.3g}"
    set_title(figure, text + (", annotations white" if objects else ""), inspection)
    return figure


# --- where it looks ------------------------------------------------------------------------


def draw_encoder(
    inspection: Inspection, points: Sequence[tuple[float, float]], layer: int = -1
) -> Figure:
    """Where the memory's cell at each point looks.

    Dense attention: one map for each point, the mean of the heads (DETR paper, figure 3).
    Deformable attention: the sampling points, from the cell of each level at that point.
    """
    inspection.look_from(points[0], layer)  # refuses a layer that does not exist
    count = len(inspection.recording.encoder)
    shapes = inspection.recording.encoder[layer].memory.level_shapes
    legend = inspection.deformable
    figure, panels = grid(inspection, len(points), len(shapes), legend=legend)
    for panel, (level, point) in zip(panels, product(range(len(shapes)), points), strict=True):
        look = inspection.look_from(point, layer, level)
        drawn = _draw_look(panel, look)
        panel.caption(_peak(look))
        rows, columns = shapes[level]
        column, row = min(int(point[0] * columns), columns - 1), min(int(point[1] * rows), rows - 1)
        center = (column + 0.5) / columns, (row + 0.5) / rows
        panel.box([*center, 1 / columns, 1 / rows], "white", width=1)
        panel.cross(center)
        if panel in panels[:: len(points)]:
            panel.side(f"from level {level}\n{columns}×{rows} cells")
    _legend(figure, drawn, inspection)
    text = f"where the encoder looks from the cell with the cross (layer {layer % count + 1}"
    set_title(figure, f"{text} of {count})", inspection)
    return figure


def draw_decoder(inspection: Inspection, queries: Sequence[int]) -> Figure:
    """Where each query (a row) looks in every decoder layer, and the box it then predicts."""
    layers = len(inspection.recording.decoder)
    wanted = list(product(queries, range(layers), [None]))
    figure, panels = _draw_looks(inspection, wanted, layers)
    for panel, (query, layer, _) in zip(panels, wanted, strict=True):
        scores = inspection.paths.scores[:, query]
        label = int(scores[-1].argmax())
        peak = _peak(inspection.look(query, layer))
        panel.caption(f"{inspection.classes[label]} {float(scores[layer, label]):.2f} {peak}")
        if layer == 0:
            panel.side(f"query {query}")
        if query == queries[0]:
            panel.title(f"decoder layer {layer + 1}")
    start = " from the white reference" if inspection.deformable else ""
    set_title(figure, f"where queries look{start}, and the green box they predict", inspection)
    return figure


def draw_heads(inspection: Inspection, query: int, layer: int = -1) -> Figure:
    """Where one query looks with each head in one decoder layer."""
    heads = range(len(inspection.look(query, layer).weights))
    figure, panels = _draw_looks(inspection, [(query, layer, h) for h in heads], min(4, len(heads)))
    for head, panel in zip(heads, panels, strict=False):
        panel.title(f"head {head}")
    scores, count = inspection.paths.scores[-1, query], len(inspection.recording.decoder)
    says = f"{inspection.classes[int(scores.argmax())]} {float(scores.max()):.2f}"
    where = f"decoder layer {layer % count + 1} of {count}, head by head"
    set_title(figure, f"query {query} ({says}), {where}", inspection)
    return figure


def _draw_looks(
    inspection: Inspection, wanted: Sequence[tuple[int, int, int | None]], columns: int
) -> tuple[Figure, list[Panel]]:
    """Look, reference and box of each (query, layer, head); all heads where it is None."""
    rows = -(-len(wanted) // columns)
    legend = inspection.deformable
    figure, panels = grid(inspection, columns, rows, panel=0.75 * PANEL, legend=legend)
    points = None
    for panel, (query, layer, head) in zip(panels, wanted, strict=False):
        points = _draw_look(panel, inspection.look(query, layer), head)
        start = _reference(panel, inspection, query, layer)
        box = inspection.paths.boxes[layer, query].tolist()
        panel.box(box, BOX_COLOUR)
        if points is not None:  # samples around a point do not scale with the box
            around_point = any(width == 0 for *_, width, _ in start)
            panel.zoom([box, *start], least=0.6 if around_point else 0.2, margin=1.5)
    for panel in panels[len(wanted) :]:
        panel.axes.remove()
    _legend(figure, points, inspection)
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


def _legend(figure: Figure, points: Any, inspection: Inspection) -> None:
    """The meaning of colour and size of sampling points; nothing for dense attention."""
    if points is None:
        return
    bar = figure.colorbar(points, ax=figure.axes, shrink=0.7, pad=0.01, aspect=25)
    bar.set_label("attention weight (of its head)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    shapes = inspection.recording.memory.level_shapes
    handles = [
        figure.axes[0].scatter([], [], s=size, c=FAINT, label=f"level {level}: {w}×{h}")
        for level, ((h, w), size) in enumerate(zip(shapes, LEVEL_SIZES, strict=False))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)


def _reference(panel: Panel, inspection: Inspection, query: int, layer: int) -> list[Box]:
    """Draw where the layer looked from: a white cross, or a white dashed box. Returns it."""
    references = inspection.paths.references[layer]
    if references is None:
        return []
    center = references.centers[query].tolist()
    panel.cross(center)
    if references.sizes is None:
        return [[*center, 0, 0]]
    box = [*center, *references.sizes[query].tolist()]
    panel.box(box, "white", dashed=True, width=1)
    return [box]


def _peak(look: Look) -> str:
    """How far a row of dense attention is from weighing all cells alike."""
    if isinstance(look, Samples):
        return ""
    mean = look.maps[0].mean(0)
    return f"strongest cell {float(mean.max() / mean.mean()):.1f}× the mean"


# --- how boxes move ------------------------------------------------------------------------


def draw_paths(inspection: Inspection, queries: Sequence[int]) -> Figure:
    """The boxes of each query from the first layer (dark) to the last (bright)."""
    figure, panels = grid(inspection, len(queries))
    colours = ramp(len(inspection.recording.decoder))
    for panel, query in zip(panels, queries, strict=True):
        start = _reference(panel, inspection, query, 0)
        boxes = inspection.paths.boxes[:, query].tolist()
        for colour, box in zip(colours, boxes, strict=True):
            panel.box(box, colour, width=2.0 if colour is colours[-1] else 1.2)
        panel.zoom([*boxes, *start], least=0.125, margin=1.25)
        scores = inspection.paths.scores[:, query]
        label = int(scores[-1].argmax())
        values = " ".join(f"{value:.2f}" for value in scores[:, label].tolist())
        panel.caption(f"{inspection.classes[label]} {values}")
        panel.title(f"query {query}")
    set_title(figure, "boxes and scores from the first layer to the last", inspection)
    return figure


def draw_proposals(inspection: Inspection, count: int = 30) -> Figure:
    """The first stage: where cells say "object", and its best boxes before and after.

    Args:
        inspection: of a two-stage detector.
        count: so many proposals are drawn, the best.
    """
    seen = inspection.proposals
    assert seen is not None
    figure, panels = grid(inspection, 4, panel=0.85 * PANEL)
    if seen.of_all_cells is not None:
        objectness = _finest(as_maps(seen.of_all_cells.cpu(), inspection.recording.memory))
        panels[0].heat(objectness)
        panels[0].title(f"objectness (largest: {objectness.max():.2f})")
    else:
        panels[0].title(f"best class of the chosen cells: {seen.objectness.max():.2f}")
    colours = ramp(int(seen.levels.max()) + 1)
    last = inspection.paths.boxes[-1]
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
    set_title(figure, f"the {count} best proposals, stage by stage", inspection)
    return figure


def _finest(maps: Sequence[torch.Tensor]) -> np.ndarray:
    """The largest value over the levels, at the cells of the finest level."""
    size = tuple(maps[0].shape)
    grown = [torch.nn.functional.interpolate(each[None, None], size)[0, 0] for each in maps]
    return torch.stack(grown).amax(0).numpy()


# --- why an object was missed --------------------------------------------------------------


def draw_objects(inspection: Inspection, threshold: float = 0.3, most: int = 12) -> Figure:
    """Every annotated object by what became of it; costs of the missed ones in their terms.

    Args:
        inspection: of an image with annotated objects.
        threshold: score from which a detection counts.
        most: so many missed objects are explained, by rising cost.
    """
    verdicts = inspection.verdicts(threshold)
    missed = [each for each in verdicts if each.reason != "found"]
    told = sorted(missed, key=lambda each: each.final.best.cost)[:most]
    side = 5.0
    height = max(side * inspection.size[0] / inspection.size[1], 0.5 * len(told))
    figure, (axes, bars) = blank(2, 1, 2 * side + 0.8, height + 1.2)
    panel = Panel(axes, inspection)
    for each in verdicts:
        colour = VERDICTS[each.reason]
        panel.box(each.box, colour, width=1.4)
        if each.reason != "found":
            panel.label(each.box, str(each.index), colour)
            closest = inspection.paths.boxes[-1, each.final.closest.query].tolist()
            panel.box(closest, colour, dashed=True, width=0.8)
    below: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, -0.01)}
    axes.legend(**_key({each.reason: VERDICTS[each.reason] for each in verdicts}, **below))
    _cost_bars(bars, told, inspection, threshold)
    found = f"{len(verdicts) - len(missed)} of {len(verdicts)} objects found above {threshold:.3g}"
    set_title(figure, f"{found}; dashed: the closest box of each missed object", inspection)
    return figure


def _cost_bars(
    axes: Axes, missed: Sequence[Verdict], inspection: Inspection, threshold: float
) -> None:
    """The matching cost of each missed object's best query, split into its three terms."""
    if not missed:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nothing was missed", ha="center", transform=axes.transAxes)
        return
    for row, verdict in enumerate(missed):
        best = verdict.final.best
        terms = (best.cost_classes, best.cost_boxes, best.cost_giou)
        # Negative terms (a high score, a good overlap) go to the left, costs to the right.
        ends = [0.0, 0.0]
        for value, colour in zip(terms, COST_TERMS.values(), strict=True):
            axes.barh(row + 0.25, value, left=ends[value >= 0], color=colour, height=0.3)
            ends[value >= 0] += value
        text = headline(verdict, inspection.classes, threshold).removeprefix("object ")
        text += f" · best query {best.query}, IoU {best.iou:.2f}, {best.score:.2f}"
        axes.text(
            0, row - 0.05, text, fontsize=7.5, va="bottom",
            transform=axes.get_yaxis_transform(), parse_math=False,
        )  # fmt: skip
    axes.set_ylim(max(len(missed), 4) - 0.3, -0.6)  # the first on top; bars of one height
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.set_xlabel("matching cost of the best query", fontsize=8, loc="left")
    axes.tick_params(labelsize=7)
    axes.legend(**_key(COST_TERMS, loc="upper right", bbox_to_anchor=(1, -0.04)))


def _key(colours: dict[str, str], **place: Any) -> dict[str, Any]:
    """Arguments for a legend of colours."""
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=colour, edgecolor=FAINT, label=name) for name, colour in colours.items()
    ]
    return {"handles": handles, "fontsize": 8, "frameon": False, "ncols": 4} | place


# --- over a data set -----------------------------------------------------------------------


def draw_query_use(use: QueryUse, queries: Sequence[int] | None = None) -> Figure:
    """Every box that a query predicted over a data set, one panel a query (DETR, figure 7).

    A point is the center of a box, in fractions of its image; its colour tells small boxes,
    wide ones and tall ones apart.

    Args:
        use: what the queries predicted.
        queries: to draw; the 20 with the highest mean scores if not given.
    """
    if queries is None:
        queries = use.scores.mean(0).argsort(descending=True)[:20].tolist()
    columns = min(5, len(queries))
    rows = -(-len(queries) // columns)
    figure, panels = blank(columns, rows, 1.7 * columns, 1.75 * rows + 0.9)
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
    figure.legend(**_key(colours, loc="outside lower center"))
    share = 100 * explained_share(use)
    set_title(
        figure,
        f"Where queries put their boxes over {len(use.boxes)} images "
        f"({share:.0f} % of the place is known from the query alone)",
    )
    return figure
