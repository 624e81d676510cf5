"""Learned object queries (for queries from proposals see ``proposals``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detrlab.structures import Memory, Queries, References, SupervisedSet, Target

NOTHING: tuple[SupervisedSet, ...] = ()
"""What queries without a first stage supervise besides the decoder layers."""


def for_each_image(rows: Tensor, memory: Memory) -> Tensor:
    """(Q, D) -> (B, Q, D)."""
    return rows[None].expand(memory.tokens.shape[0], -1, -1)


class LearnedPositions(nn.Module):
    """DETR's queries: a learned position (standard normal), empty content, no place.

    Source: arXiv 2005.12872, section 3.2.
    """

    def __init__(self, num_queries: int, width: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(num_queries, width))
        nn.init.normal_(self.position)

    def forward(
        self,
        memory: Memory,
        targets: Sequence[Target] | None = None,  # noqa: ARG002
    ) -> tuple[Queries, tuple[SupervisedSet, ...]]:
        """The same queries for every image."""
        position = for_each_image(self.position, memory)
        return Queries(torch.zeros_like(position), position, None), NOTHING


class LearnedPoints(nn.Module):
    """Deformable DETR's queries: learned position and content, and a point made from them.

    The point depends on the query only, not on the image, and is trained by every layer.
    Embeddings start standard normal, the points' projection from Xavier's distribution.

    Source: arXiv 2010.04159, section 4.1 and appendix A.3.
    """

    def __init__(self, num_queries: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(num_queries, 2 * width))
        self.reference_points = nn.Linear(width, 2)
        nn.init.normal_(self.embedding)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(
        self,
        memory: Memory,
        targets: Sequence[Target] | None = None,  # noqa: ARG002
    ) -> tuple[Queries, tuple[SupervisedSet, ...]]:
        """The same queries for every image."""
        position, content = self.embedding.chunk(2, dim=-1)  # position first
        logits = self.reference_points(position)
        # bfloat16 would place points on a grid of 1/256.
        centers = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
        queries = Queries(
            content=for_each_image(content, memory),
            position=for_each_image(position, memory),
            references=References(for_each_image(centers, memory)),
        )
        return queries, NOTHING
