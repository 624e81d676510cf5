"""Deformable sampling as four nested loops over single numbers: the definition, nothing else."""

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor

from detrlab.structures import LevelShapes, References

SHAPES: LevelShapes = ((5, 3), (2, 4), (1, 1))
"""Non-square levels, the last of a single cell."""


class Case(NamedTuple):
    """Inputs of both forms of the op."""

    values: Tensor
    shapes: LevelShapes
    valid_ratios: Tensor
    references: References
    offsets: Tensor
    scores: Tensor
    locations: Tensor
    weights: Tensor


def make_case(
    *,
    batch: int = 2,
    queries: int = 5,
    heads: int = 3,
    width: int = 4,
    points: int = 2,
    shapes: LevelShapes = SHAPES,
    boxes: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Case:
    """Random inputs with padding, points far outside, and points exactly on cell borders."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(*size: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(*size, generator=draw, dtype=torch.float64) * (high - low) + low

    levels = len(shapes)
    tokens = sum(height * width_ for height, width_ in shapes)
    values = uniform(batch, tokens, heads, width, low=-1)
    values[-1, tokens // 2 :: 3] = 0  # padded cells
    valid_ratios = uniform(batch, levels, 2, low=0.5)
    references = References(
        uniform(batch, queries, 2), uniform(batch, queries, 2, low=0.05) if boxes else None
    )
    offsets = uniform(batch, queries, heads, levels, points, 2, low=-4, high=4)
    scores = uniform(batch, queries, heads, levels * points, low=-3, high=3)
    locations = uniform(batch, queries, heads, levels, points, 2, low=-0.4, high=1.4)
    weights = uniform(batch, queries, heads, levels, points, low=-1)
    return Case(
        values.to(dtype),
        shapes,
        valid_ratios.to(dtype),
        References(*(None if part is None else part.to(dtype) for part in references)),
        offsets.to(dtype),
        scores.to(dtype),
        locations.to(dtype),
        weights.to(dtype),
    )


def naive_sample(values: Tensor, shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """(B, Q, M * D), by plain loops."""
    batch, _, heads, width = values.shape
    _, queries, _, _, points, _ = locations.shape
    output = torch.zeros(batch, queries, heads, width, dtype=values.dtype)
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                start = 0
                for level, (rows, columns) in enumerate(shapes):
                    for p in range(points):
                        # A cell's value sits at its middle.
                        x = locations[b, q, m, level, p, 0].item() * columns - 0.5
                        y = locations[b, q, m, level, p, 1].item() * rows - 0.5
                        for row in (math.floor(y), math.floor(y) + 1):
                            for column in (math.floor(x), math.floor(x) + 1):
                                if not (0 <= row < rows and 0 <= column < columns):
                                    continue
                                share = (1 - abs(y - row)) * (1 - abs(x - column))
                                cell = values[b, start + row * columns + column, m]
                                output[b, q, m] += weights[b, q, m, level, p] * share * cell
                    start += rows * columns
    return output.flatten(2)


def naive_locations(case: Case) -> Tensor:
    """(B, Q, M, L, P, 2), by plain loops."""
    locations = torch.zeros_like(case.offsets)
    batch, queries, heads, levels, points, _ = case.offsets.shape
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                for level in range(levels):
                    for p in range(points):
                        for axis in (0, 1):
                            ratio = case.valid_ratios[b, level, axis]
                            cells = case.shapes[level][1 - axis]
                            step = 1 / cells
                            if case.references.sizes is not None:
                                step = case.references.sizes[b, q, axis] * ratio / points / 2
                            locations[b, q, m, level, p, axis] = (
                                case.references.centers[b, q, axis] * ratio
                                + case.offsets[b, q, m, level, p, axis] * step
                            )
    return locations


def border_locations(shapes: LevelShapes, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """(1, Q, 1, L, 1, 2) locations on cell middles, cell borders, map edges and just beyond."""
    rows = []
    for height, width in shapes:
        # In half cells from one cell outside to one cell outside.
        ys = [(i / 2) / height for i in range(-3, 2 * height + 4)]
        xs = [(i / 2) / width for i in range(-3, 2 * width + 4)]
        random.Random(seed).shuffle(xs)
        count = max(len(ys), len(xs))
        rows.append([(xs[i % len(xs)], ys[i % len(ys)]) for i in range(count)])
    queries = max(len(row) for row in rows)
    table = [[row[i % len(row)] for row in rows] for i in range(queries)]
    return torch.tensor(table, dtype=dtype)[None, :, None, :, None]
