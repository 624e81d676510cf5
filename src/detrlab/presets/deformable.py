"""Deformable DETR, with iterative refinement, two-stage, and on a single scale.

Source: arXiv 2010.04159; fundamentalvision/Deformable-DETR.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator
from torch import nn

from detrlab.config import TrainConfig
from detrlab.models.attention import DeformableAttention
from detrlab.models.backbones.hgnet import HGNet
from detrlab.models.backbones.timm import Backbone
from detrlab.models.box_policies import point, refine
from detrlab.models.decoder import Decoder
from detrlab.models.encoders.transformer import TransformerEncoder, cell_centers, pyramid_neck
from detrlab.models.heads import PredictionHead
from detrlab.models.network import Network
from detrlab.models.position import SinePosition
from detrlab.models.queries.learned import LearnedPoints
from detrlab.models.queries.proposals import ProposalQueries
from detrlab.presets.parts import TransformerConfig, focal_criterion, timm_backbone
from detrlab.scoring import Scoring, SigmoidScoring

if TYPE_CHECKING:
    from detrlab.losses.criterion import Criterion
    from detrlab.models.box_policies import BoxPolicy

INITIAL_SIZE_LOGIT = -2.0
"""Boxes around a point start 0.119 wide and high (the paper's text says 0.1)."""


class DeformableDetr(TransformerConfig):
    """Deformable DETR: deformable attention over several levels, queries with a learned point."""

    preset: str = "deformable-detr"
    num_queries: int = Field(300, ge=1, le=100_000)
    ffn_width: int = Field(1024, ge=1, le=65_536)
    levels: int = Field(4, ge=1, le=6)
    points: int = Field(4, ge=1)
    """Sampling points per head and level."""
    position_offset: ClassVar[float] = -0.5
    backbone_maps: ClassVar[int] = 3
    """Most maps read from the backbone (C3 to C5); further levels are strided projections."""

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.width % 32:
            raise ValueError(
                f"width {self.width} must be a multiple of 32: "
                "the pyramid's GroupNorm has 32 groups"
            )
        return self

    @property
    def scoring(self) -> Scoring:
        """One sigmoid per class."""
        return SigmoidScoring()

    def build_backbone(self, *, pretrained: bool) -> Backbone | HGNet:
        """A timm backbone that gives C3 to C5, or C5 only for a single level."""
        stages = min(self.levels, self.backbone_maps)
        return timm_backbone(self, stages=stages, pretrained=pretrained)

    def build(self, backbone: nn.Module) -> Network:
        """The network around a backbone with ``channels``."""
        return Network(
            backbone=backbone,
            encoder=self.build_encoder(backbone),
            queries=self.build_queries(),
            decoder=self.build_decoder(),
        )

    def build_encoder(self, backbone: nn.Module) -> nn.Module:
        """Feature maps, padding -> ``Memory``."""
        assert isinstance(backbone, Backbone | HGNet)
        neck = pyramid_neck(backbone.channels, self.levels, self.sine_position())
        return TransformerEncoder(neck, self.encoder_stack(self.attention()), cell_centers)

    def sine_position(self) -> SinePosition:
        """Position of the memory's cells."""
        return SinePosition(self.width, self.position_offset)

    def build_queries(self) -> nn.Module:
        """Memory, targets -> queries, further supervised sets."""
        return LearnedPoints(self.num_queries, self.width)

    def build_decoder(self) -> Decoder:
        """Queries, memory -> predictions of each layer."""
        layers = self.decoder_stack(self.attention())
        return Decoder(layers, self.build_heads(), norm=nn.Identity(), boxes=self.box_policy())

    def build_heads(self) -> list[PredictionHead]:
        """One head for all layers."""
        head = self.head()
        head.boxes.start_at(INITIAL_SIZE_LOGIT)
        return [head]

    def box_policy(self) -> BoxPolicy:
        """How deltas become boxes and the next references."""
        return point

    def attention(self) -> DeformableAttention:
        """Attention over the memory."""
        return DeformableAttention(self.width, self.num_heads, self.levels, self.points)

    def criterion(self, train: TrainConfig) -> Criterion:
        """Focal, L1 and GIoU."""
        return focal_criterion(train)


class DeformableDetrRefine(DeformableDetr):
    """+ iterative bounding-box refinement: each layer starts from the boxes of the one before."""

    preset: str = "deformable-detr-refine"

    def build_heads(self) -> list[PredictionHead]:
        """One head for each layer, equal at the start; only the first sees points."""
        head = self.head()
        head.boxes.start_at(0.0)  # a box reference already has a size
        heads = [copy.deepcopy(head) for _ in range(self.decoder_layers)]
        heads[0].boxes.start_at(INITIAL_SIZE_LOGIT)
        return heads

    def box_policy(self) -> BoxPolicy:
        """Boxes become the next references."""
        return refine


class DeformableDetrTwoStage(DeformableDetrRefine):
    """++ two-stage: the encoder proposes boxes, the best become the queries."""

    preset: str = "deformable-detr-two-stage"

    def build_queries(self) -> nn.Module:
        """The best proposals of the encoder."""
        head = self.head()
        head.boxes.start_at(0.0)
        return ProposalQueries(self.num_queries, self.width, head)

    def build_heads(self) -> list[PredictionHead]:
        """One head for each layer, equal at the start; all see boxes."""
        heads = super().build_heads()
        heads[0].boxes.start_at(0.0)
        return heads


class DeformableDetrSingleScale(DeformableDetr):
    """Deformable DETR on the coarsest feature map only."""

    preset: str = "deformable-detr-single-scale"
    levels: int = Field(1, ge=1, le=6)


class DeformableDetrSingleScaleDC5(DeformableDetrSingleScale):
    """Deformable DETR on a dilated coarsest feature map only."""

    preset: str = "deformable-detr-single-scale-dc5"
    dilation: bool = True
