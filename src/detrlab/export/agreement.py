"""How far an exported detector is from PyTorch, and where the first layer differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from detrlab.export.packages import needs
from detrlab.export.sessions import open_session

if TYPE_CHECKING:
    from detrlab.detections import Detections

SIDE = 640
"""Boxes are compared in pixels of an image whose long side is this."""
LEAST_SCORE = 0.05
"""Detections that score less decide nothing."""
LOST = 5.0
"""A detection without another of its class within so many pixels has no counterpart."""
_PIXELS = "the pixels"
DIFFERS = 1e-3
"""Share of the largest number of a layer: float32 runtimes differ by less."""


@dataclass(frozen=True)
class Agreement:
    """Worst differences between the detections of two detectors on the same images.

    Attributes:
        images: how many.
        compared: detections of the first.
        least_score: of these.
        lost: of these, those without a counterpart; they do not count below.
        box: worst difference of a box edge, in pixels of an image of 640.
        score: worst difference of a score.
        unstable: detections that differ by more than is allowed, but not by more than twice what
            another rounding alone moves them in the first detector; they count neither as lost
            nor in the worst differences.
        unstable_box: worst difference of a box edge of these.
    """

    images: int
    compared: int
    least_score: float
    lost: int
    box: float
    score: float
    unstable: int
    unstable_box: float


def agreement(
    first: Sequence[Detections],
    second: Sequence[Detections],
    tolerance: tuple[float, float],
    rounded: Callable[[int], Sequence[Detections]] | None = None,
) -> Agreement:
    """Compare as sets, because near-ties change the order of detections.

    Args:
        first: of each image; those that score at least 0.05 are compared, or half of the best
            score where all are below 0.1.
        second: of the same images.
        tolerance: of box edges and scores.
        rounded: the first detector's detections of an image with other roundings; only asked
            for where a difference exceeds the tolerance.
    """
    best = max((float(each.scores.max()) for each in first if len(each)), default=0.0)
    least = min(LEAST_SCORE, best / 2)
    rows = []
    for index, (one, other) in enumerate(zip(first, second, strict=True)):
        mine = one.above(least)
        boxes, scores = _differences(mine, other)
        unstable = torch.zeros_like(boxes, dtype=torch.bool)
        beyond = (boxes > tolerance[0]) | (scores > tolerance[1])
        if rounded is not None and beyond.any():
            moves = [_differences(mine, each) for each in rounded(index)]
            far, apart = (torch.stack(each).amax(0) for each in zip(*moves, strict=True))
            unstable = beyond & (boxes <= (2 * far).clamp(min=tolerance[0]))
            unstable &= scores <= (2 * apart).clamp(min=tolerance[1])
        rows.append((boxes, scores, unstable))
    boxes, scores, unstable = (torch.cat(each) for each in zip(*rows, strict=True))
    found = (boxes <= LOST) & ~unstable
    moved = boxes[unstable & boxes.isfinite()]
    return Agreement(
        images=len(first),
        compared=len(boxes),
        least_score=least,
        lost=int(((boxes > LOST) & ~unstable).sum()),
        box=float(boxes[found].max()) if found.any() else 0.0,
        score=float(scores[found].max()) if found.any() else 0.0,
        unstable=int(unstable.sum()),
        unstable_box=float(moved.max()) if len(moved) else 0.0,
    )


def _differences(first: Detections, second: Detections) -> tuple[Tensor, Tensor]:
    """Of each detection of ``first`` from its counterpart: the box's and the score's."""
    from scipy.optimize import linear_sum_assignment

    boxes = torch.full((len(first),), torch.inf)
    scores = boxes.clone()
    scale = SIDE / max(first.size)
    for label in first.labels.unique().tolist():
        rows = (first.labels == label).nonzero()[:, 0]
        columns = (second.labels == label).nonzero()[:, 0]
        edges = (first.boxes[rows, None] - second.boxes[None, columns]).abs().amax(-1) * scale
        apart = (first.scores[rows, None] - second.scores[None, columns]).abs()
        # Equal boxes of a class may score differently, so both count; 1 is 100 pixels.
        chosen = linear_sum_assignment((edges.clamp(max=2 * LOST) + 100 * apart).numpy())
        mine, theirs = (torch.from_numpy(each) for each in chosen)
        boxes[rows[mine]] = edges[mine, theirs]
        scores[rows[mine]] = apart[mine, theirs]
    return boxes, scores


@dataclass(frozen=True)
class Difference:
    """The first layer that differs: its module, the value, and by how much of its largest."""

    module: str
    value: str
    worst: float


def first_difference(
    program: torch.export.ExportedProgram, path: Path, images: Tensor, sizes: Tensor
) -> Difference | None:
    """Compare what every layer gives, in order; None where no layer differs by a thousandth.

    The choice of the best detections is left out: where two score alike, its order is chance.

    Args:
        program: as ``deploy.write_onnx`` returned it.
        path: the ONNX file that it wrote; values that both name alike are compared.
        images: (1, 3, H, W) uint8.
        sizes: (1, 2).
    """
    import tempfile

    onnx = needs("onnx")
    model = onnx.load(path)
    known = _before_the_choice(program)
    made = [name for node in model.graph.node for name in node.output if name in known]
    outputs = {each.name for each in model.graph.output}
    for name in made:
        if name not in outputs and _is_float(known[name]):
            value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            model.graph.output.append(value)
    with tempfile.TemporaryDirectory() as folder:
        watched = Path(folder) / "watched.onnx"
        onnx.save(model, watched)
        session = open_session(watched)
        names = [port.name for port in session.inputs]
        found = session.run(dict(zip(names, (images, sizes), strict=True)))
    with torch.no_grad():
        for name, value in _Values(program).all(images, sizes).items():
            if name in known and name in found and found[name].shape == value.shape:
                worst = _apart(value, found[name])
                if worst > DIFFERS:
                    return Difference(_module_of(known[name]), name, worst)
    return None


def _before_the_choice(program: torch.export.ExportedProgram) -> dict[str, fx.Node]:
    """The nodes of a program up to the last one that belongs to a module of the network."""
    nodes = list(program.graph.nodes)
    last = max(index for index, node in enumerate(nodes) if _module_of(node) != _PIXELS)
    return {node.name: node for node in nodes[: last + 1]}


def _is_float(node: fx.Node) -> bool:
    value: Any = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a share of the largest finite number of the first."""
    known = a.isfinite() & b.isfinite()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    if not known.any():
        return 0.0
    return float((a[known] - b[known]).abs().max() / a[known].abs().max().clamp(min=1e-6))


def _module_of(node: fx.Node) -> str:
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(stack.values())), "") or _PIXELS


class _Values(fx.Interpreter):
    """Runs a program, and keeps what each of its nodes gives."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__(program.module())
        self.values: dict[str, Tensor] = {}

    def all(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Float results by the node's name, in order."""
        self.run(*inputs)
        return self.values

    def run_node(self, n: fx.Node) -> Any:
        """As the parent, and keep the result."""
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.dtype == torch.float32:
            self.values[n.name] = result
        return result
