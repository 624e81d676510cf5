"""Every initial value, in one place, as the original code sets it.

All values are drawn from torch's generator; ``build_network`` seeds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from detrlab.models.attention import DeformableAttention, _MultiheadAttention
from detrlab.models.heads import PredictionHead
from detrlab.models.neck import Neck
from detrlab.models.position import LevelPosition
from detrlab.models.proposals import ProposalQueries
from detrlab.models.queries import LearnedPoints, LearnedPositions

INITIAL_SIZE_LOGIT = -2.0
"""Boxes of Deformable DETR start 0.119 wide and high (the paper's text says 0.1)."""


@torch.no_grad()
def init_transformer(parts: Iterable[nn.Module]) -> None:
    """Xavier for every weight matrix, then the attentions' own values.

    Biases of linear layers keep PyTorch's default, except where set below.

    Source: ``Transformer._reset_parameters`` of both original repositories.
    """
    for part in parts:
        for parameter in part.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in part.modules():
            if isinstance(module, _MultiheadAttention):
                nn.init.zeros_(module.in_proj_bias)
                nn.init.zeros_(module.out_proj.bias)
            elif isinstance(module, DeformableAttention):
                _init_deformable_attention(module)


def _init_deformable_attention(attention: DeformableAttention) -> None:
    """Uniform weights; head m looks along its own direction, point p at p + 1 cells.

    The directions lie on the unit square: (1, 0), (1, 1), (0, 1), ... for 8 heads.

    Source: arXiv 2010.04159, appendix A.4, as ``MSDeformAttn._reset_parameters`` does it.
    """
    nn.init.zeros_(attention.sampling_offsets.weight)
    attention.sampling_offsets.bias.copy_(
        offset_directions(attention.num_heads, attention.levels, attention.points).flatten()
    )
    nn.init.zeros_(attention.attention_weights.weight)
    nn.init.zeros_(attention.attention_weights.bias)
    nn.init.zeros_(attention.value_proj.bias)
    nn.init.zeros_(attention.output_proj.bias)


def offset_directions(num_heads: int, levels: int, points: int) -> Tensor:
    """Initial sampling offsets in cells, (M, L, P, 2), (x, y)."""
    angles = torch.arange(num_heads, dtype=torch.float32) * (2 * math.pi / num_heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    directions = directions / directions.abs().amax(dim=-1, keepdim=True)
    steps = torch.arange(1, points + 1, dtype=torch.float32)
    offsets = directions[:, None, None, :] * steps[None, None, :, None]
    return offsets.expand(-1, levels, -1, -1)


@torch.no_grad()
def init_neck(neck: Neck) -> None:
    """The pyramid's convolutions are Xavier with bias 0; DETR's keeps PyTorch's default.

    Source: ``DeformableDETR.__init__`` and ``DeformableTransformer._reset_parameters``.
    """
    if not isinstance(neck.position, LevelPosition):
        return
    nn.init.normal_(neck.position.level_embedding)
    for module in neck.projections.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


@torch.no_grad()
def init_queries(queries: nn.Module) -> None:
    """Embeddings are standard normal (``nn.Embedding``'s default); references are Xavier."""
    if isinstance(queries, LearnedPositions):
        nn.init.normal_(queries.position)
    elif isinstance(queries, LearnedPoints):
        nn.init.normal_(queries.embedding)
        nn.init.xavier_uniform_(queries.reference_points.weight)
        nn.init.zeros_(queries.reference_points.bias)
    elif isinstance(queries, ProposalQueries):
        init_transformer([queries.memory_proj, queries.embedding_proj])
    else:
        raise TypeError(f"no initial values for {type(queries).__name__}")


@torch.no_grad()
def init_class_bias(head: PredictionHead, bias: float | None) -> None:
    """With sigmoid scoring every class starts at its prior probability, 0.01.

    Source: arXiv 1708.02002, section 3.3.
    """
    if bias is not None:
        nn.init.constant_(head.classes.bias, bias)


@torch.no_grad()
def init_box_deltas(head: PredictionHead, size_logit: float) -> None:
    """Deltas start at zero; where the size has no reference yet it starts at ``size_logit``.

    Source: ``DeformableDETR.__init__``.
    """
    last = head.boxes.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    last.bias[2:].fill_(size_logit)
