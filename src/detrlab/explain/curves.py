"""Curves that teach: AP of each decoder layer, matching stability, AP by size, over epochs.

``Watch`` records them while a run trains: it is told of each epoch that has ended, and reads the
weights that the run has just written. The training itself knows nothing of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detrlab import files
from detrlab.errors import UserError
from detrlab.scoring import Scoring
from detrlab.structures import ImageBatch, ModelOutput, Target
from detrlab.training.distributed import pick_device
from detrlab.training.matcher import Match, Weights, match_sets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from detrlab.data import Batch, Table
    from detrlab.models.network import Network

CURVES_FILE = "curves.json"
SIZES = ("small", "medium", "large")

Matchings = dict[str, list[list[int]]]
"""By image id: the query of each object, layer by layer, -1 without one."""


@dataclass(frozen=True)
class EpochCurves:
    """What was seen after one epoch.

    Attributes:
        epoch: counted from 1.
        layer_ap: AP of each decoder layer, the first first; None where nothing can be judged.
        unstable: for each decoder layer the share of objects whose query is another one than
            after the epoch before; empty after the first.
    """

    epoch: int
    layer_ap: tuple[float | None, ...]
    unstable: tuple[float, ...] = ()


@dataclass(frozen=True)
class Curves:
    """What was seen of one run.

    Attributes:
        epochs: in order.
        matchings: after the last of them, to compare the next with.
    """

    epochs: tuple[EpochCurves, ...] = ()
    matchings: Matchings = field(default_factory=dict, repr=False)

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        files.write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Curves:
        """Read what ``save`` wrote; nothing seen yet where there is no file.

        Raises:
            UserError: the file is damaged.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            epochs = [
                EpochCurves(each["epoch"], tuple(each["layer_ap"]), tuple(each["unstable"]))
                for each in values["epochs"]
            ]
            return cls(tuple(epochs), values["matchings"])
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read: {error}; delete it to begin anew") from None


class Watch:
    """Records a run's curves; give it to ``training.loop.Options`` as ``on_epoch``.

    After each epoch it judges every decoder layer of the weights just written on some images of
    the validation split, and notes which query each object was matched to. It costs one more
    evaluation of those images, and changes nothing of the run.

    Args:
        folder: of the run; the curves are kept there as ``curves.json``, over a resume too.
        table: the images to watch.
        images: so many of them at most, evenly spread.
        device: where to compute; None takes a GPU if there is one, as training does.
    """

    def __init__(
        self, folder: str | Path, table: Table, images: int = 100, device: str | None = None
    ) -> None:
        self.folder = Path(folder)
        self.device = pick_device(device)
        step = max(1, math.ceil(len(table) / images))
        self.table = table.select(range(0, len(table), step))

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Look at the run after the epoch that ``row`` is about."""
        from detrlab.api import load
        from detrlab.data import batches

        detector = load(self.folder / "weights" / "last.safetensors")
        parts = batches(
            self.table, detector.preprocessing, batch=8, seed=0, epoch=0, train=False, workers=0
        )
        path = self.folder / CURVES_FILE
        try:
            known = Curves.load(path)
        except UserError:
            known = Curves()  # a damaged record must not stop a training
        # A resumed run may repeat an epoch.
        earlier = tuple(each for each in known.epochs if each.epoch < row["epoch"])
        network = detector.network.to(self.device)
        layer_ap, matchings = observe(network, detector.scoring, parts, self.table)
        unstable = instability(known.matchings, matchings) if earlier else ()
        epoch = EpochCurves(row["epoch"], layer_ap, unstable)
        Curves((*earlier, epoch), matchings).save(path)


@torch.no_grad()
def observe(
    network: Network, scoring: Scoring, batches: Iterable[Batch], table: Table
) -> tuple[tuple[float | None, ...], Matchings]:
    """AP of each decoder layer, and the query of each object, in one pass.

    Args:
        network: in evaluation mode.
        scoring: how its logits are read.
        batches: of ``table``.
        table: the annotated images.
    """
    from detrlab.evaluation.coco import Evaluator, as_ground_truth
    from detrlab.evaluation.postprocess import decode

    device = next(network.parameters()).device
    truth = as_ground_truth(table)
    evaluators: list[Evaluator] = []
    matchings: Matchings = {}
    for batch in batches:
        output = network(ImageBatch(*(part.to(device) for part in batch.images)))
        evaluators = evaluators or [Evaluator(truth) for _ in output.layers]
        for evaluator, layer in zip(evaluators, output.layers, strict=True):
            decoded = decode(layer, scoring, batch.original_sizes)
            for index, image_id in enumerate(batch.image_ids):
                boxes, scores, labels = (part[index].cpu() for part in decoded[:3])
                evaluator.add(image_id, boxes, scores, labels)
        matchings |= _match(output, batch, scoring)
    return tuple(each.metrics().ap for each in evaluators), matchings


def _match(output: ModelOutput, batch: Batch, scoring: Scoring) -> Matchings:
    """The query of each object of a batch, in every decoder layer."""
    device = output.final.boxes.device
    targets = [Target(*(part.to(device) for part in each)) for each in batch.targets]
    weights = Weights(classes=scoring.class_weight)
    layers = match_sets(output.layers, targets, scoring, weights).sets
    names = query_names(output)
    return {
        str(image_id): [
            _by_object(images[index], names[index], len(targets[index].labels)) for images in layers
        ]
        for index, image_id in enumerate(batch.image_ids)
    }


def _by_object(match: Match, names: Tensor, count: int) -> list[int]:
    queries = [-1] * count
    for query, index in zip(match.queries.tolist(), match.objects.tolist(), strict=True):
        queries[index] = int(names[query])
    return queries


def query_names(output: ModelOutput) -> Tensor:
    """What makes a query the same one in another epoch, (B, Q).

    A learned query is its index. A two-stage query's index is only its rank: it is the cell of
    the memory that it came from.
    """
    batch, count = output.final.boxes.shape[:2]
    if output.proposals is None:
        return torch.arange(count).expand(batch, -1)
    return output.proposals.logits[..., 0].topk(count, dim=1).indices.cpu()


def instability(before: Matchings, after: Matchings) -> tuple[float, ...]:
    """For each layer the share of objects whose query has changed; only images in both count.

    Source: arXiv 2203.01305 (DN-DETR), section 3.1, which sums over the objects of the split.
    """
    changed: list[int] = []
    objects = 0
    for image, layers in after.items():
        if image not in before or len(before[image]) != len(layers):
            continue
        changed = changed or [0] * len(layers)
        objects += len(layers[0])
        for layer, (old, new) in enumerate(zip(before[image], layers, strict=True)):
            changed[layer] += sum(a != b for a, b in zip(old, new, strict=True))
    return tuple(count / objects for count in changed) if objects else ()


# --- pictures ------------------------------------------------------------------------------


def draw_layer_ap(runs: Mapping[str, Curves]) -> Figure:
    """AP of each decoder layer after the last epoch watched: does refinement refine?"""
    lines = {
        name: (
            list(range(1, len(curves.epochs[-1].layer_ap) + 1)),
            [_points(ap) for ap in curves.epochs[-1].layer_ap],
        )
        for name, curves in runs.items()
        if curves.epochs
    }
    figure, (axes,) = _figure(1)
    _lines(axes, lines, "decoder layer", "AP in points")
    axes.set_title("AP of each decoder layer", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_stability(runs: Mapping[str, Curves]) -> Figure:
    """The share of objects that changed their query since the epoch before, last layer."""
    lines = {
        name: (
            [each.epoch for each in curves.epochs if each.unstable],
            [100 * each.unstable[-1] for each in curves.epochs if each.unstable],
        )
        for name, curves in runs.items()
    }
    figure, (axes,) = _figure(1)
    _lines(axes, lines, "epoch", "% of objects")
    axes.set(ylim=(0, 100))
    axes.set_title("objects matched to another query than an epoch ago", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_sizes(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """AP of small, medium and large objects against epochs; one panel a size.

    Args:
        runs: by name, the rows of ``metrics.json`` or ``metrics.csv``.
    """
    figure, panels = _figure(3)
    for axes, size in zip(panels, SIZES, strict=True):
        lines = {
            name: (
                [int(row["epoch"]) for row in rows],
                [_points(_number(row.get(f"ap_{size}"))) for row in rows],
            )
            for name, rows in runs.items()
        }
        _lines(axes, lines, "epoch", "AP in points" if size == "small" else "")
        axes.set_title(f"{size} objects", loc="left", fontsize=10)
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def _number(value: Any) -> float | None:
    """A cell of a CSV or JSON table."""
    return None if value in (None, "") else float(value)


def _points(ap: float | None) -> float:
    return math.nan if ap is None else 100 * ap


def _figure(columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0 if columns == 1 else 3.6 * columns, 3.6), layout="constrained")
    grid = figure.subplots(1, columns, squeeze=False, sharey=True)
    return figure, list(grid.flat)


def _lines(
    axes: Axes,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
) -> None:
    from matplotlib.ticker import MaxNLocator

    from detrlab.compare.curves import style

    for index, (name, (x, y)) in enumerate(lines.items()):
        colour, dash = style(index)
        axes.plot(x, y, label=name, color=colour, linestyle=dash, marker="o", markersize=3)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, alpha=0.25, lw=0.6)
