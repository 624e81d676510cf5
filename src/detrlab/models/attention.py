"""Attention: among queries, dense over the memory, and deformable over its levels.

Attention over the memory follows one protocol, ``(query, references, memory) -> tensor``, so
that dense and deformable attention share the encoder and decoder layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrlab.models.layers import xavier_matrices
from detrlab.ops import dense
from detrlab.ops.deformable import attend
from detrlab.ops.reference import computing_dtype, locations_and_weights, sample_cells
from detrlab.structures import Memory, References


def may_hold(padding: Tensor) -> bool:
    """Whether anything may be padded; looks only where looking is cheap and no graph is made."""
    if padding.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return bool(padding.any())


class _MultiheadAttention(nn.Module):
    """Scaled dot-product attention with packed in-projections, rows [query; key; value].

    Args:
        width: D.
        num_heads: M; D is divisible by M.
        dropout: probability of dropping an attention weight.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def reset_parameters(self) -> None:
        """Xavier for the matrices, zero for the biases, as DETR."""
        xavier_matrices(self)
        nn.init.zeros_(self.in_proj_bias)
        nn.init.zeros_(self.out_proj.bias)

    def reset_as_pytorch(self) -> None:
        """Exactly as ``nn.MultiheadAttention``, whose out-projection keeps a linear layer's start.

        The real-time detectors start so; DETR draws that matrix anew.
        """
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)
        self.out_proj.reset_parameters()
        nn.init.zeros_(self.out_proj.bias)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
        """Attend; (B, Q, D), (B, S, D), (B, S, D), bool broadcastable to (B, M, Q, S)."""
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(tokens, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = dense.attend(q, k, v, visible, dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class SelfAttention(_MultiheadAttention):
    """Attention among the object queries.

    Source: arXiv 2005.12872, section 3.2.
    """

    def forward(self, content: Tensor, position: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Mix the queries' content; the position is added for comparing only.

        Args:
            content: (B, Q, D).
            position: (B, Q, D).
            blocked: (Q, Q) bool, True where the row must not attend to the column.

        Returns:
            (B, Q, D).
        """
        query = content + position
        return self._mix(query, query, content, None if blocked is None else ~blocked)


class DenseAttention(_MultiheadAttention):
    """Attention over every unpadded cell of the memory.

    Source: arXiv 2005.12872, section 3.2.
    """

    def forward(self, query: Tensor, references: References | None, memory: Memory) -> Tensor:  # noqa: ARG002
        """(B, Q, D) -> (B, Q, D); it looks everywhere, so it needs no reference."""
        visible = ~memory.padding[:, None, None, :] if may_hold(memory.padding) else None
        return self._mix(query, memory.tokens + memory.position, memory.tokens, visible)


class DeformableAttention(nn.Module):
    """Attention over a few sampled points around a reference, on every level.

    The query (not the feature at the reference) predicts where to sample and how much each
    sample weighs; the weights are one softmax over levels and points together.

    Args:
        width: D.
        num_heads: M; D is divisible by M.
        levels: L.
        points: P per head and level, or a number for each level, finest first.
        project: project the values and the result; without, a head reads and gives its own
            part of the width.

    Source: arXiv 2010.04159, section 4.1, equation 3; arXiv 2407.17140, section 3 (points for
    each level); arXiv 2410.13842, section 5.1 (without projections).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        levels: int,
        points: int | Sequence[int],
        *,
        project: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.levels = levels
        self.counts = (points,) * levels if isinstance(points, int) else tuple(points)
        self.points = max(self.counts)
        total = num_heads * sum(self.counts)
        self.sampling_offsets = nn.Linear(width, total * 2)
        self.attention_weights = nn.Linear(width, total)
        self.value_proj: nn.Module = nn.Linear(width, width) if project else nn.Identity()
        self.output_proj: nn.Module = nn.Linear(width, width) if project else nn.Identity()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform weights; head m looks along its own direction, point p at p + 1 cells.

        Source: arXiv 2010.04159, appendix A.4, as ``MSDeformAttn._reset_parameters`` does it.
        """
        xavier_matrices(self)
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
        for each in (self.attention_weights, self.value_proj, self.output_proj):
            if isinstance(each, nn.Linear):
                nn.init.zeros_(each.bias)
        # Without memory there is nothing to fill, and PyTorch would import its whole compiler.
        if not self.sampling_offsets.bias.is_meta:
            directions = offset_directions(self.num_heads, self.counts)
            self.sampling_offsets.bias.copy_(directions.flatten())

    def forward(self, query: Tensor, references: References, memory: Memory) -> Tensor:
        """(B, Q, D) -> (B, Q, D)."""
        # Zeroed after the projection, so that its bias does not leak in from the padding.
        values = self.value_proj(memory.tokens)
        if may_hold(memory.padding):
            values = values.masked_fill(memory.padding[..., None], 0.0)
        offsets, scores = self.where(query)
        values = values.unflatten(-1, (self.num_heads, -1))
        return self.output_proj(self.mix(values, memory, references, offsets, scores))

    def mix(
        self,
        values: Tensor,
        memory: Memory,
        references: References,
        offsets: Tensor,
        scores: Tensor,
    ) -> Tensor:
        """The weighted sum of what is sampled, as ``ops.attend``."""
        shapes, ratios = memory.level_shapes, memory.valid_ratios
        return attend(values, shapes, ratios, references, offsets, scores)

    def where(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets (B, Q, M, L, P, 2) and scores (B, Q, M, L * P), as ``ops.attend`` reads them.

        A level with fewer points than others gets further ones that weigh nothing; its offsets
        count in its own number of points.
        """
        offsets = self.sampling_offsets(query).unflatten(-1, (self.num_heads, -1, 2))
        scores = self.attention_weights(query).unflatten(-1, (self.num_heads, -1))
        if min(self.counts) < self.points:
            levels = [
                F.pad(each * (self.points / count), (0, 0, 0, self.points - count))
                for each, count in zip(offsets.split(self.counts, -2), self.counts, strict=True)
            ]
            offsets = torch.cat(levels, dim=-2)
            levels = [
                F.pad(each, (0, self.points - count), value=_NEVER)
                for each, count in zip(scores.split(self.counts, -1), self.counts, strict=True)
            ]
            scores = torch.cat(levels, dim=-1)
        return offsets.unflatten(-2, (self.levels, self.points)), scores


class DiscreteAttention(DeformableAttention):
    """Deformable attention that reads single cells instead of interpolating between four.

    Where it samples has no gradient, so the sampling offsets do not train: it is for detectors
    that were trained with interpolation.

    Source: arXiv 2407.17140, section 3 ("discrete sampling"); ``cross_attn_method: discrete`` of
    lyuwenyu/RT-DETR.
    """

    def __init__(
        self, width: int, num_heads: int, levels: int, points: int | Sequence[int]
    ) -> None:
        super().__init__(width, num_heads, levels, points)
        self.sampling_offsets.requires_grad_(False)

    def mix(
        self,
        values: Tensor,
        memory: Memory,
        references: References,
        offsets: Tensor,
        scores: Tensor,
    ) -> Tensor:
        """The weighted sum of the cells."""
        locations, weights = locations_and_weights(
            memory.level_shapes,
            memory.valid_ratios,
            references,
            offsets,
            scores,
            computing_dtype(values),
        )
        shapes, ratios = memory.level_shapes, memory.valid_ratios
        return sample_cells(values, shapes, ratios, locations, weights)


_NEVER = -1e4
"""A score that weighs nothing beside others, also in half precision."""


def offset_directions(num_heads: int, counts: Sequence[int]) -> Tensor:
    """Initial sampling offsets in cells, (M, sum of the points of all levels, 2), (x, y).

    The directions lie on the unit square: (1, 0), (1, 1), (0, 1), ... for 8 heads.
    """
    angles = torch.arange(num_heads, dtype=torch.float32) * (2 * math.pi / num_heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    directions = directions / directions.abs().amax(dim=-1, keepdim=True)
    steps = torch.cat([torch.arange(1.0, count + 1) for count in counts])
    return directions[:, None] * steps[:, None]
