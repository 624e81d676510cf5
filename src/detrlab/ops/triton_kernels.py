"""Deformable sampling on a GPU by Triton kernels, as PyTorch operators of their own.

Triton is part of PyTorch's GPU builds and compiles a kernel at its first use: nothing is compiled
at installation. A program computes a block of queries of one head of one image. The backward pass
sums the gradient of the values with atomics, so its last bits depend on the order of programs.

Import this module only where ``triton`` is installed; ``ops.cuda`` does so.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from detrlab.ops import reference
from detrlab.structures import LevelShapes

_TILE = 1024
"""Numbers (queries times channels) that a program holds."""


def sample(values: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """``reference.sample``; half-precision values are summed in float32."""
    dtype = reference.computing_dtype(values)
    output: Tensor = torch.ops.detrlab.deformable_on_gpu(
        values,
        [side for shape in level_shapes for side in shape],
        locations.to(dtype),
        weights.to(dtype),
    )
    return output


@torch.library.custom_op("detrlab::deformable_on_gpu", mutates_args=(), device_types="cuda")
def _sample(values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """Values (B, S, M, D), heights and widths in turn, ... -> (B, Q, M * D)."""
    return forward(values, shapes, locations, weights)


@_sample.register_fake
def _(values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:  # noqa: ARG001
    return values.new_empty(values.shape[0], locations.shape[1], values.shape[2] * values.shape[3])


@torch.library.custom_op(
    "detrlab::deformable_on_gpu_backward", mutates_args=(), device_types="cuda"
)
def _sample_backward(
    output_grad: Tensor, values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of values, locations and weights."""
    return backward(output_grad, values, shapes, locations, weights)


@_sample_backward.register_fake
def _(
    output_grad: Tensor,  # noqa: ARG001
    values: Tensor,
    shapes: Sequence[int],  # noqa: ARG001
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(values), torch.empty_like(locations), torch.empty_like(weights)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    values, shapes, locations, weights = inputs
    ctx.save_for_backward(values, locations, weights)
    ctx.shapes = shapes


def _differentiate(ctx: Any, output_grad: Tensor) -> tuple[Tensor | None, ...]:
    values, locations, weights = ctx.saved_tensors
    grads = torch.ops.detrlab.deformable_on_gpu_backward(
        output_grad, values, ctx.shapes, locations, weights
    )
    return grads[0], None, grads[1], grads[2]


_sample.register_autograd(_differentiate, setup_context=_keep)


# --- launching ------------------------------------------------------------------------------


def forward(values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """The samples, without a gradient."""
    batch, cells, heads, width = values.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    output = values.new_empty(batch, queries, heads * width)
    tile = _tile(width)
    _forward[_grid(batch, queries, heads, tile)](
        values.contiguous(),
        _level_table(tuple(shapes), values.device),
        locations.contiguous(),
        weights.contiguous(),
        output,
        queries,
        cells,
        heads,
        width,
        levels,
        points,
        **tile,
    )
    return output


def backward(
    output_grad: Tensor, values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of values, locations and weights."""
    batch, cells, heads, width = values.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    locations, weights = locations.contiguous(), weights.contiguous()
    # Atomic sums need full precision, also for half-precision values.
    values_grad = torch.zeros(values.shape, dtype=locations.dtype, device=values.device)
    locations_grad, weights_grad = torch.empty_like(locations), torch.empty_like(weights)
    tile = _tile(width)
    _backward[_grid(batch, queries, heads, tile)](
        output_grad.contiguous(),
        values.contiguous(),
        _level_table(tuple(shapes), values.device),
        locations,
        weights,
        values_grad,
        locations_grad,
        weights_grad,
        queries,
        cells,
        heads,
        width,
        levels,
        points,
        **tile,
    )
    return values_grad.to(values.dtype), locations_grad, weights_grad


def _tile(width: int) -> dict[str, int]:
    channels = triton.next_power_of_2(width)
    return {"QUERIES": max(1, _TILE // channels), "CHANNELS": channels}


def _grid(batch: int, queries: int, heads: int, tile: dict[str, int]) -> tuple[int, int, int]:
    return triton.cdiv(queries, tile["QUERIES"]), heads, batch


@functools.lru_cache(maxsize=64)
def _level_table(shapes: tuple[int, ...], device: torch.device) -> Tensor:
    """(L, 3) int32: height, width and first cell of each level, where the kernels read it."""
    rows, start = [], 0
    for height, width in zip(shapes[::2], shapes[1::2], strict=True):
        rows.append((height, width, start))
        start += height * width
    return torch.tensor(rows, dtype=torch.int32, device=device)


# --- kernels --------------------------------------------------------------------------------
# Names of compile-time constants are capitals. Everything is contiguous.


@triton.jit
def _level(level_table, level):
    """Height, width and first cell of a level."""
    row = level_table + 3 * level
    return tl.load(row), tl.load(row + 1), tl.load(row + 2)


@triton.jit
def _place(locations, index, height, width, here):
    """The cell up and left of each point, and the distances to its centre."""
    # A cell's value lies at its centre.
    x = tl.load(locations + 2 * index, mask=here, other=0.0) * width - 0.5
    y = tl.load(locations + 2 * index + 1, mask=here, other=0.0) * height - 0.5
    left, top = tl.floor(x), tl.floor(y)
    # Far outside, the conversion to an integer might overflow.
    column = tl.minimum(tl.maximum(left, -2.0), width + 1.0).to(tl.int32)
    row = tl.minimum(tl.maximum(top, -2.0), height + 1.0).to(tl.int32)
    return row, column, y - top, x - left


@triton.jit
def _corner(values, row, column, height, width, first, head, heads, depth, channel, here):
    """The values (QUERIES, CHANNELS) of one corner of each point's cell; zero outside the map."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & here
    cell = first + row * width + column
    spot = (cell.to(tl.int64) * heads + head) * depth
    mask = inside[:, None] & (channel < depth)[None, :]
    at = spot[:, None] + channel[None, :]
    return tl.load(values + at, mask=mask, other=0.0), at, mask


@triton.jit
def _forward(
    values,
    level_table,
    locations,
    weights,
    output,
    queries,
    cells,
    heads,
    depth,
    levels,
    points,
    QUERIES: tl.constexpr,  # noqa: N803
    CHANNELS: tl.constexpr,  # noqa: N803
):
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    channel = tl.arange(0, CHANNELS)
    here = query < queries
    values += image * cells * heads * depth
    slot = ((image * queries + query) * heads + head) * levels * points  # (QUERIES,)
    kind = weights.dtype.element_ty
    total = tl.zeros((QUERIES, CHANNELS), dtype=kind)
    for level in range(levels):
        height, width, first = _level(level_table, level)
        for point in range(points):
            index = slot + level * points + point
            weight = tl.load(weights + index, mask=here, other=0.0)
            row, column, low_share, right_share = _place(locations, index, height, width, here)
            a, _, _ = _corner(
                values, row, column, height, width, first, head, heads, depth, channel, here
            )
            b, _, _ = _corner(
                values, row, column + 1, height, width, first, head, heads, depth, channel, here
            )
            c, _, _ = _corner(
                values, row + 1, column, height, width, first, head, heads, depth, channel, here
            )
            d, _, _ = _corner(
                values, row + 1, column + 1, height, width, first, head, heads, depth, channel, here
            )
            upper, lower = weight * (1 - low_share), weight * low_share
            total += (upper * (1 - right_share))[:, None] * a.to(kind)
            total += (upper * right_share)[:, None] * b.to(kind)
            total += (lower * (1 - right_share))[:, None] * c.to(kind)
            total += (lower * right_share)[:, None] * d.to(kind)
    at = ((image * queries + query) * heads + head)[:, None] * depth + channel[None, :]
    mask = here[:, None] & (channel < depth)[None, :]
    tl.store(output + at, total.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    output_grad,
    values,
    level_table,
    locations,
    weights,
    values_grad,
    locations_grad,
    weights_grad,
    queries,
    cells,
    heads,
    depth,
    levels,
    points,
    QUERIES: tl.constexpr,  # noqa: N803
    CHANNELS: tl.constexpr,  # noqa: N803
):
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    channel = tl.arange(0, CHANNELS)
    here = query < queries
    values += image * cells * heads * depth
    values_grad += image * cells * heads * depth
    slot = ((image * queries + query) * heads + head) * levels * points
    kind = weights.dtype.element_ty
    at = ((image * queries + query) * heads + head)[:, None] * depth + channel[None, :]
    mask = here[:, None] & (channel < depth)[None, :]
    grad = tl.load(output_grad + at, mask=mask, other=0.0).to(kind)
    for level in range(levels):
        height, width, first = _level(level_table, level)
        for point in range(points):
            index = slot + level * points + point
            weight = tl.load(weights + index, mask=here, other=0.0)
            row, column, low_share, right_share = _place(locations, index, height, width, here)
            a, at_a, mask_a = _corner(
                values, row, column, height, width, first, head, heads, depth, channel, here
            )
            b, at_b, mask_b = _corner(
                values, row, column + 1, height, width, first, head, heads, depth, channel, here
            )
            c, at_c, mask_c = _corner(
                values, row + 1, column, height, width, first, head, heads, depth, channel, here
            )
            d, at_d, mask_d = _corner(
                values, row + 1, column + 1, height, width, first, head, heads, depth, channel, here
            )
            dot_a = tl.sum(grad * a.to(kind), axis=1)
            dot_b = tl.sum(grad * b.to(kind), axis=1)
            dot_c = tl.sum(grad * c.to(kind), axis=1)
            dot_d = tl.sum(grad * d.to(kind), axis=1)
            upper, lower = 1 - low_share, low_share
            before, after = 1 - right_share, right_share
            found = upper * (before * dot_a + after * dot_b)
            found += lower * (before * dot_c + after * dot_d)
            along_x = upper * (dot_b - dot_a) + lower * (dot_d - dot_c)
            along_y = before * (dot_c - dot_a) + after * (dot_d - dot_b)
            tl.store(weights_grad + index, found, mask=here)
            tl.store(locations_grad + 2 * index, weight * along_x * width, mask=here)
            tl.store(locations_grad + 2 * index + 1, weight * along_y * height, mask=here)
            scaled = weight[:, None] * grad
            tl.atomic_add(values_grad + at_a, (upper * before)[:, None] * scaled, mask=mask_a)
            tl.atomic_add(values_grad + at_b, (upper * after)[:, None] * scaled, mask=mask_b)
            tl.atomic_add(values_grad + at_c, (lower * before)[:, None] * scaled, mask=mask_c)
            tl.atomic_add(values_grad + at_d, (lower * after)[:, None] * scaled, mask=mask_d)
