"""What denoising queries were given for an image's objects, and what came back."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from detrlab.explain.canvas import grid, set_title
from detrlab.explain.capture import evaluating
from detrlab.figures import styled
from detrlab.models.network import Network
from detrlab.models.queries.denoising import DenoisingQueries
from detrlab.palette import VERDICTS
from detrlab.structures import ImageBatch, Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from detrlab.explain.explanation import Explanation

TO_RESTORE, TO_REJECT = VERDICTS["found"], "#ff9f1c"


class Restored(NamedTuple):
    """The first group of denoising queries. C kinds: to restore and, contrastive, to reject.

    Attributes:
        labels: (C, N) given, some of them replaced.
        boxes: (C, N, 4) given, with noise, cxcywh fractions.
        logits: (C, N, K) of the last decoder layer.
        answers: (C, N, 4) boxes of the last decoder layer.
    """

    labels: Tensor
    boxes: Tensor
    logits: Tensor
    answers: Tensor


def restore(network: Network, images: ImageBatch, target: Target, seed: int = 0) -> Restored | None:
    """Let a detector restore an image's objects; None if it is not trained to, or has none.

    Args:
        network: any detector.
        images: one image.
        target: its objects.
        seed: of the noise.
    """
    source, count = network.queries, len(target.labels)
    if not isinstance(source, DenoisingQueries) or count == 0:
        return None
    with evaluating(network), torch.random.fork_rng():
        torch.manual_seed(seed)
        labels, boxes = source.disturb([target], source.draw([target], source.num_groups(count)))
        torch.manual_seed(seed)  # the forward pass draws the same
        sets = {each.name: each.predictions for each in network(images, [target]).sets}
    last, kinds = sets["denoising_final"], source.kinds
    group = slice(0, kinds * count)
    return Restored(
        labels[:kinds],
        boxes[:kinds],
        last.logits[0, group].unflatten(0, (kinds, count)),
        last.boxes[0, group].unflatten(0, (kinds, count)),
    )


@styled
def draw_denoising(explanation: Explanation, most: int = 5) -> Figure:
    """Noisy boxes and labels above, and below what the last layer made of them.

    Args:
        explanation: with ``restored``.
        most: so many objects are drawn, the largest first.
    """
    restored, target = explanation.restored, explanation.target
    assert restored is not None
    assert target is not None
    order = target.boxes[:, 2:].prod(1).argsort(descending=True)[:most].tolist()
    figure, panels = grid(explanation, len(order), 2)
    scores = explanation.scoring.probabilities(restored.logits)
    names = explanation.classes
    for column, index in enumerate(order):
        given, answered = panels[column], panels[len(order) + column]
        real = target.boxes[index].tolist()
        shown = {given: [real], answered: [real]}
        for kind, colour in reversed(list(enumerate((TO_RESTORE, TO_REJECT)[: len(scores)]))):
            score, best = scores[kind, index].max(-1)
            noisy, answer = (
                restored.boxes[kind, index].tolist(),
                restored.answers[kind, index].tolist(),
            )
            shown[given].append(noisy)
            shown[answered].append(answer)
            given.box(noisy, colour, dashed=kind == 1)
            given.label(noisy, names[int(restored.labels[kind, index])], colour)
            answered.box(answer, colour, dashed=kind == 1)
            answered.label(answer, f"{names[int(best)]} {float(score):.2f}", colour)
        for panel, boxes in shown.items():
            panel.box(real, "white", width=1)
            panel.caption(names[int(target.labels[index])])
            panel.zoom(boxes, least=0.2, margin=1.3)
    panels[0].side("given")
    panels[len(order)].side("came back")
    reject = "; orange, dashed: to reject" if len(scores) > 1 else ""
    text = f"denoising queries (white: the object; green: to restore{reject})"
    set_title(figure, text, explanation)
    return figure
