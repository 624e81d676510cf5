"""Object queries that are learned boxes: anchors, the same for every image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detrlab.models.position import box_sine_features
from detrlab.models.queries.learned import QuerySource
from detrlab.structures import Memory, Queries, References


class LearnedAnchors(QuerySource):
    """Each query is a learned box; its position embedding is made from that box.

    Between the learned points of Deformable DETR and the proposals of its two-stage form: the
    first layer already looks from a box, but the box does not depend on the image.

    Differs from the reference: DAB-DETR embeds the box of every layer anew; here the position
    stays that of the anchor, because two-stage Deformable DETR does so too and the two should
    differ in one thing only.

    Source: arXiv 2201.12329, section 4.
    """

    def __init__(self, num_queries: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.boxes = nn.Parameter(torch.empty(num_queries, 4))  # logits of cxcywh fractions
        self.content = nn.Parameter(torch.empty(num_queries, width))
        self.position = nn.Sequential(
            nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, memory: Memory) -> tuple[Queries, None]:
        """The same queries for every image."""
        # bfloat16 would place boxes on a grid of 1/256.
        boxes = self.boxes.to(torch.promote_types(self.boxes.dtype, torch.float32)).sigmoid()
        position = self.position(box_sine_features(boxes, self.width))

        def for_each_image(rows: Tensor) -> Tensor:
            return rows[None].expand(memory.tokens.shape[0], -1, -1)

        centers, sizes = for_each_image(boxes).split(2, dim=-1)
        queries = Queries(
            content=for_each_image(self.content),
            position=for_each_image(position),
            references=References(centers, sizes),
        )
        return queries, None
