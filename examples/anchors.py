"""A variant of one's own: Deformable DETR whose queries are learned boxes (anchors)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detrlab.models.position import box_sine_features
from detrlab.models.queries.learned import for_each_image
from detrlab.presets.deformable import INITIAL_SIZE_LOGIT, DeformableDetrTwoStage
from detrlab.structures import Memory, Queries, References, SupervisedSet, Target


class LearnedAnchors(nn.Module):
    """Each query is a learned box; its position embedding is made from that box.

    Differs from DAB-DETR, which embeds the box of every layer anew, in keeping the position of
    the anchor, as two-stage Deformable DETR keeps that of the proposal.

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
        nn.init.normal_(self.content)
        nn.init.constant_(self.boxes, INITIAL_SIZE_LOGIT)
        with torch.no_grad():  # centers uniform over the image
            self.boxes[:, :2] = torch.logit(torch.rand(num_queries, 2), eps=1e-3)

    def forward(
        self,
        memory: Memory,
        targets: Sequence[Target] | None = None,  # noqa: ARG002
    ) -> tuple[Queries, tuple[SupervisedSet, ...]]:
        """The same queries for every image."""
        boxes: Tensor = self.boxes.float().sigmoid()  # bfloat16 would step by 1/256
        position = self.position(box_sine_features(boxes, self.width))
        centers, sizes = for_each_image(boxes, memory).split(2, dim=-1)
        content, position = (for_each_image(each, memory) for each in (self.content, position))
        return Queries(content, position, References(centers, sizes)), ()


class AnchorDetr(DeformableDetrTwoStage):
    """Refinement from learned boxes: between the refined and the two-stage detector."""

    preset: str = "deformable-detr-anchors"

    def build_queries(self) -> nn.Module:
        """The learned boxes in place of the proposals."""
        return LearnedAnchors(self.num_queries, self.width)
