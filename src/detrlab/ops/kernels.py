"""The loops of deformable attention, compiled by Numba for one dtype and shape of the work.

One forward and one backward kernel serve both forms of the op. For each query and head they

1. place all L * P points at once, as vectors over the points: softmax, locations, the four cells
   around each point and their bilinear shares;
2. go over the points, as vectors over the channels: gather the cells (forward), or take their
   products with the output's gradient and scatter it (backward);
3. backward: turn the products into gradients of offsets and scores, over the points again.

Step 1 runs for a block of queries before step 2 does, because reading numbers just stored from
a wider register would stall. Nothing between the steps leaves the first-level cache.

A kernel takes one argument, a block of int64 fields (addresses, sizes, strides), and takes tasks
from it until none are left, so any number of threads may run it on the same block. Each output
number is written by one task, in an order that does not depend on the threads: results are the
same bit for bit with any number of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types

from detrlab.ops.vectors import (
    clamp,
    exp,
    floor,
    four_dots,
    load,
    load_interleaved,
    max_lanes,
    multiply_add,
    pointer,
    prefetch,
    store,
    store_pairs,
    sum_lanes,
    take_ticket,
    to_int,
    where_within,
    zeros,
)

VERSION = 2
"""Part of the cache key of the compiled code: increase it when vectors.py changes."""


# The int64 fields of a block.
(
    TICKET,  # the next task; the threads count it up
    TASKS,
    # sizes
    BATCH,
    QUERIES,
    HEADS,
    WIDTH,  # channels of a head
    LEVELS,
    POINTS,
    CHUNK,  # queries of a forward task
    SPLIT,  # 1: a backward task is one level, 0: all levels
    MODE,
    # element strides of the values and of their gradient
    IMAGE_STRIDE,
    HEAD_STRIDE,
    CELL_STRIDE,
    # addresses
    SHAPES,  # (L, 3) int64: height, width, first cell
    VALUES,  # strided
    RATIOS,  # (B, L, 2)
    CENTERS,  # (B, Q, 2)
    SIZES,  # (B, Q, 2)
    OFFSETS,  # (B, Q, M, L, P, 2): offsets, or locations
    SCORES,  # (B, Q, M, L * P): logits, or weights
    OUTPUT,  # (B, Q, M, D); backward: its gradient
    VALUES_GRAD,
    OFFSETS_GRAD,
    SCORES_GRAD,
    FIELDS,  # how many there are
) = range(26)

# What offsets and scores are.
(
    SAMPLE,  # locations and weights, ready to use
    AROUND_POINTS,  # offsets in cells around a point; logits
    IN_BOXES,  # offsets in P-ths of half a box; logits
) = range(3)

BLOCK = 8
"""Queries placed before their cells are read."""

_SIGNATURE = types.void(types.CPointer(types.int64))


@njit(forceinline=True)
def _axis(position: Any, size: Any) -> Any:
    """The two cells around each position along one axis, with shares and slopes.

    Outside the map shares and slopes are 0 and the cell is the nearest one inside. A position
    that is NaN gives NaN shares.
    """
    low = floor(position)
    fraction = position - low
    last = size - 1
    near = to_int(clamp(low, 0, last))
    far = to_int(clamp(low + 1, 0, last))
    near_share = where_within(low, 0, last, 1 - fraction)
    far_share = where_within(low, -1, last - 1, fraction)
    near_slope = where_within(low, 0, last, -1)
    far_slope = where_within(low, -1, last - 1, 1)
    return near, far, near_share, far_share, near_slope, far_slope


@njit(forceinline=True)
def _softmax(logits: Any) -> Any:
    powers = exp(logits - max_lanes(logits))
    return powers * (1 / sum_lanes(powers))


@njit(forceinline=True)
def _tables(
    shapes: Any, ratios: Any, image: Any, levels: Any, points: Any, mode: Any, to: Any
) -> None:
    """Fill ``to`` with six rows over the points: cells, valid cells and steps, x and y each.

    A point lies at ``center * valid + offset * size * step`` cells from the corner.
    """
    count = levels * points
    for lane in range(count):
        level = lane // points
        for axis in range(2):
            cells = shapes[3 * level + 1 - axis]
            valid = ratios[2 * (image * levels + level) + axis] * cells
            step = 1.0
            if mode == SAMPLE:
                valid, step = 0.0, 1.0 * cells
            elif mode == IN_BOXES:
                step = valid * 0.5 / points
            to[(0 + axis) * count + lane] = cells
            to[(2 + axis) * count + lane] = valid
            to[(4 + axis) * count + lane] = step


def compile_forward(dtype: Any, lanes: int, count: int, *, cache: bool) -> Any:
    """The forward kernel: writes the output.

    Args:
        dtype: ``numpy.float32`` or ``numpy.float64``.
        lanes: channels to work on at once; divides the width of a head.
        count: L * P.
        cache: keep the compiled code on disk.

    Returns:
        A Numba callback whose ``address`` takes a pointer to the block of fields.
    """
    version = VERSION
    corners = 4 * count

    def forward(data: Any) -> None:
        block = carray(data, (FIELDS,), np.int64)
        queries, heads, width = block[QUERIES], block[HEADS], block[WIDTH]
        levels, points, mode = block[LEVELS], block[POINTS], block[MODE]
        chunk = block[CHUNK]
        cell_stride = np.int32(block[CELL_STRIDE])
        # The length of one is never checked: these are C arrays.
        shapes = carray(pointer(block[SHAPES]), (1,), np.int64)
        values = carray(pointer(block[VALUES]), (1,), dtype)
        ratios = carray(pointer(block[RATIOS]), (1,), dtype)
        centers = carray(pointer(block[CENTERS]), (1,), dtype)
        sizes = carray(pointer(block[SIZES]), (1,), dtype)
        offsets = carray(pointer(block[OFFSETS]), (1,), dtype)
        scores = carray(pointer(block[SCORES]), (1,), dtype)
        output = carray(pointer(block[OUTPUT]), (1,), dtype)
        center_step = 0 if mode == SAMPLE else 2
        size_step = 2 if mode == IN_BOXES else 0

        table = np.empty(6 * count, dtype)
        starts = np.empty(count, np.int32)
        cells = np.empty(BLOCK * corners, np.int32)
        shares = np.empty(BLOCK * corners, dtype)
        for lane in range(count):
            starts[lane] = shapes[3 * (lane // points) + 2]
        chunks = (queries + chunk - 1) // chunk

        while version > 0:
            task = take_ticket(block)
            if task >= block[TASKS]:
                break
            image = task // (heads * chunks)
            head = task // chunks % heads
            first = task % chunks * chunk
            last = min(first + chunk, queries)
            origin = image * block[IMAGE_STRIDE] + head * block[HEAD_STRIDE]
            _tables(shapes, ratios, image, levels, points, mode, table)
            map_width, map_height = load(table, 0, count), load(table, count, count)
            valid_x, valid_y = load(table, 2 * count, count), load(table, 3 * count, count)
            unit_x, unit_y = load(table, 4 * count, count), load(table, 5 * count, count)
            start = load(starts, 0, count)
            row_length = to_int(map_width)

            for low in range(first, last, BLOCK):
                high = min(low + BLOCK, last)
                for query in range(low, high):
                    entry = image * queries + query
                    row = (entry * heads + head) * count
                    ahead = row + BLOCK * heads * count
                    for line in range(0, count, 16):
                        prefetch(scores, ahead + line)
                        prefetch(offsets, 2 * (ahead + line))
                        prefetch(offsets, 2 * (ahead + line) + 16)
                    x, y = load_interleaved(offsets, 2 * row, count, 2)
                    x = x * (unit_x * sizes[entry * size_step])
                    y = y * (unit_y * sizes[entry * size_step + 1])
                    x = valid_x * centers[entry * center_step] + x - 0.5
                    y = valid_y * centers[entry * center_step + 1] + y - 0.5
                    weights = load(scores, row, count)
                    if mode != SAMPLE:
                        weights = _softmax(weights)
                    left, right, left_share, right_share, _, _ = _axis(x, map_width)
                    top, bottom, top_share, bottom_share, _, _ = _axis(y, map_height)
                    top = (top * row_length + start) * cell_stride
                    bottom = (bottom * row_length + start) * cell_stride
                    left, right = left * cell_stride, right * cell_stride
                    top_share, bottom_share = top_share * weights, bottom_share * weights
                    place = (query - low) * corners
                    store(cells, place, top + left)
                    store(cells, place + count, top + right)
                    store(cells, place + 2 * count, bottom + left)
                    store(cells, place + 3 * count, bottom + right)
                    store(shares, place, top_share * left_share)
                    store(shares, place + count, top_share * right_share)
                    store(shares, place + 2 * count, bottom_share * left_share)
                    store(shares, place + 3 * count, bottom_share * right_share)

                for query in range(low, high):
                    place = (query - low) * corners
                    row = ((image * queries + query) * heads + head) * width
                    for channel in range(0, width, lanes):
                        channels = origin + channel
                        # Two sums, so that one addition need not wait for the other.
                        even, odd = zeros(values, lanes), zeros(values, lanes)
                        for corner in range(place, place + corners, 2):
                            cell = load(values, channels + cells[corner], lanes)
                            even = multiply_add(even, shares[corner], cell)
                            cell = load(values, channels + cells[corner + 1], lanes)
                            odd = multiply_add(odd, shares[corner + 1], cell)
                        store(output, row + channel, even + odd)

    return cfunc(_SIGNATURE, error_model="numpy", cache=cache)(forward)


def compile_backward(dtype: Any, lanes: int, count: int, *, cache: bool) -> Any:
    """The backward kernel: adds to the gradient of values, writes those of offsets and scores.

    When a task is one level, ``SCORES_GRAD`` receives the gradient of the softmax's result
    instead of its logits', because one level does not see the others'.

    Args:
        dtype: ``numpy.float32`` or ``numpy.float64``.
        lanes: channels to work on at once; divides the width of a head.
        count: L * P.
        cache: keep the compiled code on disk.

    Returns:
        A Numba callback whose ``address`` takes a pointer to the block of fields.
    """
    version = VERSION
    corners = 4 * count
    kept = 11 * count  # per query: two axes of shares and slopes, weights, steps

    def backward(data: Any) -> None:
        block = carray(data, (FIELDS,), np.int64)
        queries, heads, width = block[QUERIES], block[HEADS], block[WIDTH]
        levels, points, mode = block[LEVELS], block[POINTS], block[MODE]
        split = block[SPLIT]
        cell_stride = np.int32(block[CELL_STRIDE])
        shapes = carray(pointer(block[SHAPES]), (1,), np.int64)
        values = carray(pointer(block[VALUES]), (1,), dtype)
        ratios = carray(pointer(block[RATIOS]), (1,), dtype)
        centers = carray(pointer(block[CENTERS]), (1,), dtype)
        sizes = carray(pointer(block[SIZES]), (1,), dtype)
        offsets = carray(pointer(block[OFFSETS]), (1,), dtype)
        scores = carray(pointer(block[SCORES]), (1,), dtype)
        output_grad = carray(pointer(block[OUTPUT]), (1,), dtype)
        values_grad = carray(pointer(block[VALUES_GRAD]), (1,), dtype)
        offsets_grad = carray(pointer(block[OFFSETS_GRAD]), (1,), dtype)
        scores_grad = carray(pointer(block[SCORES_GRAD]), (1,), dtype)
        center_step = 0 if mode == SAMPLE else 2
        size_step = 2 if mode == IN_BOXES else 0

        table = np.empty(6 * count, dtype)
        starts = np.empty(count, np.int32)
        cells = np.empty(BLOCK * corners, np.int32)
        shares = np.empty(BLOCK * corners, dtype)
        keep = np.empty(BLOCK * kept, dtype)
        products = np.zeros(corners, dtype)
        result = np.empty(3 * count, dtype)
        for lane in range(count):
            starts[lane] = shapes[3 * (lane // points) + 2]
        parts = levels if split else 1

        while version > 0:
            task = take_ticket(block)
            if task >= block[TASKS]:
                break
            image = task // (heads * parts)
            head = task // parts % heads
            level_from = task % parts if split else 0
            level_to = level_from + 1 if split else levels
            from_point, to_point = level_from * points, level_to * points
            origin = image * block[IMAGE_STRIDE] + head * block[HEAD_STRIDE]
            _tables(shapes, ratios, image, levels, points, mode, table)
            map_width, map_height = load(table, 0, count), load(table, count, count)
            valid_x, valid_y = load(table, 2 * count, count), load(table, 3 * count, count)
            unit_x, unit_y = load(table, 4 * count, count), load(table, 5 * count, count)
            start = load(starts, 0, count)
            row_length = to_int(map_width)

            for low in range(0, queries, BLOCK):
                high = min(low + BLOCK, queries)
                for query in range(low, high):
                    entry = image * queries + query
                    row = (entry * heads + head) * count
                    ahead = row + BLOCK * heads * count
                    for line in range(0, count, 16):
                        prefetch(scores, ahead + line)
                        prefetch(offsets, 2 * (ahead + line))
                        prefetch(offsets, 2 * (ahead + line) + 16)
                    x, y = load_interleaved(offsets, 2 * row, count, 2)
                    step_x = unit_x * sizes[entry * size_step]
                    step_y = unit_y * sizes[entry * size_step + 1]
                    x = valid_x * centers[entry * center_step] + x * step_x - 0.5
                    y = valid_y * centers[entry * center_step + 1] + y * step_y - 0.5
                    weights = load(scores, row, count)
                    if mode != SAMPLE:
                        weights = _softmax(weights)
                    left, right, left_share, right_share, left_slope, right_slope = _axis(
                        x, map_width
                    )
                    top, bottom, top_share, bottom_share, top_slope, bottom_slope = _axis(
                        y, map_height
                    )
                    top = (top * row_length + start) * cell_stride
                    bottom = (bottom * row_length + start) * cell_stride
                    left, right = left * cell_stride, right * cell_stride
                    place = (query - low) * corners
                    store(cells, place, top + left)
                    store(cells, place + count, top + right)
                    store(cells, place + 2 * count, bottom + left)
                    store(cells, place + 3 * count, bottom + right)
                    store(shares, place, weights * top_share * left_share)
                    store(shares, place + count, weights * top_share * right_share)
                    store(shares, place + 2 * count, weights * bottom_share * left_share)
                    store(shares, place + 3 * count, weights * bottom_share * right_share)
                    place = (query - low) * kept
                    store(keep, place, left_share)
                    store(keep, place + count, right_share)
                    store(keep, place + 2 * count, top_share)
                    store(keep, place + 3 * count, bottom_share)
                    store(keep, place + 4 * count, left_slope * step_x)
                    store(keep, place + 5 * count, right_slope * step_x)
                    store(keep, place + 6 * count, top_slope * step_y)
                    store(keep, place + 7 * count, bottom_slope * step_y)
                    store(keep, place + 8 * count, weights)

                for query in range(low, high):
                    place = (query - low) * corners
                    entry = (image * queries + query) * heads + head
                    for channel in range(0, width, 16):
                        prefetch(output_grad, (entry + BLOCK * heads) * width + channel)
                    for channel in range(0, width, lanes):
                        channels = origin + channel
                        grad = load(output_grad, entry * width + channel, lanes)
                        for point in range(from_point, to_point):
                            corner = place + point
                            a = channels + cells[corner]
                            b = channels + cells[corner + count]
                            c = channels + cells[corner + 2 * count]
                            d = channels + cells[corner + 3 * count]
                            dots = four_dots(
                                grad,
                                load(values, a, lanes),
                                load(values, b, lanes),
                                load(values, c, lanes),
                                load(values, d, lanes),
                            )
                            if channel:
                                dots = dots + load(products, 4 * point, 4)
                            store(products, 4 * point, dots)
                            # One after the other: the corners may be the same cell.
                            old = load(values_grad, a, lanes)
                            store(values_grad, a, multiply_add(old, shares[corner], grad))
                            old = load(values_grad, b, lanes)
                            share = shares[corner + count]
                            store(values_grad, b, multiply_add(old, share, grad))
                            old = load(values_grad, c, lanes)
                            share = shares[corner + 2 * count]
                            store(values_grad, c, multiply_add(old, share, grad))
                            old = load(values_grad, d, lanes)
                            share = shares[corner + 3 * count]
                            store(values_grad, d, multiply_add(old, share, grad))

                    kept_at = (query - low) * kept
                    left_share = load(keep, kept_at, count)
                    right_share = load(keep, kept_at + count, count)
                    top_share = load(keep, kept_at + 2 * count, count)
                    bottom_share = load(keep, kept_at + 3 * count, count)
                    left_slope = load(keep, kept_at + 4 * count, count)
                    right_slope = load(keep, kept_at + 5 * count, count)
                    top_slope = load(keep, kept_at + 6 * count, count)
                    bottom_slope = load(keep, kept_at + 7 * count, count)
                    weights = load(keep, kept_at + 8 * count, count)
                    top_left, top_right, bottom_left, bottom_right = load_interleaved(
                        products, 0, count, 4
                    )
                    top = left_share * top_left + right_share * top_right
                    bottom = left_share * bottom_left + right_share * bottom_right
                    weights_grad = top_share * top + bottom_share * bottom
                    y_grad = weights * (top_slope * top + bottom_slope * bottom)
                    left = top_share * top_left + bottom_share * bottom_left
                    right = top_share * top_right + bottom_share * bottom_right
                    x_grad = weights * (left_slope * left + right_slope * right)
                    row = entry * count
                    if split:
                        store_pairs(result, 0, x_grad, y_grad)
                        store(result, 2 * count, weights_grad)
                        for point in range(from_point, to_point):
                            offsets_grad[2 * (row + point)] = result[2 * point]
                            offsets_grad[2 * (row + point) + 1] = result[2 * point + 1]
                            scores_grad[row + point] = result[2 * count + point]
                    else:
                        if mode != SAMPLE:
                            mean = sum_lanes(weights * weights_grad)
                            weights_grad = weights * (weights_grad - mean)
                        store_pairs(offsets_grad, 2 * row, x_grad, y_grad)
                        store(scores_grad, row, weights_grad)

    return cfunc(_SIGNATURE, error_model="numpy", cache=cache)(backward)
