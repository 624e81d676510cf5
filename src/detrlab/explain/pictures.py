"""Pictures of an explanation: matplotlib figures, and the files ``detrlab explain`` writes.

What is drawn is what was computed: attention maps show the cells as they are, without
smoothing, and sampling points stand where the attention sampled.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detrlab.boxes import box_iou, cxcywh_to_xyxy
from detrlab.drawing import colour_of
from detrlab.errors import UserError
from detrlab.explain.attention import valid_shapes
from detrlab.explain.missed import Verdict, sentence
from detrlab.explain.queries import QueryUse, explained_share
from detrlab.explain.sampling import Samples
from detrlab.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from detrlab.explain.explanation import Explanation, Found, Look

FORMATS = ("png", "svg", "jpg", "webp", "pdf")
WEIGHT_COLOURS = "plasma"
LEVEL_SIZES = (8, 18, 40, 84, 150, 230)  # of a sampling point, by level: area in points²
BOX_COLOUR = "#70e000"
BRIGHTNESS = 0.4  # mean of a dimmed picture: whatever is drawn on it stands out
REASON_COLOURS = {
    "found": "#70e000",
    "shared": "#c8b6ff",
    "taken": "#9d4edd",
    "another class": "#4cc9f0",
    "unsure": "#ffd166",
    "left out": "#f8f9fa",
    "badly placed": "#ff9f1c",
    "unseen": "#ff4d6d",
}
COST_COLOURS = {"class": "#7b61ff", "L1": "#f39c12", "GIoU": "#16a085"}
SMALL_AREA = 0.02  # share of the image below which a box is drawn as small
SAME_PLACE = 0.3  # IoU from which two detections are looked at as one
PANEL = 3.2  # width of one picture in a figure, in inches

Box = Sequence[float]


def save(
    explanation: Explanation,
    folder: str | Path,
    *,
    queries: Sequence[int] | None = None,
    points: Sequence[tuple[float, float]] | None = None,
    layer: int = -1,
    threshold: float = 0.3,
    image_format: str = "png",
    dpi: int = 110,
) -> list[Path]:
    """Write every picture of an explanation, and its numbers as ``explanation.json``.

    Args:
        explanation: of one image.
        folder: made if it does not exist; files of the same names are replaced.
        queries: to look at closely; the three best detections' if not given.
        points: (x, y) as fractions, to look from in the encoder; the centers of the three best
            detections if not given.
        layer: of the encoder and decoder to look at, from 0, or from the last if negative.
        threshold: score from which a detection is drawn and counts.
        image_format: one of ``FORMATS``.
        dpi: pixels per inch of the pictures.

    Returns:
        The files, pictures first.

    Raises:
        UserError: unknown format, query, layer or point; the folder cannot be written.
    """
    if image_format not in FORMATS:
        raise UserError(f"unknown picture format {image_format!r}: one of {', '.join(FORMATS)}")
    folder = Path(folder)
    best = _apart(explanation.detections(), 3)
    queries = list(queries) if queries is not None else [each.query for each in best]
    points = list(points) if points is not None else [_inside(each.box[:2]) for each in best]
    figures: dict[str, Figure] = {
        "detections": draw_detections(explanation, threshold),
        "decoder": draw_decoder(explanation, queries),
        "paths": draw_paths(explanation, queries),
    }
    if explanation.recording.encoder:
        figures["encoder"] = draw_encoder(explanation, points, layer)
    for query in queries:
        figures[f"query-{query}"] = draw_heads(explanation, query, layer)
    if explanation.proposals is not None:
        figures["proposals"] = draw_proposals(explanation)
    if explanation.target is not None and len(explanation.target.labels):
        figures["objects"] = draw_objects(explanation, threshold)
    files = [
        write(figure, folder / f"{name}.{image_format}", dpi) for name, figure in figures.items()
    ]
    numbers = folder / "explanation.json"
    with replacing(numbers) as temporary:
        values = explanation.to_dict(threshold=threshold)
        temporary.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    return [*files, numbers]


def write(figure: Figure, path: Path, dpi: int = 110) -> Path:
    """Write one figure, whole or not at all; the ending of ``path`` chooses the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=dpi)
    return path


# --- what the detector says ----------------------------------------------------------------


def draw_detections(explanation: Explanation, threshold: float = 0.3) -> Figure:
    """The detections above the threshold with their query, and the annotated objects dashed."""
    figure, (axes,) = _panels(explanation, 1, width=2.2 * PANEL)
    _photograph(axes, explanation, dim=False)
    if explanation.target is not None:
        for box in explanation.target.boxes.tolist():
            _box(axes, explanation, box, "white", style=(0, (3, 3)), width=1)
    shown = [each for each in explanation.detections() if each.score >= threshold]
    named = {id(each) for each in _apart(shown, len(shown))}
    for each in reversed(shown):
        colour = [part / 255 for part in colour_of(each.label)]
        _box(axes, explanation, each.box, colour)
        if id(each) not in named:
            continue  # its name would cover that of a surer one
        text = f"{explanation.classes[each.label]} {each.score:.2f} · q{each.query}"
        _label(axes, explanation, each.box, text, colour)
    told = f"{_name(explanation)}: {len(shown)} detections above {threshold:.3g}"
    _title(figure, told + (", annotations dashed" if explanation.target is not None else ""))
    return figure


# --- where it looks ------------------------------------------------------------------------


def draw_encoder(
    explanation: Explanation, points: Sequence[tuple[float, float]], layer: int = -1
) -> Figure:
    """Where the memory's cell at each point looks.

    Dense attention: one map a point, the mean of the heads (DETR paper, figure 3). Deformable
    attention: the sampling points, from the cell of each level at that point.
    """
    memory = explanation.recording.memory
    levels = len(memory.level_shapes) if explanation.deformable else 1
    figure, panels = _panels(explanation, len(points), rows=levels, legend=explanation.deformable)
    scale = _Scale()
    for index, axes in enumerate(panels):
        level, point = divmod(index, len(points))
        look = explanation.look_from(points[point], layer, level)
        _look(axes, explanation, look, scale)
        _cell(axes, explanation, points[point], level)
        if focus := _focus(look):
            _caption(axes, focus.removeprefix(" · "))
        height, width = memory.level_shapes[level]
        if point == 0:
            _side(axes, f"from level {level}\n{width}×{height} cells")
    _legend(figure, panels, explanation, scale)
    count = len(explanation.recording.encoder)
    _title(
        figure,
        f"{_name(explanation)}: where the encoder looks from the cell with the cross "
        f"(layer {_counted(layer, count)} of {count}"
        + (")" if explanation.deformable else "; peak: strongest cell by the mean)"),
    )
    return figure


def draw_decoder(explanation: Explanation, queries: Sequence[int]) -> Figure:
    """Where each query looks in every decoder layer (a row a query), and the box it says then."""
    layers = len(explanation.recording.decoder)
    figure, panels = _panels(
        explanation, layers, rows=len(queries), legend=explanation.deformable, width=2.4
    )
    scale = _Scale()
    for index, axes in enumerate(panels):
        row, layer = divmod(index, layers)
        query = queries[row]
        _look(axes, explanation, explanation.look(query, layer), scale)
        _reference(axes, explanation, query, layer)
        scores = explanation.paths.scores[layer, query]
        label = int(explanation.paths.scores[-1, query].argmax())
        _box(axes, explanation, explanation.paths.boxes[layer, query].tolist(), BOX_COLOUR)
        said = f"{explanation.classes[label]} {float(scores[label]):.2f}"
        _caption(axes, f"{said}{_focus(explanation.look(query, layer))}")
        if explanation.deformable:
            _zoom(axes, explanation, _surroundings(explanation, query, range(layers)), 0.2)
        if layer == 0:
            _side(axes, f"query {query}")
        if row == 0:
            axes.set_title(f"decoder layer {layer + 1}", fontsize=9)
    _legend(figure, panels, explanation, scale)
    told = "where queries look, and the green box they say (peak: strongest cell by the mean)"
    if explanation.deformable:
        told = "where queries look from the white reference, and the green box they say"
    _title(figure, f"{_name(explanation)}: {told}")
    return figure


def draw_heads(explanation: Explanation, query: int, layer: int = -1) -> Figure:
    """Where one query looks with each head in one decoder layer."""
    look = explanation.look(query, layer)
    heads = look.weights.shape[1 if isinstance(look, Samples) else 0]
    columns = min(4, heads)
    figure, panels = _panels(
        explanation, columns, rows=-(-heads // columns), legend=explanation.deformable, width=2.4
    )
    scale = _Scale()
    count = len(explanation.recording.decoder)
    for head, axes in enumerate(panels):
        if head >= heads:
            axes.set_axis_off()
            continue
        _look(axes, explanation, look, scale, head)
        _reference(axes, explanation, query, _counted(layer, count) - 1)
        box = explanation.paths.boxes[layer, query].tolist()
        _box(axes, explanation, box, BOX_COLOUR, width=1)
        if explanation.deformable:
            _zoom(axes, explanation, _surroundings(explanation, query, [layer]), 0.15)
        axes.set_title(f"head {head}", fontsize=8)
    _legend(figure, panels, explanation, scale)
    scores = explanation.paths.scores[-1, query]
    says = f"{explanation.classes[int(scores.argmax())]} {float(scores.max()):.2f}"
    _title(
        figure,
        f"{_name(explanation)}: query {query} ({says}), decoder layer "
        f"{_counted(layer, count)} of {count}, head by head",
    )
    return figure


def _focus(look: Look) -> str:
    """How far a row of dense attention is from weighing all cells alike: its peak by its mean."""
    if isinstance(look, Samples):
        return ""
    mean = look.maps[0].mean(0)
    return f" · peak {float(mean.max() / mean.mean()):.1f}×"


class _Scale:
    """One colour scale for a whole figure: from 0 to the largest weight, by the square root.

    Weights spread over a few strong and many weak samples; the root keeps the weak ones apart.
    """

    def __init__(self) -> None:
        from matplotlib.colors import PowerNorm

        self.norm = PowerNorm(0.5, vmin=0.0, vmax=1.0)
        self.largest = 0.0
        self.points: Any = None

    def add(self, points: Any, weights: Tensor) -> None:
        self.points = points
        self.norm.vmax = self.largest = max(self.largest, float(weights.max()))


def _look(
    axes: Axes, explanation: Explanation, look: Look, scale: _Scale, head: int | None = None
) -> None:
    """Draw a row of dense attention as a map, or sampling points; one head or all of them."""
    _photograph(axes, explanation)
    if isinstance(look, Samples):
        _points(axes, explanation, look, scale, head)
        return
    (grid,) = look.maps
    shown = (grid.mean(0) if head is None else grid[head]).cpu().numpy()
    height, width = explanation.size
    from matplotlib import colormaps

    strength = shown / shown.max()
    rgba = colormaps[WEIGHT_COLOURS](strength)
    rgba[..., 3] = 0.85 * np.sqrt(strength)
    axes.imshow(rgba, extent=(0, width, height, 0), interpolation="nearest")


def _points(
    axes: Axes, explanation: Explanation, look: Samples, scale: _Scale, head: int | None
) -> None:
    """Sampling points coloured by weight and sized by level; coarse levels lie below fine ones."""
    height, width = explanation.size
    chosen = slice(None) if head is None else slice(head, head + 1)
    locations, weights = look.locations[0, chosen].cpu(), look.weights[0, chosen].cpu()
    sizes = np.empty(weights.shape)
    sizes[...] = np.array(LEVEL_SIZES)[: weights.shape[1], None]
    levels = torch.arange(weights.shape[1])[:, None].expand_as(weights)
    order = (weights - 2.0 * levels).flatten().argsort()
    xy = locations.flatten(0, 2)[order].numpy() * (width, height)
    points = axes.scatter(
        xy[:, 0],
        xy[:, 1],
        s=sizes.ravel()[order.numpy()],
        c=weights.flatten()[order].numpy(),
        cmap=WEIGHT_COLOURS,
        norm=scale.norm,
        linewidths=0.3,
        edgecolors="black",
        alpha=0.9,
    )
    scale.add(points, weights)


def _reference(axes: Axes, explanation: Explanation, query: int, layer: int) -> None:
    """Where the layer looked from: a white cross, or a white dashed box."""
    references = explanation.paths.references[layer]
    if references is None:
        return
    center = references.centers[query].tolist()
    _mark(axes, explanation, center)
    if references.sizes is not None:
        box = [*center, *references.sizes[query].tolist()]
        _box(axes, explanation, box, "white", style=(0, (2, 2)), width=1)


def _legend(
    figure: Figure, panels: Sequence[Axes], explanation: Explanation, scale: _Scale
) -> None:
    """What colour and size of the sampling points mean."""
    if scale.points is None:
        return
    bar = figure.colorbar(scale.points, ax=list(panels), shrink=0.7, pad=0.01, aspect=25)
    bar.set_label("attention weight (of its head)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    handles = [
        panels[0].scatter([], [], s=LEVEL_SIZES[level], c="#888", label=f"level {level}: {w}×{h}")
        for level, (h, w) in enumerate(explanation.recording.memory.level_shapes)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False
    )


# --- how boxes move ------------------------------------------------------------------------


def draw_paths(explanation: Explanation, queries: Sequence[int]) -> Figure:
    """The box and the score of each query from layer to layer; a column a query."""
    figure, panels = _panels(explanation, len(queries), rows=2, extra=0.55)
    layers = len(explanation.recording.decoder)
    colours = _ramp(layers)
    for column, query in enumerate(queries):
        axes = panels[column]
        _photograph(axes, explanation)
        _reference(axes, explanation, query, 0)
        boxes = explanation.paths.boxes[:, query].tolist()
        for layer, box in enumerate(boxes):
            _box(axes, explanation, box, colours[layer], width=1.2 + 0.8 * (layer == layers - 1))
        centers = np.array(boxes)[:, :2] * (explanation.size[1], explanation.size[0])
        axes.plot(centers[:, 0], centers[:, 1], color="white", linewidth=0.7, alpha=0.8)
        axes.set_title(f"query {query}", fontsize=9)
        _zoom(axes, explanation, [*boxes, *_reference_boxes(explanation, query)])
        _scores(panels[len(queries) + column], explanation, query, colours, first=column == 0)
    _title(figure, f"{_name(explanation)}: boxes and scores from the first layer to the last")
    return figure


def _reference_boxes(explanation: Explanation, query: int) -> list[list[float]]:
    references = explanation.paths.references[0]
    if references is None:
        return []
    sizes = [0.0, 0.0] if references.sizes is None else references.sizes[query].tolist()
    return [[*references.centers[query].tolist(), *sizes]]


def _scores(
    axes: Axes, explanation: Explanation, query: int, colours: Sequence[Any], *, first: bool
) -> None:
    """Scores of the three likeliest classes at every layer."""
    scores = explanation.paths.scores[:, query]
    layers = np.arange(1, len(scores) + 1)
    named: list[float] = []
    for rank, label in enumerate(scores[-1].topk(min(3, scores.shape[1])).indices.tolist()):
        values = scores[:, label].tolist()
        axes.plot(layers, values, color="#888", linewidth=1.5 - 0.4 * rank, zorder=1)
        if rank == 0:
            axes.scatter(layers, values, c=list(colours), s=36, edgecolors="black", zorder=2)
        if any(abs(values[-1] - other) < 0.07 for other in named):
            continue  # its name would cover another one
        named.append(values[-1])
        axes.annotate(
            explanation.classes[label],
            (layers[-1], values[-1]),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            parse_math=False,
        )
    axes.set(ylim=(0, 1), xticks=layers, xlim=(0.8, layers[-1] + 0.9))
    axes.tick_params(labelsize=7)
    axes.set_xlabel("decoder layer", fontsize=8)
    if first:
        axes.set_ylabel("score", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def draw_proposals(explanation: Explanation, count: int = 30) -> Figure:
    """The first stage: where cells say "object", and its best boxes before and after.

    Args:
        explanation: of a two-stage detector.
        count: so many proposals are drawn, the best.
    """
    seen = explanation.proposals
    assert seen is not None
    figure, panels = _panels(explanation, 4, width=2.7)
    _objectness(panels[0], explanation)
    colours = _ramp(int(seen.levels.max()) + 1)
    last = explanation.paths.boxes[-1]
    for axes, boxes, told in (
        (panels[1], seen.anchors, "the cells' anchors (a level a colour)"),
        (panels[2], seen.boxes, "after the first stage"),
        (panels[3], last, "after the decoder"),
    ):
        _photograph(axes, explanation)
        for query in reversed(range(min(count, len(boxes)))):
            box = boxes[query].tolist()
            if not np.isnan(box).any():
                _box(axes, explanation, box, colours[int(seen.levels[query])], width=1)
        axes.set_title(told, fontsize=9)
    _title(
        figure, f"{_name(explanation)}: the {min(count, len(last))} best proposals, stage by stage"
    )
    return figure


def _objectness(axes: Axes, explanation: Explanation) -> None:
    """The largest objectness over the levels, as a map at the finest level's cells."""
    from matplotlib import colormaps

    from detrlab.explain.attention import as_maps

    seen = explanation.proposals
    assert seen is not None
    maps = as_maps(seen.of_all_cells, explanation.recording.memory, explanation.index)
    rows, columns = maps[0].shape
    y = (np.arange(rows) + 0.5) / rows
    x = (np.arange(columns) + 0.5) / columns
    grown = [
        each.cpu().numpy()[(y * each.shape[0]).astype(int)][:, (x * each.shape[1]).astype(int)]
        for each in maps
    ]
    strength = np.max(grown, axis=0)
    rgba = colormaps[WEIGHT_COLOURS](strength / strength.max())
    rgba[..., 3] = 0.85 * np.sqrt(strength / strength.max())
    _photograph(axes, explanation)
    height, width = explanation.size
    axes.imshow(rgba, extent=(0, width, height, 0), interpolation="nearest")
    axes.set_title(f"objectness (largest: {strength.max():.2f})", fontsize=9)


# --- why an object was missed --------------------------------------------------------------


def draw_objects(explanation: Explanation, threshold: float = 0.3, most: int = 12) -> Figure:
    """Every annotated object by what became of it; the missed ones' costs taken apart.

    Args:
        explanation: of an image with annotated objects.
        threshold: score from which a detection counts.
        most: so many missed objects are explained, the smallest cost first.
    """
    from matplotlib.figure import Figure

    verdicts = explanation.verdicts(threshold)
    missed = [each for each in verdicts if each.reason != "found"]
    told = sorted(missed, key=lambda each: each.final.best.cost)[:most]
    height, width = explanation.size
    side = 5.0
    figure = Figure(
        figsize=(2 * side + 0.8, max(side * height / width, 0.5 * len(told)) + 1.2),
        layout="constrained",
    )
    axes, bars = figure.subplots(1, 2)
    _photograph(axes, explanation)
    for each in verdicts:
        colour = REASON_COLOURS[each.reason]
        _box(axes, explanation, each.box, colour, width=1.4)
        if each.reason != "found":
            _label(axes, explanation, each.box, str(each.index), colour)
            closest = explanation.paths.boxes[-1, each.final.closest.query].tolist()
            _box(axes, explanation, closest, colour, style=(0, (2, 2)), width=0.8)
    reasons = dict.fromkeys(each.reason for each in verdicts)
    handles = [axes.plot([], [], color=REASON_COLOURS[r], label=r)[0] for r in reasons]
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, -0.01), ncols=4, fontsize=8,
        frameon=False,
    )  # fmt: skip
    _cost_bars(bars, told, explanation, threshold)
    _title(
        figure,
        f"{_name(explanation)}: {len(verdicts) - len(missed)} of {len(verdicts)} objects found "
        f"above {threshold:.3g}; the closest box of each missed one dashed",
    )
    return figure


def _cost_bars(
    axes: Axes, missed: Sequence[Verdict], explanation: Explanation, threshold: float
) -> None:
    """The matching cost of each missed object's best query, split into its three terms."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_yticks([])
    if not missed:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nothing was missed", ha="center", transform=axes.transAxes)
        return
    for row, verdict in enumerate(missed):
        best = verdict.final.best
        terms = (best.cost_classes, best.cost_boxes, best.cost_giou)
        # Negative terms (a sure class, a good overlap) go to the left, costs to the right.
        left, right = 0.0, 0.0
        for value, colour in zip(terms, COST_COLOURS.values(), strict=True):
            start = right if value >= 0 else left
            axes.barh(row + 0.25, value, left=start, color=colour, height=0.3)
            left, right = (left, right + value) if value >= 0 else (left + value, right)
        text = sentence(verdict, explanation.classes, threshold).split("; best")[0]
        text += f" · best query {best.query}, IoU {best.iou:.2f}, {best.score:.2f}"
        if verdict.lost_at is not None:
            text += f" · lost at layer {verdict.lost_at + 1}"
        axes.text(
            0, row - 0.05, text.removeprefix("object "), fontsize=7.5, va="bottom",
            transform=axes.get_yaxis_transform(), parse_math=False,
        )  # fmt: skip
    axes.set_ylim(max(len(missed), 4) - 0.3, -0.6)  # the first on top; bars of one height
    axes.axvline(0, color="#888", linewidth=0.8)
    axes.set_xlabel("matching cost of the best query", fontsize=8, loc="left")
    axes.tick_params(labelsize=7)
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in COST_COLOURS.items()]
    axes.legend(
        handles=handles, fontsize=8, loc="upper right", bbox_to_anchor=(1, -0.08), ncols=3,
        frameon=False,
    )  # fmt: skip


# --- over a data set -----------------------------------------------------------------------


def draw_query_use(use: QueryUse, queries: Sequence[int] | None = None) -> Figure:
    """Every box that a query said over a data set, one panel a query (DETR paper, figure 7).

    A point is the center of a box, in fractions of its image; green boxes are small, red ones
    wide and large, blue ones tall and large.

    Args:
        use: what the queries said.
        queries: to draw; the 20 that most often say something sure if not given.
    """
    from matplotlib.figure import Figure

    if queries is None:
        order = use.scores.mean(0).argsort(descending=True)
        queries = order[: min(20, len(order))].tolist()
    columns = min(5, len(queries))
    rows = -(-len(queries) // columns)
    figure = Figure(figsize=(1.7 * columns, 1.75 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
    for axes, query in zip(grid.flat, queries, strict=False):
        x, y, w, h = use.boxes[:, query].T.numpy()
        colours = np.where(w * h < SMALL_AREA, "#2a9d3f", np.where(w > h, "#d62828", "#1d5fd6"))
        axes.scatter(x, y, s=5, c=list(colours), alpha=0.6, linewidths=0)
        axes.set_title(f"query {query}", fontsize=7, pad=2)
    for axes in list(grid.flat)[len(queries) :]:
        axes.set_axis_off()
    share = explained_share(use)
    _title(
        figure,
        f"Where queries put their boxes over {len(use.boxes)} images "
        f"({100 * share:.0f} % of the place is known from the query alone)",
    )
    return figure


# --- small parts ---------------------------------------------------------------------------


def _panels(
    explanation: Explanation,
    columns: int,
    *,
    rows: int = 1,
    width: float = PANEL,
    extra: float | None = None,
    legend: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A grid of panels of the picture's shape; ``extra``: height of all later rows instead."""
    from matplotlib.figure import Figure

    height = width * explanation.size[0] / explanation.size[1]
    heights = [height] * rows if extra is None else [height, *[extra * width] * (rows - 1)]
    figure = Figure(
        figsize=(
            columns * width + (0.9 if legend else 0.2),
            sum(heights) + (0.8 if legend else 0.4),
        ),
        layout="constrained",
    )
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    return figure, list(grid.flat)


def _photograph(axes: Axes, explanation: Explanation, *, dim: bool = True) -> None:
    """The picture; ``dim`` in dark grey, so that what is drawn on it stands out."""
    height, width = explanation.size
    if explanation.picture is None:
        shown = np.full((2, 2, 3), 80, dtype=np.uint8)
    elif dim:
        grey = np.asarray(explanation.picture.convert("L"), dtype=np.float32) / 255
        low, high = np.percentile(grey, [1, 99])
        grey = ((grey - low) / max(high - low, 0.05)).clip(0, 1)
        # The same darkness for a night scene and for snow.
        grey *= min(0.7, BRIGHTNESS / max(float(grey.mean()), 0.05))
        shown = (255 * grey[..., None].repeat(3, axis=2)).astype(np.uint8)
    else:
        shown = np.asarray(explanation.picture)
    axes.imshow(shown, extent=(0, width, height, 0))
    axes.set(xlim=(0, width), ylim=(height, 0), facecolor="#222")
    # Half of the time to draw a figure would go into ticks that nobody sees.
    axes.xaxis.set_visible(False)
    axes.yaxis.set_visible(False)


def _corners(explanation: Explanation, box: Box) -> tuple[float, float, float, float]:
    """Cxcywh fractions -> left, top, width, height in pixels of the picture."""
    height, width = explanation.size
    x, y, w, h = box
    return (x - w / 2) * width, (y - h / 2) * height, w * width, h * height


def _box(
    axes: Axes,
    explanation: Explanation,
    box: Box,
    colour: Any,
    *,
    style: Any = "-",
    width: float = 1.6,
) -> None:
    from matplotlib.patches import Rectangle

    left, top, w, h = _corners(explanation, box)
    axes.add_patch(
        Rectangle((left, top), w, h, fill=False, edgecolor=colour, linestyle=style, linewidth=width)
    )


def _label(axes: Axes, explanation: Explanation, box: Box, text: str, colour: Any) -> None:
    """A text above a box; names come from the data, so nothing in them is markup."""
    left, top, _, _ = _corners(explanation, box)
    fits = top > 0.05 * explanation.size[0]
    axes.text(
        max(left, 0), max(top, 0), text, fontsize=7, color="black", clip_on=True,
        va="bottom" if fits else "top",
        parse_math=False, bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
    )  # fmt: skip


def _side(axes: Axes, text: str) -> None:
    """A text left of a row of panels."""
    axes.text(
        -0.03, 0.5, text, fontsize=8, rotation=90, ha="right", va="center", multialignment="center",
        transform=axes.transAxes, parse_math=False,
    )  # fmt: skip


def _caption(axes: Axes, text: str) -> None:
    axes.text(
        0.02, 0.02, text, fontsize=7, color="white", transform=axes.transAxes, parse_math=False,
        clip_on=True, bbox={"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 1},
    )  # fmt: skip


def _mark(axes: Axes, explanation: Explanation, point: Sequence[float]) -> None:
    height, width = explanation.size
    x, y = point[0] * width, point[1] * height
    axes.plot(x, y, "+", color="black", markersize=9, markeredgewidth=2.6)
    axes.plot(x, y, "+", color="white", markersize=8, markeredgewidth=1.2)


def _cell(axes: Axes, explanation: Explanation, point: Sequence[float], level: int) -> None:
    """The cell of a level that a point lies in, and a cross in its middle."""
    rows, columns = valid_shapes(explanation.recording.memory, explanation.index)[level]
    column, row = min(int(point[0] * columns), columns - 1), min(int(point[1] * rows), rows - 1)
    center = (column + 0.5) / columns, (row + 0.5) / rows
    _box(axes, explanation, [*center, 1 / columns, 1 / rows], "white", width=1)
    _mark(axes, explanation, center)


def _surroundings(explanation: Explanation, query: int, layers: Sequence[int]) -> list[Box]:
    """What a picture of a query's looks should show: its boxes, and most of its samples."""
    shown: list[Box] = []
    for layer in layers:
        shown.append(explanation.paths.boxes[layer, query].tolist())
        look = explanation.look(query, layer)
        if isinstance(look, Samples):
            xy = look.locations[0].flatten(0, 2).clamp(0, 1)
            low, high = xy.quantile(0.02, dim=0), xy.quantile(0.98, dim=0)
            shown.append([*((low + high) / 2).tolist(), *(high - low).tolist()])
    return shown


def _zoom(axes: Axes, explanation: Explanation, boxes: Sequence[Box], least: float = 0.125) -> None:
    """Show the boxes and some of their surroundings, in the shape of the picture.

    Args:
        axes: with the picture.
        explanation: of it.
        boxes: cxcywh fractions.
        least: share of the picture's width and height that is shown at least.
    """
    height, width = explanation.size
    corners = np.array([_corners(explanation, box) for box in boxes])
    low, high = corners[:, :2].min(0), (corners[:, :2] + corners[:, 2:]).max(0)
    share = min(max(*((high - low) / (width, height) * 1.25), least), 1.0)
    half = np.array([width, height]) * share / 2
    middle = ((low + high) / 2).clip(half, (width, height) - half)  # nothing beyond the picture
    axes.set(
        xlim=(middle[0] - half[0], middle[0] + half[0]),
        ylim=(middle[1] + half[1], middle[1] - half[1]),
    )


def _ramp(count: int) -> list[Any]:
    """Colours from the first layer (dark) to the last (bright)."""
    from matplotlib import colormaps

    return [colormaps["viridis"](x) for x in np.linspace(0.15, 1.0, count)]


def _title(figure: Figure, text: str) -> None:
    """A title over the whole figure, in as many lines as its width asks for."""
    letters = int(13 * figure.get_figwidth())  # at this size of type
    figure.suptitle(textwrap.fill(text, letters), fontsize=10, parse_math=False)


def _name(explanation: Explanation) -> str:
    return explanation.name or "the detector"


def _inside(point: Sequence[float]) -> tuple[float, float]:
    """The nearest point of the image: a box may reach over its edge, its center too."""
    return min(max(point[0], 0.0), 1.0), min(max(point[1], 0.0), 1.0)


def _counted(layer: int, count: int) -> int:
    """A layer's number as people count, from 1."""
    return (layer + count if layer < 0 else layer) + 1


def _apart(found: Sequence[Found], count: int) -> list[Found]:
    """The best detections that lie apart: one for each place, however often it is claimed."""
    chosen: list[Found] = []
    for each in found:
        box = cxcywh_to_xyxy(torch.tensor(each.box))
        others = torch.tensor([other.box for other in chosen]).view(-1, 4)
        if not (box_iou(box[None], cxcywh_to_xyxy(others)) > SAME_PLACE).any():
            chosen.append(each)
        if len(chosen) == count:
            break
    return chosen
