"""Queries selected among the encoder's proposals by their best class (DINO's first stage)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detrlab.models.heads import PredictionHead
from detrlab.models.queries.learned import for_each_image
from detrlab.models.queries.proposals import candidates, rows
from detrlab.structures import (
    PROPOSALS,
    Memory,
    Predictions,
    Queries,
    References,
    SupervisedSet,
    Target,
)


class SelectedQueries(nn.Module):
    """The cells whose best class scores highest become queries; the box is the reference.

    The chosen cells are trained with real classes. Gradients of the decoder do not reach the
    first stage. The decoder gives the queries their position (``AnchorPosition``).

    Args:
        num_queries: Q; fewer when the memory has fewer cells.
        width: D.
        head: predicts logits and box deltas of the cells.
        mixed: learned content for every query (mixed query selection) instead of the features
            of its cell (pure query selection).
        project: project and normalise the memory first.

    Source: arXiv 2203.03605, section 3.4 ("Mixed Query Selection").
    """

    def __init__(
        self,
        num_queries: int,
        width: int,
        head: PredictionHead,
        *,
        mixed: bool,
        project: bool = True,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.memory_proj = nn.Linear(width, width) if project else nn.Identity()
        self.memory_norm = nn.LayerNorm(width) if project else nn.Identity()
        self.head = head
        if isinstance(self.memory_proj, nn.Linear):
            nn.init.xavier_uniform_(self.memory_proj.weight)
        self.content = nn.Parameter(torch.empty(num_queries, width)) if mixed else None
        if self.content is not None:
            nn.init.xavier_uniform_(self.content)  # as the original's ``_reset_parameters``

    def forward(
        self, memory: Memory, targets: Sequence[Target] | None = None
    ) -> tuple[Queries, tuple[SupervisedSet, ...]]:
        """Queries (B, min(Q, S), D) and, with targets, the predictions of the chosen cells."""
        anchors, tokens = candidates(memory, self.memory_proj, self.memory_norm)
        logits: Tensor = self.head.classes(tokens)
        count = min(self.num_queries, logits.shape[1])
        chosen = logits.max(-1).values.topk(count, dim=1).indices
        features = rows(tokens, chosen)
        boxes = (self.head.boxes(features) + rows(anchors, chosen)).sigmoid()
        centers, sizes = boxes.detach().split(2, dim=-1)
        if self.content is None:
            content = features.detach()
        else:
            content = for_each_image(self.content[:count], memory)
        queries = Queries(
            content, torch.zeros_like(content), References(centers, sizes), cells=chosen
        )
        if targets is None:
            return queries, ()
        return queries, (SupervisedSet(PROPOSALS, Predictions(rows(logits, chosen), boxes)),)
