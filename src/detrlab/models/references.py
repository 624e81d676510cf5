"""References: where queries look, how boxes are decoded from them, how they move on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detrlab.boxes import inverse_sigmoid
from detrlab.structures import Memory, References

Advance = Callable[[References | None, Tensor], References | None]
"""The references of a decoder layer and the boxes it predicted -> those of the next layer."""


def cell_centers(memory: Memory) -> References:
    """The center of every cell as a fraction of the image's own unpadded area.

    Padded cells lie beyond 1; nothing is clamped.

    Returns:
        References whose centers are (B, S, 2).

    Source: arXiv 2010.04159, appendix A.3.
    """
    centers = []
    for (height, width), ratio in zip(
        memory.level_shapes, memory.valid_ratios.unbind(1), strict=True
    ):
        rows = torch.arange(height, dtype=ratio.dtype, device=ratio.device) + 0.5
        columns = torch.arange(width, dtype=ratio.dtype, device=ratio.device) + 0.5
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        cells = torch.stack([x, y], dim=-1).flatten(0, 1)  # (H_l * W_l, 2)
        valid_cells = ratio * ratio.new_tensor([width, height])  # (B, 2)
        centers.append(cells[None] / valid_cells[:, None])
    return References(torch.cat(centers, dim=1))


def no_references(memory: Memory) -> None:  # noqa: ARG001
    """For attention that looks everywhere."""
    return


def decode_boxes(deltas: Tensor, references: References | None) -> Tensor:
    """Boxes from a head's output, relative to where the query looked.

    In logit space a box reference shifts all four numbers, a point only the center.

    Args:
        deltas: (B, Q, 4).
        references: of the layer that made them; None when the queries have no place.

    Returns:
        (B, Q, 4) cxcywh fractions.

    Source: arXiv 2010.04159, appendix A.3 and A.4.
    """
    deltas = deltas.to(torch.promote_types(deltas.dtype, torch.float32))  # also under autocast
    if references is None:
        return deltas.sigmoid()
    centers = deltas[..., :2] + inverse_sigmoid(references.centers)
    sizes = deltas[..., 2:]
    if references.sizes is not None:
        sizes = sizes + inverse_sigmoid(references.sizes)
    return torch.cat([centers, sizes], dim=-1).sigmoid()


def keep_references(references: References | None, boxes: Tensor) -> References | None:  # noqa: ARG001
    """Every layer looks from the same references, which every layer's boxes train."""
    return references


def refine_references(references: References | None, boxes: Tensor) -> References:  # noqa: ARG001
    """Each layer looks from the boxes of the one before (iterative bounding-box refinement).

    Gradients stop here: a layer is trained by its own boxes only.
    """
    centers, sizes = boxes.detach().split(2, dim=-1)
    return References(centers, sizes)
