"""Scaled dot-product attention, in the fastest form for the given tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detrlab.ops.dropout import drawn, dropout

FEWEST = 1 << 21
"""Weights of an image from which blocks are faster, measured: 8 MiB no longer stay in a cache."""
BLOCK = 1 << 19
"""Weights of a block."""


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, p: float) -> Tensor:
    """``softmax(query key^T / sqrt(d)) value``, with dropout on the weights.

    Args:
        query: (B, M, Q, d).
        key: (B, M, S, d).
        value: (B, M, S, d).
        visible: bool, broadcastable to (B, M, Q, S): which keys count; None means all.
        p: probability of dropping a weight.

    Returns:
        (B, M, Q, d).
    """
    if p == 0 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=p)
    # On a CPU PyTorch has no fused form with dropout.
    weights = query.shape[1] * query.shape[2] * key.shape[2]
    usual = query.dtype == key.dtype == value.dtype and not torch.is_autocast_enabled("cpu")
    if weights > FEWEST and usual and not torch.compiler.is_compiling():
        return _InBlocks.apply(query, key, value, visible, *drawn(_shape(query, key), p))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    return dropout(scores.softmax(-1), p) @ value


def _shape(query: Tensor, key: Tensor) -> torch.Size:
    return torch.Size((*query.shape[:3], key.shape[2]))


class _InBlocks(torch.autograd.Function):
    """The same some rows at a time, without keeping the weights: backward computes them anew.

    Only whether each weight was dropped is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visible: Tensor | None,
        keep: Tensor,
        factor: float,
    ) -> Tensor:
        """``keep`` is (B, M, Q, S) bool, ``factor`` what kept weights are multiplied by."""
        ctx.save_for_backward(query, key, value, visible, keep)
        ctx.factor = factor
        found = query.new_empty(*query.shape[:3], value.shape[3])
        for image, heads, rows in _blocks(keep.shape):
            weights = _weights(query, key, visible, image, heads, rows)
            weights.mul_(keep[image, heads, rows]).mul_(factor)
            found[image, heads, rows] = weights @ value[image, heads]
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients of query, key and value."""
        query, key, value, visible, keep = ctx.saved_tensors
        of_query = torch.empty_like(query)
        of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
        scale = query.shape[-1] ** -0.5
        for image, heads, rows in _blocks(keep.shape):
            weights = _weights(query, key, visible, image, heads, rows)
            kept, given = keep[image, heads, rows], gradient[image, heads, rows]
            of_value[image, heads] += (weights * kept).mul_(ctx.factor).transpose(1, 2) @ given
            of_weights = given @ value[image, heads].transpose(1, 2)
            of_weights.mul_(kept).mul_(ctx.factor)
            of_scores = torch.ops.aten._softmax_backward_data(
                of_weights, weights, -1, weights.dtype
            ).mul_(scale)
            of_query[image, heads, rows] = of_scores @ key[image, heads]
            of_key[image, heads] += of_scores.transpose(1, 2) @ query[image, heads, rows]
        return of_query, of_key, of_value, None, None, None


def _blocks(shape: torch.Size) -> Iterator[tuple[int, slice, slice]]:
    """Image, heads and rows of every block of weights of the shape (B, M, Q, S)."""
    images, heads, queries, keys = shape
    rows = min(queries, max(1, BLOCK // keys))
    together = max(1, BLOCK // (queries * keys))
    for image in range(images):
        for head in range(0, heads, together):
            for row in range(0, queries, rows):
                yield image, slice(head, head + together), slice(row, row + rows)


def _weights(
    query: Tensor, key: Tensor, visible: Tensor | None, image: int, heads: slice, rows: slice
) -> Tensor:
    """``softmax(query key^T / sqrt(d))`` of one block."""
    scaled = query[image, heads, rows] * query.shape[-1] ** -0.5
    scores = scaled @ key[image, heads].transpose(1, 2)
    if visible is not None:
        seen = visible.expand(_shape(query, key))[image, heads, rows]
        scores.masked_fill_(~seen, float("-inf"))
    return scores.softmax(-1)
