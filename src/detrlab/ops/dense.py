"""Scaled dot-product attention, in the fastest form for the given tensors."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from detrlab.ops.dropout import dropout


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
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    return dropout(scores.softmax(-1), p) @ value
