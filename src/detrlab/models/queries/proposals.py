"""Two-stage queries: the encoder proposes boxes, the best become the decoder's queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detrlab.models.encoders.transformer import cell_centers
from detrlab.models.heads import PredictionHead
from detrlab.models.position import box_sine_features
from detrlab.structures import (
    PROPOSALS,
    Memory,
    Predictions,
    Queries,
    References,
    SupervisedSet,
    Target,
)

BASE_SIZE = 0.05  # of a proposal on the finest level; doubled on each coarser one


class ProposalQueries(nn.Module):
    """Scores every cell of the memory as a proposal and turns the best into queries.

    Logit 0 of its head is the objectness: it is trained with all labels set to class 0.

    Args:
        num_queries: Q; fewer when the memory has fewer cells.
        width: D.
        head: predicts logits and box deltas of every cell.

    Source: arXiv 2010.04159, section 4.2 ("Two-Stage Deformable DETR") and appendix A.4, with
    the original code's sizes (0.05, 0.1, 0.2, 0.4), choice by logit 0 and Xavier matrices.
    """

    def __init__(self, num_queries: int, width: int, head: PredictionHead) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.width = width
        self.memory_proj = nn.Linear(width, width)
        self.memory_norm = nn.LayerNorm(width)
        self.head = head
        self.embedding_proj = nn.Linear(2 * width, 2 * width)
        self.embedding_norm = nn.LayerNorm(2 * width)
        nn.init.xavier_uniform_(self.memory_proj.weight)
        nn.init.xavier_uniform_(self.embedding_proj.weight)

    def forward(
        self, memory: Memory, targets: Sequence[Target] | None = None
    ) -> tuple[Queries, tuple[SupervisedSet, ...]]:
        """Queries (B, min(Q, S), D) and, to be trained, the predictions of all S cells.

        Without targets only the chosen cells get boxes.
        """
        anchors, tokens = candidates(memory, self.memory_proj, self.memory_norm)
        logits = self.head.classes(tokens)
        best = self._best(logits)
        if targets is None:
            chosen = self.head.boxes(rows(tokens, best)) + rows(anchors, best)
            return self._queries(chosen, best), ()
        unactivated = self.head.boxes(tokens) + anchors  # inf where no proposal: a box of ones
        proposals = Predictions(logits, unactivated.sigmoid())
        first_stage = SupervisedSet(PROPOSALS, proposals, class_agnostic=True)
        return self._queries(rows(unactivated, best), best), (first_stage,)

    def _best(self, logits: Tensor) -> Tensor:
        """(B, S, K') -> (B, min(Q, S)), the cells most likely to show an object."""
        count = min(self.num_queries, logits.shape[1])
        return logits[..., 0].topk(count, dim=1).indices

    def _queries(self, unactivated: Tensor, cells: Tensor) -> Queries:
        """Chosen boxes in logit space, (B, Q, 4), and their cells, (B, Q), as queries."""
        chosen = unactivated.detach().sigmoid()
        embedding = self.embedding_norm(self.embedding_proj(box_sine_features(chosen, self.width)))
        position, content = embedding.chunk(2, dim=-1)  # position first
        centers, sizes = chosen.split(2, dim=-1)
        return Queries(content, position, References(centers, sizes), cells=cells)


def rows(values: Tensor, indices: Tensor) -> Tensor:
    """(B, S, N) values, (B, Q) indices -> (B, Q, N)."""
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))


def candidates(memory: Memory, proj: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What every cell may propose: its anchor as in ``anchor_logits``, and its features.

    Returns:
        (B, S, 4) and (B, S, D); cells that may not propose have features of zeros before ``proj``.
    """
    anchors, usable = anchor_logits(memory)
    return anchors, norm(proj(memory.tokens.masked_fill(~usable[..., None], 0.0)))


def anchor_logits(memory: Memory) -> tuple[Tensor, Tensor]:
    """The box each cell starts from, in logit space, and which cells may propose at all.

    Cells that are padded, or whose box center or size lies within 0.01 of 0 or 1, may not.

    Returns:
        (B, S, 4), inf where the cell may not propose; (B, S) bool.
    """
    centers = cell_centers(memory).centers
    sizes = [
        torch.full_like(centers[:1, : height * width], BASE_SIZE * 2.0**level)
        for level, (height, width) in enumerate(memory.level_shapes)
    ]
    boxes = torch.cat([centers, torch.cat(sizes, dim=1).expand_as(centers)], dim=-1)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~memory.padding
    logits = torch.log(boxes / (1 - boxes))
    return logits.masked_fill(~usable[..., None], float("inf")), usable
