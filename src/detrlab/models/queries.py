"""Where object queries come from when they are learned (for proposals see ``proposals``)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detrlab.structures import Memory, Queries, References


def _repeat(rows: Tensor, memory: Memory) -> Tensor:
    """(Q, D) -> (B, Q, D)."""
    return rows[None].expand(memory.tokens.shape[0], -1, -1)


class QuerySource(nn.Module):
    """Where queries come from: ``forward`` turns memory into queries and proposals, or None."""

    def choose(self, memory: Memory) -> Queries:
        """The queries alone, for a source that can do that with less work."""
        queries: Queries = self(memory)[0]
        return queries


class LearnedPositions(QuerySource):
    """DETR's queries: a learned position, empty content, and no place in the image.

    Source: arXiv 2005.12872, section 3.2.
    """

    def __init__(self, num_queries: int, width: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(num_queries, width))

    def forward(self, memory: Memory) -> tuple[Queries, None]:
        """The same queries for every image."""
        position = _repeat(self.position, memory)
        return Queries(torch.zeros_like(position), position, None), None


class LearnedPoints(QuerySource):
    """Deformable DETR's queries: learned position and content, and the point they imply.

    The point depends on the query only, not on the image, and is trained by every layer.

    Source: arXiv 2010.04159, section 4.1 and appendix A.3.
    """

    def __init__(self, num_queries: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(num_queries, 2 * width))
        self.reference_points = nn.Linear(width, 2)

    def forward(self, memory: Memory) -> tuple[Queries, None]:
        """The same queries for every image."""
        position, content = self.embedding.chunk(2, dim=-1)  # position first
        logits = self.reference_points(position)
        # bfloat16 would place points on a grid of 1/256.
        centers = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
        queries = Queries(
            content=_repeat(content, memory),
            position=_repeat(position, memory),
            references=References(_repeat(centers, memory)),
        )
        return queries, None
