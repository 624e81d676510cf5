"""Dense attention, one row at a time, recomputed from what the attention was given.

A row costs one projection of the memory; the whole (M, N, S) matrix is never built. For 640
pixels and DETR-DC5 that matrix would hold 8 x 1,600 x 1,600 numbers for each encoder layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detrlab.explain.capture import MemoryAttention, QueryAttention
from detrlab.models.attention import DenseAttention, SelfAttention
from detrlab.structures import Memory


@torch.no_grad()
def attention_row(call: MemoryAttention, image: int, query: int) -> Tensor:
    """How much one query of dense attention takes from each cell of the memory.

    Args:
        call: of a ``DenseAttention``.
        image: index in the batch.
        query: index of the query; in the encoder, of the cell (``cell_at``).

    Returns:
        (M, S) weights of each head; each row sums to 1, padded cells have 0.

    Source: arXiv 2005.12872, section 3.2; figures 3 and 6 draw such rows.
    """
    attention, memory = call.attention, call.memory
    assert isinstance(attention, DenseAttention), type(attention).__name__
    keys = memory.tokens[image] + memory.position[image]
    scores = _scores(attention, call.query[image, query], keys)
    return scores.masked_fill(memory.padding[image], float("-inf")).softmax(-1)


@torch.no_grad()
def query_attention_row(call: QueryAttention, image: int, query: int) -> Tensor:
    """How much one object query takes from each of the object queries: (M, Q), rows sum to 1."""
    assert isinstance(call.attention, SelfAttention), type(call.attention).__name__
    placed = call.content[image] + call.position[image]
    return _scores(call.attention, placed[query], placed).softmax(-1)


def _scores(attention: DenseAttention | SelfAttention, query: Tensor, keys: Tensor) -> Tensor:
    """Scaled dot products of one query (D,) with all keys (S, D): (M, S)."""
    heads = attention.num_heads
    query_weight, key_weight, _ = attention.in_proj_weight.chunk(3)
    query_bias, key_bias, _ = attention.in_proj_bias.chunk(3)
    q = torch.nn.functional.linear(query, query_weight, query_bias).unflatten(-1, (heads, -1))
    k = torch.nn.functional.linear(keys, key_weight, key_bias).unflatten(-1, (heads, -1))
    return torch.einsum("md,smd->ms", q, k) / q.shape[-1] ** 0.5


# --- cells of the memory --------------------------------------------------------------------


def valid_shapes(memory: Memory, image: int) -> list[tuple[int, int]]:
    """(height, width) of the unpadded part of each level of one image."""
    shapes = []
    for (height, width), ratio in zip(
        memory.level_shapes, memory.valid_ratios[image].tolist(), strict=True
    ):
        shapes.append((round(ratio[1] * height), round(ratio[0] * width)))
    return shapes


def cell_at(memory: Memory, image: int, point: tuple[float, float], level: int = 0) -> int:
    """The index of the memory's cell that covers a point.

    Args:
        memory: of the batch.
        image: index in the batch.
        point: (x, y) as fractions of the unpadded image; values outside take the nearest cell.
        level: index of the level, the finest first.
    """
    rows, columns = valid_shapes(memory, image)[level]
    row = min(max(int(point[1] * rows), 0), rows - 1)
    column = min(max(int(point[0] * columns), 0), columns - 1)
    start = sum(height * width for height, width in memory.level_shapes[:level])
    return start + row * memory.level_shapes[level][1] + column


def level_of(memory: Memory, cell: int) -> int:
    """The level that a cell of the memory lies on."""
    for level, (height, width) in enumerate(memory.level_shapes):
        if cell < height * width:
            return level
        cell -= height * width
    raise IndexError(f"the memory has no cell that far: {cell} beyond its end")


def as_maps(row: Tensor, memory: Memory, image: int) -> list[Tensor]:
    """Values of the cells as one map a level, without the padding: (..., S) -> (..., h, w)."""
    parts = row.split([height * width for height, width in memory.level_shapes], dim=-1)
    return [
        part.unflatten(-1, shape)[..., :height, :width]
        for part, shape, (height, width) in zip(
            parts, memory.level_shapes, valid_shapes(memory, image), strict=True
        )
    ]
