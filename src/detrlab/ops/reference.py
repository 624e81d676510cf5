"""Deformable attention in plain PyTorch: readable, differentiable, exportable, on any device.

Every faster backend is tested against this one, which also computes what they cannot.

Source: arXiv 2010.04159, section 4.1 and appendix A.1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from detrlab.structures import LevelShapes, References

Sample = Callable[[Tensor, LevelShapes, Tensor, Tensor], Tensor]
"""The type of ``sample`` and its faster implementations."""


def computing_dtype(values: Tensor) -> torch.dtype:
    """The dtype to compute in: float64 for float64, else float32.

    Half precision is too coarse for sampling locations: near 1, bfloat16 has steps of 1/256.
    """
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def attend(
    values: Tensor,
    level_shapes: LevelShapes,
    valid_ratios: Tensor,
    references: References,
    offsets: Tensor,
    scores: Tensor,
) -> Tensor:
    """Each query's weighted sum of the values at the points that it samples around its reference.

    Args:
        values: (B, S, M, D), zero at padded cells.
        level_shapes: (height, width) of each level; their products sum to S.
        valid_ratios: (B, L, 2), the unpadded share of each level's width and height.
        references: the queries' points or boxes, as fractions of the unpadded image.
        offsets: (B, Q, M, L, P, 2), x and y; in cells of the level around a point, in P-ths of
            the half box around a box.
        scores: (B, Q, M, L * P) logits; one softmax runs over levels and points jointly.

    Returns:
        (B, Q, M * D), heads side by side, in the dtype of ``values``.
    """
    return attend_by(sample, values, level_shapes, valid_ratios, references, offsets, scores)


def attend_by(
    sample: Sample,
    values: Tensor,
    level_shapes: LevelShapes,
    valid_ratios: Tensor,
    references: References,
    offsets: Tensor,
    scores: Tensor,
) -> Tensor:
    """``attend`` with another ``sample``."""
    locations, weights = locations_and_weights(
        level_shapes, valid_ratios, references, offsets, scores, computing_dtype(values)
    )
    return sample(values, level_shapes, locations, weights)


def locations_and_weights(
    level_shapes: LevelShapes,
    valid_ratios: Tensor,
    references: References,
    offsets: Tensor,
    scores: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The locations and weights for ``sample``, in ``dtype``, from the arguments of ``attend``."""
    centers, sizes = references
    boxes = References(centers.to(dtype), None if sizes is None else sizes.to(dtype))
    locations = sampling_locations(boxes, valid_ratios.to(dtype), offsets.to(dtype), level_shapes)
    # The view is (B, Q, M, L, P): one softmax ran over levels and points jointly.
    return locations, scores.to(dtype).softmax(-1).view(offsets.shape[:-1])


def sampling_locations(
    references: References,
    valid_ratios: Tensor,
    offsets: Tensor,
    level_shapes: LevelShapes,
) -> Tensor:
    """The sampling locations of each query, as fractions (x, y) of each padded level.

    Args:
        references: (B, Q, 2) centers and sizes, or no sizes.
        valid_ratios: (B, L, 2).
        offsets: (B, Q, M, L, P, 2).
        level_shapes: (height, width) of each level.

    Returns:
        (B, Q, M, L, P, 2), not clamped: points may lie outside.
    """
    centers = (references.centers[:, :, None] * valid_ratios[:, None])[:, :, None, :, None]
    if references.sizes is None:
        # Width before height: the order of the coordinates, not of the level's shape.
        cells = torch.tensor([(w, h) for h, w in level_shapes], dtype=offsets.dtype)
        cells = cells.to(offsets.device, non_blocking=True)  # no synchronisation with the GPU
        return centers + offsets / cells[:, None]
    points = offsets.shape[4]
    sizes = (references.sizes[:, :, None] * valid_ratios[:, None])[:, :, None, :, None]
    return centers + offsets / points * sizes * 0.5


def sample(values: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of bilinear samples of all levels.

    A cell's value lies at its centre, and outside the map everything is zero:
    ``grid_sample`` with ``align_corners=False`` and zero padding.

    Args:
        values: (B, S, M, D).
        level_shapes: (height, width) of each level; their products sum to S.
        locations: (B, Q, M, L, P, 2), fractions (x, y) of each padded level.
        weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M * D), heads side by side, in the dtype of ``values``.
    """
    dtype = computing_dtype(values)
    batch, _, heads, width = values.shape
    queries = locations.shape[1]
    maps = values.to(dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (B*M, D, S)
    grids = (2 * locations.to(dtype) - 1).transpose(1, 2).flatten(0, 1)  # (B*M, Q, L, P, 2)
    weights = weights.to(dtype).transpose(1, 2).flatten(0, 1)[:, None]  # (B*M, 1, Q, L, P)

    levels = maps.split([height * width for height, width in level_shapes], dim=2)
    total = maps.new_zeros(batch * heads, width, queries)
    for index, (level, shape) in enumerate(zip(levels, level_shapes, strict=True)):
        samples = F.grid_sample(
            level.unflatten(2, shape),
            grids[:, :, index],
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )  # (B*M, D, Q, P)
        total = total + (samples * weights[:, :, :, index]).sum(-1)
    output = total.view(batch, heads * width, queries).transpose(1, 2)
    return output.to(values.dtype)


def sample_cells(
    values: Tensor,
    level_shapes: LevelShapes,
    valid_ratios: Tensor,
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """The weighted sum of single cells of all levels.

    A point outside takes the nearest unpadded cell. Arguments and result are those of ``sample``,
    with ``valid_ratios`` (B, L, 2) as of ``attend``.

    Differs from the reference in maps that are not square, where its columns end at the height.

    Source: arXiv 2407.17140, section 3; ``deformable_attention_core_func_v2`` of
    lyuwenyu/RT-DETR.
    """
    sides = torch.tensor([(w, h) for h, w in level_shapes], device=locations.device)
    last = (valid_ratios * sides).round().long().clamp(min=1) - 1
    last = last[:, None, None, :, None]  # (B, 1, 1, L, 1, 2)
    sides = sides[:, None]
    cells = (locations * sides + 0.5).long().clamp(min=0).minimum(last)
    starts = [0, *itertools.accumulate(height * width for height, width in level_shapes)][:-1]
    rows = cells[..., 1] * sides[..., 0] + cells[..., 0]
    rows = rows + torch.tensor(starts, device=rows.device)[:, None]  # (B, Q, M, L, P)
    rows = rows.transpose(1, 2).flatten(3)  # (B, M, Q, L * P)
    found = values.to(weights.dtype).transpose(1, 2)  # (B, M, S, D)
    width = found.shape[-1]
    found = found.gather(2, rows.flatten(2)[..., None].expand(-1, -1, -1, width))
    found = found.unflatten(2, rows.shape[2:])
    total = (found * weights.transpose(1, 2).flatten(3)[..., None]).sum(3)  # (B, M, Q, D)
    return total.transpose(1, 2).flatten(2).to(values.dtype)
